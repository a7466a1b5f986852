"""What the README tells a newcomer to type works: a QEMU started by hand, and every command run against it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qmpalloc.events import Commanded, Decided, Ended, Sampled
from qmpalloc.host.qemus import find_qemus
from qmpalloc.record import read_record

pytestmark = pytest.mark.long

README = (Path(__file__).parents[2] / "README.md").read_text()
BIN = str(Path(sys.executable).parent)


def block(language, containing):
    """Return the README's code block of a language that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(text for text in blocks if containing in text)


def qmpalloc(directory, *arguments, timeout_s=120):
    command = [sys.executable, "-m", "qmpalloc", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture(scope="module")
def directory(image, tmp_path_factory):
    """A directory with the README's configuration, and its QEMU running in it."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    # Sockets have short paths, so not pytest's own.
    place = tmp_path_factory.mktemp("r")
    (place / "lab.toml").write_text(block("toml", "budget"))
    script = block("sh", "qemu-system-x86_64")
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    with (place / "qemu.log").open("wb") as log:
        shell = subprocess.Popen(
            ["sh", "-c", script], cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until_observed(place, shell)
        yield place
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait()


def wait_until_observed(place, shell, timeout_s=400):
    """Let doctor say when the guest is ready, as a person would."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        result = qmpalloc(place, "doctor", "lab.toml")
        assert shell.poll() is None, (place / "qemu.log").read_text()
        if result.returncode == 0 and re.search(r"✓ web +collector", result.stdout):  # a warning while it compiles
            print(result.stdout)
            return
        assert time.monotonic() < deadline_s, result.stdout + result.stderr
        time.sleep(2)


def test_init_writes_a_configuration_that_doctor_accepts(directory):
    (pid,) = [qemu.pid for qemu in find_qemus() if directory in qemu.directories and "unix:web.qmp" in str(qemu.argv)]
    result = qmpalloc(directory, "init", str(pid), "-o", "found.toml")
    assert result.returncode == 0, result.stderr
    print((directory / "found.toml").read_text())
    result = qmpalloc(directory, "doctor", "found.toml")
    assert result.returncode == 0, result.stdout


def test_plan(directory):
    result = qmpalloc(directory, "plan", "lab.toml")
    assert result.returncode == 0, result.stderr
    print(result.stdout)
    assert "web" in result.stdout
    assert "nothing was changed" in result.stdout


def test_watch_sends_no_balloon_command(directory):
    result = qmpalloc(directory, "watch", "lab.toml", "--headless", "--duration", "6s", "--out", "watched")
    assert result.returncode == 0, result.stderr
    events = list(read_record(directory / "watched" / "record.jsonl"))
    assert len([event for event in events if isinstance(event, Sampled)]) >= 4
    assert not [event for event in events if isinstance(event, Commanded)]


def test_run_controls_a_qemu_that_somebody_else_started(directory):
    result = qmpalloc(directory, "run", "lab.toml", "--headless", "--duration", "12s", "--out", "controlled")
    print(result.stdout)
    assert result.returncode == 0, result.stderr
    events = list(read_record(directory / "controlled" / "record.jsonl"))
    decided = [event for event in events if isinstance(event, Decided)]
    assert decided[-1].snapshot.guests[0].state == "fresh"
    assert isinstance(events[-1], Ended)
    assert events[-1].clean
    # One guest has no partner, so all the rule can do is nothing; what moved it is the return to its baseline.
    last = [event for event in events if isinstance(event, Commanded)][-1]
    assert last.target_bytes == 768 << 20
    assert not last.error


def test_a_socket_held_by_somebody_is_named_with_its_holder(directory):
    import socket

    with socket.socket(socket.AF_UNIX) as other:
        other.connect(os.path.relpath(directory / "web.qmp"))
        other.recv(1000)
        result = qmpalloc(directory, "doctor", "lab.toml")
    assert result.returncode == 1
    assert f"(pid {os.getpid()})" in result.stdout
    assert "one client per socket" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
