"""What this host cannot do is refused before anything is built."""

from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec import structs

from qmpalloc.errors import ConfigError, HostError
from qmpalloc.experiment.run import preflight as module
from qmpalloc.experiment.run.configuration import arm_configuration
from qmpalloc.experiment.run.preflight import check_room, preflight
from qmpalloc.experiment.spec import parsing
from qmpalloc.experiment.spec.attached import Attach, Start
from qmpalloc.model import HostMemory
from qmpalloc.qemu.data_disk import data_disk_dir
from qmpalloc.units import GIB, MIB

X2 = parsing.load(Path(__file__).parents[2] / "examples" / "paper-x2.toml")
ROOM_BYTES = 62 * GIB


class Usage(NamedTuple):
    free: int


def memory(available_bytes, group_left_bytes=None):
    return HostMemory(
        total_bytes=64 * GIB, available_bytes=available_bytes, swapped_in_pages=None, stalled_us=None,
        group_left_bytes=group_left_bytes,
    )  # fmt: skip


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A host with enough of everything; a test takes some of it away."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    state = {"memory": memory(16 * GIB), "free": ROOM_BYTES}
    monkeypatch.setattr(module, "read_host_memory", lambda: state["memory"])
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(state["free"]))
    return state


def test_a_host_that_has_enough(host):
    preflight(X2)


def test_one_that_tells_nothing_of_its_memory_is_believed(host):
    host["memory"] = HostMemory(unread=("/proc/meminfo: why",))
    preflight(X2)


@pytest.mark.parametrize("found", [memory(8 * GIB), memory(64 * GIB, group_left_bytes=8 * GIB)])
def test_less_memory_than_the_guests_have_is_refused(host, found):
    host["memory"] = found
    with pytest.raises(ConfigError, match="this host has 8G available") as caught:
        preflight(X2)
    assert "--scale 1/2" in caught.value.hint


def test_no_room_for_image_and_disks_is_refused(host):
    host["free"] = 15 * GIB
    with pytest.raises(HostError, match="has 15G free, 16G are needed") as caught:
        preflight(X2)  # 4 GiB for the image; one disk for both guests, which is written twice
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_what_is_made_already_needs_no_room(host, monkeypatch):
    config = arm_configuration(X2, X2.arms[0], run_dir=Path("/tmp/run"))
    for guest in config.guests:
        data_disk_dir(guest.vm.data).mkdir(parents=True, exist_ok=True)
    host["free"] = 5 * GIB
    check_room(config)
    monkeypatch.setattr(module, "image_dir", lambda variant: Path("/"))
    host["free"] = MIB
    check_room(config)


@pytest.mark.parametrize("attach", [None, Attach(monitor="/m", second_monitor="/n", agent="/a")])
def test_a_long_name_for_temporary_files_is_refused(host, monkeypatch, attach):
    guest = structs.replace(X2.guests[0], attach=attach, start=Start(command=("true",)) if attach else None)
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "long" * 20)
    with pytest.raises(HostError, match="longer than the path of a Unix socket") as caught:
        preflight(structs.replace(X2, guests=(guest,)))
    assert "TMPDIR" in caught.value.hint
