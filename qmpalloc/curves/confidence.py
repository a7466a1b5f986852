"""How much of a guest's present load was seen, and why its curve may not be acted on yet."""

from __future__ import annotations

import math
from collections.abc import Iterator

from qmpalloc.curves.reuse import ReuseDistances
from qmpalloc.curves.tuning import TUNING
from qmpalloc.units import PAGE_BYTES


class Confidence:
    """Counts what was seen of a load and lost of its samples, in sampled accesses.

    Attributes:
        began_at: When the load began, by the clock of the LRU curve.
    """

    def __init__(self, lru: ReuseDistances, largest: float) -> None:
        """Begin with nothing seen.

        Args:
            lru: The LRU curve of the same accesses. Its owner feeds it.
            largest: Pages of the sample that the largest size holds.
        """
        self._lru, self._largest = lru, largest
        self._events = self._lost = 0.0
        self.begin()
        self._since_change = math.inf

    def begin(self) -> None:
        """Begin with another load; samples that were lost were lost all the same."""
        self.began_at = self._lru.clock
        self._seen, self._since_change, self._settled = 0, 0.0, False

    def observe(self, sampled: int, events: int, lost: int) -> bool:
        """Take note of sampled accesses that were learnt, and of events; return True when the load has just settled.

        Until then most accesses were the first to their page: misses at any size, that will not come again.
        """
        self._seen += sampled
        self._since_change += sampled
        kept = self.kept(sampled)
        self._events = self._events * kept + events
        self._lost = self._lost * kept + lost
        enough = max(2 * TUNING.trust.few, TUNING.tracking.settled_after * self.working_set)
        settles = not self._settled and self._seen >= enough
        self._settled |= settles
        return settles

    def coarsen(self, halvings: int) -> None:
        """Go on at a lower rate, as `Estimator.coarsen`."""
        self._largest /= 2.0**halvings
        self._seen >>= halvings
        self._since_change /= 2.0**halvings

    @property
    def working_set(self) -> int:
        """Sampled pages accessed since the load began; those of the load before are known as well, but do not count."""
        return max(1, self._lru.pages_since(self.began_at))

    @property
    def half_life(self) -> float:
        """Sampled accesses after which what was learnt counts half: about one working set."""
        return float(max(TUNING.tracking.half_life_least, min(self.working_set, TUNING.sampling.pages_max)))

    def kept(self, accesses: int) -> float:
        """Return how much of what was learnt is left after so many sampled accesses."""
        return float(0.5 ** (accesses / self.half_life))

    @property
    def warm(self) -> bool:
        """True when all there is, or as much as the largest size holds, has been seen often enough."""
        working_set, often = self.working_set, TUNING.trust.working_sets
        return self._seen >= often * working_set or working_set >= often * self._largest

    def coarse(self, shift: int) -> bool:
        """Return whether so few pages are in the sample that the curve says little of where it is steep."""
        pages, tuning = self.working_set, TUNING.trust
        return pages < tuning.coarse_pages and math.sqrt(pages) * 2.0**shift * PAGE_BYTES > tuning.coarse_bytes

    @property
    def lossy(self) -> bool:
        """Whether too many samples were lost."""
        return self._lost_share > TUNING.trust.lost_share

    @property
    def _lost_share(self) -> float:
        return self._lost / max(1.0, self._events + self._lost)

    def suspicious(self) -> Iterator[str]:
        """Yield what is wrong with the samples."""
        if self.lossy:
            yield f"{self._lost_share:.1%} of the samples were lost"

    def unsure(self, shift: int) -> Iterator[str]:
        """Yield why it is too early to act on the curve, whatever is measured."""
        pages = self.working_set
        if self._lru.sampled < TUNING.trust.few:
            yield f"only {self._lru.sampled:.0f} sampled accesses"
        elif not self.warm:
            yield f"{self._seen / pages:.1f} working sets seen, {TUNING.trust.working_sets} are needed"
        elif self.coarse(shift):
            yield f"too coarse: {pages} pages of 1 in {2**shift}"
        if self._since_change < self.half_life:
            yield "the load has changed"
