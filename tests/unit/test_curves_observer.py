"""One guest's samples and counters into a curve: when there is one, why not, and what makes it void."""

from contextlib import suppress

import numpy as np
import pytest
from msgspec import structs

from qmpalloc.curves.cpu_budget import CpuBudget
from qmpalloc.curves.disk_check import Reads
from qmpalloc.curves.mapping import SYSTEM_PAGES
from qmpalloc.curves.observer import NOT_SAMPLED, CurveObserver
from qmpalloc.curves.samples import Batch, pack
from qmpalloc.curves.tracker import CurveTracker
from qmpalloc.curves.tuning import TUNING, tuned
from qmpalloc.errors import SampleError, SampleFault
from qmpalloc.sample import Counters, Delta, Memory, Sample
from qmpalloc.sim.replay import mixed
from qmpalloc.units import GIB, MIB

FLOOR, CAP, ACTUAL = 200 * MIB, GIB, 400 * MIB
PAGES = 1_000  # sampled pages of the load
ACCESSES = 128_000


class Feed:
    """A guest that reads PAGES * 64 pages at random, half of which are cached."""

    def __init__(self, cpu_budget=None):
        self.observer = CurveObserver(cpu_budget)
        self.random = np.random.default_rng(1)
        self.events = self.accesses = self.sequence = 0
        self.boot, self.start, self.lru = b"b" * 16, b"s" * 8, "lru_gen"
        self.cap, self.program, self.free = CAP, 0, 32 * MIB

    def batch(self, count=2_000, accesses=ACCESSES, **changes):
        keys = mixed(self.random.integers(0, PAGES, count).astype(np.uint64)) >> np.uint64(4)
        self.accesses += accesses
        fields = {"boot_id": self.boot, "start_id": self.start, "first": self.events, "accesses": self.accesses}
        self.events += count
        return pack(Batch(**{**fields, "lost": 0, "shift": 6, "events": keys << np.uint64(4), **changes}))

    def counters(self, accesses=ACCESSES, misses=ACCESSES // 2, *, sampled=True):
        self.sequence += 1
        file = PAGES * 64 // 2 * 4096 + SYSTEM_PAGES * 4096
        sample = Sample(
            format="qmpalloc-counters", version=1, boot_id="0" * 36, start_id="0" * 16, sequence=self.sequence,
            monotonic_ns=self.sequence * 10**9, interval_ms=1000, kernel="6.12", page_size=4096, lru=self.lru,
            counters=Counters(accesses=accesses, inserts_read=misses),
            memory_bytes=Memory(free=self.free, active_file=file // 2, inactive_file=file // 2),
        )  # fmt: skip
        delta = Delta(
            interval_s=1.0, accesses=accesses, misses=misses, evictions=misses, refaults=misses, sampled=sampled
        )
        size = ACTUAL + self.program + self.free - 32 * MIB
        self.observer.take_sample(sample, delta, size, FLOOR, self.cap)

    def run(self, intervals=12):
        for _ in range(intervals):
            self.counters()
            self.observer.take_batch(self.batch())
        return self

    def forge(self, count):
        """A batch of pages that are in the sample at any rate, none of them seen before."""
        numbers = np.arange(self.events, self.events + count, dtype=np.uint64)
        return self.batch(count, 10**9, events=numbers << np.uint64(14))

    @property
    def facts(self):
        return self.observer.facts(FLOOR, CAP, 1000.0)


def test_a_guest_without_samples_says_so():
    feed = Feed()
    feed.counters()
    assert feed.facts.curve is None
    assert feed.facts.no_curve == NOT_SAMPLED
    feed.observer.absent("no such file")
    assert feed.facts.no_curve == "no such file"


def test_samples_and_counters_make_a_curve_through_what_was_measured():
    facts = Feed().run().facts
    assert facts.no_curve == ""
    assert facts.curve.weak == ()
    assert facts.curve.measured == pytest.approx(0.5)
    assert np.interp(ACTUAL, facts.curve.sizes_bytes, facts.curve.miss_ratio) == pytest.approx(0.5, abs=0.05)
    assert all(ratio == round(ratio, 4) for ratio in facts.curve.miss_ratio)
    assert facts.ghost_gain > 0
    assert facts.ghost_loss > 0


def test_more_memory_changes_nothing_for_a_load_whose_control_group_is_full():
    feed = Feed()
    feed.free = 600 * MIB
    curve = feed.run().facts.curve
    assert curve.weak == ()
    less, here, more = np.interp([ACTUAL - 50 * MIB, ACTUAL + 50 * MIB, CAP], curve.sizes_bytes, curve.miss_ratio)
    assert less > here + 0.05
    assert here == more == pytest.approx(0.5, abs=0.02)


def test_a_restarted_collector_or_a_rebooted_guest_is_learnt_anew():
    for field in ("boot", "start"):
        feed = Feed().run()
        setattr(feed, field, b"x" * len(getattr(feed, field)))
        feed.events = feed.accesses = 0
        feed.run(2)
        assert feed.facts.curve.weak


def test_a_reset_forgets_and_a_reconnection_does_not():
    feed = Feed().run()
    feed.observer.forget_series()
    feed.run(1)
    assert feed.facts.curve.weak == ()
    feed.observer.was_reset()
    assert feed.facts.curve is None


def test_what_was_read_while_nobody_was_connected_is_in_no_curve():
    feed = Feed().run()
    known, clock = feed.observer.tracker, feed.observer.tracker.lru.clock
    feed.observer.forget_series()
    feed.batch(5 * PAGES)  # never read
    feed.run(2)
    assert (feed.observer.tracker, known.lru.clock) == (known, clock)
    assert feed.facts.curve.weak == ()
    feed.run(6)
    assert feed.observer.tracker is not known
    assert feed.facts.curve.weak == ()


def test_a_guest_in_which_a_large_program_ends_is_learnt_anew():
    """The curve reached no further than the cache that the cap left then: its end would be taken for all there is."""
    feed = Feed()
    feed.program = 300 * MIB
    before = feed.run().observer.tracker
    feed.program = 0
    feed.run(20)
    assert feed.observer.tracker is before  # for a while it may only pause
    feed.run(40)
    assert feed.observer.tracker is not before
    after = feed.observer.tracker
    for _ in range(4):  # and once is enough
        feed.run(20)
    assert feed.observer.tracker is after
    assert feed.facts.curve.weak == ()


def test_another_system_or_collector_has_another_load_and_another_curve_of_the_same_load_has_not():
    feed = Feed().run(1)
    assert feed.facts.curve.load == 1
    feed.observer.was_reset()
    assert feed.run(1).facts.curve.load == 2
    feed.cap = 2 * GIB
    assert feed.run(1).facts.curve.load == 2
    feed.start, feed.events, feed.accesses = b"x" * 8, 0, 0
    feed.observer.take_batch(feed.batch())
    assert feed.run(1).facts.curve.load == 3


@pytest.mark.parametrize("change", [{"lru": "two_list"}, {"cap": 2 * GIB}])
def test_another_replacement_or_cap_makes_another_curve(change):
    feed = Feed().run()
    before = feed.observer.tracker
    for name, value in change.items():
        setattr(feed, name, value)
    feed.counters()
    assert feed.observer.tracker is not before


def test_lost_batches_are_told_and_weaken_the_curve():
    feed = Feed().run()
    feed.batch(100)
    assert feed.observer.take_batch(feed.batch()) == 100
    assert "of the samples were lost" in feed.facts.curve.weak[0]


def test_samples_that_stop_while_the_guest_goes_on_weaken_the_curve():
    feed = Feed().run()
    for _ in range(9):
        feed.counters()
    assert feed.facts.curve.weak == ()
    feed.counters(accesses=0, misses=0)
    assert feed.facts.curve.weak == ()
    feed.counters()
    assert feed.facts.curve.weak[0] == "no samples for 10 intervals"
    assert feed.facts.ghost_gain is None


def test_a_burst_is_thinned_out_until_it_is_worth_its_time():
    feed = Feed().run()
    feed.observer.take_batch(feed.batch(3 * TUNING.sampling.at_once, 10**7), 0.0)
    assert feed.observer.tracker.shift == 8
    assert not any("lost" in why for why in feed.facts.curve.weak)
    for second in range(1, 20):  # at the limit of the collector, which the allowance is above
        feed.counters()
        assert feed.observer.take_batch(feed.batch(2_000), float(second)) == 0
    assert feed.observer.tracker.shift == 8


def test_where_simulating_costs_too_much_less_is_sampled():
    feed = Feed().run(2)
    with tuned("sampling", cpu_share=1e-9):
        for second in range(120):
            feed.counters()
            feed.observer.take_batch(feed.batch(2_000), float(second))
    assert feed.observer.tracker.shift >= 9  # of 2,000 a second 250
    assert not any("lost" in why for why in feed.facts.curve.weak)


def test_the_share_is_divided_among_the_guests_by_what_a_sample_costs():
    budget, share = CpuBudget(), TUNING.sampling.cpu_share
    guests = [CurveObserver(budget) for _ in range(16)]
    for _ in range(200):
        budget.spent(1_000, 0.01)
        budget.spent(10, 1.0)  # few tell nothing
    assert budget.per_s == pytest.approx(share / 10e-6 / 16, rel=0.01)
    del guests[1:]
    assert budget.per_s == pytest.approx(share / 10e-6, rel=0.01)
    for _ in range(200):
        budget.spent(1_000, 100.0)
    assert budget.per_s == TUNING.sampling.cpu_least_per_s


def test_forged_samples_are_simulated_up_to_an_allowance(monkeypatch):
    feed = Feed().run()
    simulated = []
    observe = CurveTracker.observe
    monkeypatch.setattr(
        CurveTracker, "observe", lambda self, window: (simulated.append(len(window.keys)), observe(self, window))
    )
    seconds = 60
    for second in range(seconds):
        for count in (round(TUNING.sampling.per_s), TUNING.sampling.at_once // 2, 65_536):
            with suppress(SampleError):
                feed.observer.take_batch(feed.forge(count), float(second))
        # Another collector, or another kernel, does not give the guest another allowance.
        if second % 5 == 4:
            feed.start = bytes([second]) * 8
            feed.counters()
            feed.observer.take_batch(feed.batch(10), float(second))
            feed.counters()
    assert (
        0.3 * seconds * TUNING.sampling.per_s
        < sum(simulated)
        <= TUNING.sampling.at_once + seconds * TUNING.sampling.per_s
    )


def test_a_batch_that_would_take_too_long_is_refused_and_counts_as_lost():
    feed = Feed().run()
    with pytest.raises(SampleError, match="at once") as refused:
        feed.observer.take_batch(feed.forge(TUNING.sampling.at_once + 1), 0.0)
    assert refused.value.fault is SampleFault.HUGE
    assert "lost" in feed.facts.curve.weak[0]


def test_what_cannot_be_used_is_counted_and_changes_nothing_but_that_the_guest_is_suspect_for_a_while():
    feed = Feed().run()
    before = feed.facts
    for data in (b"", b"x" * 100, feed.batch()[:-1]):
        with pytest.raises(SampleError):
            feed.observer.take_batch(data)
    assert not before.curve.suspect
    assert feed.facts == structs.replace(before, curve=structs.replace(before.curve, suspect=True))
    assert not feed.run(10).facts.curve.suspect


def test_a_guest_that_reads_on_without_samples_is_suspect_before_its_curve_is_weak():
    feed = Feed().run()
    for _ in range(3):
        assert not feed.facts.curve.suspect
        feed.counters()
    assert feed.facts.curve.suspect
    assert feed.facts.curve.weak == ()


def test_a_curve_holds_through_a_pause_until_another_one_is_known():
    feed = Feed().run()
    known = feed.observer.tracker
    for _ in range(2 * TUNING.trust.silent_intervals):
        feed.counters(sampled=False)
    assert feed.facts.curve.weak == ()
    feed.observer.take_batch(feed.batch(count=500, burst=1))
    assert feed.observer.tracker is known
    for _ in range(6):
        assert feed.facts.curve.weak == ()
        feed.counters()
        feed.observer.take_batch(feed.batch(burst=1))
    assert feed.observer.tracker is not known
    assert feed.facts.curve.weak == ()
    assert feed.facts.curve.load == known.load


def test_without_most_samples_ghost_hits_are_not_known():
    feed = Feed().run()
    assert feed.facts.ghost_gain > 0
    feed.events += 1_000  # never seen
    feed.run(1)
    assert (feed.facts.ghost_gain, feed.facts.ghost_loss) == (None, None)


def test_misses_and_disk_reads_of_the_last_minutes():
    feed = Feed().run()
    assert (feed.facts.page_ins_lately, feed.facts.disk_read_pages_lately) == (None, None)
    feed.observer.take_reads(Reads(1_000, 1.0))
    feed.counters(misses=500)
    feed.observer.take_reads(Reads(1_400, 1.0))
    feed.observer.close_window()
    assert (feed.facts.page_ins_lately, feed.facts.disk_read_pages_lately) == (500, 400)
    feed.observer.take_reads(Reads(10, 0.0))  # another QEMU
    assert (feed.facts.page_ins_lately, feed.facts.disk_read_pages_lately) == (0, 0)
    feed.observer.forget_series()
    assert feed.facts.page_ins_lately is None


def test_disk_reads_of_the_decision_interval():
    feed = Feed().run()
    assert feed.facts.disk_read_pages is None
    feed.observer.take_reads(Reads(1_000, 1.0))
    feed.observer.take_reads(Reads(3_000, 2.0))
    assert feed.facts.disk_read_pages == 2_000
    feed.observer.close_window()
    assert feed.facts.disk_read_pages is None
    feed.observer.take_reads(Reads(3_500, 2.0))
    assert feed.facts.disk_read_pages == 500
    feed.observer.take_reads(Reads(10, 0.0))  # another QEMU
    assert feed.facts.disk_read_pages is None


def test_the_disks_are_known_of_a_guest_that_is_not_sampled():
    """Else one that hides its samples, or the size of its cache, could claim any misses."""
    feed = Feed()
    for absent in ("no such file", ""):
        feed.observer.absent(absent or NOT_SAMPLED)
        feed.observer.take_reads(Reads(1_000, 1.0))
        feed.counters(misses=500)
        feed.observer.close_window()
        feed.observer.take_reads(Reads(1_400, 1.0))
        facts = feed.facts
        assert facts.curve is None
        assert (facts.disk_read_pages, facts.page_ins_lately, facts.disk_read_pages_lately) == (400, 500, 400)
        feed = Feed()


def test_a_load_that_spends_its_time_on_the_disk_waits():
    feed = Feed().run(2)
    for index in range(3):
        feed.observer.take_reads(Reads(64_000.0 * index, 0.95 * index))
        feed.run(1)
    assert feed.facts.waits == 1.0
    assert feed.facts.miss_s == pytest.approx(0.95 / 64_000, rel=0.01)


def test_a_guest_that_does_not_tell_its_file_pages_has_no_curve():
    feed = Feed()
    feed.observer.take_sample(structs.replace(_sample(), memory_bytes=Memory(free=MIB)), None, ACTUAL, FLOOR, CAP)
    feed.observer.take_batch(feed.batch())
    assert feed.facts.curve is None
    assert feed.facts.no_curve == "the size of its cache is not known"


def test_files_that_are_deleted_do_not_make_free_memory_what_the_kernel_keeps():
    observer = CurveObserver()
    memory = Memory(free=6 * GIB, active_file=512 * MIB, inactive_file=512 * MIB)
    for _ in range(60):
        deleted = Delta(interval_s=1.0, accesses=1_000, misses=0, evictions=1_000)
        observer.take_sample(structs.replace(_sample(), memory_bytes=memory), deleted, 8 * GIB, FLOOR, 8 * GIB)
    cache_mib = observer.mapping.cache_pages(8 * GIB) * 4096 / MIB
    assert cache_mib == pytest.approx(7 * 1024 - 32 - SYSTEM_PAGES * 4096 / MIB, abs=1)


def _sample():
    return Sample(
        format="qmpalloc-counters", version=1, boot_id="0" * 36, start_id="0" * 16, sequence=1, monotonic_ns=1,
        interval_ms=1000, kernel="6.12", page_size=4096,
    )  # fmt: skip
