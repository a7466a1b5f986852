"""What a real QEMU answers when it is asked whether it may be controlled."""

import shutil

import pytest

from qmpalloc.control.inspection import ask_facts, ask_migrating
from qmpalloc.errors import RefusedError
from qmpalloc.qmp import open_monitor
from qmpalloc.units import MIB

QEMU = shutil.which("qemu-system-x86_64")
BALLOON = ["-device", "virtio-balloon-pci,id=balloon0,deflate-on-oom=on"]
BACKEND = ["-object", "memory-backend-memfd,id=mem,size=64M", "-machine", "memory-backend=mem"]
# Not reserved: the host needs none for a guest that is not started.
HUGE = ["-object", "memory-backend-memfd,id=mem,size=64M,hugetlb=on,hugetlbsize=2M,reserve=off"]

pytestmark = [pytest.mark.qemu, pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")]


def argv(path, *options):
    base = [QEMU, "-accel", "tcg", "-display", "none", "-nodefaults", "-S", "-m", "64"]
    return [*base, "-qmp", f"unix:{path},server=on,wait=off", *options]


@pytest.mark.parametrize("memory", [[], BACKEND])
async def test_a_plain_qemu_may_be_controlled_and_is_not_migrated(start_listening, tmp_path, memory):
    path = str(tmp_path / "qmp")
    await start_listening(argv(path, *BALLOON, *memory), path)
    async with open_monitor(path, timeout_s=10) as monitor:
        facts = await ask_facts(monitor)
        assert (facts.ram_bytes, facts.deflate_on_oom) == (64 * MIB, True)
        assert await ask_migrating(monitor) is False


async def test_a_qemu_without_a_balloon_may_not(start_listening, tmp_path):
    path = str(tmp_path / "qmp")
    await start_listening(argv(path), path)
    async with open_monitor(path, timeout_s=10) as monitor:
        with pytest.raises(RefusedError, match="no balloon"):
            await ask_facts(monitor)


async def test_a_qemu_whose_memory_is_made_of_huge_pages_may_not(start_listening, tmp_path):
    path = str(tmp_path / "qmp")
    await start_listening(argv(path, *BALLOON, *HUGE, "-machine", "memory-backend=mem"), path)
    async with open_monitor(path, timeout_s=10) as monitor:
        with pytest.raises(RefusedError, match="made of huge pages"):
            await ask_facts(monitor)
