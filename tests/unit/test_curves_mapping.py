"""From a guest's size to the cache that its load has."""

from qmpalloc.curves.mapping import SYSTEM_PAGES, SizeMapping, is_full
from qmpalloc.sample import Memory
from qmpalloc.units import GIB, MIB, PAGE_BYTES


def memory(*, mapped, shmem=0, tmpfs=0, file=400):
    return Memory(
        total=600 * MIB, free=40 * MIB, active_file=0, inactive_file=file * MIB,
        mapped=None if mapped is None else mapped * MIB, shmem=shmem * MIB, tmpfs=tmpfs * MIB,
    )  # fmt: skip


def room_mib(*samples):
    mapping = SizeMapping()
    for sample in samples:
        mapping.observe(600 * MIB, sample, evicting=True)
    return mapping.cache_pages(600 * MIB) * PAGE_BYTES / MIB


SMALL_MIB = SYSTEM_PAGES * PAGE_BYTES / MIB


def test_the_files_that_programs_map_are_no_room_for_what_the_load_reads():
    assert room_mib(memory(mapped=4)) == 400 - SMALL_MIB
    assert room_mib(memory(mapped=None)) == 400 - SMALL_MIB  # an older collector does not tell
    # A database: 60 MiB of programs and libraries beside 128 MiB of shared buffers, which are no files.
    assert room_mib(memory(mapped=190, shmem=130, tmpfs=2)) == 400 - 60


def test_what_a_kernel_keeps_free_is_told_from_memory_that_nobody_needs():
    assert is_full(Memory(free=75 * MIB), 256 * MIB)  # with transparent huge pages, measured
    assert is_full(Memory(free=160 * MIB), 64 * GIB)
    assert not is_full(Memory(free=300 * MIB), GIB)
    assert not is_full(Memory(), GIB)
    # vm.min_free_kbytes, as for large databases
    assert is_full(Memory(free=1100 * MIB, kept_free=GIB), 4 * GIB)
    assert not is_full(Memory(free=1600 * MIB, kept_free=GIB), 4 * GIB)


def test_a_program_that_maps_for_a_moment_changes_little():
    assert 400 - 30 < room_mib(memory(mapped=4), memory(mapped=104)) < 400 - SMALL_MIB


def test_more_mapped_than_there_is_cache_leaves_no_room():
    assert room_mib(memory(mapped=500)) == 0
