"""The dashboard on a real pseudo-terminal: keys, resizes, and the terminal afterwards, however the program ended."""

import os
import re
import shlex
import signal
import sys
import termios
from pathlib import Path

import pexpect
import pyte
import pytest
from synthetic import run

from qmpalloc import events

HERE = Path(__file__).parent
PYTHON = shlex.quote(sys.executable)
PROGRAM = f"{PYTHON} {shlex.quote(str(HERE / 'live_program.py'))}"
REPLAY = f"{PYTHON} -c 'from qmpalloc.cli.replay import replay; replay()'"
SHELL = "trap : INT; stty -g; {program} {arguments}; echo EXIT=$?; stty -g; echo OVER"


class Session:
    """A shell that runs the program between two prints of the terminal's settings, and the screen one would see."""

    def __init__(self, arguments, *, program=PROGRAM, columns=80, lines=24):
        self.raw = ""
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.Stream(self.screen)
        environ = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        environ["PYTHONPATH"] = f"{HERE}:{HERE.parents[1]}"  # the package of this tree, wherever one is installed
        environ |= {key: value for key, value in os.environ.items() if key.startswith("COVERAGE")}
        self.child = pexpect.spawn(
            "/bin/sh", ["-c", SHELL.format(program=program, arguments=arguments)],
            dimensions=(lines, columns), encoding="utf-8", timeout=30, cwd=str(HERE.parents[1]), env=environ,
            # Whoever runs the tests in the background ignores Ctrl-C, and so would everything they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def wait(self, condition):
        """Read until the screen as one string satisfies `condition`."""
        while not condition(self.text):
            self.take(self.child.read_nonblocking(65536, timeout=30))

    def take(self, text):
        self.raw += text
        self.stream.feed(text)

    @property
    def text(self):
        return "\n".join(self.screen.display)

    @property
    def pid(self):
        return int(re.search(r"PID (\d+)", self.raw)[1])

    def interrupt(self):
        self.child.sendintr()

    def resize(self, columns, lines):
        self.screen.resize(lines, columns)
        self.child.setwinsize(lines, columns)

    def finish(self):
        """Read to the end; return the exit code after checking that the terminal is as it was."""
        self.child.expect(pexpect.EOF)
        self.take(self.child.before)
        self.child.close()
        settings = re.findall(r"(?m)^[0-9a-f]+(?::[0-9a-f]+)+\r?$", self.raw)
        assert len(settings) == 2
        assert settings[0] == settings[1]
        assert self.raw.rindex("\x1b[?1049l") > self.raw.rindex("\x1b[?1049h")
        assert self.raw.rindex("\x1b[?25h") > self.raw.rindex("\x1b[?25l")
        return int(re.search(r"EXIT=(\d+)", self.raw)[1])


@pytest.fixture
def session():
    sessions = []

    def start(*arguments, **options):
        sessions.append(Session(" ".join(map(str, arguments)), **options))
        sessions[-1].wait(lambda text: "quit" in text)
        return sessions[-1]

    yield start
    for each in sessions:
        each.child.close(force=True)


def test_keys(session):
    terminal = session(2)
    assert "▌web" in terminal.text
    terminal.child.send("x\x1b[Z")  # not keys of ours
    terminal.child.send("j")
    terminal.wait(lambda text: "▌db" in text)
    terminal.child.send("\x1b[A")
    terminal.wait(lambda text: "▌web" in text)
    terminal.child.send("p")
    terminal.wait(lambda text: "PAUSED: no decision is carried out (key)" in text)
    terminal.child.send("p")
    terminal.wait(lambda text: "PAUSED:" not in text)
    terminal.child.send("bn")
    terminal.child.send("b")
    terminal.wait(lambda text: "Return every guest to its baseline?" in text)
    assert "RETURNING" not in terminal.text
    terminal.child.send("y")
    terminal.wait(lambda text: "RETURNING every guest to its baseline (key)" in text)
    terminal.child.send("q")
    assert terminal.finish() == 0


def test_many_guests_are_explained_sorted_and_found(session):
    terminal = session(40)
    assert "guests 1.." in terminal.text
    terminal.child.send("?")
    terminal.wait(lambda text: "─ columns" in text and "find in names and states" in text)
    terminal.child.send("?ss")
    terminal.wait(lambda text: "of 40 by page-ins" in text)
    terminal.child.send("/search2")
    terminal.wait(lambda text: "show: search2▏" in text and " search29 " in text and " web " not in text)
    terminal.child.send("q\x7f\r")
    terminal.wait(lambda text: "with “search2” by page-ins" in text and " q  quit" in text)
    terminal.child.send("/\x1b")
    terminal.wait(lambda text: "of 40 by page-ins" in text)
    terminal.child.send("q")
    assert terminal.finish() == 0


def test_a_resize_repaints_the_whole_screen(session):
    terminal = session(12)
    assert " guest  state " in terminal.text
    terminal.resize(160, 50)
    terminal.wait(lambda text: "faults and changes" in text.split("last decisions")[-1])
    terminal.wait(lambda text: "quit" in text.splitlines()[49])
    assert "multi-gen" in terminal.text
    terminal.resize(60, 12)
    terminal.wait(lambda text: " of 12" in text and "quit" in text.splitlines()[11])
    assert "multi-gen" not in terminal.text
    terminal.child.send("q")
    assert terminal.finish() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_after_a_signal(session, number):
    terminal = session(2)
    os.kill(terminal.pid, number)
    assert terminal.finish() == 0


def test_the_terminal_is_restored_after_ctrl_c(session):
    terminal = session(2)
    terminal.interrupt()
    terminal.finish()
    assert "KeyboardInterrupt" in terminal.raw


def test_the_terminal_is_restored_after_an_exception(session):
    terminal = session(2, "fail")
    terminal.child.send("p")
    assert terminal.finish() == 1
    # It is told on the screen that the shell has, not on the one that is gone.
    assert "the program failed" in terminal.raw[terminal.raw.rindex("\x1b[?1049l") :]


def test_ctrl_z_gives_the_terminal_back_and_says_that_control_rests(session):
    terminal = session(2)
    terminal.child.send("\x1a")
    terminal.wait(lambda text: "qmpalloc is suspended: no memory is moved" in text)
    assert terminal.raw.rindex("\x1b[?1049l") > terminal.raw.rindex("\x1b[?1049h")
    assert termios.tcgetattr(terminal.child.child_fd)[3] & termios.ECHO
    terminal.screen.reset()
    # The shell of this test has no job control, so we do what `fg` does.
    os.kill(terminal.pid, signal.SIGCONT)
    terminal.wait(lambda text: "quit" in text and "▌web" in text)
    terminal.child.send("q")
    assert terminal.finish() == 0


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "record.jsonl"
    path.write_bytes(b"".join(events.encoder.encode(event) + b"\n" for event in run(2, 40, end=True)))
    return shlex.quote(str(path))


def test_a_replay_can_be_paused_and_ends_where_the_run_ended(session, record):
    terminal = session(record, "--speed 0.001 --at 20", program=REPLAY)
    terminal.wait(lambda text: "REPLAY x0.001" in text and "0:20" in text.splitlines()[0])
    terminal.child.send("bp")
    terminal.wait(lambda text: "REPLAY paused" in text)
    assert "baseline" not in terminal.text
    terminal.child.send("q")
    assert terminal.finish() == 0

    terminal = session(record, "--speed 200", program=REPLAY)
    terminal.wait(lambda text: "REPLAY over" in text and "ENDED: quit by the user" in text)
    terminal.interrupt()
    assert terminal.finish() == 130
