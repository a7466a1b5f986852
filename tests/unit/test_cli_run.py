"""``run``, ``watch`` and ``plan`` where no guest is: said, with what to do, exit code 1, no traceback."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from msgspec import structs
from rich.console import Console

from qmpalloc.cli.conduct import Lines
from qmpalloc.events import Ended, Faulted
from qmpalloc.record import read_record

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


def qmpalloc(directory, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "qmpalloc", *arguments], cwd=directory, capture_output=True, text=True, check=False
    )


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "lab.toml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize(
    "command", [["run", "--duration", "1s", "--no-record"], ["watch", "--duration", "1s"], ["plan"]]
)
def test_no_guest_is_no_success(directory, command):
    result = qmpalloc(directory, command[0], "lab.toml", *command[1:])
    assert result.returncode == 1
    assert "no such socket" in result.stdout
    assert "hint: qmpalloc doctor" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize("command", [["run", "--no-record"], ["watch"]])
def test_as_json_all_that_is_printed_is_events_and_errors_are_objects(directory, command):
    result = qmpalloc(directory, command[0], "lab.toml", *command[1:], "--duration", "1s", "--json")
    assert result.returncode == 1
    kinds = [json.loads(line)["type"] for line in result.stdout.splitlines()]
    assert (kinds[0], kinds[-1]) == ("header", "end")
    error = json.loads(result.stderr.splitlines()[-1])
    assert error == {"error": "no guest was reached", "hint": f"qmpalloc doctor {directory / 'lab.toml'}"}


def test_an_error_of_usage_is_an_object_too(directory):
    result = qmpalloc(directory, "plan", "--json", "--nonsense")
    assert result.returncode == 2
    assert "nonsense" in json.loads(result.stderr)["error"]
    result = qmpalloc(directory, "doctor", "--json", "gone.toml")
    assert "no such file" in json.loads(result.stderr)["error"]


def test_a_path_that_is_not_utf_8_is_no_obstacle(directory):
    odd = directory / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    (directory / "lab.toml").rename(odd / os.fsdecode(b"l\xe0b.toml"))
    for command in (["run", "--out", "out"], ["run"], ["watch"], ["plan"], ["doctor"]):
        limit = [] if command[0] in {"plan", "doctor"} else ["--duration", "1s"]
        result = subprocess.run(
            [sys.executable, "-m", "qmpalloc", *command[:1], b"l\xe0b.toml", *command[1:], *limit],
            cwd=odd, capture_output=True, check=False,
        )  # fmt: skip
        assert result.returncode == 1
        assert b"Traceback" not in result.stdout + result.stderr
    (of_itself,) = [path for path in (odd / "runs").iterdir() if "-" in path.name]
    for record in (odd / "out" / "record.jsonl", of_itself / "record.jsonl"):
        header, *_, last = read_record(record)
        assert header.config["file"].endswith("/caf\\udce9/l\\udce0b.toml")
        assert isinstance(last, Ended)
        assert (record.parent / "summary.json").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("letters", [10, 9000, 70_000])
@pytest.mark.parametrize("opened", [os.pipe, os.openpty])
def test_a_reader_that_reads_nothing_stops_nothing_and_what_was_left_out_is_told(opened, letters):
    """However long the lines are, and whatever part of one there is still room for."""
    reading, writing = opened()
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "w") as writer:
        lines = Lines(Console(file=writer), as_json=True)
        fault = Faulted(t=1.0, wall=1.0, guest=None, kind="x", message="x" * letters)
        for _ in range(3000):
            lines(fault)
        got = []

        def read():
            while not re.search(rb'"read again".*\n', b"".join(got[-2:])):
                got.append(reader.read(4096))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        lines.finish()
        lines(structs.replace(fault, message="read again"))
        lines.finish()
        thread.join()
    *got_lines, last = map(json.loads, b"".join(got).splitlines())
    told = [line["message"] for line in got_lines if line["type"] != "left-out"]
    # A terminal may take some more in between: then there are several counts.
    left_out = [line["lines"] for line in got_lines if line["type"] == "left-out"]
    assert set(told) == {fault.message}
    assert min(left_out) > 0
    assert len(told) + sum(left_out) == 3000
    assert last["message"] == "read again"


@pytest.mark.parametrize("duration", ["0s", "10", "soon", "-1s"])
def test_a_duration_that_is_none(directory, duration):
    result = qmpalloc(directory, "run", "lab.toml", "--duration", duration)
    assert result.returncode == 2
    assert "duration" in result.stderr


def test_a_record_that_exists_is_not_touched(directory):
    (directory / "out").mkdir()
    (directory / "out" / "record.jsonl").write_text("mine")
    result = qmpalloc(directory, "run", "lab.toml", "--out", "out")
    assert result.returncode == 2
    assert "exists already" in result.stderr
    assert (directory / "out" / "record.jsonl").read_text() == "mine"


def test_lines_that_nobody_reads_end_the_run(directory):
    process = subprocess.Popen(
        [sys.executable, "-m", "qmpalloc", "run", "lab.toml", "--out", "out"],
        cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    process.wait(timeout=30)
    errors = process.stderr.read()
    process.stderr.close()
    assert "Traceback" not in errors
    assert '"reason":"nobody reads the output"' in (directory / "out" / "record.jsonl").read_text()


@pytest.mark.parametrize("command", [["--help"], ["doctor"], ["plan", "lab.toml"]])
def test_a_full_output_is_told(directory, command):
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "qmpalloc", *command],
            cwd=directory, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == "error: standard output cannot be written: No space left on device\n"


def test_a_run_whose_output_is_full_does_not_blame_the_guests(directory):
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "qmpalloc", "run", "lab.toml", "--duration", "5s", "--no-record"],
            cwd=directory, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert "no guest was reached" not in result.stderr
    assert "Traceback" not in result.stderr


def test_signs_that_the_output_does_not_have_are_no_obstacle(directory):
    for encoding in ("ascii", "latin-1"):
        for command in (["run", "lab.toml", "--duration", "1s", "--out", encoding], ["doctor", "lab.toml"]):
            result = subprocess.run(
                [sys.executable, "-m", "qmpalloc", *command],
                cwd=directory, capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": encoding},
            )  # fmt: skip
            assert b"Traceback" not in result.stderr, (encoding, command)
        assert (directory / encoding / "summary.json").exists()


def test_a_run_directory_that_cannot_be_made_is_an_error_of_this_host(directory):
    result = subprocess.run(
        [sys.executable, "-m", "qmpalloc", "run", "lab.toml", "--no-record"],
        cwd=directory, capture_output=True, text=True, check=False, env=os.environ | {"XDG_RUNTIME_DIR": "lab.toml"},
    )  # fmt: skip
    assert result.returncode == 1
    assert "cannot be made: Not a directory" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("body", ["raise RuntimeError('boom')", "return None"])
def test_a_policy_that_fails_in_a_plan_is_an_error(directory, body):
    (directory / "own_policy.py").write_text(f"def decide(snapshot):\n    {body}\n")
    config = (directory / "lab.toml").read_text() + '[policy]\nname = "own_policy:decide"\n'
    (directory / "lab.toml").write_text(config)
    for more in ([], ["--json"]):
        result = qmpalloc(directory, "plan", "lab.toml", *more)
        assert result.returncode == 1
        assert "error" in result.stderr
        assert ("RuntimeError: boom" in result.stderr) == ("boom" in body)
        assert "policy" in result.stderr


@pytest.mark.parametrize(("options", "directories", "files"), [([], 0o700, 0o600), (["--follow-umask"], 0o755, 0o644)])
def test_what_a_run_leaves_is_for_its_owner_only_unless_asked(directory, options, directories, files):
    before = os.umask(0o022)
    try:
        qmpalloc(directory, *options, "run", "lab.toml", "--duration", "1s")
    finally:
        os.umask(before)
    (of_run,) = (directory / "runs").iterdir()
    assert {path.stat().st_mode & 0o777 for path in (directory / "runs", of_run)} == {directories}
    assert {path.name: path.stat().st_mode & 0o777 for path in of_run.iterdir()} == {
        "record.jsonl": files,
        "summary.json": files,
    }


def test_a_link_in_the_place_of_the_summary_is_not_followed(directory):
    (directory / "victim").write_text("precious")
    (directory / "out").mkdir()
    (directory / "out" / "summary.json").symlink_to("../victim")
    qmpalloc(directory, "run", "lab.toml", "--duration", "1s", "--out", "out")
    assert (directory / "victim").read_text() == "precious"
    assert '"mode": "run"' in (directory / "out" / "summary.json").read_text()


@pytest.mark.parametrize("arguments", [["run", "lab.toml"], ["watch", "lab.toml", "--out", "runs/x"], ["demo"]])
def test_a_place_for_the_record_that_cannot_be_written_is_named_with_what_to_do(directory, arguments):
    (directory / "runs").write_text("not a directory")
    result = qmpalloc(directory, *arguments)
    assert result.returncode == 2
    assert "runs: is not a directory\nhint: name another directory with --out\n" in result.stderr
