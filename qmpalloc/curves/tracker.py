"""One guest's miss-ratio curve over time: samples in, a curve with its confidence out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.afresh import Afresh
from qmpalloc.curves.anchor import SIDEWAYS, anchored
from qmpalloc.curves.estimator import Estimator, Ratios, Sizes
from qmpalloc.curves.keys import Ids, KeyTable, in_sample
from qmpalloc.curves.mapping import SizeMapping
from qmpalloc.curves.reuse import ReuseDistances, ReuseTimes
from qmpalloc.curves.samples import BLOCK_SHIFT, SHIFT_MAX, Window
from qmpalloc.curves.simulation import Simulations
from qmpalloc.curves.usual import Usual
from qmpalloc.model import UNMEASURED, Curve
from qmpalloc.units import MIB, PAGE_BYTES

SAMPLED_PAGES_MAX = 8_192
"""Pages of the largest simulated cache; the rate is lowered until it fits."""

SAMPLED_PER_S_MAX = 1_000.0
"""Sampled accesses per second that are simulated; the rate is lowered until they are no more, so that many guests do
not cost the host a core. `benchmarks/curve_cost.py` measures it."""

SAMPLED_PAGES_LEAST = 1_024
"""Fewer pages than twice this are not halved for the sake of CPU: the curve would be too coarse."""

SIMULATED_SIZES = 16
POINTS = 32
"""Half of the sizes in a `Curve`: enough for linear interpolation, small in a record."""

_FINE = 1_024

HALF_LIFE_LEAST = 2_048
"""Sampled accesses after which what was learnt counts half, at least; else as many as there are known pages."""

_COARSE_PAGES = 256
_COARSE_BYTES = 16 * MIB
"""With fewer sampled pages than this a curve is too coarse if its error, some square root of them, is that much memory:
what 113 pages at a rate of 1 in 1,024 say of a working set of 450 MiB may be off by 40."""

_FINER_AFTER = 30
"""Windows that hold more than is used, after which a curve that is too coarse begins anew with all they hold."""

_FEW = 1_000
_BUSY_INTERVALS = 3
_LOST_SHARE = 0.01
"""Of the samples. A lost access hides itself and a reuse, so that the curve is off by twice the share at most."""
_WINDOWS = 4  # by half-life, to look for changes
_CHANGE_GAP = 0.05
_CHANGE_NEW = 0.15
_CONTRADICTION = 0.10
_LEFT_AFTER_CHANGE = 0.2
_SETTLED_AFTER = 1.5  # working sets
_KEEPS_OLD_PAGES = "lru_gen"
"""Under the other page replacements, pages of a load that is over go by themselves, if not at once."""
_SQUEEZED = 0.9  # of the cache, or less, is left


class CurveTracker:
    """The curve of one guest.

    Attributes:
        shift: The rate in use is 2 ** -shift; the guest may sample more, which is thrown away.
        estimator: Simulations of the guest's own policy, or LRU when that is not known.
        changes: Changes of the load noticed so far.
    """

    def __init__(self, policy: str | None, smallest_pages: float, largest_pages: float) -> None:
        """Make a tracker.

        Args:
            policy: The guest's replacement policy, a name of `qmpalloc.curves.simulation.POLICIES`; None: LRU by reuse
                distances; ``aet``: LRU by reuse times.
            smallest_pages: Page cache at the guest's floor.
            largest_pages: Page cache at its cap; sizes beyond are not told apart.
        """
        self._policy = policy
        self._range = max(1.0, smallest_pages), max(2.0, largest_pages)
        self.shift = BLOCK_SHIFT
        while largest_pages / 2**self.shift > SAMPLED_PAGES_MAX and self.shift < SHIFT_MAX:
            self.shift += 1
        self._finest_shift = self.shift
        self.changes = self._load = 0
        self._reset()

    def _reset(self) -> None:
        self._load += 1
        scale = 2.0**self.shift
        smallest, largest = (pages / scale for pages in self._range)
        reach = math.ceil(largest)
        self._keys = KeyTable(max(1024, 2 * reach))
        self.lru = ReuseDistances(max(64, math.ceil(1.1 * reach)))
        self.estimator: Estimator = self.lru
        if self._policy == ReuseTimes.name:
            self.estimator = ReuseTimes()
        elif self._policy is not None:
            sizes = np.linspace(math.sqrt(min(smallest, largest / 2)), math.sqrt(largest), SIMULATED_SIZES) ** 2
            self.estimator = Simulations(self._policy, sizes, self.lru, scale=scale)
        self._estimators = (self.lru,) if self.estimator is self.lru else (self.lru, self.estimator)
        self._seen = 0
        self._began_at = 0
        self._events = self._lost = 0.0
        self._settled = False
        self._since_change = math.inf
        self._busy = 0
        self._steady_accesses = 0.0
        self._accesses = self._misses = 0.0
        self._cached = 0.0
        self._evicting = False
        self._afresh: Afresh | None = None
        self._finer_windows = 0
        self._forget_usual()
        self._restart_newcomers()

    # --- input ------------------------------------------------------------------------------------------------------

    def observe(self, window: Window) -> None:
        """Learn from the sampled accesses of a window."""
        if window.restarted:
            self._reset()
        if window.shift > self.shift:
            # The guest samples less: what it leaves out from now on must be left out of what was learnt, too.
            self.lower_rate(window.shift)
        self._raise_rate(window.shift)
        keys = window.keys[in_sample(window.keys, self.shift)] if window.shift < self.shift else window.keys
        expected = window.expected * 2.0 ** (window.shift - self.shift)
        known = len(self._keys)
        ids = self._keys.number(keys)
        self._new_lately += len(self._keys) - known
        self._sampled_lately += len(ids)
        if self._afresh is not None:
            self._afresh.observe(ids)
        self._learn(ids, expected)
        self._events = self._events * self._forgotten(len(ids)) + window.events
        self._lost = self._lost * self._forgotten(len(ids)) + window.lost
        if self._keys.full:
            self._renumber(self._keys.trim(self.lru.stack.last))

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
            misses: Pages brought in for them.
            cached_pages: Pages of the load in the cache at the time.
            interval_s: Time in which all this happened; None if it is not known.
            evicting: Whether pages were evicted in it.
        """
        self._evicting = evicting
        if accesses <= 0:
            return
        if interval_s is not None and accesses / interval_s / 2.0**self.shift > SAMPLED_PER_S_MAX:
            self._busy += 1
            if self._busy >= _BUSY_INTERVALS and self.lru.stack.pages >= 2 * SAMPLED_PAGES_LEAST:
                self.lower_rate(self.shift + 1)
        else:
            self._busy = 0
        self._steady_accesses += accesses
        self._compare(accesses, min(max(misses, 0), accesses), cached_pages)
        self._watch_newcomers()
        if abs(cached_pages - self._cached) > 0.02 * max(cached_pages, self._cached):
            self._accesses = self._misses = 0.0
            self._cached = cached_pages
            self._restart_window()
            self._gap = Usual(_CHANGE_GAP)
            # What missed in this time missed at sizes in between, or filled the cache: it says nothing of this size.
            return
        kept = 0.5 ** (accesses / (self.half_life * 2.0**self.shift / 2))
        self._accesses = self._accesses * kept + accesses
        self._misses = self._misses * kept + min(max(misses, 0), accesses)
        self._cached += 0.2 * (cached_pages - self._cached)
        self._watch(accesses, misses)

    def lower_rate(self, shift: int) -> None:
        """Go on with the rate 2 ** -shift, which is lower than the one in use; what was learnt is kept, scaled."""
        self._busy = 0
        halvings = shift - self.shift
        self.shift = shift
        self._renumber(self._keys.thin(shift))
        for estimator in self._estimators:
            estimator.coarsen(halvings)
        self._finer_windows = 0
        self._seen >>= halvings
        self._since_change /= 2.0**halvings

    # --- output -----------------------------------------------------------------------------------------------------

    @property
    def half_life(self) -> float:
        """Sampled accesses after which what was learnt counts half: about one working set."""
        return float(max(HALF_LIFE_LEAST, min(self._working_set, SAMPLED_PAGES_MAX)))

    @property
    def measured(self) -> float | None:
        """Miss ratio measured lately at the present size; None with too few accesses."""
        return self._misses / self._accesses if self._accesses >= _FEW else None

    def miss_ratios(self, cache_pages: Sizes) -> Ratios:
        """Return the miss ratio for each number of real pages of cache, as estimated, not anchored."""
        return self.estimator.miss_ratios(np.asarray(cache_pages, dtype=float) / 2.0**self.shift)

    def curve(self, mapping: SizeMapping, floor_bytes: int, cap_bytes: int) -> Curve:
        """Return the curve over memory sizes from floor to cap, anchored at what was measured."""
        sizes_bytes = np.linspace(floor_bytes, max(cap_bytes, floor_bytes + _FINE), _FINE).astype(np.int64)
        cache = mapping.caches_pages(sizes_bytes)
        measured, unsure, suspicious = self.measured, list(self._unsure()), list(self._suspicious())
        contradicted = 0.0
        if measured is None:
            ratios = self.miss_ratios(cache)
            unsure.append(UNMEASURED)
        else:
            grid = np.concatenate([cache, [self._cached]])
            order = np.argsort(grid, kind="stable")
            ratios = np.empty(len(grid))
            ratios[order], _ = anchored(self.miss_ratios(grid[order]), grid[order], self._cached, measured)
            left = self._contradiction(measured)
            if abs(left) > _CONTRADICTION:
                contradicted = left
                unsure.append(f"the curve says {measured - left:.2f} misses here, measured are {measured:.2f}")
            ratios = ratios[:-1]
        if mapping.overhead_bytes is None:
            unsure.append("the size of the cache is not known")
        ratios = np.minimum.accumulate(ratios)
        points = _telling(sizes_bytes, ratios)
        return Curve(
            sizes_bytes=tuple(sizes_bytes[points].tolist()),
            miss_ratio=tuple(np.round(ratios[points], 5).tolist()),
            weak=tuple(suspicious + unsure),
            suspect=bool(suspicious),
            noise=round(1.0 / math.sqrt(max(1.0, self.lru.sampled)), 5),
            cached_bytes=round(self._cached * 4096),
            measured=None if measured is None else round(measured, 5),
            contradicted=round(contradicted, 5),
            steady_accesses=round(self._steady_accesses),
            load=self._load,
            stale=0.0 if self._afresh is None else round(self._afresh.stale, 5),
            unread_bytes=0 if self._afresh is None else self._unread_bytes(self._afresh),
            unused_bytes=0 if self._afresh is None else self._unused_bytes(self._afresh),
            turned_over=self._evicting and self._working_set * 2.0**self.shift > self._cached,
            pages_per_sampled=2**self.shift,
            estimator=self.estimator.name,
        )

    def ghosts(self, mib: float = 16.0) -> tuple[float, float] | None:
        """Return the hits by access that a MiB more would bring, and that a MiB less would cost, at the present size.

        Taken from the LRU curve over `mib` on each side: misses on pages that were evicted not long ago. None after few
        accesses, and when too many were lost: reuses that are not seen make both too small.
        """
        if self.lru.sampled < _FEW or self._lost_share > _LOST_SHARE:
            return None
        step = mib * 256.0
        less, here, more = self.lru.miss_ratios(
            np.array([self._cached - step, self._cached, self._cached + step]) / 2.0**self.shift
        )
        return float(here - more) / mib, float(less - here) / mib

    def _unsure(self) -> Iterator[str]:
        """Yield why it is too early to act on the curve, whatever is measured."""
        pages = self._working_set
        if self.lru.sampled < _FEW:
            yield f"only {self.lru.sampled:.0f} sampled accesses"
        elif not self._warm:
            yield f"{self._seen / pages:.1f} working sets seen, 2 are needed"
        elif self._coarse:
            yield f"too coarse: {pages} pages of 1 in {2**self.shift}"
        if self._since_change < self.half_life:
            yield "the load has changed"

    def _suspicious(self) -> Iterator[str]:
        """Yield what is wrong with the samples."""
        if self._lost_share > _LOST_SHARE:
            yield f"{self._lost_share:.1%} of the samples were lost"

    @property
    def _coarse(self) -> bool:
        """Whether so few pages are in the sample that the curve says little of where it is steep."""
        pages = self._working_set
        return pages < _COARSE_PAGES and math.sqrt(pages) * 2.0**self.shift * PAGE_BYTES > _COARSE_BYTES

    @property
    def _lost_share(self) -> float:
        return self._lost / max(1.0, self._events + self._lost)

    def _contradiction(self, measured: float) -> float:
        """Return how far the measured miss ratio is from the curve anywhere near the present size."""
        more, less = self.miss_ratios(np.array([1.0 - SIDEWAYS, 1.0 + SIDEWAYS]) * self._cached)
        return measured - min(max(measured, float(less)), float(more))

    # --- upkeep -----------------------------------------------------------------------------------------------------

    def _raise_rate(self, shift: int) -> None:
        """Begin anew at a higher rate when the guest has offered it for long, and the curve is too coarse without."""
        possible = max(shift, self._finest_shift)
        offered = possible < self.shift and self._warm and self._coarse
        self._finer_windows = self._finer_windows + 1 if offered else 0
        if self._finer_windows >= _FINER_AFTER:
            self.shift = possible
            self._reset()

    def _learn(self, ids: Ids, expected: float) -> None:
        factor = self._forgotten(len(ids))
        for estimator in self._estimators:
            estimator.forget(factor)
            estimator.observe(ids, expected)
        self._seen += len(ids)
        self._since_change += len(ids)
        if not self._settled and self._seen >= max(2 * _FEW, _SETTLED_AFTER * self._working_set):
            # Until now most accesses were the first to their page: misses at any size, that will not come again.
            self._settled = True
            for estimator in self._estimators:
                estimator.forget(_LEFT_AFTER_CHANGE)

    def _forgotten(self, accesses: int) -> float:
        return float(0.5 ** (accesses / self.half_life))

    def _renumber(self, new: Ids) -> None:
        if self._afresh is not None:
            self._afresh.renumber(new)
        for estimator in self._estimators:
            estimator.renumber(new)

    def _watch(self, accesses: int, misses: int) -> None:
        """Notice a changed load: misses leave the curve for long."""
        needed = max(HALF_LIFE_LEAST, self.half_life) / _WINDOWS * 2.0**self.shift
        here = float(self.miss_ratios(np.array([self._cached]))[0])
        self._window_accesses += accesses
        self._window_excess += misses - here * accesses
        if self._window_accesses < needed:
            return
        gap = self._window_excess / self._window_accesses
        began_at = self._window_began_at
        self._restart_window()
        if self._warm and self._gap.unusual(gap):
            self._changed(began_at)

    def _watch_newcomers(self) -> None:
        """Notice a changed load by pages never seen before, at whatever size."""
        if self._sampled_lately < self.half_life / _WINDOWS:
            return
        new, began_at = self._new_lately / self._sampled_lately, self._lately_began_at
        self._restart_newcomers()
        if self._warm and self._newcomers.unusual(new, rising_only=True):
            self._changed(began_at)

    def _forget_usual(self) -> None:
        self._gap, self._newcomers = Usual(_CHANGE_GAP), Usual(_CHANGE_NEW, strikes=1)
        self._restart_window()

    def _restart_window(self) -> None:
        self._window_accesses = self._window_excess = 0.0
        self._window_began_at = self.lru.stack.clock

    def _restart_newcomers(self) -> None:
        self._sampled_lately = self._new_lately = 0.0
        self._lately_began_at = self.lru.stack.clock

    @property
    def _warm(self) -> bool:
        """True when the largest size has been filled, or all there is has been seen twice."""
        return self._seen >= 2 * self._working_set or self._working_set >= self._keys.limit

    @property
    def _working_set(self) -> int:
        """Sampled pages accessed since the load began; those of the load before are known as well, but do not count."""
        return max(1, self.lru.stack.pages_since(self._began_at))

    def _compare(self, accesses: int, misses: int, cached_pages: float) -> None:
        """Compare what is measured with a cache that was empty when the load changed."""
        if self._afresh is None:
            return
        if cached_pages < _SQUEEZED * self._cached:
            self._afresh.restart()
        self._afresh.forget(0.5 ** (accesses / (self.half_life * 2.0**self.shift / _WINDOWS)))
        self._afresh.measure(accesses, misses, cached_pages / 2.0**self.shift)
        if self._afresh.recovered:
            # The kernel has let go of what it kept for so long; so do the simulated caches.
            self._afresh.was_stale = False
            if isinstance(self.estimator, Simulations):
                self.estimator.restart(self._pages_since(self._began_at))

    def _unread_bytes(self, afresh: Afresh) -> int:
        return max(0, round(self._cached - afresh.pages_read * 2.0**self.shift)) * PAGE_BYTES

    def _unused_bytes(self, afresh: Afresh) -> int:
        """Return how much smaller a cache would do for what is missed now, if pages of the load before fill it.

        What is read now leaves the cache once so many other pages were read as its reuse distance says.
        """
        unread = self._unread_bytes(afresh)
        if not afresh.stale or self.measured is None:
            return unread
        sizes = np.linspace(0.0, self._cached, _FINE)
        enough = self.lru.miss_ratios(sizes / 2.0**self.shift) <= self.measured
        unused = self._cached - float(sizes[int(np.argmax(enough))]) if enough.any() else 0.0
        return max(unread, round(unused) * PAGE_BYTES)

    def _pages_since(self, clock: int) -> Ids:
        """Return the pages accessed at or after a time, the last one last."""
        last = self.lru.stack.last
        ids = np.flatnonzero(last >= clock)
        return np.asarray(ids[np.argsort(last[ids])])

    def _changed(self, began_at: int) -> None:
        self.changes += 1
        self._load += 1
        self._since_change = self._steady_accesses = 0.0
        self._seen = 0
        self._began_at = self.lru.stack.clock
        self._settled = False
        self._accesses = self._misses = 0.0
        self._forget_usual()
        for estimator in self._estimators:
            estimator.forget(_LEFT_AFTER_CHANGE)
        if self._policy == _KEEPS_OLD_PAGES:
            pages, scale = self._pages_since(began_at), 2.0**self.shift
            self._afresh = Afresh(_KEEPS_OLD_PAGES, pages, self._cached / scale, scale=scale)


def _telling(sizes: NDArray[np.int64], ratios: Ratios) -> NDArray[np.int64]:
    """Return the indices of `POINTS` points of a curve, as close as it is steep: a cliff is not to be smeared."""
    along = (sizes - sizes[0]) / (sizes[-1] - sizes[0]) + (ratios[0] - ratios) / max(1e-9, ratios[0] - ratios[-1])
    wanted = np.linspace(0.0, along[-1], POINTS)
    points = np.searchsorted(along, wanted - 1e-12)
    # Both ends of a jump, so that the line between two points is never across it.
    return np.unique(np.clip(np.concatenate([[0], points, points[1:] - 1, [len(sizes) - 1]]), 0, len(sizes) - 1))
