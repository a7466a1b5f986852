"""Curves of an LRU cache from reuse distances.

SHARDS: C. Waldspurger et al., Efficient MRC Construction with SHARDS, FAST 2015, with the count adjustment of its
section 4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.estimator import Estimator, Ratios, Sizes
from qmpalloc.curves.keys import Ids

_CHUNK = 512
"""Accesses handled together: the work per access grows with it, the work per chunk with the number of pages."""


class ReuseDistances(Estimator):
    """The curve of an LRU cache from reuse distances, with SHARDS's count adjustment. Counts hits by distance.

    The times of the last access to every page are kept sorted. The distance of an access is the number of those later
    than the page's own, which is found for a whole chunk of accesses at a time by binary search.

    Attributes:
        last: Time of the last access by page number, in accesses; -1 for pages not seen.
        clock: Accesses so far.
        latest: Distances of the accesses that were observed last.
    """

    name = "shards"

    def __init__(self, reach: int) -> None:
        """Make an estimator.

        Args:
            reach: Pages of the largest size that will be asked for; farther reuses count as misses at every size.
        """
        super().__init__(reach + 1)
        self.last = np.full(1024, -1, dtype=np.int64)
        self.clock = 0
        self.latest = np.empty(0, dtype=np.int64)
        self._times = np.empty(0, dtype=np.int64)

    @property
    def pages(self) -> int:
        """Pages known."""
        return len(self._times)

    def pages_since(self, clock: int) -> int:
        """Return how many pages were accessed at or after a time, in accesses."""
        return len(self._times) - int(np.searchsorted(self._times, clock))

    def distances(self, ids: Ids) -> NDArray[np.int64]:
        """Take accesses; return the number of other pages accessed since the page's last one; -1 for its first."""
        parts = [self._distances(ids[start : start + _CHUNK]) for start in range(0, len(ids), _CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _distances(self, ids: Ids) -> NDArray[np.int64]:
        if (top := int(ids.max())) >= len(self.last):
            more = np.full(max(top + 1, 2 * len(self.last)) - len(self.last), -1, dtype=np.int64)
            self.last = np.concatenate([self.last, more])
        start, times = self.clock, self.clock + np.arange(len(ids))
        order = np.argsort(ids, kind="stable")
        again = np.zeros(len(ids), dtype=bool)
        again[1:] = ids[order][1:] == ids[order][:-1]
        previous = self.last[ids]
        previous[order[again]] = times[order[np.flatnonzero(again) - 1]]
        older = (previous >= 0) & (previous < start)
        places = np.searchsorted(self._times, previous[older])
        distances = np.zeros(len(ids), dtype=np.int64)
        distances[older] = len(self._times) - places - 1
        # Pages whose first access since `previous` lies in this chunk, before the access itself.
        between = (previous[None, :] < previous[:, None]) & (times[None, :] > previous[:, None])
        distances += np.tril(between, -1).sum(axis=1)
        self._times = np.concatenate([np.delete(self._times, places), times[order[~np.append(again[1:], False)]]])
        self._times[-len(np.unique(ids)) :].sort()
        self.last[ids] = times  # the last assignment of a repeated index wins
        self.clock += len(ids)
        return np.where(previous < 0, -1, distances)

    def renumber(self, new: Ids) -> None:
        """Give pages new numbers, as `Estimator.renumber`."""
        last = np.full(max(1024, int(new.max(initial=0)) + 1), -1, dtype=np.int64)
        kept = new >= 0
        last[new[kept]] = self.last[: len(new)][kept]
        self.last = last
        self._times = np.sort(last[last >= 0])

    def _count(self, ids: Ids) -> NDArray[np.int64]:
        distances = self.latest = self.distances(ids)
        near = distances[(distances >= 0) & (distances < len(self._counts))]
        return np.bincount(near, minlength=len(self._counts))

    def _coarsen(self, halvings: int) -> None:
        parts = 2**halvings
        padded = np.concatenate([self._counts, np.zeros(-len(self._counts) % parts)])
        self._counts = np.zeros(len(padded))
        self._counts[: len(padded) // parts] = padded.reshape(-1, parts).sum(axis=1)

    def _miss_ratios(self, sizes: Sizes) -> Ratios:
        # An access of distance d hits in a cache of more than d pages.
        hits = np.interp(sizes, np.arange(len(self._counts) + 1), np.concatenate([[0.0], np.cumsum(self._counts)]))
        adjusted = hits + np.where(sizes > 0, self.expected - self.sampled, 0.0)
        return np.asarray(1.0 - adjusted / self.expected)
