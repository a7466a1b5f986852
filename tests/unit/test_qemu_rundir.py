"""A process is signalled only if it is the one that was started; a directory that others can enter is not used."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from qmpalloc.errors import HostError
from qmpalloc.qemu import rundir
from qmpalloc.qemu.rundir import GuestRecord


def record_of(pid, **changes):
    facts = {
        "name": "web", "pid": pid, "start_ticks": rundir.start_ticks(pid) or 0, "boot_id": rundir.host_boot_id(),
        "started_at_s": 0.0, "config_file": "/x.toml", "memory_bytes": 1, "accelerator": "tcg", "image": "i",
        "monitor": "/m", "agent": "/a", "detached": True,
    }  # fmt: skip
    return GuestRecord(**(facts | changes))


@pytest.fixture
def process():
    """A process that ignores SIGTERM when it is told "stubborn", else ends."""
    program = "import signal, sys, time\nif sys.argv[1:]: signal.signal(15, 1)\nprint(flush=True)\ntime.sleep(60)"
    started = []

    def start(*args):
        child = subprocess.Popen([sys.executable, "-c", program, *args], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def test_it_is_alive_while_it_is_the_same_process(process):
    child = process()
    assert record_of(child.pid).alive
    assert not record_of(child.pid, start_ticks=1).alive
    assert not record_of(child.pid, boot_id="another boot").alive


def test_a_zombie_is_not_alive(process):
    child = process()
    record = record_of(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not record.alive


def test_a_process_name_cannot_confuse_it():
    # The name is the second field of /proc/PID/stat and may hold anything.
    program = "import ctypes, sys, time; ctypes.CDLL(None).prctl(15, b') S 1 (x')\nprint(flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        before = rundir.start_ticks(os.getpid())
        assert before is not None
        assert rundir.start_ticks(child.pid) >= before
        child.kill()


def test_stop_ends_it_in_order(process):
    child = process()
    rundir.stop(record_of(child.pid), grace_s=10)
    assert child.wait() == -15


def test_stop_ends_a_stubborn_one_by_force(process):
    child = process("stubborn")
    rundir.stop(record_of(child.pid), grace_s=0.3)
    assert child.wait() == -9


def test_a_number_that_belongs_to_another_process_is_left_alone(process):
    child = process()
    rundir.stop(record_of(child.pid, start_ticks=1), grace_s=0.1)
    assert child.poll() is None


def test_records_survive_and_are_listed_by_name(tmp_path):
    for name in ("web", "db"):
        (tmp_path / name).mkdir()
        rundir.write_record(tmp_path / name, record_of(os.getpid(), name=name))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "guest.json").write_text("{")
    assert [record.name for record in rundir.list_records(tmp_path)] == ["db", "web"]
    assert rundir.read_record(tmp_path / "web") == record_of(os.getpid())
    assert msgspec.json.decode((tmp_path / "web" / "guest.json").read_bytes())["pid"] == os.getpid()


def test_clearing_keeps_the_logs(tmp_path):
    rundir.write_record(tmp_path, record_of(1))
    for name in ("monitor.sock", "console.log"):
        (tmp_path / name).touch()
    rundir.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["console.log"]


def test_the_run_directory_is_its_owners_only(tmp_path):
    rundir.prepare_run_dir(tmp_path / "a" / "run")
    assert (tmp_path / "a" / "run").stat().st_mode & 0o777 == 0o700
    rundir.prepare_run_dir(tmp_path / "a" / "run")


def test_a_run_directory_that_others_can_enter_is_refused(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(HostError, match="can be entered by others"):
        rundir.prepare_run_dir(tmp_path / "open")


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/none"])
def test_a_run_directory_that_cannot_be_made_is_named(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=r"is not a directory|cannot be made") as caught:
        rundir.prepare_run_dir(tmp_path / place)
    assert "XDG_RUNTIME_DIR" in caught.value.hint


def test_a_link_in_place_of_the_run_directory_is_refused(tmp_path):
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(HostError, match="not a directory of yours"):
        rundir.prepare_run_dir(tmp_path / "link")


def test_a_directory_of_a_login_ends_with_it_unless_its_user_lingers(tmp_path, monkeypatch):
    of_login = Path(f"/run/user/{os.getuid()}/qmpalloc")
    assert rundir.ends_at_logout(of_login, tmp_path)
    assert not rundir.ends_at_logout(Path("/run/qmpalloc"), tmp_path)
    (tmp_path / pwd.getpwuid(os.getuid()).pw_name).touch()
    assert not rundir.ends_at_logout(of_login, tmp_path)
    unknown = 2**31 - 7
    monkeypatch.setattr(os, "getuid", lambda: unknown)
    assert rundir.ends_at_logout(Path(f"/run/user/{unknown}/qmpalloc"), tmp_path)
