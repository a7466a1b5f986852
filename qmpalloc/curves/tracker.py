"""One guest's miss-ratio curve over time: samples in, a curve with its confidence out."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.change import ChangeDetector
from qmpalloc.curves.confidence import Confidence
from qmpalloc.curves.estimator import Estimator, Ratios, Sizes
from qmpalloc.curves.keys import Ids, KeyTable, in_sample
from qmpalloc.curves.mapping import SizeMapping
from qmpalloc.curves.measurement import Measurement, anchored
from qmpalloc.curves.noise import Noise
from qmpalloc.curves.reuse import ReuseDistances
from qmpalloc.curves.samples import BLOCK_SHIFT, SHIFT_MAX, Window
from qmpalloc.curves.simulation import Simulations
from qmpalloc.curves.stale_pages import StalePageDetector
from qmpalloc.curves.tuning import TUNING
from qmpalloc.model import UNMEASURED, Curve
from qmpalloc.units import MIB, PAGE_BYTES

_KEEPS_OLD_PAGES = "lru_gen"
"""Under the other page replacements, pages of a load that is over go by themselves, if not at once."""


class CurveTracker:
    """The curve of one guest.

    Attributes:
        shift: The rate in use is 2 ** -shift; the guest may sample more, which is thrown away.
        lru: The LRU curve.
        estimator: Simulations of the guest's own policy, or LRU when that is not known.
        load: Number of the present load; it rises with each that follows.
    """

    def __init__(self, policy: str | None, smallest_pages: float, largest_pages: float, *, load: int = 1) -> None:
        """Make a tracker.

        Args:
            policy: The guest's replacement policy, a name of `qmpalloc.curves.simulation.POLICIES`; None: LRU by reuse
                distances.
            smallest_pages: Page cache at the guest's floor.
            largest_pages: Page cache at its cap; sizes beyond are not told apart.
            load: Number of the present load.
        """
        self._policy = policy
        self._range = max(1.0, smallest_pages), max(2.0, largest_pages)
        self.shift = BLOCK_SHIFT
        while largest_pages / 2**self.shift > TUNING.sampling.pages_max and self.shift < SHIFT_MAX:
            self.shift += 1
        self._finest_shift = self.shift
        self.load = load
        self._measurement = Measurement()
        self._begin_sample()

    def _begin_sample(self) -> None:
        scale = 2.0**self.shift
        smallest, largest = (pages / scale for pages in self._range)
        reach = math.ceil(largest)
        self._keys = KeyTable(max(1024, 2 * reach))
        self.lru = ReuseDistances(max(64, math.ceil(1.1 * reach)))
        self.estimator: Estimator = self.lru
        sizes = np.linspace(math.sqrt(min(smallest, largest / 2)), math.sqrt(largest), TUNING.sampling.sizes) ** 2
        self._noise = Noise(sizes)
        if self._policy is not None:
            self.estimator = Simulations(self._policy, sizes, self.lru, scale=scale)
        self._estimators = (self.lru,) if self.estimator is self.lru else (self.lru, self.estimator)
        self._confidence = Confidence(self.lru, largest)
        self._gap = ChangeDetector(TUNING.change.gap, TUNING.change.gap_strikes)
        self._newcomers = ChangeDetector(TUNING.change.new, TUNING.change.new_strikes, rising_only=True)
        self._stale_pages: StalePageDetector | None = None
        self._busy = self._finer_windows = 0
        self._evicting = False

    # --- input ------------------------------------------------------------------------------------------------------

    def observe(self, window: Window) -> None:
        """Learn from the sampled accesses of a window."""
        if window.restarted:
            self.load += 1
            self._measurement = Measurement()
            self._begin_sample()
        if window.shift > self.shift:
            # The guest samples less: what it leaves out from now on must be left out of what was learnt, too.
            self.lower_rate(window.shift)
        self._raise_rate(window.shift)
        keys = window.keys[in_sample(window.keys, self.shift)] if window.shift < self.shift else window.keys
        expected = window.expected * 2.0 ** (window.shift - self.shift)
        known = len(self._keys)
        ids = self._keys.number(keys)
        self._newcomers.observe(len(self._keys) - known, len(ids))
        if self._stale_pages is not None:
            self._stale_pages.observe(ids)
        kept = self._confidence.kept(len(ids))
        for estimator in self._estimators:
            estimator.forget(kept)
            estimator.observe(ids, expected)
        self._noise.forget(kept)
        self._noise.observe(keys, self.shift, self.lru.latest, expected)
        if self._confidence.observe(len(ids), len(window.keys), window.lost):
            self._forget_most()
        if self._keys.full:
            self._renumber(self._keys.trim(self.lru.last))

    def measure(
        self,
        accesses: int,
        misses: int,
        cached_pages: float,
        interval_s: float | None = None,
        *,
        evicting: bool = False,
    ) -> None:
        """Learn what was measured by the exact counters.

        Args:
            accesses: Pages accessed.
            misses: Pages brought in for them. Only sums are exact: what is read ahead is accessed later.
            cached_pages: Pages of the load in the cache at the time.
            interval_s: Time in which all this happened; None if it is not known.
            evicting: Whether pages were evicted in it.
        """
        self._evicting = evicting
        if accesses <= 0 and misses <= 0:
            return
        if interval_s is not None:
            self._limit_rate(accesses / interval_s)
        self._measurement.steady_accesses += accesses
        self._compare(accesses, misses, cached_pages)
        self._watch(self._newcomers, 1.0)
        if not self._measurement.take(accesses, misses, cached_pages, self.half_life):
            self._gap.forget()
            self._gap.begin_window(self.lru.clock)
            return
        self._noise.measure(accesses, misses, cached_pages, self.half_life)
        here = float(self.miss_ratios(np.array([self._measurement.cached]))[0])
        self._gap.observe(misses - here * accesses, accesses)
        self._watch(self._gap, 2.0**self.shift)

    def lower_rate(self, shift: int) -> None:
        """Go on with the rate 2 ** -shift, which is lower than the one in use; what was learnt is kept, scaled."""
        halvings = shift - self.shift
        self.shift = shift
        self._busy = self._finer_windows = 0
        self._renumber(self._keys.thin(shift))
        for estimator in self._estimators:
            estimator.coarsen(halvings)
        self._noise.coarsen(halvings)
        self._confidence.coarsen(halvings)

    # --- output -----------------------------------------------------------------------------------------------------

    @property
    def measured(self) -> float | None:
        """Miss ratio measured lately at the present size; None with too few accesses."""
        return self._measurement.ratio

    @property
    def warm(self) -> bool:
        """Whether enough of the present load was seen."""
        return self._confidence.warm and self.lru.sampled >= TUNING.trust.few

    @property
    def half_life(self) -> float:
        """Accesses of the guest after which what was learnt counts half."""
        return self._confidence.half_life * 2.0**self.shift

    def miss_ratios(self, cache_pages: Sizes) -> Ratios:
        """Return the miss ratio for each number of real pages of cache, as estimated, not anchored."""
        return self.estimator.miss_ratios(np.asarray(cache_pages, dtype=float) / 2.0**self.shift)

    def curve(self, mapping: SizeMapping, floor_bytes: int, cap_bytes: int, limit_pages: float = math.inf) -> Curve:
        """Return the curve over memory sizes from floor to cap, anchored at what was measured.

        Args:
            mapping: From memory size to cache.
            floor_bytes: The smallest size.
            cap_bytes: The largest.
            limit_pages: The cache is no larger, whatever the size.
        """
        fine, cached = TUNING.tracking.fine, self._measurement.cached
        sizes_bytes = np.linspace(floor_bytes, max(cap_bytes, floor_bytes + fine), fine).astype(np.int64)
        cache = np.minimum(mapping.caches_pages(sizes_bytes), limit_pages)
        suspicious, unsure = tuple(self._confidence.suspicious()), list(self._confidence.unsure(self.shift))
        measured, contradicted = self.measured, 0.0
        ratios = estimated = self.miss_ratios(cache)
        if measured is None:
            unsure.append(UNMEASURED)
        else:
            grid = np.concatenate([cache, [cached]])
            order = np.argsort(grid, kind="stable")
            ratios = np.empty(len(grid))
            ratios[order] = anchored(self.miss_ratios(grid[order]), grid[order], cached, measured)
            ratios = ratios[:-1]
            left = self._measurement.contradiction(measured, self.miss_ratios)
            if abs(left) > TUNING.trust.contradiction:
                contradicted = left
                unsure.append(f"the curve says {measured - left:.2f} misses here, measured are {measured:.2f}")
        ratios = np.minimum.accumulate(ratios)
        points = _telling(sizes_bytes, ratios)
        scale = 2.0**self.shift
        here = None if measured is None else cached / scale
        by_chance = self._noise.deviations(
            cache[points] / scale, here, self.lru.miss_ratios, self._confidence.working_set
        )
        # Where sample and counters disagree, nobody knows which of them holds at other sizes.
        deviations = np.hypot(by_chance, ratios[points] - estimated[points])
        stale, unread_bytes, unused_bytes = self._staleness()
        return Curve(
            sizes_bytes=tuple(sizes_bytes[points].tolist()),
            miss_ratio=tuple(np.round(ratios[points], 5).tolist()),
            weak=(*suspicious, *unsure),
            suspect=bool(suspicious),
            deviation=tuple(np.round(deviations, 4).tolist()),
            cached_bytes=round(cached * PAGE_BYTES),
            measured=None if measured is None else round(measured, 5),
            contradicted=round(contradicted, 5),
            steady_accesses=round(self._measurement.steady_accesses),
            load=self.load,
            stale=round(stale, 5),
            unread_bytes=unread_bytes,
            unused_bytes=unused_bytes,
            turned_over=self._evicting and self._confidence.working_set * 2.0**self.shift > cached,
            pages_per_sampled=2**self.shift,
            estimator=self.estimator.name,
        )

    def ghosts(self, mib: float = 16.0) -> tuple[float, float] | None:
        """Return the hits by access that a MiB more would bring, and that a MiB less would cost, at the present size.

        Taken from the LRU curve over `mib` on each side: misses on pages that were evicted not long ago. None after few
        accesses, and when too many were lost: reuses that are not seen make both too small.
        """
        if self.lru.sampled < TUNING.trust.few or self._confidence.lossy:
            return None
        cached, step = self._measurement.cached, mib * (MIB / PAGE_BYTES)
        less, here, more = self.lru.miss_ratios(np.array([cached - step, cached, cached + step]) / 2.0**self.shift)
        return float(here - more) / mib, float(less - here) / mib

    def _staleness(self) -> tuple[float, int, int]:
        """Return what pages of the load before cost, how much memory they have at least, and how much can be spared.

        What is missed now would be missed in a smaller cache as well, if such pages fill this one: what is read now
        leaves the cache once so many other pages were read as its reuse distance says.
        """
        if self._stale_pages is None:
            return 0.0, 0, 0
        stale, cached, scale = self._stale_pages.stale, self._measurement.cached, 2.0**self.shift
        unread = max(0, round(cached - self._stale_pages.pages_read * scale)) * PAGE_BYTES
        if not stale or self.measured is None:
            return stale, unread, unread
        sizes = np.linspace(0.0, cached, TUNING.tracking.fine)
        enough = self.lru.miss_ratios(sizes / scale) <= self.measured
        unused = cached - float(sizes[int(np.argmax(enough))]) if enough.any() else 0.0
        return stale, unread, max(unread, round(unused) * PAGE_BYTES)

    # --- the sample -------------------------------------------------------------------------------------------------

    def _limit_rate(self, accesses_per_s: float) -> None:
        """Lower the rate of a guest that has been too busy for long."""
        tuning = TUNING.sampling
        self._busy = self._busy + 1 if accesses_per_s / 2.0**self.shift > tuning.per_s_max else 0
        if self._busy >= tuning.busy_intervals and self.lru.pages >= 2 * tuning.pages_least:
            self.lower_rate(self.shift + 1)

    def _raise_rate(self, shift: int) -> None:
        """Begin anew at a higher rate when the guest has offered it for long, and the curve is too coarse without."""
        possible = max(shift, self._finest_shift)
        offered = possible < self.shift and self._confidence.warm and self._confidence.coarse(self.shift)
        self._finer_windows = self._finer_windows + 1 if offered else 0
        if self._finer_windows >= TUNING.sampling.finer_after:
            self.shift = possible
            self._begin_sample()

    def _renumber(self, new: Ids) -> None:
        if self._stale_pages is not None:
            self._stale_pages.renumber(new)
        for estimator in self._estimators:
            estimator.renumber(new)

    # --- the load ---------------------------------------------------------------------------------------------------

    def _watch(self, detector: ChangeDetector, scale: float) -> None:
        """Begin with another load if a detector has noticed a change; `scale` is its accesses for each sampled one."""
        needed = self._confidence.half_life / TUNING.change.windows * scale
        began_at = detector.changed_since(needed, self.lru.clock, judge=self._confidence.warm)
        if began_at is not None:
            self._changed(began_at)

    def _changed(self, began_at: int) -> None:
        self.load += 1
        self._confidence.begin()
        self._measurement.forget()
        self._newcomers.forget()
        self._gap.forget()
        self._gap.begin_window(self.lru.clock)
        self._forget_most()
        if self._policy == _KEEPS_OLD_PAGES:
            pages, scale = self._pages_since(began_at), 2.0**self.shift
            cached = self._measurement.cached / scale
            self._stale_pages = StalePageDetector(self._policy, pages, cached, scale=scale)

    def _forget_most(self) -> None:
        for estimator in self._estimators:
            estimator.forget(TUNING.tracking.left_after_change)
        self._noise.forget(TUNING.tracking.left_after_change)
        self._noise.begin()
        self._measurement.fade(TUNING.tracking.left_after_change)

    def _compare(self, accesses: int, misses: int, cached_pages: float) -> None:
        """Compare what is measured with a cache that was empty when the load changed."""
        if self._stale_pages is None:
            return
        if cached_pages < TUNING.staleness.squeezed * self._measurement.cached:
            self._stale_pages.restart()
        kept = 0.5 ** (accesses / (self._confidence.half_life * 2.0**self.shift / TUNING.change.windows))
        self._stale_pages.measure(accesses, misses, cached_pages / 2.0**self.shift, kept)
        if self._stale_pages.recovered:
            # The kernel has let go of what it kept for so long; so do the simulated caches.
            self._stale_pages.was_stale = False
            if isinstance(self.estimator, Simulations):
                self.estimator.restart(self._pages_since(self._confidence.began_at))

    def _pages_since(self, clock: int) -> Ids:
        """Return the pages accessed at or after a time, the last one last."""
        last = self.lru.last
        ids = np.flatnonzero(last >= clock)
        return np.asarray(ids[np.argsort(last[ids])])


def _telling(sizes: NDArray[np.int64], ratios: Ratios) -> NDArray[np.int64]:
    """Return the indices of the points a `Curve` has, as close as it is steep: a cliff is not to be smeared."""
    along = (sizes - sizes[0]) / (sizes[-1] - sizes[0]) + (ratios[0] - ratios) / max(1e-9, ratios[0] - ratios[-1])
    wanted = np.linspace(0.0, along[-1], TUNING.tracking.points)
    points = np.searchsorted(along, wanted - 1e-12)
    # Both ends of a jump, so that the line between two points is never across it.
    return np.unique(np.clip(np.concatenate([[0], points, points[1:] - 1, [len(sizes) - 1]]), 0, len(sizes) - 1))
