"""A headless run seen and steered by commands in other processes; a record that is followed while it is written."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pexpect
import pytest
from click.testing import CliRunner
from synthetic import run as made_up
from test_run_command import CONFIG, GUEST, GUESTS

from qmpalloc.cli import main
from qmpalloc.events import Asked, Ended, encode
from qmpalloc.record import GrowingRecord, read_record


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a configuration, two guests that run, and a run directory of its own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab.toml").write_text(CONFIG + GUEST.format("small") + GUEST.format("large"))
    command = [sys.executable, "-c", GUESTS, str(tmp_path), "inf"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as guests:
        assert guests.stdout.readline() == "ready\n"
        yield tmp_path
        guests.kill()


@contextmanager
def headless_run(*options):
    """A run in the background, in control."""
    command = [sys.executable, "-m", "qmpalloc", "run", "lab.toml", "--headless", "--out", "out", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "control running" in line:
                break
        yield process
        if process.poll() is None:
            process.terminate()
            process.communicate()


def qmpalloc(*words):
    return subprocess.run([sys.executable, "-m", "qmpalloc", *words], capture_output=True, text=True, check=False)


def screen(*words, size=(24, 80)):
    environment = {**os.environ, "TERM": "xterm-256color"}
    return pexpect.spawn(
        sys.executable, ["-m", "qmpalloc", *words],
        env=environment, dimensions=size, timeout=60, use_poll=True, encoding="utf-8",
    )  # fmt: skip


def until_there(pattern, read):
    """Return all that the pattern finds as soon as there is some."""
    for _ in range(100):
        if found := re.findall(pattern, read()):
            return found
        time.sleep(0.2)
    raise AssertionError(read())


def test_a_headless_run_is_seen_and_steered_from_elsewhere(place):
    with headless_run() as process:
        child = screen("top", "lab.toml")
        child.expect("2 fresh")
        said = qmpalloc("set", "large", "600MiB", "--for", "10m")
        assert (said.returncode, said.stdout) == (0, "large is to have 600M for 10 min\n")
        child.expect(r"set to 600M, 10 min left")
        refused = qmpalloc("set", "large", "2GiB", "-c", "lab.toml")
        assert refused.returncode == 1
        assert "error: 2G is more than large may have: its cap is 1G\nhint: at most 1G" in refused.stderr
        assert qmpalloc("pause").stdout == "control is paused; danger is still answered\n"
        child.expect("PAUSED")
        now = json.loads(qmpalloc("status", "--json").stdout)
        large = next(guest for guest in now["guests"] if guest["name"] == "large")
        assert (now["control"], now["pid"], large["chosen_bytes"]) == ("paused", process.pid, 600 << 20)
        text = qmpalloc("status", "lab.toml").stdout
        assert re.search(r"^ large +fresh .* person: set to 600M, 10 min", text, re.MULTILINE)
        assert qmpalloc("resume").returncode == qmpalloc("release", "large").returncode == 0
        child.send("q")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
        assert process.poll() is None
        lines = subprocess.Popen(
            [sys.executable, "-m", "qmpalloc", "top", "--plain"], stdout=subprocess.PIPE, text=True
        )
        assert "run: policy paper" in lines.stdout.readline()
        with (place / "events").open("wb") as events:
            as_json = subprocess.Popen([sys.executable, "-m", "qmpalloc", "top", "--json"], stdout=events)
        until_there("caught-up", (place / "events").read_text)
        process.send_signal(signal.SIGTERM)
        assert lines.communicate(timeout=60)[0].splitlines()[-1].endswith("ended clean: interrupted by SIGTERM")
        assert lines.returncode == 0
        assert as_json.wait(timeout=60) == 0
        types = [json.loads(line)["type"] for line in (place / "events").read_text().splitlines()]
        assert (types[0], types[-1]) == ("header", "end")
        process.communicate(timeout=60)
    asked = [event for event in read_record(place / "out" / "record.jsonl") if isinstance(event, Asked)]
    assert [(event.verb, bool(event.error)) for event in asked] == [
        ("set", False), ("set", True), ("pause", False), ("resume", False), ("release", False),
    ]  # fmt: skip
    assert list((place / "qmpalloc").glob("*.status")) == []
    none = qmpalloc("top", "--json")
    assert (none.returncode, json.loads(none.stderr)["error"]) == (1, "no controller of yours runs")


def test_a_second_controller_is_refused_and_the_sockets_of_a_killed_one_are_replaced(place):
    with headless_run() as process:
        next((place / "qmpalloc").glob("*.lock")).unlink()  # so that only the sockets tell
        second = qmpalloc("run", "lab.toml", "--headless", "--no-record", "--duration", "1s")
        assert second.returncode == 1
        assert f"another controller (process {process.pid}) serves" in second.stderr
        child = screen("top", "lab.toml")
        child.expect("RUNNING")
        process.kill()
        process.communicate()
        child.expect("the controller closed the stream before its run had ended")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 1
    assert list((place / "qmpalloc").glob("*.status"))
    third = qmpalloc("run", "lab.toml", "--headless", "--no-record", "--duration", "1s")
    assert (third.returncode, third.stderr) == (0, "")


def scraped(address):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback goes through no proxy
    with opener.open(f"http://{address}/metrics") as reply:
        return reply.read().decode()


def test_a_run_gives_its_metrics_and_a_port_in_use_is_refused_before_anything_else(place):
    pytest.importorskip("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = qmpalloc("run", "lab.toml", "--headless", "--out", "out", "--metrics", address)
    assert refused.returncode == 1
    assert f"error: metrics cannot be served on {address}" in refused.stderr
    assert "hint: another run may serve its own there: choose another port" in refused.stderr
    assert sorted(path.name for path in place.glob("out*")) == []
    with headless_run("--metrics", address, "--metrics-file", "q.prom"):
        # Each text may be of a moment ago, when nothing was known.
        assert "large" in until_there(r'qmpalloc_guest_size_bytes{guest="(\w+)"}', lambda: scraped(address))
        assert "paper" in until_there(r'qmpalloc_run_info{.*policy="(\w+)"', (place / "q.prom").read_text)
    assert not (place / "q.prom").exists()


def test_where_no_socket_can_be_made_the_run_goes_on_and_says_so(place, monkeypatch):
    deep = place / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    result = qmpalloc("run", "lab.toml", "--headless", "--no-record", "--duration", "2s")
    assert result.returncode == 0, result.stderr
    assert re.search(r"FAULT status: nobody can attach: .*shorter XDG_RUNTIME_DIR", result.stdout)
    assert "control running" in result.stdout


def test_one_socket_of_two(place, monkeypatch):  # a short name: it is part of the path
    name = len("/qmpalloc/0123456789abcdef.status")
    deep = place / ("x" * (107 - name - len(str(place)) - 1))
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with headless_run():
        assert "no controller runs for lab.toml" in qmpalloc("top", "lab.toml").stderr


def test_a_record_is_followed_while_it_is_written(tmp_path):
    events = list(made_up(2, 60, end=True))
    record = tmp_path / "record.jsonl"
    record.write_bytes(b"")
    child = screen("replay", "--follow", str(record), size=(24, 80))
    child.expect("waiting for the first event")
    with record.open("ab", buffering=0) as file:
        for event in made_up(2, 60):
            line = encode(event) + b"\n"
            file.write(line[:7])
            file.write(line[7:])
        child.expect("RUNNING")
        file.write(encode(events[-1]) + b"\n")
    child.expect("ENDED")
    child.send("q")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_signal_ends_the_following_of_a_record_that_does_not_grow(tmp_path):
    record = tmp_path / "record.jsonl"
    record.write_bytes(encode(next(iter(made_up(2, 1)))) + b"\n")
    command = [sys.executable, "-m", "qmpalloc", "replay", "--follow", "--plain", str(record)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert "policy paper" in process.stdout.readline()
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130


def test_a_growing_record_gives_whole_lines_only(tmp_path):
    events = list(made_up(2, 5, end=True))
    lines = b"".join(encode(event) + b"\n" for event in events)
    path = tmp_path / "record.jsonl"
    path.write_bytes(b"")
    growing, seen = GrowingRecord(path), []
    for at in range(0, len(lines), 700):
        with path.open("ab") as file:
            file.write(lines[at : at + 700])
        seen += growing.more()
    growing.close()
    assert [encode(event) for event in seen] == [encode(event) for event in events]
    assert isinstance(seen[-1], Ended)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["replay", "--follow", "--at", "5", "x.jsonl"], 2, "--follow shows what is now"),
        (["replay", "--follow", "none.jsonl"], 2, "cannot be read"),
        (["set", "web", "12"], 2, "has no unit"),
        (["set", "web", "1GiB", "--for", "0s"], 2, "must be above 0"),
        (["status", "none.toml"], 2, "no such file"),
    ],
)
def test_wrong_words_are_refused(tmp_path, monkeypatch, words, code, says):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code
    assert says in result.output


def test_what_is_no_record_is_not_followed(tmp_path):
    (tmp_path / "x").write_text("{}\n")
    result = CliRunner().invoke(main, ["replay", "--follow", "--plain", str(tmp_path / "x")])
    assert result.exit_code == 1
    assert "is not an event" in result.output
