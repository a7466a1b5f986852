"""Pages of a load that is over, and what they cost the one that followed it."""

from __future__ import annotations

import math

import numpy as np

from qmpalloc.curves.keys import Ids
from qmpalloc.curves.simulation import POLICIES
from qmpalloc.curves.tuning import TUNING


class StalePageDetector:
    """What a guest misses since its load changed, beside what it would have, had its cache been emptied then.

    Linux's multi-generational LRU can keep pages that were read often long after they were read last: as long as new
    ones come and go in the oldest generation, no generation is added and the younger ones are not looked at. Beside the
    guest's exact counts, a cache of its present size is simulated that was empty at the change. What the guest misses
    more is what the pages of the load before cost it.

    Attributes:
        was_stale: Whether that was ever so.
    """

    def __init__(self, policy: str, ids: Ids, cached: float, *, scale: float) -> None:
        """Begin at a change of the load.

        Args:
            policy: The guest's page replacement, a name of `qmpalloc.curves.simulation.POLICIES`.
            ids: Pages read since the change, by now, in order.
            cached: Size of the cache, in pages of the sample.
            scale: Real pages for each page of the sample.
        """
        pages = ids.tolist()
        self._cache = POLICIES[policy](max(1, round(cached)), max(pages, default=-1) + 1, scale=scale)
        self._cache.read(pages)
        self._read = set(pages)
        self.was_stale = False
        self.restart()

    def restart(self) -> None:
        """Forget what was counted, but not what is cached: something has happened to the guest's cache."""
        self._sampled = self._again = self._missed = self._accesses = self._misses = 0.0

    def observe(self, ids: Ids) -> None:
        """Take accesses to pages of the sample."""
        pages = ids.tolist()
        if not pages:
            return
        self._cache.grow(max(pages) + 1)
        self._missed += self._cache.read(pages)
        self._sampled += len(pages)
        known = len(self._read)
        self._read.update(pages)
        self._again += len(pages) - (len(self._read) - known)

    def measure(self, accesses: int, misses: int, cached: float, kept: float = 1.0) -> None:
        """Take what was counted in the guest in the same time.

        Args:
            accesses: Pages accessed.
            misses: Pages brought in for them.
            cached: Size of the cache, in pages of the sample.
            kept: Weight that all that was seen before still has.
        """
        self._sampled, self._again, self._missed = kept * self._sampled, kept * self._again, kept * self._missed
        self._accesses, self._misses = kept * self._accesses + accesses, kept * self._misses + misses
        self._cache.resize(max(1, round(cached)))
        self.was_stale |= self.stale > 0

    def renumber(self, new: Ids) -> None:
        """Give pages new numbers; -1 for those to be dropped."""
        numbers = new.tolist()
        self._cache.renumber(numbers)
        self._read = {numbers[page] for page in self._read if numbers[page] >= 0}

    @property
    def pages_read(self) -> int:
        """Pages of the sample read since the change."""
        return len(self._read)

    @property
    def recovered(self) -> bool:
        """Whether pages of the load before were in the way and are no longer: the kernel has let go of them."""
        tuning = TUNING.staleness
        return self.was_stale and self._sampled >= tuning.few and abs(self._more) < tuning.least

    @property
    def _more(self) -> float:
        if not self._accesses or not self._sampled:
            return 0.0
        return self._misses / self._accesses - self._missed / self._sampled

    @property
    def stale(self) -> float:
        """Share of the accesses that miss for the pages of the load before; 0 unless that is beyond doubt.

        Pages read for the first time miss in any cache, and not for long; they are left out.
        """
        tuning, more = TUNING.staleness, self._more
        if self._sampled < tuning.few or self._again <= 0:
            return 0.0
        simulated = self._missed / self._sampled
        deviation = math.sqrt(max(simulated * (1.0 - simulated), 0.01) / self._sampled)
        if more < max(tuning.least, tuning.deviations * deviation):
            return 0.0
        return float(np.clip(more * self._sampled / self._again, 0.0, 1.0))
