"""Curves from sampled accesses: against brute force, and what always holds."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reuse_times import ReuseTimes

from qmpalloc.curves.keys import KeyTable, in_sample
from qmpalloc.curves.measurement import anchored
from qmpalloc.curves.multigen import MultiGenerational
from qmpalloc.curves.replacement import Fifo, Lru
from qmpalloc.curves.reuse import ReuseDistances
from qmpalloc.curves.simulation import POLICIES, Simulations
from qmpalloc.curves.split import best_split
from qmpalloc.curves.two_list import TwoList

pages = st.lists(st.integers(0, 30), min_size=1, max_size=300)
SIZES = np.arange(0, 40, dtype=float)


def brute_distances(numbers):
    stack, distances = [], []
    for number in numbers:
        if number in stack:
            distances.append(len(stack) - 1 - stack.index(number))
            stack.remove(number)
        else:
            distances.append(-1)
        stack.append(number)
    return distances


@settings(deadline=None)
@given(pages, st.integers(1, 50))
def test_reuse_distances_are_those_of_a_stack_however_the_accesses_are_cut_into_batches(numbers, size):
    lru = ReuseDistances(64)
    found = []
    for start in range(0, len(numbers), size):
        found += lru.distances(np.array(numbers[start : start + size])).tolist()
    assert found == brute_distances(numbers)


def test_reuse_distances_beyond_a_chunk():
    numbers = np.random.default_rng(1).integers(0, 200, 3000)
    assert ReuseDistances(64).distances(numbers).tolist() == brute_distances(numbers.tolist())


@settings(deadline=None)
@given(pages)
def test_the_lru_curve_is_what_lru_caches_miss(numbers):
    estimator = ReuseDistances(64)
    estimator.observe(np.array(numbers), len(numbers))
    for size in (1, 2, 5, 12, 31):
        expected = Lru(size).read(numbers) / len(numbers)
        assert estimator.miss_ratios(np.array([float(size)]))[0] == pytest.approx(expected)


@settings(deadline=None)
@given(pages, st.floats(0.5, 2.0), st.sampled_from(["shards", "aet", *POLICIES]))
def test_curves_fall_and_stay_between_0_and_1_whatever_was_observed(numbers, surplus, name):
    lru = ReuseDistances(64)
    ids, expected = np.array(numbers), len(numbers) * surplus
    lru.observe(ids, expected)
    estimator = lru if name == "shards" else ReuseTimes() if name == "aet" else None
    if estimator is None:
        estimator = Simulations(name, np.array([2.0, 5.0, 20.0]), lru, scale=64.0)
    if estimator is not lru:
        estimator.observe(ids, expected)
    for change in (lambda: None, lambda: estimator.forget(0.5), lambda: estimator.coarsen(1)):
        change()
        ratios = estimator.miss_ratios(SIZES)
        assert ((ratios >= 0) & (ratios <= 1)).all()
        assert (np.diff(ratios) <= 0).all()


@pytest.mark.parametrize("kind", [Lru, Fifo, TwoList, MultiGenerational])
@settings(deadline=None)
@given(numbers=pages, capacity=st.integers(1, 40))
def test_a_simulated_cache_holds_no_more_than_it_may_and_misses_each_page_once_when_all_fit(kind, numbers, capacity):
    cache = kind(capacity, 31)
    misses = cache.read(numbers)
    assert cache.resident <= capacity
    assert len(set(numbers)) <= misses <= len(numbers)
    if capacity >= 31:
        assert misses == len(set(numbers))
    cache.resize(1)
    assert cache.resident == 1


@pytest.mark.parametrize("kind", [Lru, Fifo, TwoList, MultiGenerational])
@settings(deadline=None)
@given(numbers=pages, more=pages, capacity=st.integers(2, 20))
def test_renumbering_all_pages_changes_nothing(kind, numbers, more, capacity):
    one, other = kind(capacity, 31), kind(capacity, 31)
    one.read(numbers)
    other.read(numbers)
    other.renumber([30 - number for number in range(31)])
    assert one.read(more) == other.read([30 - number for number in more])


def test_two_list_keeps_pages_read_twice_through_a_scan():
    cache = TwoList(100, 1000)
    hot = list(range(30))
    cache.read(hot + hot + hot)
    cache.read(list(range(100, 900)))
    assert cache.read(hot) == 0


def test_at_a_lower_rate_the_two_lists_have_the_ratio_of_the_real_size():
    """In a cache of 4 GiB, pages read often may fill six sevenths; of 512 MiB, a half."""
    sizes, lru, hot = np.array([2_048.0]), ReuseDistances(64), 1_638
    lowered = Simulations("two_list", 8 * sizes, lru, scale=64.0)
    lowered.coarsen(3)
    made = Simulations("two_list", sizes, lru, scale=512.0)
    beside_a_scan = np.arange(40_000) % 10_000 + hot
    beside_a_scan[::2] = np.random.default_rng(3).integers(0, hot, 20_000)
    for each in (lowered, made):
        each.observe(beside_a_scan, len(beside_a_scan))
    assert lowered.miss_ratios(sizes) == made.miss_ratios(sizes) == pytest.approx(0.58, abs=0.01)


def test_multi_generational_keeps_pages_read_five_times_through_a_scan_and_no_others():
    cache = MultiGenerational(100, 1000)
    often, seldom = list(range(20)), list(range(20, 40))
    cache.read(often * 5 + seldom * 3)
    cache.read(list(range(100, 190)))
    assert cache.read(often) == 0
    assert cache.read(seldom) == 20


def test_sample_rates_are_nested():
    keys = np.random.default_rng(1).integers(0, 2**60, 10_000).astype(np.uint64)
    before = np.ones(len(keys), dtype=bool)
    for shift in range(6, 12):
        now = in_sample(keys, shift)
        assert not (now & ~before).any()
        assert now.mean() == pytest.approx(2.0 ** (6 - shift), rel=0.3)
        before = now


def test_the_key_table_keeps_the_pages_accessed_last():
    table = KeyTable(limit=3)
    ids = table.number(np.array([11, 12, 13, 14, 15, 11], dtype=np.uint64))
    assert ids.tolist() == [0, 1, 2, 3, 4, 0]
    assert not table.full
    table.number(np.array([16], dtype=np.uint64))
    assert table.full
    new = table.trim(np.array([5, 1, 2, 3, 4, 6]))
    assert new.tolist() == [0, -1, -1, -1, 1, 2]
    assert table.number(np.array([15, 12], dtype=np.uint64)).tolist() == [1, 3]


@settings(deadline=None)
@given(
    hnp.arrays(float, 20, elements=st.floats(0, 1)).map(lambda values: np.sort(values)[::-1]),
    st.floats(0, 19),
    st.floats(0, 1),
)
def test_an_anchored_curve_falls_and_passes_near_what_was_measured(ratios, size, measured):
    sizes = np.arange(20.0)
    result = anchored(ratios, sizes, size, measured)
    assert (np.diff(result) <= 1e-12).all()
    assert ((result >= 0) & (result <= 1)).all()
    here = np.interp(size, sizes, ratios)
    if size == int(size) and 0.01 < here < 0.99 and abs(measured - here) < 0.03:
        assert np.interp(size, sizes, result) == pytest.approx(measured, abs=1e-6)


def test_a_guest_that_misses_nothing_is_still_known_to_miss_with_less():
    ratios = anchored(np.array([1.0, 0.5, 0.02, 0.0]), np.array([0.0, 1.0, 2.0, 3.0]), 2.0, 0.0)
    assert ratios[1] > 0.4
    assert ratios[2] == 0.0


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=3),
    st.integers(0, 8),
)
def test_the_split_is_the_best_of_all(values, units):
    given_units = best_split([np.array(value) for value in values], units)
    assert sum(given_units) <= units
    options = itertools.product(*[range(len(value)) for value in values])
    best = max(
        sum(value[count] for value, count in zip(values, option, strict=True))
        for option in options
        if sum(option) <= units
    )
    found = sum(value[count] for value, count in zip(values, given_units, strict=True))
    assert found == pytest.approx(best, abs=1e-9)


def test_equal_guests_share_equally_and_cliffs_are_jumped():
    concave = np.sqrt(np.arange(101.0))
    assert best_split([concave, concave], 100) == [50, 50]
    cliff = np.where(np.arange(101) >= 60, 10.0, 0.0)
    assert sorted(best_split([cliff, cliff], 100))[1] >= 60
