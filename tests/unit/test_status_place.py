"""The sockets of a run: for their owner only; those of the dead are replaced, those of the living are not."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from qmpalloc.control.lock import hold_lock, holder_of, lock_path
from qmpalloc.errors import ConfigError, HostError, UnreachableError
from qmpalloc.status import place
from qmpalloc.status.place import STATUS, find, listening, socket_path

SERVER = """
import sys, time
from pathlib import Path
from qmpalloc.status.place import listening
with listening(Path(sys.argv[1])):
    print("serves", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.status"


@pytest.fixture
def other(path):
    with subprocess.Popen([sys.executable, "-c", SERVER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "serves\n"
        yield process
        process.kill()


def test_it_is_for_its_owner_only_and_gone_afterwards(path):
    before = os.umask(0)
    try:
        with listening(path):
            assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_live_one_is_refused_and_its_process_named(path, other):
    with pytest.raises(UnreachableError, match=f"process {other.pid}") as caught, listening(path):
        pass
    assert caught.value.hint
    assert path.exists()


def test_the_one_of_a_dead_run_is_replaced(path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert path.exists()
    with listening(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_what_is_no_socket_is_left_where_it_is(path):
    path.write_text("mine")
    with pytest.raises(HostError, match="is no socket"), listening(path):
        pass
    assert path.read_text() == "mine"


def test_a_socket_of_somebody_else_is_left_alone(path, monkeypatch):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
    monkeypatch.setattr(place.os, "geteuid", lambda: 12345)
    with pytest.raises(HostError, match="belongs to another user"), listening(path):
        pass
    assert path.exists()


def test_a_path_too_long_for_a_socket_is_told(tmp_path):
    with pytest.raises(HostError) as caught, listening(tmp_path / ("x" * 120)):
        pass
    assert "XDG_RUNTIME_DIR" in caught.value.hint


def test_a_socket_that_another_run_has_made_since_is_not_removed(path):
    with listening(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    assert path.exists()


def test_it_is_found_by_its_configuration_or_as_the_only_one(tmp_path):
    lab, other = tmp_path / "lab.toml", tmp_path / "other.toml"
    lab.touch()
    other.touch()
    runs = tmp_path / "runs"
    with pytest.raises(UnreachableError, match="no controller of yours runs"):
        find(None, runs, STATUS)
    with hold_lock(str(lab), runs), listening(socket_path(str(lab), runs, STATUS)) as _:
        assert find(lab, runs, STATUS) == find(None, runs, STATUS) == socket_path(str(lab), runs, STATUS)
        with pytest.raises(UnreachableError, match="no controller runs for") as caught:
            find(other, runs, STATUS)
        assert f"qmpalloc run {other}" in caught.value.hint
        with hold_lock(str(other), runs), listening(socket_path(str(other), runs, STATUS)):
            with pytest.raises(UnreachableError, match="2 controllers run") as caught:
                find(None, runs, STATUS)
            assert str(lab) in caught.value.hint
            assert str(other) in caught.value.hint
    with pytest.raises(ConfigError, match="no such file"):
        find(tmp_path / "none.toml", runs, STATUS)


def test_a_lock_tells_its_holder_and_of_what(tmp_path):
    with hold_lock(str(tmp_path / "lab.toml"), tmp_path / "runs"):
        assert holder_of(lock_path(str(tmp_path / "lab.toml"), tmp_path / "runs")) == (
            os.getpid(), str(tmp_path / "lab.toml"),
        )  # fmt: skip
    assert holder_of(tmp_path / "none.lock") == (None, "")
