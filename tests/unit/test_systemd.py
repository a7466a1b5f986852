"""What systemd is told of a run, and the unit that is shipped."""

import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from qmpalloc.cli.notify import notify, notify_control, run_watchdog
from qmpalloc.cli.run import run
from qmpalloc.events import ControlChanged, Ended

UNIT = Path(__file__).parents[2] / "examples/systemd/qmpalloc@.service"


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Returns a function that gives what systemd was told since."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def take():
            try:
                return systemd.recv(4096).decode().split("\n")
            except BlockingIOError:
                return []

        yield take


def control(word, detail=""):
    return ControlChanged(t=0, wall=0, control=word, detail=detail)


def test_a_run_is_ready_when_it_looks_at_its_guests_and_stopping_when_it_returns_them(told):
    notify_control(control("settling"))
    assert told() == ["READY=1", "STATUS=settling"]
    notify_control(control("paused", "by a\nperson"))
    assert told() == ["READY=1", "STATUS=paused by a; person"]
    notify_control(control("returning"))
    assert told()[0] == "STOPPING=1"
    notify_control(Ended(t=0, wall=0, reason="", clean=True))
    assert told() == []


def test_an_abstract_socket(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("")  # Linux chooses an abstract one
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + systemd.getsockname()[1:].decode())
        notify("READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_a_systemd_that_has_gone_is_no_trouble(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


async def test_the_watchdog_hears_of_us_in_time(told, monkeypatch, nursery, autojump_clock):
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    nursery.start_soon(run_watchdog)
    await trio.sleep(10.5)
    assert told() == ["WATCHDOG=1"]
    assert told() == []
    nursery.cancel_scope.cancel()


def test_a_run_tells_it(told, tmp_path):
    guest = 'name = "a"\nmonitor = "a"\nagent = "b"\nfloor = "1MiB"\ncap = "1MiB"\nbaseline = "1MiB"\n'
    (tmp_path / "lab.toml").write_text(f'[host]\nbudget = "1GiB"\n[[guest]]\n{guest}')
    words = ["run", "lab.toml", "--duration", "1s", "--no-record", "--headless"]
    subprocess.run([sys.executable, "-m", "qmpalloc", *words], cwd=tmp_path, capture_output=True, check=False)
    messages = []
    while message := told():
        messages.append(message)
    assert messages[0][0] == "READY=1"
    assert messages[-1] == ["STOPPING=1", "STATUS=stopped duration reached"]


def test_the_unit_calls_a_command_that_there_is():
    (line,) = re.findall(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
    program, command, *arguments = shlex.split(line)
    assert (Path(program).name, command) == ("qmpalloc", "run")
    options = {name for param in run.params for name in param.opts}
    assert {word for word in arguments if word.startswith("-")} <= options
    assert "--no-record" in arguments  # it runs for ever, and no record has a bound


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    text = UNIT.read_text().replace("/usr/local/bin/qmpalloc", sys.executable)
    copy = tmp_path / "qmpalloc@lab.service"
    copy.write_text(re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE))
    result = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert copy.name not in result.stderr, result.stderr
    assert result.returncode == 0
