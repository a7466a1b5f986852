"""How far a curve may be off by chance: whole pages and whole moments are what is independent, if anything is."""

import numpy as np
import pytest

from qmpalloc.curves.noise import Noise, Windows
from qmpalloc.curves.replacement import Lru
from qmpalloc.curves.samples import Window
from qmpalloc.curves.tracker import CurveTracker
from qmpalloc.curves.tuning import TUNING
from qmpalloc.sim.replay import mixed

PAGES = 1_000  # of the sample
BAND = 1.645  # standard deviations of a band of 90 %


def observed(keys, distances, expected=1_000.0):
    noise = Noise(np.array([10.0, 100.0]))
    noise.observe(np.asarray(keys, dtype=np.uint64), 6, np.asarray(distances), expected)
    return noise


def test_accesses_to_one_page_are_as_uncertain_as_one():
    one = observed(np.full(160, 3), np.full(160, 50))
    assert one.ratios.tolist() == [0.16, 0.0]
    assert one.variances(None) == pytest.approx([0.16**2, 0.0])
    many = observed(np.arange(192), np.full(192, 50))
    assert many.variances(None) == pytest.approx([0.0, 0.0])


def test_what_neighbours_have_in_common_is_no_chance():
    """The sample has a page of every block, so a cluster of accesses is in it with its share."""
    neighbours, strangers = (observed(np.repeat([2, other], 80), np.full(160, 50)) for other in (3, 5))
    assert neighbours.variances(None)[0] == pytest.approx(0.0)
    assert strangers.variances(None)[0] == pytest.approx(2 * 0.08**2)


def test_a_curve_is_uncertain_beside_a_cliff_and_where_a_straight_one_is_not():
    sizes = np.array([20.0, 80.0, 110.0, 300.0])

    def off(lru, pages):
        return observed([], []).deviations(sizes, None, lru, pages)

    def cliff(at):
        return np.where(at < 100, 0.8, 0.2)

    assert off(cliff, 1_000.0) == pytest.approx([0.0, 0.6 * 2 / 7, 0.6 * 3 / 7, 0.0])
    assert off(cliff, 100.0) == pytest.approx(np.zeros(4))  # a loop: the sample has its share of all pages
    assert off(lambda at: 1.0 - at / 1_000.0, 1_000.0) == pytest.approx(np.zeros(4))


def test_groups_are_those_of_the_rate_in_use():
    noise = Noise(np.array([10.0]))
    noise.observe(np.arange(64, dtype=np.uint64) << np.uint64(3), 9, np.full(64, 50), 100.0)
    assert noise.variances(None) == pytest.approx([0.0])


def test_where_the_curve_is_made_to_pass_through_a_measurement_its_own_error_does_not_count():
    noise = observed(np.full(160, 3), np.r_[np.full(80, 50), np.full(80, 500)])
    free, tied = noise.variances(None), noise.variances(100.0)
    assert free == pytest.approx([0.16**2, 0.08**2])
    assert tied[1] == pytest.approx(0.0)
    assert 0 < tied[0] < free[0]


def test_what_is_measured_swings_with_the_load_but_not_with_the_size_of_the_cache():
    steady, swinging, grown = (observed(np.full(160, 3), np.full(160, 50)) for _ in range(3))
    for index in range(40):
        steady.measure(100, 50, 1_000.0, 400.0)
        swinging.measure(100, 100 * (index // 4 % 2), 1_000.0, 400.0)
        grown.measure(100, 100 - 2 * index, 1_000.0 * 1.1**index, 400.0)
    assert steady.variances(10.0)[0] == grown.variances(10.0)[0] == pytest.approx(0.0, abs=1e-6)
    assert swinging.variances(10.0)[0] > 0.04


def swing(ratios, half_life=4):
    windows = Windows()
    for ratio in ratios:
        windows.observe(ratio, 1.0, 1.0)
    return windows.variance(half_life)


def test_too_few_windows_tell_nothing_and_steady_ones_that_nothing_swings():
    assert swing([0.0, 1.0] * 5) == 0.0
    assert swing([0.5] * 40) == pytest.approx(0.0)


@pytest.mark.parametrize("alike", [1, 4])
def test_a_mean_swings_as_its_windows_do(alike):
    """White noise, and windows of which each has three neighbours like it, in a mean with falling weights."""
    random, half_life = np.random.default_rng(1), 4
    kept = 0.5 ** (1 / half_life)
    found, means = [], []
    for _ in range(200):
        ratios = np.repeat(random.random(200 // alike), alike)
        found.append(swing(ratios[-TUNING.noise.windows :], half_life))
        weights = kept ** np.arange(200)[::-1]
        means.append((weights * ratios).sum() / weights.sum())
    # A mean of so few windows hides a part of what they have in common.
    assert 0.6 < np.mean(found) / np.var(means) < 1.3


def seen(numbers, seed, batches=10, accesses=1_000):
    """Return a tracker after loads of `numbers(batch)` pages of the sample, in turn of a group."""
    tracker = CurveTracker(None, PAGES * 8, PAGES * 80)
    for batch in range(batches):
        pages = np.asarray(numbers(batch), dtype=np.uint64)
        keys = mixed(pages + np.uint64(seed << 32)) >> np.uint64(14) << np.uint64(10) | pages & np.uint64(1023)
        tracker.observe(Window(keys=keys, accesses=64 * accesses, lost=0, shift=6))
    return tracker


def deviation(tracker, size, here):
    return float(tracker._noise.deviations(np.array([size / 64]), here, tracker.lru.miss_ratios, PAGES)[0])


def test_bands_of_90_percent_hold_most_of_the_time_by_pages_alone():
    size, truth, inside = PAGES * 16.0, 1 - 16 / 64, 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        tracker = seen(lambda _, random=random: random.integers(0, PAGES, random.poisson(1_000)), seed)
        estimate = float(tracker.miss_ratios(np.array([size]))[0])
        inside += abs(estimate - truth) < BAND * deviation(tracker, size, None)
    assert 0.65 < inside / 60 < 0.98  # 0.72: nothing is measured here that would tell how much moments differ


def test_a_period_about_as_long_as_the_memory_widens_the_band():
    size, phase, random = PAGES * 32, np.arange(PAGES), np.random.default_rng(1)
    to_and_fro, uniform = np.r_[phase, phase[::-1]], random.integers(0, PAGES, 2 * PAGES)
    noise = {}
    for name, pages in (("to and fro", to_and_fro), ("uniform", uniform)):
        tracker = seen(lambda batch, pages=pages: np.roll(pages, -256 * batch)[:256], 1, 120, 256)
        cache = Lru(PAGES // 2, PAGES)
        for batch in range(120):
            missed = cache.read(np.roll(pages, -256 * batch)[:256].tolist())
            tracker.measure(64 * 256, 64 * missed, size)
        noise[name] = deviation(tracker, size, PAGES / 2)
    assert noise["to and fro"] > 3 * noise["uniform"]


def test_what_is_measured_is_of_the_same_accesses_as_the_curve():
    """Otherwise the curve of a load that goes to and fro is moved by .04, at every size."""
    phase, cache = np.arange(PAGES), Lru(PAGES // 2, PAGES)
    there_and_back, tracker = np.r_[phase, phase[::-1]], CurveTracker(None, PAGES * 8, PAGES * 80)
    for batch in range(120):
        pages = np.roll(there_and_back, -256 * batch)[:256].astype(np.uint64)
        keys = mixed(pages) >> np.uint64(14) << np.uint64(10) | pages
        tracker.observe(Window(keys=keys, accesses=64 * 256, lost=0, shift=6))
        tracker.measure(64 * 256, 64 * cache.read(pages.tolist()), PAGES * 32)
        if batch > 60:
            assert tracker.measured == pytest.approx(tracker.miss_ratios(np.array([PAGES * 32.0]))[0], abs=0.002)


def test_a_lower_rate_keeps_what_was_learnt():
    random = np.random.default_rng(1)
    tracker = seen(lambda _: random.integers(0, PAGES, 1_000), 1)
    before = tracker._noise.ratios
    tracker.lower_rate(7)
    assert tracker._noise.ratios == pytest.approx(before)
