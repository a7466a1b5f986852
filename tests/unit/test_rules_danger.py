"""What is danger, and what is only a cache that is too small."""

import itertools

import pytest
from msgspec import structs

from qmpalloc.rules.danger import LEARN_S, Level, find_danger, find_stalls, growth_bytes, needed_bytes
from qmpalloc.sample import Ages, AgesByKind, Counters, Memory, Psi, Sample, SwapPages
from qmpalloc.units import GIB, MIB


def sample(second, *, refaults=0, faults=0, reads=0, full_s=0.0, available=GIB // 2, stalls=None):
    return Sample(
        format="qmpalloc-counters", version=1, boot_id="0" * 36, start_id="0" * 16, sequence=second,
        monotonic_ns=second * 10**9, interval_ms=1000, kernel="6.12", page_size=4096,
        counters=Counters(refaults=refaults, inserts_fault=faults, inserts_read=reads),
        memory_bytes=Memory(total=GIB, available=available),
        psi_memory=Psi(full_total_us=int(full_s * 1e6)), allocation_stalls=stalls,
    )  # fmt: skip


def dangers(samples):
    thrash, stalls = Level(), Level()
    pairs = itertools.pairwise(samples)
    return [find_danger(earlier, later, GIB, thrash, stalls) for earlier, later in pairs]


def test_programs_that_are_read_again_and_again_are_danger_and_the_numbers_are_told():
    calm = [sample(second) for second in range(1, 20)]
    found = dangers([*calm, sample(20, refaults=3000, faults=5000, available=100 * MIB)])
    assert set(found[:-1]) == {None}
    assert found[-1] == "danger: 3000 evicted pages/s of mapped files come back, 0/s lately"


def test_a_cache_that_is_too_small_is_none():
    found = dangers([sample(second, refaults=5000 * max(second - 15, 0), reads=9000 * second) for second in range(30)])
    assert set(found) == {None}


def test_programs_that_start_are_none():
    found = dangers([sample(second, faults=5000 * max(second - 15, 0)) for second in range(30)])
    assert set(found) == {None}


def test_a_program_that_starts_beside_a_cache_that_is_too_small_is_none():
    # Its files had been evicted by a scan; measured in the demo, with 442 MiB of 560 MiB available.
    calm = [sample(second) for second in range(1, 20)]
    assert set(dangers([*calm, sample(20, refaults=1323, faults=2253, available=800 * MIB)])) == {None}


def test_what_goes_on_for_long_is_the_guests_normal_life():
    found = dangers(
        [sample(second, refaults=1000 * second, faults=1000 * second, available=100 * MIB) for second in range(60)]
    )
    assert set(found) == {None}


def test_nothing_is_told_before_a_level_is_known():
    level = Level()
    assert not level.rises(1e6, LEARN_S / 2, 1.0)


def test_allocations_that_begin_to_wait_by_the_guests_own_account_are_danger():
    calm = [sample(second, stalls=7 * second, available=100 * MIB) for second in range(1, 20)]
    found = dangers([*calm, sample(20, stalls=800, available=100 * MIB)])
    assert set(found[:-1]) == {None}
    assert found[-1] == "danger: 667 allocations/s wait for memory, 7/s lately"


def test_allocations_that_wait_for_a_large_cache_are_none():
    calm = [sample(second, stalls=0) for second in range(1, 20)]
    assert set(dangers([*calm, sample(20, stalls=5000)])) == {None}


def test_stalls_that_went_back_or_are_not_told_are_none():
    calm = [sample(second, stalls=9000, available=100 * MIB) for second in range(1, 20)]
    assert set(dangers([*calm, sample(20, stalls=3, available=100 * MIB)])) == {None}
    assert set(dangers([*calm, sample(20, stalls=None, available=100 * MIB)])) == {None}


@pytest.mark.parametrize(
    ("pages", "waited", "danger"), [(657, None, True), (657, 31.0, True), (657, 8.5, False), (40, 31.0, False)]
)
def test_what_comes_back_from_swap_is_danger_if_somebody_has_waited_for_it(pages, waited, danger):
    before, after = (
        structs.replace(sample(second), swap_pages=SwapPages(in_=count, out=0), psi_memory=Psi(some_avg10=waited))
        for second, count in ((1, 1_000), (2, 1_000 + pages))
    )
    found = find_danger(before, after, GIB)
    assert (f"{pages} pages/s come back from swap" in (found or "")) == danger


@pytest.mark.parametrize(
    ("before", "after", "waits", "danger"),
    [
        (GIB, GIB, 0, False),  # within the limit of a control group
        (GIB, GIB, 1, True),  # a burst that ended between two samples
        (GIB, GIB, None, True),
        (40 * MIB, GIB, 0, True),
        (GIB, 40 * MIB, 0, True),
        (None, None, 0, True),
    ],
)
def test_a_kill_is_none_where_much_was_free_and_no_allocation_waited(before, after, waits, danger):
    earlier, later = (
        structs.replace(
            sample(second, stalls=None if waits is None else 7 + waits * kills),
            memory_bytes=Memory(total=4 * GIB, available=2 * GIB, free=free),
            oom_kills=kills,
        )
        for second, free, kills in ((1, before, 0), (2, after, 1))
    )
    assert ("1 processes killed" in (find_danger(earlier, later, 4 * GIB) or "")) == danger


def test_what_comes_back_from_swap_while_much_is_free_is_none():
    memory = Memory(total=4 * GIB, available=3 * GIB, free=GIB)
    before, after = (
        structs.replace(sample(second), swap_pages=SwapPages(in_=count, out=0), memory_bytes=memory)
        for second, count in ((1, 1_000), (2, 9_000))
    )
    assert find_danger(before, after, 4 * GIB) is None
    full = structs.replace(after, memory_bytes=structs.replace(memory, free=100 * MIB))
    assert "8000 pages/s come back from swap" in find_danger(before, full, 4 * GIB)


def test_a_standstill_is_danger_only_when_little_is_available():
    assert find_danger(sample(1), sample(2, full_s=0.9), GIB) is None
    found = find_danger(sample(1), sample(2, full_s=0.9, available=60 * MIB), GIB)
    assert found == "danger: all tasks waited for memory 90% of the time, 60M available"


def growing(second, held, available):
    told = sample(second, available=available)
    return structs.replace(told, memory_bytes=Memory(total=GIB, available=available, anon=held, shmem=0))


@pytest.mark.parametrize(
    ("grown", "available", "danger"),
    [
        (40 * MIB, 130 * MIB, None),
        (40 * MIB, 110 * MIB, "danger: programs take 40M a second, 110M available"),  # 80 MiB in 2 s
        (-40 * MIB, 100 * MIB, None),
        (0, 45 * MIB, None),
        (0, 30 * MIB, "danger: 30M available, below 40M"),
    ],
)
def test_a_program_that_will_soon_lack_memory_is_danger(grown, available, danger):
    earlier, later = growing(1, 200 * MIB, GIB), growing(2, 200 * MIB + grown, available)
    assert find_danger(earlier, later, 1000 * MIB) == danger
    assert growth_bytes(earlier, later) == max(0, 2 * grown)


def test_growth_that_is_not_told_is_none():
    assert growth_bytes(None, sample(1)) == 0
    assert growth_bytes(sample(1), growing(2, GIB, GIB)) == 0


def test_who_grows_needs_what_it_is_about_to_take():
    told = growing(1, 200 * MIB, 500 * MIB)
    assert (
        needed_bytes(told, GIB, short=False, growth_bytes=100 * MIB) == needed_bytes(told, GIB, short=False) + 96 * MIB
    )


class TestStalls:
    def test_a_kill_is_danger(self):
        assert "2 processes killed" in find_stalls(0, 2, 1.0, Level())

    def test_allocations_that_begin_to_wait_are_danger(self):
        level = Level()
        assert [find_stalls(1, 0, 1.0, level) for _ in range(20)] == [None] * 20
        assert find_stalls(500, 0, 1.0, level) == "danger: 500 allocations/s wait for memory, 1/s lately"

    def test_allocations_that_always_wait_are_none(self):
        level = Level()
        assert [find_stalls(500, 0, 1.0, level) for _ in range(20)] == [None] * 20


def test_who_holds_what_nothing_touches_and_could_swap_it_out_needs_no_more():
    idle = (*(0,) * 9, 400)  # of 128 pages: 190 MiB, less a deviation
    kinds = {"file": (0,) * 10, "mapped": (0,) * 10, "anon": idle, "shmem": (0,) * 10}
    ages = Ages(step_ms=1000, pages_each=128, steps=600, idle=AgesByKind(**kinds), touched=AgesByKind(**kinds))
    told = growing(1, 300 * MIB, 100 * MIB)
    aged = structs.replace(told, ages=ages)
    with_swap = structs.replace(aged, memory_bytes=structs.replace(told.memory_bytes, swap_total=GIB, swap_free=GIB))
    needs = [needed_bytes(sample, 500 * MIB, short=False) for sample in (told, aged, with_swap)]
    assert needs[0] == needs[1]
    assert needs[2] == needs[0] - 192 * MIB


def test_a_guest_that_can_swap_out_what_it_does_not_use_is_not_in_danger():
    idle = (*(0,) * 9, 400)  # of 128 pages: 190 MiB, less a deviation
    kinds = {"file": (0,) * 10, "mapped": (0,) * 10, "anon": idle, "shmem": (0,) * 10}
    ages = Ages(step_ms=1000, pages_each=128, steps=600, idle=AgesByKind(**kinds), touched=AgesByKind(**kinds))
    told = structs.replace(growing(2, 300 * MIB, 20 * MIB), ages=ages)
    with_swap = structs.replace(told, memory_bytes=structs.replace(told.memory_bytes, swap_total=GIB, swap_free=GIB))
    full = structs.replace(told, memory_bytes=structs.replace(told.memory_bytes, swap_total=GIB, swap_free=0))
    assert [find_danger(None, sample, 500 * MIB) is None for sample in (told, with_swap, full)] == [False, True, False]
