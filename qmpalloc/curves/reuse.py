"""Curves of an LRU cache from reuse distances (SHARDS) and from reuse times (AET).

SHARDS: C. Waldspurger et al., Efficient MRC Construction with SHARDS, FAST 2015, with the count adjustment of its
section 4. AET: X. Hu et al., Fast Miss Ratio Curve Modeling for Storage Cache, ACM TOS 14(2), 2018.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.estimator import Ratios, Sizes, falling
from qmpalloc.curves.keys import Ids

_CHUNK = 512
"""Accesses handled together: the work per access grows with it, the work per chunk with the number of pages."""


class ReuseStack:
    """Reuse distances of a stream of numbered pages.

    The times of the last access to every page are kept sorted. The distance of an access is the number of those later
    than the page's own, which is found for a whole chunk of accesses at a time by binary search.

    Attributes:
        last: Time of the last access by page number, in accesses; -1 for pages not seen.
        clock: Accesses so far.
    """

    def __init__(self) -> None:
        self.last = np.full(1024, -1, dtype=np.int64)
        self.clock = 0
        self._stack = np.empty(0, dtype=np.int64)

    @property
    def pages(self) -> int:
        """Pages known."""
        return len(self._stack)

    def pages_since(self, clock: int) -> int:
        """Return how many pages were accessed at or after a time, in accesses."""
        return len(self._stack) - int(np.searchsorted(self._stack, clock))

    def access(self, ids: Ids) -> NDArray[np.int64]:
        """Return the distance of every access, the number of other pages accessed since; -1 for the first of a page."""
        parts = [self._access(ids[start : start + _CHUNK]) for start in range(0, len(ids), _CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _access(self, ids: Ids) -> NDArray[np.int64]:
        if len(ids) and (top := int(ids.max())) >= len(self.last):
            more = np.full(max(top + 1, 2 * len(self.last)) - len(self.last), -1, dtype=np.int64)
            self.last = np.concatenate([self.last, more])
        start, times = self.clock, self.clock + np.arange(len(ids))
        order = np.argsort(ids, kind="stable")
        again = np.zeros(len(ids), dtype=bool)
        again[1:] = ids[order][1:] == ids[order][:-1]
        previous = self.last[ids]
        previous[order[again]] = times[order[np.flatnonzero(again) - 1]]
        older = (previous >= 0) & (previous < start)
        places = np.searchsorted(self._stack, previous[older])
        distances = np.zeros(len(ids), dtype=np.int64)
        distances[older] = len(self._stack) - places - 1
        # Pages whose first access since `previous` lies in this chunk, before the access itself.
        between = (previous[None, :] < previous[:, None]) & (times[None, :] > previous[:, None])
        distances += np.tril(between, -1).sum(axis=1)
        self._stack = np.concatenate([np.delete(self._stack, places), times[order[~np.append(again[1:], False)]]])
        self._stack[-len(np.unique(ids)) :].sort()
        self.last[ids] = times  # the last assignment of a repeated index wins
        self.clock += len(ids)
        return np.where(previous < 0, -1, distances)

    def renumber(self, new: Ids) -> None:
        """Give pages new numbers; -1 for those to be dropped."""
        last = np.full(max(1024, int(new.max(initial=0)) + 1), -1, dtype=np.int64)
        kept = new >= 0
        last[new[kept]] = self.last[: len(new)][kept]
        self.last = last
        self._stack = np.sort(last[last >= 0])


class ReuseDistances:
    """The curve of an LRU cache from reuse distances, with SHARDS's count adjustment.

    Attributes:
        stack: The stream's reuse distances.
        sampled: Weight of all accesses.
    """

    name = "shards"

    def __init__(self, reach: int) -> None:
        """Make an estimator.

        Args:
            reach: Pages of the largest size that will be asked for; farther reuses count as misses at every size.
        """
        self.stack = ReuseStack()
        self._hits = np.zeros(reach + 1)  # by distance
        self.sampled = 0.0
        self.expected = 0.0

    def observe(self, ids: Ids, expected: float) -> None:
        """Learn from accesses, as `Estimator.observe`."""
        distances = self.stack.access(ids)
        near = distances[(distances >= 0) & (distances < len(self._hits))]
        self._hits += np.bincount(near, minlength=len(self._hits))
        self.sampled += len(ids)
        self.expected += expected

    def forget(self, factor: float) -> None:
        """Multiply the weight of all that was learnt by `factor`."""
        self._hits *= factor
        self.sampled *= factor
        self.expected *= factor

    def renumber(self, new: Ids) -> None:
        """Give pages new numbers; -1 for those to be dropped."""
        self.stack.renumber(new)

    def coarsen(self, halvings: int) -> None:
        """Go on at a lower rate, as `Estimator.coarsen`."""
        parts = 2**halvings
        padded = np.concatenate([self._hits, np.zeros(-len(self._hits) % parts)])
        self._hits = np.concatenate(
            [padded.reshape(-1, parts).sum(axis=1), np.zeros(len(padded) - len(padded) // parts)]
        )
        self._hits = self._hits[: len(padded)]
        self.forget(1.0 / parts)

    def miss_ratios(self, sizes: Sizes) -> Ratios:
        """Return the miss ratio of an LRU cache of each size; 1 before anything was learnt."""
        if self.expected <= 0:
            return np.ones(len(sizes))
        # An access of distance d hits in a cache of more than d pages.
        hits = np.interp(sizes, np.arange(len(self._hits) + 1), np.concatenate([[0.0], np.cumsum(self._hits)]))
        adjusted = hits + np.where(sizes > 0, self.expected - self.sampled, 0.0)
        return falling(1.0 - adjusted / self.expected)


class ReuseTimes:
    """The curve of an LRU cache from reuse times alone (AET): no distances, so it could run inside a guest.

    A page not accessed again for time T has sunk by the sum of P(t) for t < T, P(t) being the part of accesses whose
    reuse takes longer than t; a cache of c pages evicts it when that sum reaches c, so its miss ratio is P(T).
    """

    name = "aet"
    _STEPS = 16  # per octave

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._clock = 0
        self._counts = np.zeros(self._STEPS * 40)
        self._sampled = 0.0
        self._expected = 0.0

    def observe(self, ids: Ids, expected: float) -> None:
        """Learn from accesses, as `Estimator.observe`."""
        last, times = self._last, []
        for clock, page in enumerate(ids.tolist(), self._clock):
            then = last.get(page)
            if then is not None:
                times.append(max(1, clock - then))
            last[page] = clock
        self._clock += len(ids)
        bins = np.minimum(np.log2(np.array(times, dtype=float)) * self._STEPS, len(self._counts) - 1).astype(np.int64)
        self._counts += np.bincount(bins, minlength=len(self._counts))
        self._sampled += len(ids)
        self._expected += expected

    def forget(self, factor: float) -> None:
        """Multiply the weight of all that was learnt by `factor`."""
        self._counts *= factor
        self._sampled *= factor
        self._expected *= factor

    def renumber(self, new: Ids) -> None:
        """Give pages new numbers; -1 for those to be dropped."""
        self._last = {int(new[page]): then for page, then in self._last.items() if new[page] >= 0}

    def coarsen(self, halvings: int) -> None:
        """Go on at a lower rate, as `Estimator.coarsen`."""
        steps = self._STEPS * halvings
        counts = np.zeros(len(self._counts))
        counts[: len(counts) - steps] = self._counts[steps:]
        counts[0] += self._counts[:steps].sum()
        self._counts = counts
        self._last = {page: then >> halvings for page, then in self._last.items()}
        self._clock >>= halvings
        self.forget(2.0**-halvings)

    def miss_ratios(self, sizes: Sizes) -> Ratios:
        """Return the miss ratio of an LRU cache of each size; 1 before anything was learnt."""
        if self._expected <= 0:
            return np.ones(len(sizes))
        edges = 2.0 ** (np.arange(len(self._counts) + 1) / self._STEPS)
        # Accesses the sample lacks belong to pages so hot that they are reused at once.
        reused = np.concatenate(
            [[self._expected - self._sampled], self._expected - self._sampled + self._counts.cumsum()]
        )
        longer = np.clip(1.0 - reused / self._expected, 0.0, 1.0)
        sunk = np.concatenate([[1.0], 1.0 + np.cumsum(np.diff(edges) * (longer[1:] + longer[:-1]) / 2)])
        ratios = np.interp(sizes, sunk, longer)
        return falling(np.where(sizes <= 0, 1.0, ratios))
