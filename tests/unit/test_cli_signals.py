"""Signals at any moment: before a command has anything to leave in order, while it works, and at its last words."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import trio

from qmpalloc.cli import signals
from qmpalloc.cli.signals import STOP_SIGNALS, StopSignals, interruptible, run_until_signal

SLOW = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
"""A module that takes long to import."""


@pytest.fixture(autouse=True)
def handlers():
    """Handlers that raise, so that a signal that is not heeded fails a test; they must be in place again at the end."""

    def fail(number, frame):
        raise AssertionError(f"signal {number} came through")

    before = {number: signal.signal(number, fail) for number in STOP_SIGNALS}
    yield
    left = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert set(left.values()) == {fail}


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("module", ["click", "trio"])
def test_while_modules_are_imported_a_signal_ends_it_without_a_word(tmp_path, module, number):
    (tmp_path / f"{module}.py").write_text(SLOW)
    (tmp_path / "lab.toml").write_text(
        '[host]\nbudget = "1GiB"\n[[guest]]\nname = "a"\nmonitor = "m"\nagent = "a"\n'
        'floor = "1MiB"\ncap = "2MiB"\nbaseline = "1MiB"\n'
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "qmpalloc", "plan", "lab.toml"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in STOP_SIGNALS],
    )  # fmt: skip
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, ("", ""))


@pytest.mark.parametrize("number", STOP_SIGNALS)
async def test_what_comes_while_a_command_works_is_received(number):
    with StopSignals() as stop:
        send(number)
        assert await anext(stop.received) == number


async def test_what_comes_too_late_to_be_heeded_cuts_nothing_short():
    with StopSignals() as stop:
        send(signal.SIGINT, signal.SIGTERM)
        stop.rest()  # before anybody looked at them
        send(signal.SIGINT, signal.SIGHUP)
        await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()


async def test_last_words_that_nobody_takes_can_be_cut_short(monkeypatch):
    ended, times = [], iter([100.0, 100.5, 101.5])
    monkeypatch.setattr(signals, "os", SimpleNamespace(_exit=ended.append))
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with StopSignals() as stop:
        stop.rest()
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert ended == []
        send(signal.SIGINT)
        assert ended == [130]


def test_a_loop_that_a_signal_ends_cleans_up_and_is_an_interruption():
    cleaned = []

    async def work(say):
        assert say == "x"
        try:
            send(signal.SIGTERM)
            await trio.sleep_forever()
        finally:
            send(signal.SIGTERM)  # impatience changes nothing
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt):
        run_until_signal(work, "x")
    assert cleaned


def test_a_loop_that_does_not_end_can_be_cut_short(monkeypatch):
    ended, times = [], iter([100.0, 101.5])
    monkeypatch.setattr(signals, "os", SimpleNamespace(_exit=ended.append))
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: next(times)))

    async def work():
        for _ in range(3):
            send(signal.SIGINT)  # and all the while it never waits

    assert run_until_signal(work) is None
    assert ended == [130]


def test_a_loop_that_no_signal_ends_returns_its_result():
    async def work():
        await trio.lowlevel.checkpoint()

    assert run_until_signal(work) is None


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_outside_of_a_loop_a_signal_is_an_exception_where_it_is_wanted(number):
    with pytest.raises(KeyboardInterrupt), interruptible():
        send(number)


def test_what_nohup_has_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            send(signal.SIGHUP)
        assert signal.SIGHUP not in signals.stop_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signals.stop_signals() == STOP_SIGNALS
