"""From a guest's size to the cache that its load has."""

import math

import pytest

from qmpalloc.curves.mapping import SYSTEM_PAGES, CacheLimit, SizeMapping, is_full, unused_bytes
from qmpalloc.sample import Delta, Memory
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


def test_what_is_free_beyond_what_the_kernel_keeps_is_unused():
    assert unused_bytes(Memory(free=100 * MIB)) == 68 * MIB
    assert unused_bytes(Memory(free=100 * MIB, kept_free=5 * MIB)) == 68 * MIB
    assert unused_bytes(Memory(free=100 * MIB, kept_free=99 * MIB)) == MIB  # transparent huge pages
    assert unused_bytes(Memory(free=100 * MIB, kept_free=GIB)) == unused_bytes(Memory()) == 0


def test_a_program_that_maps_for_a_moment_changes_little():
    assert 400 - 30 < room_mib(memory(mapped=4), memory(mapped=104)) < 400 - SMALL_MIB


def test_more_mapped_than_there_is_cache_leaves_no_room():
    assert room_mib(memory(mapped=500)) == 0


MISSED = 2_000


class Reader:
    """A load in a guest of 4 GiB that misses `MISSED` pages a second."""

    def __init__(self):
        self.limit, self.file_pages = CacheLimit(), 50_000

    def run(self, seconds, *, refaults=MISSED, grown=0, free=2 * GIB, load=1):
        for _ in range(seconds):
            self.file_pages += grown
            memory = Memory(total=4 * GIB, free=free, active_file=0, inactive_file=self.file_pages * PAGE_BYTES)
            delta = Delta(interval_s=1.0, accesses=10_000, misses=MISSED, refaults=refaults)
            self.limit.observe(delta, memory, 4 * GIB, float(self.file_pages), load)
        return self.limit.pages


def test_a_cache_that_does_not_grow_into_free_memory_is_limited():
    """As the control group of a container does it."""
    assert Reader().run(5) == 50_000


@pytest.mark.parametrize(
    "told",
    [
        {"grown": MISSED},  # it fills
        {"grown": MISSED // 2},
        {"refaults": 0},  # new files, while others are deleted
        {"refaults": None},
        {"free": 40 * MIB},
        {"free": None},
    ],
)
def test_a_cache_that_fills_or_is_full_is_not_limited(told):
    assert Reader().run(60, **told) == math.inf


def test_a_limit_is_known_while_the_guest_is_full_but_not_of_another_load_nor_for_ever():
    reader = Reader()
    reader.run(5)
    assert reader.run(500, free=40 * MIB) == 50_000
    assert reader.run(200, free=40 * MIB) == math.inf
    reader.run(5)
    assert reader.run(1, load=2, free=40 * MIB) == math.inf
    reader.run(5, load=2)
    assert reader.run(5, load=2, grown=MISSED) == math.inf  # it was raised
