"""Standard streams that are closed, full or read by nobody: no traceback, one exit code, nothing half done."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.table import Table

from qmpalloc.cli.streams import _Output, table_console
from qmpalloc.events import Ended, Header
from qmpalloc.record import read_record

pytestmark = pytest.mark.timeout(180)  # many processes, one after the other

SMOKE = str(Path(__file__).parents[2] / "examples" / "smoke.toml")
CONFIG = """
[host]
budget = "1GiB"
[control]
interval = "500ms"
[[guest]]
name = "web"
monitor = "web.qmp"
agent = "web.agent"
floor = "256MiB"
cap = "1GiB"
baseline = "512MiB"
"""
COMMANDS = [
    "--help",
    "doctor",
    "plan lab.toml",
    "run lab.toml --out new --duration 1s",
    "watch lab.toml --out new --duration 1s",
    "replay old/record.jsonl --plain",
    f"experiment run {SMOKE} --dry-run",
    "image ls --json",
    "vm ls --json",
]
FAILING = {
    ">&-": "error: standard output cannot be written: Bad file descriptor\n",
    ">/dev/full": "error: standard output cannot be written: No space left on device\n",
    "| true": "",
    ">&- <&- 2>&-": "",
}
HARMLESS = ["", "2>&-", "2>/dev/full", "<&-", "2>&1 >/dev/null | true"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A configuration of a guest that does not run, and a record of it."""
    directory = tmp_path_factory.mktemp("streams")
    (directory / "lab.toml").write_text(CONFIG)
    shell(directory, "run lab.toml --out old --duration 1s", "")
    return directory


def shell(directory, command, redirection):
    """Run a command as a shell runs it with a redirection; return its exit code, and what it says on standard error."""
    program = f"{{ (exec {sys.executable} -m qmpalloc {command}); echo $? >code; }} {redirection}"
    environment = os.environ | {"XDG_RUNTIME_DIR": str(directory), "XDG_CACHE_HOME": str(directory)}
    said = subprocess.run(
        ["/bin/sh", "-c", program], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in said.stdout + said.stderr, (command, redirection)
    return int((directory / "code").read_text()), said.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_takes_nothing_is_a_failure_of_every_command(place, tmp_path, command):
    (tmp_path / "lab.toml").write_text(CONFIG)
    (tmp_path / "old").symlink_to(place / "old")
    for redirection, says in FAILING.items():
        code, said = shell(tmp_path, command, redirection)
        if says and "--json" in command:
            says = json.dumps({"error": says.removeprefix("error: ").rstrip(), "hint": ""}) + "\n"
        assert (code, said) == (1, says), redirection
        if "--out new" in command:
            events = list(read_record(tmp_path / "new" / "record.jsonl"))
            assert isinstance(events[0], Header)
            assert isinstance(events[-1], Ended)
            assert events[-1].reason == "nobody reads the output"
            assert (tmp_path / "new" / "summary.json").exists()
            (tmp_path / "new").rename(tmp_path / f"new{len(redirection)}")


@pytest.mark.parametrize(("command", "code"), [("doctor", 0), ("plan lab.toml", 1), (f"experiment run {SMOKE}x", 2)])
def test_messages_that_nobody_takes_and_an_input_that_is_closed_change_nothing(place, command, code):
    assert {redirection: shell(place, command, redirection)[0] for redirection in HARMLESS} == dict.fromkeys(
        HARMLESS, code
    )


def test_a_closed_stream_leaves_its_number_to_no_other_file(place):
    shell(place, "run lab.toml --out numbers --duration 1s", ">&- <&- 2>&-")
    assert isinstance(next(read_record(place / "numbers" / "record.jsonl")), Header)


def test_programs_that_are_started_have_all_three_streams_too():
    program = "from qmpalloc.cli import streams; streams.prepare(); import os; os.execv('/bin/ls', ['ls', '/dev/fd'])"
    command = ["/bin/sh", "-c", f'exec {sys.executable} -c "{program}" <&- 2>&-']
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.split()[:3] == ["0", "1", "2"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_is_full_in_mid_write_is_a_failure_too(tmp_path, unbuffered):
    command = f"ulimit -f 1; exec {sys.executable} -m qmpalloc schema configuration >{tmp_path}/cut"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    said = subprocess.run(["/bin/sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (1, "error: standard output cannot be written: File too large\n")


def test_where_there_is_no_edge_no_table_is_cut(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    table = Table("x" * 60, "y" * 60)
    table.columns[0].no_wrap = True
    table_console().print(table)
    assert [word for word in sys.stdout.getvalue().split() if word[0] in "xy"] == ["x" * 60, "y" * 60]


def test_an_output_that_somebody_made_non_blocking_is_waited_for():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text = b"x" * (1 << 20)
    got = []
    with os.fdopen(reading, "rb") as reader:
        thread = threading.Thread(target=lambda: got.append(reader.read()))
        thread.start()
        with io.BufferedWriter(_Output(writing, "w")) as output:
            output.write(text)
        thread.join()
    assert got == [text]
