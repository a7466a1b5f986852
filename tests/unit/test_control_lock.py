"""One controller for one configuration, whatever becomes of the other."""

import os
import signal
import subprocess
import sys

import pytest

from qmpalloc.control.lock import hold_lock, lock_path
from qmpalloc.errors import HostError

HOLDER = """
import sys, time
from pathlib import Path
from qmpalloc.control.lock import hold_lock
with hold_lock(sys.argv[1], Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def locks(tmp_path):
    return tmp_path / "locks"


@pytest.fixture
def holder(tmp_path, locks):
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path / "lab.toml"), str(locks)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_refused_and_told_who_the_first_is(tmp_path, locks, holder):
    with pytest.raises(HostError, match=f"process {holder.pid}"), hold_lock(str(tmp_path / "lab.toml"), locks):
        pass


def test_a_link_is_the_same_configuration(tmp_path, locks, holder):
    link = tmp_path / "other.toml"
    link.symlink_to("lab.toml")
    (tmp_path / "lab.toml").touch()
    with pytest.raises(HostError), hold_lock(str(link), locks):
        pass


def test_another_configuration_is_free(tmp_path, locks, holder):
    with hold_lock(str(tmp_path / "second.toml"), locks):
        pass


def test_a_killed_holder_holds_nothing(tmp_path, locks, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with hold_lock(str(tmp_path / "lab.toml"), locks):
        pass


def test_it_can_be_held_again(tmp_path, locks):
    for _ in range(2):
        with hold_lock(str(tmp_path / "lab.toml"), locks):
            pass


def test_lock_and_directory_are_for_their_owner_only(tmp_path, locks):
    with hold_lock(str(tmp_path / "lab.toml"), locks):
        assert locks.stat().st_mode & 0o777 == 0o700
        assert lock_path(str(tmp_path / "lab.toml"), locks).stat().st_mode & 0o777 == 0o600


def test_a_directory_that_others_can_enter_is_refused(tmp_path, locks):
    locks.mkdir(mode=0o777)
    os.chmod(locks, 0o777)  # noqa: PTH101 - whatever the umask is
    with pytest.raises(HostError, match="entered by others"), hold_lock(str(tmp_path / "lab.toml"), locks):
        pass
