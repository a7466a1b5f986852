"""All that the host learns of one guest's curve: what is fed in as it arrives, and what a snapshot shows of it."""

from __future__ import annotations

import time

import numpy as np
from msgspec import Struct, structs

from qmpalloc.allowance import Allowance
from qmpalloc.curves.effort import Effort
from qmpalloc.curves.keys import in_sample
from qmpalloc.curves.mapping import SizeMapping
from qmpalloc.curves.samples import SHIFT_MAX, SampleIntake, Window, unpack
from qmpalloc.curves.service import ServiceTimes
from qmpalloc.curves.tracker import CurveTracker
from qmpalloc.curves.witness import Witness
from qmpalloc.errors import SampleError, SampleFault
from qmpalloc.model import Curve
from qmpalloc.sample import Delta, Sample

NOT_SAMPLED = "accesses are not sampled"

SAMPLES_AT_ONCE = 6_000
SAMPLES_PER_S = 2_500
"""Sampled accesses of a guest that are simulated at once, and in each second after, or fewer if all guests together
would cost too much (`qmpalloc.curves.effort`). One costs 4 to 12 us whatever its page, so a guest takes at most 30 ms
of a second, and holds up the others for at most 70 ms. The collector ships 2,000 a second at most, and those of its
last three intervals at once."""

OVER = f"more than {SAMPLES_AT_ONCE} sampled accesses at once, or {SAMPLES_PER_S} a second: they count as lost"

_SILENT_SAMPLES = 10
_SUSPECT_SAMPLES = 3
"""Intervals with accesses and no batch after which something is wrong, if not enough to distrust a good curve."""

_REFUSED_SAMPLES = 10
"""Intervals for which a refused batch is remembered."""

_DISK_PAGES_LEAST = 100

_OUTGROWN, _OUTGROWN_SAMPLES = 1.1, 30
"""By how much more cache its cap must be seen to hold, and for how many intervals, until a curve is begun anew."""


class Reads(Struct, frozen=True):
    """Disk reads of a guest since its QEMU started: pages, and the time they took, summed, in seconds."""

    pages: float
    time_s: float


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
    misses_lately: int | None = None
    disk_read_pages_lately: int | None = None


class CurveObserver:
    """One guest's samples, curve, cache size and service times.

    Counters come through `take_sample`, sampled accesses through `take_batch`; each goes on without the other.

    Attributes:
        tracker: The curve; None until there are samples and the size of the cache is known.
        mapping: From memory size to cache.
        service: What a miss costs.
        disk_read_pages: What QEMU read from the guest's disks between its last two samples; None if not known.
    """

    def __init__(self, effort: Effort | None = None) -> None:
        """Begin with nothing known.

        Args:
            effort: What simulating may cost all guests; None: this is the only one.
        """
        self._effort = effort or Effort()
        self._effort.join(self)
        self._absent = NOT_SAMPLED
        self._allowance = Allowance(SAMPLES_PER_S, SAMPLES_AT_ONCE)
        self._intake = SampleIntake()
        self._reads: Reads | None = None
        self._reads_at_sample: Reads | None = None
        self._reads_at_window: Reads | None = None
        self.disk_read_pages: int | None = None
        self._witness = Witness()
        self._restart()

    def _restart(self) -> None:
        """Forget the guest: another system, or another collector, runs in it."""
        self.tracker: CurveTracker | None = None
        self.mapping, self.service = SizeMapping(), ServiceTimes()
        self._source: tuple[bytes, bytes] | None = None
        self._made_for: tuple[str | None, int] | None = None
        self._largest_pages, self._outgrown = 0.0, 0
        self._sample: Sample | None = None
        self._range = 0, 0
        self._silent = 0
        self._since_refused = _REFUSED_SAMPLES

    # --- input ------------------------------------------------------------------------------------------------------

    @property
    def sampled(self) -> bool:
        """True when the guest's accesses are sampled, as far as is known."""
        return not self._absent

    @property
    def dropped(self) -> dict[SampleFault, int]:
        """Batches refused so far, by fault."""
        return self._intake.dropped

    def absent(self, why: str) -> None:
        """Note that there are no samples to read."""
        self._absent = why

    def forget_series(self) -> None:
        """Note that the connection ended: what comes next does not continue what came before, but the guest may."""
        self._intake.forget()
        self._reads = self._reads_at_sample = self._reads_at_window = self.disk_read_pages = None
        self._witness = Witness()

    def was_reset(self) -> None:
        """Note that the guest was reset: nothing that was learnt holds."""
        self._intake.forget()
        self._restart()

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
            batch = unpack(data)
        except SampleError as error:
            self._count(error.fault)
            self._since_refused = 0
            raise
        source = batch.boot_id, batch.start_id
        if self._source is not None and source != self._source:
            self._restart()
        try:
            window = self._intake.accept(batch)
        except SampleError as error:
            if error.fault is not SampleFault.REPEATED:
                self._since_refused = 0
            raise
        self._source, self._absent, self._silent = source, "", 0
        self._make_tracker()
        if window is None or self.tracker is None:
            return 0
        if now_s is not None and not self._pay(window, self.tracker, now_s):
            # As if they had been lost, and thereby a reason to distrust the curve.
            none = np.empty(0, dtype=np.uint64)
            self.tracker.observe(structs.replace(window, keys=none, events=0, lost=window.lost + window.events))
            self._count(SampleFault.HUGE)
            raise SampleError(SampleFault.HUGE, OVER)
        known, began_s = self.tracker.lru.stack.clock, time.thread_time()
        self.tracker.observe(window)
        self._effort.spent(self.tracker.lru.stack.clock - known, time.thread_time() - began_s)
        return window.lost

    def _pay(self, window: Window, tracker: CurveTracker, now_s: float) -> bool:
        """Take what simulating a window costs out of the guest's allowance, at a lower rate if need be."""
        left = self._allowance.left(now_s)
        self._allowance.per_s = min(SAMPLES_PER_S, self._effort.per_s)
        shift = max(tracker.shift, window.shift)
        simulated = window.keys[in_sample(window.keys, shift)]
        while len(simulated) > left and shift < SHIFT_MAX:
            shift += 1
            simulated = simulated[in_sample(simulated, shift)]
        if not self._allowance.take(len(simulated), now_s):
            return False
        if shift > max(tracker.shift, window.shift):
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
        self.mapping.observe(actual_bytes, memory, evicting=delta is not None and bool(delta.evictions))
        self._sample, self._range = sample, (floor_bytes, cap_bytes)
        disk_miss_s = self._disk_miss_s()
        if self._reads is not None and delta is not None and delta.misses is not None:
            self._witness.report(delta.misses, delta.interval_s)
        if self.tracker is None:
            return
        # A program that held memory has ended: the tracker tells no sizes apart beyond what it was made for.
        outgrown = self.mapping.cache_pages(cap_bytes) > _OUTGROWN * self._largest_pages
        self._outgrown = self._outgrown + 1 if outgrown else 0
        self._make_tracker()
        if delta is None or delta.accesses is None or delta.misses is None:
            return
        self._silent += delta.accesses > 0
        self._since_refused += 1
        cached = self.mapping.cached_pages(memory)
        if cached is not None:
            evicting = bool(delta.evictions)
            self.tracker.measure(delta.accesses, delta.misses, cached, delta.interval_s, evicting=evicting)
        self.service.observe(delta.accesses, delta.misses, delta.interval_s, disk_miss_s=disk_miss_s)

    def take_reads(self, reads: Reads) -> None:
        """Take what QEMU says it has read from the guest's disks. Counts that went back begin a new series."""
        if self._reads is not None and reads.pages < self._reads.pages:
            self._reads_at_sample = self._reads_at_window = None
            self._witness = Witness()
        elif self._reads is not None:
            self._witness.see(reads.pages - self._reads.pages)
        self._reads = reads
        if self._reads_at_window is None:
            self._reads_at_window = reads

    def close_window(self) -> None:
        """Begin a new interval of counting: a decision was made."""
        self._reads_at_window = self._reads

    # --- output -----------------------------------------------------------------------------------------------------

    def facts(self, floor_bytes: int, cap_bytes: int, accesses_per_s: float | None) -> CurveFacts:
        """Return what is known now.

        Args:
            floor_bytes: The least size the curve is wanted for.
            cap_bytes: The most.
            accesses_per_s: Rate of accesses now; None if not known.
        """
        # Misses are held against the disks whether accesses are sampled or not.
        reads = CurveFacts(
            no_curve=self._absent or ("the size of its cache is not known" if self.tracker is None else ""),
            disk_read_pages=self._disk_read_pages(),
            misses_lately=None if self._reads is None else round(self._witness.misses),
            disk_read_pages_lately=None if self._reads is None else round(self._witness.pages),
        )
        if reads.no_curve or self.tracker is None:
            return reads
        gain = loss = None
        ghosts = self.tracker.ghosts()
        if accesses_per_s is not None and ghosts is not None and not self._is_silent:
            gain, loss = (round(each * accesses_per_s, 4) for each in ghosts)
        return structs.replace(
            reads,
            curve=self._curve(self.tracker, floor_bytes, cap_bytes),
            ghost_gain=gain,
            ghost_loss=loss,
            hit_s=_short(self.service.hit_s),
            miss_s=_short(self.service.miss_s),
            waits=_short(self.service.waits),
        )

    def _curve(self, tracker: CurveTracker, floor_bytes: int, cap_bytes: int) -> Curve:
        curve = tracker.curve(self.mapping, floor_bytes, cap_bytes)
        silent = (f"no samples for {self._silent} intervals",) if self._is_silent else ()
        ratios = tuple(round(ratio, 4) for ratio in curve.miss_ratio)
        wrong = self._silent >= _SUSPECT_SAMPLES or self._since_refused < _REFUSED_SAMPLES
        return structs.replace(curve, miss_ratio=ratios, weak=silent + curve.weak, suspect=curve.suspect or wrong)

    @property
    def _is_silent(self) -> bool:
        return self._silent >= _SILENT_SAMPLES

    def _disk_read_pages(self) -> int | None:
        if self._reads is None or self._reads_at_window is None or self._reads is self._reads_at_window:
            return None
        return round(self._reads.pages - self._reads_at_window.pages)

    # --- upkeep -----------------------------------------------------------------------------------------------------

    def _make_tracker(self) -> None:
        """Make the tracker once it can be, and another one when what it was made for has changed."""
        if self._sample is None or self.mapping.overhead_bytes is None:
            return
        floor_bytes, cap_bytes = self._range
        made_for = self._sample.lru, cap_bytes
        if self.tracker is None or made_for != self._made_for or self._outgrown >= _OUTGROWN_SAMPLES:
            self._made_for, self._outgrown = made_for, 0
            cache_pages = self.mapping.cache_pages
            self._largest_pages = cache_pages(cap_bytes)
            self.tracker = CurveTracker(self._sample.lru, cache_pages(floor_bytes), self._largest_pages)

    def _disk_miss_s(self) -> float | None:
        """Take what the disks have read since the last sample; return the time of a page, None if those were few."""
        before, self._reads_at_sample = self._reads_at_sample, self._reads
        self.disk_read_pages = None
        if before is None or self._reads is None:
            return None
        self.disk_read_pages = round(self._reads.pages - before.pages)
        pages, time_s = self._reads.pages - before.pages, self._reads.time_s - before.time_s
        return time_s / pages if pages >= _DISK_PAGES_LEAST and time_s >= 0 else None

    def _count(self, fault: SampleFault) -> None:
        self._intake.dropped[fault] = self._intake.dropped.get(fault, 0) + 1


def _short(value: float | None) -> float | None:
    """Return a figure with as many digits as it is worth, to keep the record small."""
    return None if value is None else float(f"{value:.4g}")
