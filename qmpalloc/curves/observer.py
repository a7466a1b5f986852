"""All that the host learns of one guest's curve: what is fed in as it arrives, and what a snapshot shows of it."""

from __future__ import annotations

import time

import numpy as np
from msgspec import Struct, structs

from qmpalloc.allowance import Allowance
from qmpalloc.curves.cpu_budget import CpuBudget
from qmpalloc.curves.disk_check import DiskCrossCheck, Reads
from qmpalloc.curves.keys import in_sample
from qmpalloc.curves.mapping import CacheLimit, SizeMapping, is_full
from qmpalloc.curves.samples import SHIFT_MAX, Batch, SampleIntake, Window, unpack
from qmpalloc.curves.service import ServiceTimes
from qmpalloc.curves.tracker import CurveTracker
from qmpalloc.curves.tuning import TUNING
from qmpalloc.errors import SampleError, SampleFault
from qmpalloc.model import Curve
from qmpalloc.returns import Returns, ReturnsTracker
from qmpalloc.sample import Delta, Sample

NOT_SAMPLED = "accesses are not sampled"


class CurveFacts(Struct, frozen=True, kw_only=True):
    """What a `GuestSnapshot` shows of a guest's curve; the fields are those of the same name there."""

    curve: Curve | None = None
    no_curve: str = NOT_SAMPLED
    ghost_gain: float | None = None
    ghost_loss: float | None = None
    hit_s: float | None = None
    miss_s: float | None = None
    waits: float | None = None
    disk_read_pages: int | None = None
    page_ins_lately: int | None = None
    disk_read_pages_lately: int | None = None
    returns: Returns | None = None


class CurveObserver:
    """One guest's samples, curve, cache size and service times.

    Counters come through `take_sample`, sampled accesses through `take_batch`; each goes on without the other.

    Attributes:
        tracker: The curve; None until there are samples and the size of the cache is known.
        mapping: From memory size to cache.
        service: What a miss costs.
        disk_read_pages: What QEMU read from the guest's disks in the interval before the last, as it is asked after a
            sample; None if not known.
    """

    def __init__(self, cpu_budget: CpuBudget | None = None) -> None:
        """Begin with nothing known.

        Args:
            cpu_budget: What simulating may cost all guests; None: this is the only one.
        """
        self._cpu = cpu_budget or CpuBudget()
        self._cpu.join(self)
        self._absent = NOT_SAMPLED
        self._allowance = Allowance(TUNING.sampling.per_s, TUNING.sampling.at_once)
        self.tracker: CurveTracker | None = None
        self._next: CurveTracker | None = None
        self._load = 0
        self.was_reset()
        self.forget_series()

    def forget_series(self) -> None:
        """Note that the connection ended: what comes next does not continue what came before, but the guest may."""
        self._intake = SampleIntake()
        if self.tracker is not None:
            self._next = self._new_tracker()
        self._disks: DiskCrossCheck | None = None
        self.disk_read_pages: int | None = None

    def was_reset(self) -> None:
        """Note that the guest was reset, or another system or collector runs in it: nothing that was learnt holds."""
        self._intake = SampleIntake()
        self._load = 1 + (self.tracker.load if self.tracker is not None else self._load)
        self.tracker = self._next = None
        self.mapping, self.service, self._returns = SizeMapping(), ServiceTimes(), ReturnsTracker()
        self._limit = CacheLimit()
        self._source: tuple[bytes, bytes] | None = None
        self._made_for: tuple[str | None, int] | None = None
        self._largest_pages, self._outgrown = 0.0, 0
        self._sample: Sample | None = None
        self._range = 0, 0
        self._silent, self._since_refused = 0, TUNING.trust.refused_intervals

    # --- input ------------------------------------------------------------------------------------------------------

    def absent(self, why: str) -> None:
        """Note that there are no samples to read."""
        self._absent = why

    def take_batch(self, data: bytes, now_s: float | None = None) -> int:
        """Take the content of the samples file; return how many events between it and the last one were lost.

        Of a burst every other page is left out, as often as it takes; the sample is coarser from then on, as it is when
        the collector lowers its rate. A batch that is too much even so counts as lost.

        Args:
            data: The content.
            now_s: The time, by any clock. None: simulate all, whatever it takes.

        Raises:
            SampleError: It cannot be used (`qmpalloc.curves.samples`); HUGE also when it would take too long.
        """
        try:
            window = self._accept(unpack(data))
        except SampleError as error:
            if error.fault is not SampleFault.REPEATED:
                self._since_refused = 0
            raise
        self._absent, self._silent = "", 0
        self._make_tracker()
        if window is None or self.tracker is None:
            return 0
        if window.restarted:
            self._next = None
        if window.paused:
            # Pages may have been read meanwhile: a curve of its own is learnt of what comes now, and the one that is
            # known holds until that can be trusted.
            self._next = self._new_tracker()
        learning = self._next or self.tracker
        if now_s is not None and not self._pay(window, learning, now_s):
            # As if they had been lost, and thereby a reason to distrust the curve.
            none = np.empty(0, dtype=np.uint64)
            learning.observe(structs.replace(window, keys=none, lost=window.lost + len(window.keys)))
            tuning = TUNING.sampling
            limits = f"{tuning.at_once} sampled accesses at once, or {tuning.per_s:.0f} a second"
            raise SampleError(SampleFault.HUGE, f"more than {limits}: they count as lost")
        known, began_s = learning.lru.clock, time.thread_time()
        learning.observe(window)
        self._cpu.spent(learning.lru.clock - known, time.thread_time() - began_s)
        if self._next is not None and self._next.warm:
            self._next.load = max(self._next.load, self.tracker.load)
            self.tracker, self._next = self._next, None
        return window.lost

    def _accept(self, batch: Batch) -> Window | None:
        """Return what a batch adds, if it is of the guest as it was known; all else is forgotten first."""
        source = batch.boot_id, batch.start_id
        if self._source is not None and source != self._source:
            self.was_reset()
        window = self._intake.accept(batch)
        self._source = source
        return window

    def _pay(self, window: Window, tracker: CurveTracker, now_s: float) -> bool:
        """Take what simulating a window costs out of the guest's allowance, at a lower rate if need be."""
        left = self._allowance.left(now_s)
        self._allowance.per_s = min(TUNING.sampling.per_s, self._cpu.per_s)
        shift = coarsest = max(tracker.shift, window.shift)
        simulated = window.keys[in_sample(window.keys, shift)]
        while len(simulated) > left and shift < SHIFT_MAX:
            shift += 1
            simulated = simulated[in_sample(simulated, shift)]
        if not self._allowance.take(len(simulated), now_s):
            return False
        if shift > coarsest:
            tracker.lower_rate(shift)
        return True

    def take_sample(
        self, sample: Sample, delta: Delta | None, actual_bytes: int, floor_bytes: int, cap_bytes: int
    ) -> None:
        """Take an accepted sample of the counters.

        Args:
            sample: The sample.
            delta: What happened since the one before, if that is known.
            actual_bytes: The guest's size.
            floor_bytes: The least it may be set to.
            cap_bytes: The most.
        """
        memory = sample.memory_bytes
        evicting = delta is not None and bool(delta.evictions) and is_full(memory, actual_bytes)
        self.mapping.observe(actual_bytes, memory, evicting=evicting)
        self._sample, self._range = sample, (floor_bytes, cap_bytes)
        if delta is not None:
            self._returns.observe(delta, actual_bytes)
        disk_miss_s = None
        if self._disks is not None:
            self.disk_read_pages, disk_miss_s = self._disks.since_sample()
            if delta is not None and (from_disks := delta.page_ins.from_disks) is not None:
                self._disks.take_page_ins(from_disks, delta.interval_s)
        if self.tracker is None:
            return
        # A program that held memory has ended: the tracker tells no sizes apart beyond what it was made for.
        outgrown = self.mapping.cache_pages(cap_bytes) > TUNING.tracking.outgrown * self._largest_pages
        self._outgrown = self._outgrown + 1 if outgrown else 0
        self._make_tracker()
        if delta is None or delta.accesses is None or delta.misses is None:
            return
        self._silent += delta.accesses > 0 and delta.sampled
        self._since_refused += 1
        cached = self.mapping.cached_pages(memory)
        if cached is not None:
            self._limit.observe(delta, memory, actual_bytes, cached, self.tracker.load)
            for tracker in filter(None, (self.tracker, self._next)):
                tracker.measure(delta.accesses, delta.misses, cached, delta.interval_s, evicting=evicting)
        self.service.observe(delta.accesses, delta.misses, delta.interval_s, disk_miss_s=disk_miss_s)

    def _make_tracker(self) -> None:
        """Make the tracker once it can be, and another one when what it was made for has changed."""
        if self._sample is None or self.mapping.overhead_bytes is None:
            return
        _, cap_bytes = self._range
        made_for = self._sample.lru, cap_bytes
        outgrown = self._outgrown >= TUNING.tracking.outgrown_intervals
        if self.tracker is None or made_for != self._made_for or outgrown:
            self._made_for, self._outgrown = made_for, 0
            self._largest_pages = self.mapping.cache_pages(cap_bytes)
            self.tracker, self._next = self._new_tracker(), None

    def _new_tracker(self) -> CurveTracker:
        assert self._sample is not None
        smallest, load = self.mapping.cache_pages(self._range[0]), self.tracker.load if self.tracker else self._load
        return CurveTracker(self._sample.lru, smallest, self._largest_pages, load=load)

    def take_reads(self, reads: Reads) -> None:
        """Take what QEMU says it has read from the guest's disks. Counts that went back begin a new series."""
        if self._disks is None or not self._disks.take_reads(reads):
            self._disks = DiskCrossCheck(reads)

    def close_window(self) -> None:
        """Begin a new interval of counting: a decision was made."""
        if self._disks is not None:
            self._disks.close_window()

    # --- output -----------------------------------------------------------------------------------------------------

    def facts(self, floor_bytes: int, cap_bytes: int, accesses_per_s: float | None) -> CurveFacts:
        """Return what is known now.

        Args:
            floor_bytes: The least size the curve is wanted for.
            cap_bytes: The most.
            accesses_per_s: Rate of accesses now; None if not known.
        """
        facts = CurveFacts(
            no_curve=self._absent or ("the size of its cache is not known" if self.tracker is None else ""),
            returns=self._returns.returns,
        )
        if self._disks is not None:  # page-ins are held against the disks whether accesses are sampled or not
            facts = structs.replace(
                facts,
                disk_read_pages=self._disks.window_pages,
                page_ins_lately=round(self._disks.page_ins_lately),
                disk_read_pages_lately=round(self._disks.pages_lately),
            )
        if facts.no_curve or self.tracker is None:
            return facts
        gain = loss = None
        ghosts = self.tracker.ghosts()
        if accesses_per_s is not None and ghosts is not None and not self._is_silent:
            gain, loss = (round(each * accesses_per_s, 4) for each in ghosts)
        return structs.replace(
            facts,
            curve=self._curve(self.tracker, floor_bytes, cap_bytes),
            ghost_gain=gain,
            ghost_loss=loss,
            hit_s=_short(self.service.hit_s),
            miss_s=_short(self.service.miss_s),
            waits=_short(self.service.waits),
        )

    def _curve(self, tracker: CurveTracker, floor_bytes: int, cap_bytes: int) -> Curve:
        curve, tuning = tracker.curve(self.mapping, floor_bytes, cap_bytes, self._limit.pages), TUNING.trust
        silent = (f"no samples for {self._silent} intervals",) if self._is_silent else ()
        ratios = tuple(round(ratio, 4) for ratio in curve.miss_ratio)
        wrong = self._silent >= tuning.suspect_intervals or self._since_refused < tuning.refused_intervals
        return structs.replace(curve, miss_ratio=ratios, weak=silent + curve.weak, suspect=curve.suspect or wrong)

    @property
    def _is_silent(self) -> bool:
        return self._silent >= TUNING.trust.silent_intervals


def _short(value: float | None) -> float | None:
    """Return a figure with as many digits as it is worth, to keep the record small."""
    return None if value is None else float(f"{value:.4g}")
