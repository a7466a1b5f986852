"""One guest's curve over time: confidence, change, restart, lower rates, anchoring; mapping and service times."""

import math

import numpy as np
import pytest
from msgspec import structs

from qmpalloc.curves.change import ChangeDetector
from qmpalloc.curves.mapping import SYSTEM_PAGES, SizeMapping
from qmpalloc.curves.samples import Window
from qmpalloc.curves.service import ServiceTimes
from qmpalloc.curves.tracker import CurveTracker
from qmpalloc.curves.tuning import TUNING, tuned
from qmpalloc.sample import Memory
from qmpalloc.sim.replay import mixed
from qmpalloc.units import GIB, MIB, PAGE_BYTES

PAGES = 1_000  # sampled pages of a load, so 64,000 of the guest
FIT = PAGES * 64


def window(numbers, *, shift=6, lost=0, restarted=False, surplus=1.0):
    keys = mixed(np.asarray(numbers, dtype=np.uint64)) >> np.uint64(4)
    if shift > 6:
        keys = keys[keys & np.uint64((1 << (shift - 6)) - 1) == 0]
    accesses = round(len(numbers) * 64 * surplus)
    return Window(keys=keys, accesses=accesses, lost=lost, shift=shift, restarted=restarted)


def uniform(count, seed=1, first=0):
    return np.random.default_rng(seed).integers(first, first + PAGES, count)


def fed(tracker, batches=8, *, cached=FIT // 2, misses=0.5, first=0, seed=1, **options):
    for index in range(batches):
        tracker.observe(window(uniform(2_000, seed + index, first), **options))
        tracker.measure(128_000, round(128_000 * misses), cached)
    return tracker


def mapping():
    one = SizeMapping(system_pages=0, kept_bytes=0)
    one.observe(500 * MIB, Memory(free=0, active_file=200 * MIB, inactive_file=200 * MIB), evicting=True)
    return one


def curve(tracker):
    return tracker.curve(mapping(), 150 * MIB, GIB)


@pytest.mark.parametrize("policy", [None, "two_list", "lru_gen"])
def test_a_uniform_load_has_a_straight_curve(policy):
    found = curve(fed(CurveTracker(policy, 10_000, 200_000)))
    assert found.weak == ()
    assert len(found.sizes_bytes) <= 2 * TUNING.tracking.points + 2
    sizes = np.array([200, 250, 300, 350]) * MIB
    expected = 1 - (sizes - 100 * MIB) / PAGE_BYTES / FIT
    assert np.interp(sizes, found.sizes_bytes, found.miss_ratio) == pytest.approx(expected, abs=0.03)
    assert found.measured == pytest.approx(0.5, abs=0.001)


def test_a_curve_of_few_accesses_or_less_than_two_working_sets_is_weak():
    tracker = CurveTracker("lru_gen", 10_000, 200_000)
    tracker.observe(window(uniform(500)))
    assert "only 500 sampled accesses" in curve(tracker).weak[0]
    tracker.observe(window(uniform(600, 2)))
    assert "1.6 working sets seen" in curve(tracker).weak[0]
    assert not curve(tracker).suspect


def test_lost_samples_make_a_curve_weak_until_they_are_long_ago():
    tracker = fed(CurveTracker("lru_gen", 10_000, 200_000))
    tracker.observe(window(uniform(2_000), lost=200))
    assert "lost" in curve(tracker).weak[0]
    assert curve(tracker).suspect
    assert curve(fed(tracker, 20)).weak == ()
    assert not curve(tracker).suspect


def test_samples_lost_in_a_row_shift_a_curve_by_twice_their_share_at_most():
    whole, gap = (CurveTracker("lru_gen", 10_000, 200_000) for _ in range(2))
    for number in range(40):
        one = window(uniform(2_000, number))
        whole.observe(one)
        gap.observe(structs.replace(one, keys=one.keys[400:], lost=400) if number == 35 else one)
    assert "lost" not in str(curve(gap).weak)
    difference = np.abs(np.subtract(curve(gap).miss_ratio, curve(whole).miss_ratio))
    assert 0 < difference.max() < 0.02


def test_a_restart_forgets_all():
    tracker = fed(CurveTracker("lru_gen", 10_000, 200_000))
    tracker.observe(window(uniform(100), restarted=True))
    assert "only 100" in curve(tracker).weak[0]
    assert tracker.measured is None
    assert tracker.load == 2


def test_a_curve_that_contradicts_the_measurement_is_weak():
    found = curve(fed(CurveTracker("lru_gen", 10_000, 200_000), misses=0.1))
    (reason,) = found.weak
    assert reason.startswith("the curve says 0.4")
    assert reason.endswith("misses here, measured are 0.10")
    assert not found.suspect  # no sample is missing, and what is measured holds


def test_misses_while_the_cache_fills_say_nothing_of_its_size():
    tracker = fed(CurveTracker("lru_gen", 10_000, 200_000))
    for cached in (0.6, 0.7, 0.8):
        tracker.observe(window(uniform(2_000)))
        tracker.measure(128_000, 100_000, cached * FIT)
        assert tracker.measured is None
        assert curve(tracker).weak == ("no miss ratio measured at this size yet",)
    tracker.measure(128_000, 26_000, 0.8 * FIT)
    assert tracker.measured == pytest.approx(0.2, abs=0.01)


def test_what_is_read_ahead_of_slow_accesses_is_missed_all_the_same():
    """10 pages a second, 32 at a time: nine intervals in ten have no misses, the others three times their accesses."""
    slow, apart = (CurveTracker(None, 10_000, 200_000) for _ in range(2))
    for second in range(400):
        slow.measure(10, 32 * ((10 * second + 10) // 32 - 10 * second // 32), FIT // 2)
    for _ in range(100):
        apart.measure(0, 32, FIT // 2)
        apart.measure(32, 0, FIT // 2)
    assert slow.measured == pytest.approx(1.0, abs=0.02)
    assert apart.measured == pytest.approx(1.0, abs=0.02)


def test_a_cache_has_turned_over_when_more_was_read_than_it_holds_and_pages_leave_it():
    tracker = CurveTracker("lru_gen", 10_000, 200_000)
    for seen, evicting, turned_over in ((400, True, False), (600, False, False), (600, True, True)):
        tracker.observe(window(np.arange(seen)))
        tracker.measure(32_000, 32_000, FIT // 2, evicting=evicting)
        assert curve(tracker).turned_over is turned_over


def test_at_the_edge_of_a_cliff_both_sides_of_it_are_believed():
    for misses in (1.0, 0.5, 0.0):
        tracker = CurveTracker("lru_gen", 10_000, 200_000)
        for _ in range(8):
            tracker.observe(window(np.tile(np.arange(PAGES), 2)))
            tracker.measure(128_000, round(128_000 * misses), 0.97 * FIT)
        assert curve(tracker).weak == ()


def test_a_model_that_is_a_little_wrong_is_corrected_where_the_guest_is():
    tracker = fed(CurveTracker("lru_gen", 10_000, 200_000), misses=0.45)
    found = curve(tracker)
    size = 100 * MIB + FIT // 2 * PAGE_BYTES
    assert np.interp(size, found.sizes_bytes, found.miss_ratio) == pytest.approx(0.45, abs=0.005)


def test_another_file_is_noticed_by_its_new_pages_and_the_curve_is_weak_until_they_are_known():
    tracker = fed(CurveTracker("two_list", 10_000, 200_000), 12)
    assert tracker.load == 1
    weak = []
    for index in range(10):
        fed(tracker, 1, first=50_000, seed=100 + index)
        weak.append(bool(curve(tracker).weak))
    assert tracker.load == 2
    assert weak[1]
    assert not weak[-1]


def test_the_pages_of_the_load_before_are_not_waited_for():
    """Another file, as large: with the pages of both, two working sets would be twice as many accesses."""
    tracker, sampled = fed(CurveTracker("two_list", 10_000, 200_000), 12), 0
    while tracker.load == 1 or any("working sets" in why or "only" in why for why in curve(tracker).weak):
        tracker.observe(window(uniform(250, 100 + sampled, 50_000)))
        tracker.measure(16_000, 8_000, FIT // 2)
        sampled += 250 * (tracker.load - 1)
    assert sampled <= 2.5 * PAGES


def test_a_load_that_misses_more_with_the_same_pages_is_noticed():
    tracker = fed(CurveTracker("lru_gen", 10_000, 200_000), 12)
    fed(tracker, 4, misses=0.8)
    assert tracker.load == 2


def test_a_steady_load_is_never_taken_for_a_changed_one():
    tracker = CurveTracker("lru_gen", 10_000, 200_000)
    for index in range(60):
        fed(tracker, 1, seed=index)
    assert tracker.load == 1


def test_a_lower_rate_in_mid_run_keeps_what_was_learnt():
    tracker = fed(CurveTracker("lru_gen", 10_000, 200_000), 12)
    before = tracker.miss_ratios(np.array([16_000.0, 32_000.0, 48_000.0]))
    tracker.observe(window(uniform(2_000), shift=7))
    assert tracker.shift == 7
    after = tracker.miss_ratios(np.array([16_000.0, 32_000.0, 48_000.0]))
    assert after == pytest.approx(before, abs=0.05)
    # A guest that samples more again is cut down to the same rate.
    fed(tracker, 12)
    assert tracker.shift == 7
    assert tracker.miss_ratios(np.array([32_000.0]))[0] == pytest.approx(0.5, abs=0.1)


def test_a_burst_that_made_a_curve_coarse_does_not_do_so_for_ever():
    """The collector goes back to a higher rate when the burst is over, and so does the curve, if it is too coarse."""
    tracker = CurveTracker("lru_gen", 10_000, 200_000)
    tracker.lower_rate(10)
    for index in range(20):
        tracker.observe(window(uniform(2_000, index)))
    assert tracker.shift == 10
    tracker.measure(128_000, 64_000, FIT // 2)
    found = curve(tracker)
    assert found.weak[0].startswith("only")
    for index in range(20, 100):
        tracker.observe(window(uniform(2_000, index)))
    assert tracker.shift == 6
    assert (tracker.load, curve(tracker).steady_accesses) == (1, 128_000)
    assert curve(fed(tracker)).weak == ()


def test_few_pages_of_a_low_rate_are_too_coarse_and_few_of_a_high_one_are_a_small_load():
    for shift, weak in ((10, ["too coarse: 63 pages of 1 in 1024"]), (6, [])):
        tracker = CurveTracker("lru_gen", 10_000, 200_000)
        tracker.shift = shift
        keys = mixed(np.arange(63, dtype=np.uint64)) >> np.uint64(4) << np.uint64(shift - 6)
        for _ in range(60):
            tracker.observe(Window(keys=keys, accesses=63 << shift, lost=0, shift=shift))
            tracker.measure(63 << shift, 0, 63 << shift)
        assert [reason for reason in curve(tracker).weak if "coarse" in reason] == weak


def test_after_a_load_larger_than_the_largest_size_another_is_seen_twice_before_it_is_believed():
    tracker = CurveTracker("lru_gen", 10_000, 100_000)
    for index in range(10):
        tracker.observe(window(np.arange(2_000 * index, 2_000 * index + 2_000)))
        tracker.measure(128_000, 128_000, 90_000)
    assert not any("working sets" in reason for reason in curve(tracker).weak)
    tracker._changed(tracker.lru.clock)
    tracker.observe(window(uniform(1_200, first=100_000)))
    assert any("working sets" in reason for reason in curve(tracker).weak)


def test_a_load_larger_than_the_largest_size_is_known_as_early_at_a_lower_rate():
    tracker = CurveTracker("lru_gen", 10_000, 100_000)
    tracker.lower_rate(9)
    for index in range(6):
        tracker.observe(window(np.arange(2_000 * index, 2_000 * index + 2_000)))
    assert not any("working sets" in reason or "only" in reason for reason in curve(tracker).weak)


def test_a_large_guest_is_sampled_at_a_lower_rate_and_memory_stays_bounded():
    tracker = CurveTracker("two_list", 10_000, 8 * GIB // PAGE_BYTES)
    assert tracker.shift == 8
    for index in range(12):
        tracker.observe(window(np.arange(index * 8_000, (index + 1) * 8_000)))
    assert tracker.lru.pages <= 4 * 8_192
    assert tracker.miss_ratios(np.array([1e6]))[0] == pytest.approx(1.0, abs=0.01)


def test_ghosts_are_hits_by_access_for_a_mib():
    gain, loss = fed(CurveTracker("lru_gen", 10_000, 200_000)).ghosts()
    assert gain == pytest.approx(256 / FIT, rel=0.3)
    assert loss == pytest.approx(256 / FIT, rel=0.3)


def test_the_mapping_learns_what_is_not_cache():
    one = SizeMapping()
    assert one.cache_pages(GIB) == 0.0
    memory = Memory(free=40 * MIB, active_file=300 * MIB, inactive_file=100 * MIB)
    for _ in range(60):
        one.observe(600 * MIB, memory, evicting=True)
    assert one.overhead_bytes == pytest.approx(200 * MIB, rel=0.01)
    assert one.cache_pages(700 * MIB) == pytest.approx(500 * 256 - SYSTEM_PAGES, rel=0.01)
    # Free memory beyond what the kernel keeps is cache to come.
    one.observe(800 * MIB, Memory(free=240 * MIB, active_file=300 * MIB, inactive_file=100 * MIB), evicting=False)
    assert one.overhead_bytes == pytest.approx(200 * MIB, rel=0.01)


def test_a_load_that_waits_is_told_from_one_that_does_not():
    waiting, paced = ServiceTimes(), ServiceTimes()
    for m in np.linspace(0.1, 0.5, 20):
        accesses = int(1.0 / (25e-6 + m * 400e-6))
        waiting.observe(accesses, int(m * accesses), 1.0)
        paced.observe(5_000, int(m * 5_000), 1.0)
    assert waiting.waits == 1.0
    assert waiting.miss_s == pytest.approx(400e-6, rel=0.05)
    assert waiting.hit_s == pytest.approx(25e-6, rel=0.2)
    assert paced.waits == pytest.approx(0.0, abs=0.05)


def test_what_a_miss_cost_before_is_believed_no_longer_than_the_time_of_accesses_allows():
    times = ServiceTimes()
    for m in np.linspace(0.1, 0.9, 20):
        times.observe(int(1.0 / (25e-6 + m * 2e-3)), int(m / (25e-6 + m * 2e-3)), 1.0)
    assert times.miss_s == pytest.approx(2e-3, rel=0.05)
    rng = np.random.default_rng(1)
    for noise in rng.uniform(0.5, 1.5, 200):  # now 400 µs an access, at random, whatever it misses
        accesses = int(2_500 * noise)
        times.observe(accesses, int(accesses * rng.uniform(0.65, 0.66)), 1.0)
    assert times.waits * times.miss_s * 0.65 <= 1.3 * 400e-6


def test_a_load_that_pauses_and_a_guest_that_stalls_hide_nothing():
    """As in real guests: one second in ten says nothing of what an access takes, and every second varies a little."""
    times, rng = ServiceTimes(), np.random.default_rng(1)
    for number, m in enumerate(np.linspace(0.9, 0.5, 40)):
        access_s = (40e-6 + m * 700e-6) * rng.uniform(0.95, 1.05) * (8.0 if number % 10 == 3 else 1.0)
        times.observe(int(1.0 / access_s), int(m / access_s), 1.0)
    assert times.waits == 1.0
    assert times.miss_s == pytest.approx(700e-6, rel=0.15)


def test_what_was_well_known_stays_while_the_miss_ratio_stands_still():
    times, rng = ServiceTimes(), np.random.default_rng(1)
    for m in np.linspace(0.9, 0.3, 40):
        times.observe(int(1.0 / (40e-6 + m * 700e-6)), int(m / (40e-6 + m * 700e-6)), 1.0)
    for m, noise in zip(rng.uniform(0.29, 0.31, 60), rng.uniform(0.9, 1.1, 60), strict=True):
        accesses = int(1.0 / ((40e-6 + 0.3 * 700e-6) * noise))
        times.observe(accesses, int(m * accesses), 1.0)
    assert times.waits == 1.0
    assert times.miss_s == pytest.approx(700e-6, rel=0.3)


def timed(times, hit_s, miss_s, ratios, *, noise=0.03, seed=2):
    """Let a load that waits run for a second at each miss ratio."""
    rng = np.random.default_rng(seed)
    for m in ratios:
        access_s = (hit_s + m * miss_s) * rng.uniform(1.0 - noise, 1.0 + noise)
        times.observe(int(1.0 / access_s), int(m / access_s), 1.0)
    return rng


def test_a_load_that_waits_is_known_for_it_though_its_misses_take_little_of_its_time():
    times = ServiceTimes()
    timed(times, 400e-6, 700e-6, np.random.default_rng(1).uniform(0.05, 0.15, 100), noise=0.01)
    assert times.waits * times.miss_s == pytest.approx(700e-6, rel=0.2)


def test_what_was_learnt_of_another_load_gives_way():
    times = ServiceTimes()
    timed(times, 100e-6, 0.0, np.linspace(0.4, 0.6, 300))
    assert times.waits == pytest.approx(0.0, abs=0.1)
    timed(times, 40e-6, 700e-6, np.linspace(0.6, 0.4, 60))
    assert times.waits * times.miss_s == pytest.approx(700e-6, rel=0.25)


def test_a_passing_scan_does_not_wipe_out_what_a_miss_costs():
    times = ServiceTimes()
    timed(times, 40e-6, 700e-6, np.linspace(0.9, 0.3, 120))
    timed(times, 0.0, 10e-6, np.linspace(0.99, 1.0, 25))
    timed(times, 40e-6, 700e-6, np.random.default_rng(1).uniform(0.295, 0.305, 60))
    assert times.waits * times.miss_s == pytest.approx(700e-6, rel=0.25)


def test_a_load_that_keeps_to_its_rate_is_known_for_it_whatever_chance_does():
    """An hour of a rate of its own, by a generator that catches up after a stall: nothing is promised from that."""
    times, rng, owed = ServiceTimes(), np.random.default_rng(1), 0
    for second in range(3_600):
        stalled = second % 60 == 7
        accesses = int((2_000 + owed) * rng.uniform(0.97, 1.0) * (0.6 if stalled else 1.0))
        owed += 2_000 - accesses
        times.observe(accesses, int(accesses * rng.uniform(0.2, 0.24)), 1.0)
        if second >= 60:
            assert times.waits == pytest.approx(0.0, abs=0.1), second


@pytest.mark.parametrize("period_s", [120, 300, 1_200])
def test_a_rate_that_drifts_while_misses_do_is_mostly_known_for_no_load_that_waits(period_s):
    """A load with a rate of its own that goes up while its misses go down, and down while they go up."""
    times, rng, wrong = ServiceTimes(), np.random.default_rng(1), 0
    for second in range(1_200):
        wave = math.sin(2 * math.pi * second / period_s)
        accesses = int(rng.poisson(2_000 * (1.0 + 0.4 * wave)))
        times.observe(accesses, rng.binomial(accesses, 0.2 - 0.08 * wave), 1.0)
        wrong += times.waits is not None and times.waits > 0.1
    assert wrong < 600
    assert times.waits == pytest.approx(0.0, abs=0.1)


def test_a_load_that_waits_is_known_for_it_while_its_misses_drift():
    times, rng = ServiceTimes(), np.random.default_rng(1)
    for second in range(0, 1_500, 5):
        m = 0.2 - 0.08 * math.sin(2 * math.pi * second / 300)
        accesses = int(5 / (40e-6 + m * 700e-6) * rng.uniform(0.97, 1.03))
        times.observe(accesses, rng.binomial(accesses, m), 5.0)
        if second >= 200:
            assert times.waits * times.miss_s == pytest.approx(700e-6, rel=0.3), second


def test_without_variation_the_disk_speaks():
    times = ServiceTimes()
    times.observe(5_000, 2_500, 1.0, disk_miss_s=380e-6)
    assert (times.waits, times.miss_s) == (1.0, 380e-6)
    times = ServiceTimes()
    times.observe(1_000, 500, 1.0, disk_miss_s=380e-6)
    assert times.waits is None


def test_each_of_many_outstanding_reads_holds_a_load_up_for_its_part():
    """The disk serves 1,400 reads a second, and each has waited for 249 others."""
    times = ServiceTimes()
    times.observe(2_800, 1_400, 1.0, disk_miss_s=250 / 1_400)
    assert times.waits == pytest.approx(1 / 250)
    for m in np.linspace(0.6, 0.3, 20):
        times.observe(round(1_400 / m), 1_400, 1.0, disk_miss_s=250 / 1_400)
    assert times.waits == pytest.approx(1 / 250, rel=0.02)
    assert times.waits * times.miss_s == pytest.approx(1 / 1_400, rel=0.02)


def test_a_change_takes_two_windows_in_a_row():
    detector = ChangeDetector(0.05, 2)
    assert not any(detector.unusual(value) for value in [0.1, 0.1, 0.1, 0.1, 0.3, 0.1, 0.3])
    assert detector.unusual(0.3)


def test_an_ablation_changes_one_number_for_a_while():
    with tuned("change", new=0.9):
        tracker = fed(fed(CurveTracker("two_list", 10_000, 200_000), 12), 2, first=50_000)
    assert TUNING.change.new == 0.15
    assert tracker.load < fed(fed(CurveTracker("two_list", 10_000, 200_000), 12), 2, first=50_000).load
