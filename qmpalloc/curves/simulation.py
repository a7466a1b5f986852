"""Curves of a guest's actual replacement policy: scaled-down simulations of it at a set of sizes.

C. Waldspurger et al., Cache Modeling and Optimization using Miniature Simulations, USENIX ATC 2017: a cache of R times
the size, fed with the accesses to a spatial sample of rate R, misses as the whole does.
"""

from __future__ import annotations

import numpy as np

from qmpalloc.curves.estimator import Ratios, Sizes, falling
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


class Simulations:
    """The curve of a replacement policy, from one simulated cache per size.

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
        self.name = policy
        self.sizes = np.asarray(sizes, dtype=float)
        self._lru, self._scale = lru, scale
        self._caches: list[Replacement] = [POLICIES[policy](max(1, round(size)), 0, scale=scale) for size in self.sizes]
        self._misses = np.zeros(len(self.sizes))
        self._expected = 0.0

    def observe(self, ids: Ids, expected: float) -> None:
        """Learn from accesses, as `Estimator.observe`."""
        pages = ids.tolist()
        if pages:
            count = max(pages) + 1
            for index, cache in enumerate(self._caches):
                cache.grow(count)
                self._misses[index] += cache.read(pages)
        self._expected += expected

    def forget(self, factor: float) -> None:
        """Multiply the weight of all that was learnt by `factor`; what the caches hold stays."""
        self._misses *= factor
        self._expected *= factor

    def restart(self, ids: Ids) -> None:
        """Empty all caches, then fill them with the given pages. Until more is known, misses are those of LRU."""
        for index, cache in enumerate(self._caches):
            self._caches[index] = POLICIES[self.name](cache.capacity, 0, scale=self._scale)
        weight = self._expected
        self.observe(ids, 0.0)
        self._misses, self._expected = self._lru.miss_ratios(self.sizes) * weight, weight

    def renumber(self, new: Ids) -> None:
        """Give pages new numbers; -1 for those to be dropped."""
        numbers = new.tolist()
        for cache in self._caches:
            cache.renumber(numbers)

    def coarsen(self, halvings: int) -> None:
        """Go on at a lower rate, as `Estimator.coarsen`. The caches keep what belongs to the smaller sample."""
        self.sizes = self.sizes * 2.0**-halvings
        for cache, size in zip(self._caches, self.sizes, strict=True):
            cache.resize(max(1, round(size)))
        self.forget(2.0**-halvings)

    def miss_ratios(self, sizes: Sizes) -> Ratios:
        """Return the policy's miss ratio at each size; 1 before anything was learnt."""
        if self._expected <= 0:
            return np.ones(len(sizes))
        known = falling(self._misses / self._expected)
        difference = known - self._lru.miss_ratios(self.sizes)
        # Below the smallest simulated size the policies meet: without a cache, all miss.
        spread = np.interp(sizes, np.concatenate([[0.0], self.sizes]), np.concatenate([[0.0], difference]))
        between = self._lru.miss_ratios(sizes) + spread
        # The curve passes between the simulated sizes it lies between, whatever LRU does there.
        index = np.searchsorted(self.sizes, sizes, side="right")
        highest = np.concatenate([[1.0], known])[index]
        lowest = np.append(known, 0.0)[np.searchsorted(self.sizes, sizes, side="left")]
        return falling(np.clip(between, np.minimum(lowest, highest), highest))
