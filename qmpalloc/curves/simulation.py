"""Curves of a guest's actual replacement policy: scaled-down simulations of it at a set of sizes.

C. Waldspurger et al., Cache Modeling and Optimization using Miniature Simulations, USENIX ATC 2017: a cache of R times
the size, fed with the accesses to a spatial sample of rate R, misses as the whole does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.estimator import Estimator, Ratios, Sizes, falling
from qmpalloc.curves.keys import Ids
from qmpalloc.curves.multigen import MultiGenerational
from qmpalloc.curves.replacement import Fifo, Lru, Replacement
from qmpalloc.curves.reuse import ReuseDistances
from qmpalloc.curves.two_list import TwoList

POLICIES: dict[str, type[Replacement]] = {
    "two_list": TwoList,
    "lru_gen": MultiGenerational,
    "lru": Lru,
    "fifo": Fifo,
}
"""Replacement policies by the name that the counters file has for the guest's."""


class Simulations(Estimator):
    """The curve of a replacement policy, from one simulated cache per size, whose misses are counted.

    Between the sizes, the difference to the LRU curve of the same accesses is interpolated, so that the curve keeps the
    shape, and the cliffs, that LRU shows in fine steps.
    """

    def __init__(self, policy: str, sizes: Sizes, lru: ReuseDistances, *, scale: float) -> None:
        """Make an estimator.

        Args:
            policy: One of `POLICIES`.
            sizes: Pages of the caches to simulate, rising, in pages of the sample.
            lru: The LRU curve of the same accesses. Its owner feeds it.
            scale: Real pages for each page of the sample.
        """
        super().__init__(len(sizes))
        self.name = policy
        self.sizes = np.asarray(sizes, dtype=float)
        self._lru, self._scale = lru, scale
        self._caches = [POLICIES[policy](max(1, round(size)), scale=scale) for size in self.sizes]

    def restart(self, ids: Ids) -> None:
        """Empty all caches, then fill them with the given pages. Until more is known, misses are those of LRU."""
        self._caches = [POLICIES[self.name](cache.capacity, scale=self._scale) for cache in self._caches]
        self._count(ids)
        self._counts = self._lru.miss_ratios(self.sizes) * self.expected

    def renumber(self, new: Ids) -> None:
        """Give pages new numbers, as `Estimator.renumber`."""
        numbers = new.tolist()
        for cache in self._caches:
            cache.renumber(numbers)

    def _count(self, ids: Ids) -> NDArray[np.int64]:
        pages = ids.tolist()
        ends = max(pages, default=-1) + 1
        for cache in self._caches:
            cache.grow(ends)
        return np.array([cache.read(pages) for cache in self._caches])

    def _coarsen(self, halvings: int) -> None:
        # The caches keep what belongs to the smaller sample.
        self.sizes = self.sizes * 2.0**-halvings
        self._scale *= 2.0**halvings
        for cache, size in zip(self._caches, self.sizes, strict=True):
            cache.scale = self._scale
            cache.resize(max(1, round(size)))

    def _miss_ratios(self, sizes: Sizes) -> Ratios:
        known = falling(self._counts / self.expected)
        difference = known - self._lru.miss_ratios(self.sizes)
        # Below the smallest simulated size the policies meet: without a cache, all miss.
        spread = np.interp(sizes, np.concatenate([[0.0], self.sizes]), np.concatenate([[0.0], difference]))
        between = self._lru.miss_ratios(sizes) + spread
        # The curve passes between the simulated sizes it lies between, whatever LRU does there.
        index = np.searchsorted(self.sizes, sizes, side="right")
        highest = np.concatenate([[1.0], known])[index]
        lowest = np.append(known, 0.0)[np.searchsorted(self.sizes, sizes, side="left")]
        return np.asarray(np.clip(between, np.minimum(lowest, highest), highest))
