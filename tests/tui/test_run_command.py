"""``qmpalloc run`` on a real pseudo-terminal with simulated guests: keys, signals, exit codes, what it leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pexpect
import pytest

from qmpalloc.events import ControlChanged, Decided, Ended, Header
from qmpalloc.record import read_record
from qmpalloc.tui.comparison import comparison_table

GUESTS = """
import sys, trio
from pathlib import Path
from qmpalloc.sim import Load
from qmpalloc.testing import FakeBalloon, open_simulated_guest

async def main(directory, inflate_bytes_per_s):
    small, large = (Load(file_pages=pages, accesses_per_s=2000.0) for pages in (9000, 300000))
    balloons = [FakeBalloon(1 << 30, inflate_bytes_per_s=inflate_bytes_per_s) for _ in range(2)]
    async with (
        open_simulated_guest("small", directory, load=small, memory_bytes=1 << 30, balloon=balloons[0]),
        open_simulated_guest("large", directory, load=large, memory_bytes=1 << 30, balloon=balloons[1]),
    ):
        print("ready", flush=True)
        await trio.sleep_forever()

trio.run(main, Path(sys.argv[1]), float(sys.argv[2]))
"""
CONFIG = """
[host]
budget = "1GiB"
[control]
interval = "1s"
[policy]
name = "paper"
step = "16MiB"
"""
GUEST = """
[[guest]]
name = "{0}"
monitor = "{0}.qmp"
agent = "{0}.agent"
floor = "256MiB"
cap = "1GiB"
baseline = "512MiB"
"""


@pytest.fixture
def directory(tmp_path, request):
    """A configuration and its guests, whose balloons are as fast as the parameter says, bytes per second."""
    rate = str(getattr(request, "param", "inf"))
    (tmp_path / "lab.toml").write_text(CONFIG + GUEST.format("small") + GUEST.format("large"))
    guests = subprocess.Popen([sys.executable, "-c", GUESTS, str(tmp_path), rate], stdout=subprocess.PIPE, text=True)
    assert guests.stdout.readline() == "ready\n"
    yield tmp_path
    guests.kill()
    guests.wait()
    guests.stdout.close()


def begun(directory, *python, columns=80):
    """Begin a run on a terminal of its own."""
    command = [*(python or ("-m", "qmpalloc")), "run", "lab.toml", "--out", "out"]
    environment = {**os.environ, "TERM": "xterm-256color"}
    return pexpect.spawn(
        sys.executable, command, cwd=str(directory), env=environment, dimensions=(24, columns), timeout=60,
        use_poll=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where the tests run under nohup
    )  # fmt: skip


def has_moved(line):
    """Return whether this line of a record is a whole one, of a decision that moves memory."""
    event = json.loads(line) if line.endswith(b"\n") else {}
    return event.get("type") == "decision" and bool(event["decision"].get("moves"))


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda child: child.send("q"), 0),
        (lambda child: child.kill(signal.SIGINT), 130),
        (lambda child: child.kill(signal.SIGTERM), 130),
        (lambda child: child.kill(signal.SIGHUP), 130),
    ],
    ids=["q", "SIGINT", "SIGTERM", "SIGHUP"],
)
def test_however_it_ends_guests_are_back_and_the_record_is_whole(directory, end, code):
    child = begun(directory)
    child.expect("RUNNING")
    record = directory / "out" / "record.jsonl"
    while not any(has_moved(line) for line in record.read_bytes().splitlines(keepends=True)):
        time.sleep(0.1)
    end(child)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == code
    events = list(read_record(record))
    assert isinstance(events[-1], Ended)
    assert events[-1].clean
    summary = json.loads((directory / "out" / "summary.json").read_text())
    assert summary["found_bytes"] == 2 << 30
    assert summary["max_committed_bytes"] <= summary["budget_bytes"]
    assert summary["moves"] >= 1


@pytest.mark.parametrize("directory", [2 << 20], indirect=True)
def test_ctrl_c_after_q_does_not_wait_for_the_guests(directory):
    child = begun(directory)
    child.expect("SETTLING")
    child.send("q")
    child.expect("RETURNING")
    child.expect("do not wait for the guests")
    child.kill(signal.SIGINT)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 1
    *_, last = read_record(directory / "out" / "record.jsonl")
    assert not last.clean
    assert last.t < 60  # they need 256 s to their baselines


@pytest.mark.parametrize("directory", [2 << 20], indirect=True)
def test_signals_that_come_together_end_it_in_order_without_waiting(directory):
    process = subprocess.Popen(
        [sys.executable, "-m", "qmpalloc", "run", "lab.toml", "--out", "out"],
        cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "control settling" not in process.stdout.readline():
        pass
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # different ones: the same might count once
        process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, "")
    assert re.search(r"^ *guest +start +end", said, re.MULTILINE)
    assert said.endswith("record: out/record.jsonl\n")
    *_, last = read_record(directory / "out" / "record.jsonl")
    assert isinstance(last, Ended)
    assert not last.clean
    assert json.loads((directory / "out" / "summary.json").read_text())["reason"] == last.reason


def test_a_signal_while_the_closing_table_is_made_takes_nothing_away(directory):
    program = """
import os, signal
from qmpalloc import __main__
from qmpalloc.cli import conduct
made = conduct.closing_table
def closing_table(dashboard):
    os.kill(os.getpid(), signal.SIGINT)
    return made(dashboard)
conduct.closing_table = closing_table
__main__.main()
"""
    result = subprocess.run(
        [sys.executable, "-c", program, "run", "lab.toml", "--duration", "1s", "--out", "out"],
        cwd=directory, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"^ *guest +start +end", result.stdout, re.MULTILINE)
    assert result.stdout.endswith("record: out/record.jsonl\n")


def test_when_nobody_reads_any_more_the_guests_go_home(directory):
    process = subprocess.Popen(
        [sys.executable, "-m", "qmpalloc", "run", "lab.toml", "--out", "out"],
        cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "decision 2" not in process.stdout.readline():
        pass
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (1, "")
    process.stderr.close()
    first, *_, last = read_record(directory / "out" / "record.jsonl")
    assert isinstance(first, Header)
    assert last.clean
    assert last.reason == "nobody reads the output"


def test_a_summary_that_cannot_be_written_hides_no_table(directory):
    command = [sys.executable, "-m", "qmpalloc", "run", "lab.toml", "--out", "out", "--duration", "2500ms"]
    process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "decision 1" not in process.stdout.readline():
        pass
    (directory / "out").rename(directory / "moved")
    said, wrong = process.communicate(timeout=60)
    assert re.search(r"^ *guest +start +end", said, re.MULTILINE)
    assert (process.returncode, wrong) == (1, "error: out/summary.json cannot be written: No such file or directory\n")


def test_under_nohup_a_run_outlives_its_terminal(directory):
    command = ["nohup", sys.executable, "-m", "qmpalloc", "run", "lab.toml", "--out", "out"]
    record = directory / "out" / "record.jsonl"
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        for line in child.stdout:
            if "control running" in line:
                child.send_signal(signal.SIGHUP)
            if "decision 2" in line:
                child.send_signal(signal.SIGTERM)
    assert child.returncode == 130
    *_, last = read_record(record)
    assert (last.reason, last.clean) == ("interrupted by SIGTERM", True)


def test_equal_shares_come_first_where_that_is_asked(directory):
    code = (
        "import sys, trio; from pathlib import Path; from qmpalloc import config; from qmpalloc.cli import conduct;"
        "loaded = config.load(Path('lab.toml')); out = Path('out');"
        "sys.exit(trio.run(lambda: conduct.conduct_run(loaded, 'run', conduct.Output.LINES, 6.0, out, equal_s=3.0)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    record = list(read_record(directory / "out" / "record.jsonl"))
    changes = [event for event in record if isinstance(event, ControlChanged)]
    assert [event.control for event in changes][-5:] == ["running", "paused", "running", "returning", "stopped"]
    assert "equal shares first" in result.stdout
    paused, resumed = changes[-4].t, changes[-3].t
    assert resumed - paused >= 3.0
    moved = [event.t for event in record if isinstance(event, Decided) and event.decision.moves]
    assert not [t for t in moved if paused < t < resumed]
    assert comparison_table(record) is not None


def test_without_a_terminal_it_prints_lines(directory):
    command = [sys.executable, "-m", "qmpalloc", "run", "lab.toml", "--duration", "2500ms", "--no-record"]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(r"decision \d: small → large 16M; small e [0-9.]+ 496M", result.stdout)
    assert "\x1b" not in result.stdout
    assert not (directory / "runs").exists()


@pytest.mark.parametrize("part", ["qmpalloc.tui.live._Screen.paint", "qmpalloc.tui.live.press"])
def test_a_dashboard_that_fails_ends_no_run_and_lines_follow(directory, part):
    """Before its first frame, or at a key."""
    program = (
        "import unittest.mock; from qmpalloc.__main__ import main; "
        f"unittest.mock.patch({part!r}, side_effect=ZeroDivisionError).start(); main()"
    )
    child = begun(directory, "-c", program, columns=200)
    if part.endswith("press"):
        child.expect("RUNNING")
        child.send("x")
    child.expect("the dashboard has failed: .*ZeroDivisionError")
    child.expect("small")
    child.kill(signal.SIGINT)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    *_, last = read_record(directory / "out" / "record.jsonl")
    assert last.clean
