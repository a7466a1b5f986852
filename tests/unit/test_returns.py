"""What more memory would have kept, by how far evicted pages had gone when they came back."""

from collections import OrderedDict

import msgspec
import numpy as np
import pytest
from msgspec import structs

from qmpalloc.curves.observer import CurveObserver
from qmpalloc.errors import SampleError
from qmpalloc.returns import EDGES, ReturnsTracker
from qmpalloc.sample import GHOST_BINS, Delta, Memory, RefaultDistances, Sample, SampleTracker, difference, parse
from qmpalloc.units import MIB, PAGE_BYTES

NONE = (0,) * GHOST_BINS
FIRST = 1024
FIRST_BYTES = FIRST * PAGE_BYTES


def told(read=NONE, fault=NONE):
    return RefaultDistances(pages_each=64, pages_first=FIRST, read=tuple(read), fault=tuple(fault))


def tracked(*counts, size=500 * MIB, seconds=1.0, inserted=10**9):
    tracker = ReturnsTracker()
    for each in counts:
        tracker.observe(Delta(interval_s=seconds, inserts_fault=inserted, refault_distances=each), size)
    return tracker


def misses(trace, size):
    """Return the misses of an LRU cache and, of each page that comes back, how many were evicted meanwhile."""
    cached, left, clock, missed, distances = OrderedDict(), {}, 0, 0, []
    for page in trace:
        if page in cached:
            cached.move_to_end(page)
            continue
        missed += 1
        if page in left:
            distances.append(clock - left.pop(page))
        cached[page] = True
        if len(cached) > size:
            gone, _ = cached.popitem(last=False)
            clock += 1
            left[gone] = clock
    return missed, distances


@pytest.mark.parametrize("load", ["uniform", "normal", "loop"])
def test_with_lru_refault_distances_tell_what_more_memory_saves(load):
    """Not all of it, for the bins are wide, and what chance may have added is left out; but no more."""
    random, pages, size = np.random.default_rng(3), 6_000, 2_000
    trace = {
        "uniform": random.integers(0, pages, 60_000),
        "normal": np.clip(random.normal(pages / 2, pages * 0.15, 60_000), 0, pages - 1).astype(int),
        "loop": np.arange(60_000) % 2_500,
    }[load].tolist()
    here, distances = misses(trace, size)
    edges = [64 * edge for edge in EDGES]
    counts = np.bincount(np.searchsorted(edges, distances, side="right") - 1, minlength=GHOST_BINS)
    found = RefaultDistances(pages_each=1, pages_first=64, read=NONE, fault=tuple(map(int, counts)))
    returns = tracked(found, seconds=10.0, inserted=here).returns
    for more in (128, 512, 1024):
        saved = here - misses(trace, size + more)[0]
        said = float(returns.saved_by_faults(np.array([more * PAGE_BYTES], dtype=float), np.inf)[0]) * 10
        assert said <= 1.02 * saved
        assert said >= 0.8 * saved


def test_a_page_that_a_fault_asks_for_stands_for_its_neighbours():
    tracker = ReturnsTracker()
    for _ in range(20):
        delta = Delta(
            interval_s=1.0, inserts_fault=12_800, faults_major=400, refault_distances=told(fault=(5, *NONE[1:]))
        )
        tracker.observe(delta, 500 * MIB)
    assert tracker.returns.faults_per_s[1] == pytest.approx(0.9 * 5 * 64 * 32, rel=0.03)
    assert tracker.returns.bytes[1] == pytest.approx(
        FIRST_BYTES * (1 - 0.8 / 2), rel=0.01
    )  # most of the others would stay


def test_nothing_is_known_without_distances_or_of_too_short_a_time():
    assert tracked(*[None] * 20).returns is None
    assert tracked(told(), told()).returns is None
    assert tracked(*[told()] * 20).returns.faults_per_s == (0.0,)


def test_what_was_seen_at_another_size_is_forgotten():
    tracker = tracked(*[told(fault=(40, *NONE[1:]))] * 20)
    assert tracker.returns.faults_per_s[1] > 0
    tracker.observe(Delta(interval_s=1.0, refault_distances=told()), 510 * MIB)
    assert tracker.returns is None


def test_what_a_load_brought_in_again_fades_when_it_ends():
    tracker = tracked(*[told(fault=(40, *NONE[1:]))] * 20)
    busy = tracker.returns.faults_per_s[-1]
    for _ in range(120):
        tracker.observe(Delta(interval_s=1.0, refault_distances=told()), 500 * MIB)
    assert tracker.returns.faults_per_s[-1] < busy / 15


def test_reads_and_faults_are_told_apart_and_no_more_is_saved_than_comes_back():
    returns = tracked(*[told(read=(0, 0, 0, 16, *NONE[4:]), fault=(4, *NONE[1:]))] * 10).returns
    sizes = np.array([0.0, FIRST_BYTES, 2.0 * FIRST_BYTES])
    reads, faults = returns.saved_by_reads(sizes, np.inf), returns.saved_by_faults(sizes, np.inf)
    assert reads[:2].tolist() == pytest.approx([0.0, 0.0], abs=0.01)
    assert 900 < reads[2] < 16 * 64
    assert 200 < faults[1] < 4 * 64
    assert faults[1] == pytest.approx(faults[2])
    assert returns.saved_by_faults(sizes, 50.0).tolist() == [0.0, 50.0, 50.0]


def sample(distances, sequence):
    return Sample(
        format="qmpalloc-counters", version=1, boot_id="6d0bd3a8-2a02-4a36-8c3c-0102030405ff",
        start_id="0011223344556677", sequence=sequence, monotonic_ns=sequence * 10**9, interval_ms=1000, kernel="6",
        page_size=4096, refault_distances=distances,
        memory_bytes=Memory(total=1024 * MIB, free=0, active_file=400 * MIB, inactive_file=0),
    )  # fmt: skip


def test_a_guest_that_does_not_tell_and_one_that_counts_backwards():
    some = told(fault=(5, *NONE[1:]))
    assert difference(sample(None, 1), sample(some, 2)).refault_distances is None
    assert difference(sample(told(), 1), sample(some, 2)).refault_distances == some
    with pytest.raises(SampleError, match="refault distances went back"):
        difference(sample(some, 1), sample(told(), 2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"pages_each": 0},
        {"pages_first": 2**40},
        {"fault": NONE[1:]},
        {"read": (-1, *NONE[1:])},
        {"read": (2**64, *NONE[1:])},
    ],
)
def test_what_no_collector_writes_is_refused(wrong):
    good = msgspec.to_builtins(sample(told(), 1))
    parse(msgspec.json.encode(good))
    good["refault_distances"] |= wrong
    with pytest.raises(SampleError):
        parse(msgspec.json.encode(good))


def test_the_observer_tells_them_without_any_sampled_access():
    observer, tracker = CurveObserver(), SampleTracker()
    for number in range(1, 12):
        accepted = tracker.accept(sample(told(fault=(number * 30, *NONE[1:])), number), float(number))
        observer.take_sample(accepted.sample, accepted.delta, 500 * MIB, 200 * MIB, 900 * MIB)
    assert observer.facts(200 * MIB, 900 * MIB, None).returns.faults_per_s[1] > 64 * 25
    observer.was_reset()
    assert observer.facts(200 * MIB, 900 * MIB, None).returns is None
    assert structs.asdict(observer.facts(0, 1, None))["returns"] is None
