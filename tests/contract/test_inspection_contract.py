"""What a real QEMU answers when it is asked whether it may be controlled."""

import shutil

import pytest

from qmpalloc.control.inspection import ask_facts, ask_migrating, choose_actuator, measure
from qmpalloc.control.run_state import RUN_STATES, Activity, activity
from qmpalloc.errors import RefusedError
from qmpalloc.qmp import open_monitor
from qmpalloc.units import MIB, Grid

QEMU = shutil.which("qemu-system-x86_64")
BALLOON = ["-device", "virtio-balloon-pci,id=balloon0,deflate-on-oom=on"]
BACKEND = ["-object", "memory-backend-memfd,id=mem,size=64M", "-machine", "memory-backend=mem"]
# Not reserved: the host needs none for a guest that is not started.
HUGE = ["-object", "memory-backend-memfd,id=mem,size=64M,hugetlb=on,hugetlbsize=2M,reserve=off"]

pytestmark = [pytest.mark.qemu, pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")]


def argv(path, *options):
    base = [QEMU, "-accel", "tcg", "-display", "none", "-nodefaults", "-S", "-m", "64"]
    return [*base, "-qmp", f"unix:{path},server=on,wait=off", *options]


SHARED = ["-object", "memory-backend-memfd,id=mem,size=64M,share=on,prealloc=on", "-machine", "memory-backend=mem"]


@pytest.mark.parametrize("memory", [[], BACKEND, SHARED])
async def test_a_plain_qemu_may_be_controlled_and_is_not_migrated(start_listening, tmp_path, memory):
    path = str(tmp_path / "qmp")
    await start_listening(argv(path, *BALLOON, *memory), path)
    async with open_monitor(path, timeout_s=10) as monitor:
        actuator = await choose_actuator(monitor)
        facts = await ask_facts(actuator)
        assert (facts.ram_bytes, facts.deflate_on_oom) == (64 * MIB, True)
        assert await ask_migrating(monitor) is False


MORE = ["-M", "q35,nvdimm=on", "-m", "64,slots=4,maxmem=4G"]
NVDIMM = ["-object", "memory-backend-ram,id=n0,size=128M", "-device", "nvdimm,id=nv0,memdev=n0"]
VIRTIO_MEM = [
    *("-object", "memory-backend-ram,id=v0,size=256M,reserve=off"),
    *("-device", "virtio-mem-pci,id=vm0,memdev=v0,requested-size=32M"),
]


async def test_plugged_memory_is_what_the_balloon_makes_of_it(start_listening, tmp_path):
    path = str(tmp_path / "qmp")
    await start_listening([*argv(path, *BALLOON), *MORE, *NVDIMM, *VIRTIO_MEM], path)
    async with open_monitor(path, timeout_s=10) as monitor:
        actuator = await choose_actuator(monitor)
        facts = await ask_facts(actuator)
        assert (facts.ram_bytes, facts.outside_bytes, facts.other_bytes) == (64 * MIB, 32 * MIB, 128 * MIB)
        assert await monitor.query_balloon() == 64 * MIB
        await monitor.execute("object-add", {"qom-type": "memory-backend-ram", "id": "m1", "size": 128 * MIB})
        await monitor.execute("device_add", {"driver": "pc-dimm", "id": "d1", "memdev": "m1"})
        await monitor.execute("qom-set", {"path": "vm0", "property": "requested-size", "value": 200 * MIB})
        facts, actual_bytes = await measure(actuator, facts)  # asks for the memory again, as the size is above it
        assert (facts.ram_bytes, facts.outside_bytes, actual_bytes) == (192 * MIB, 200 * MIB, 192 * MIB)


async def test_a_qemu_whose_memory_is_a_file_that_it_may_only_read_may_not(start_listening, tmp_path):
    path, file = str(tmp_path / "qmp"), tmp_path / "ram"
    with file.open("wb") as opened:
        opened.truncate(64 * MIB)
    backend = f"memory-backend-file,id=mem,size=64M,mem-path={file},readonly=on,share=off"
    await start_listening(argv(path, *BALLOON, "-object", backend, "-machine", "memory-backend=mem"), path)
    async with open_monitor(path, timeout_s=10) as monitor:
        with pytest.raises(RefusedError, match="for reading only"):
            await choose_actuator(monitor)


@pytest.mark.parametrize(
    ("options", "status", "doing"),
    [
        (["-S"], "prelaunch", Activity.STOPPED),
        (["-incoming", "defer"], "inmigrate", Activity.MOVES),
        ([], "running", Activity.RUNS),
    ],
)
async def test_the_states_of_a_qemu_in_which_nothing_boots(start_listening, tmp_path, options, status, doing):
    path = str(tmp_path / "qmp")
    base = [QEMU, "-accel", "tcg", "-display", "none", "-M", "none", "-nodefaults", *options]
    await start_listening([*base, "-qmp", f"unix:{path},server=on,wait=off"], path)
    async with open_monitor(path, timeout_s=10) as monitor:
        seen = await monitor.query_status()
        assert (seen.status, activity(seen)) == (status, doing)


async def test_the_table_has_every_state_of_this_qemu(start_listening, tmp_path):
    path = str(tmp_path / "qmp")
    await start_listening(argv(path), path)
    async with open_monitor(path, timeout_s=10) as monitor:
        schema = await monitor.execute("query-qmp-schema")
        states = next(
            entry["values"] for entry in schema if entry["meta-type"] == "enum" and "inmigrate" in entry["values"]
        )
    assert set(states) <= set(RUN_STATES)


async def test_a_qemu_without_a_balloon_may_not(start_listening, tmp_path):
    path = str(tmp_path / "qmp")
    await start_listening(argv(path), path)
    async with open_monitor(path, timeout_s=10) as monitor:
        with pytest.raises(RefusedError, match="no balloon"):
            await choose_actuator(monitor)


async def test_with_virtio_mem_a_qemu_whose_memory_is_made_of_huge_pages_may(start_listening, tmp_path):
    path = str(tmp_path / "qmp")
    memory = [*HUGE, "-machine", "memory-backend=mem", "-m", "64,maxmem=4G"]
    await start_listening(argv(path, *BALLOON, *memory, *VIRTIO_MEM), path)
    async with open_monitor(path, timeout_s=10) as monitor:
        facts = await ask_facts(await choose_actuator(monitor))
    assert (facts.actuator, facts.ram_bytes, facts.grid) == ("virtio-mem", 320 * MIB, Grid(64 * MIB, 2 * MIB))


async def test_a_qemu_whose_memory_is_made_of_huge_pages_may_not(start_listening, tmp_path):
    path = str(tmp_path / "qmp")
    await start_listening(argv(path, *BALLOON, *HUGE, "-machine", "memory-backend=mem"), path)
    async with open_monitor(path, timeout_s=10) as monitor:
        with pytest.raises(RefusedError, match="made of huge pages"):
            await choose_actuator(monitor)
