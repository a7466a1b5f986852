"""What the exact counters say of the present size, and a curve that passes through it without losing its shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qmpalloc.curves.estimator import Ratios, Sizes
from qmpalloc.curves.tuning import TUNING


class Measurement:
    """The miss ratio lately, at the present size of the cache.

    Attributes:
        cached: Pages of the load in the cache.
        steady_accesses: Accesses since the load changed.
    """

    def __init__(self) -> None:
        self.cached = 0.0
        self.forget()

    def forget(self) -> None:
        """Forget all but the size: the load has changed."""
        self._accesses = self._misses = self.steady_accesses = 0.0

    def fade(self, factor: float) -> None:
        """Multiply the weight of what was measured by `factor`: it is to be of the same accesses as the curve."""
        self._accesses *= factor
        self._misses *= factor

    def take(self, accesses: int, misses: int, cached: float, half_life: float) -> bool:
        """Learn from an interval, unless the cache has changed its size in it; return whether it was used.

        What missed in such an interval missed at sizes in between, or filled the cache: it says nothing of this size.
        """
        if abs(cached - self.cached) > TUNING.tracking.size_alike * max(cached, self.cached):
            self._accesses = self._misses = 0.0
            self.cached = cached
            return False
        kept = 0.5 ** (accesses / half_life)
        self._accesses = self._accesses * kept + accesses
        self._misses = self._misses * kept + misses
        self.cached += TUNING.tracking.cached_share * (cached - self.cached)
        return True

    @property
    def ratio(self) -> float | None:
        """Misses by accesses; None with too few accesses."""
        return min(1.0, self._misses / self._accesses) if self._accesses >= TUNING.trust.few else None

    def contradiction(self, measured: float, miss_ratios: Callable[[Sizes], Ratios]) -> float:
        """Return how far a measured miss ratio is from the curve anywhere near the present size."""
        sideways = TUNING.tracking.sideways
        more, less = miss_ratios(np.array([1.0 - sideways, 1.0 + sideways]) * self.cached)
        return measured - min(max(measured, float(less)), float(more))


def anchored(ratios: Ratios, sizes: Sizes, size: float, measured: float) -> Ratios:
    """Return the curve corrected to have the measured miss ratio at the present size.

    A gap of more than a little is closed sideways as far as the tuning allows. What is left is closed by mapping miss
    ratios onto miss ratios: 0 stays 0, 1 stays 1, the estimate at the present size becomes what was measured, and all
    between is in proportion. So the curve keeps falling, and a guest that misses nothing now is still known to miss
    with less.

    Args:
        ratios: Miss ratios, never rising.
        sizes: Their sizes, rising.
        size: The present size.
        measured: Miss ratio measured there, 0 to 1.
    """
    here = float(np.interp(size, sizes, ratios))
    if abs(measured - here) > TUNING.tracking.gap_least:
        shifts = np.linspace(-TUNING.tracking.sideways, TUNING.tracking.sideways, 25) * size
        reached = np.interp(size + shifts, sizes, ratios)
        # The smallest shift among those that come nearest.
        best = np.lexsort((np.abs(shifts), np.round(np.abs(reached - measured), 2)))[0]
        ratios = np.interp(sizes + shifts[best], sizes, ratios)
        here = float(np.interp(size, sizes, ratios))
    here = min(max(here, 1e-6), 1.0 - 1e-6)
    return np.interp(ratios, [0.0, here, 1.0], [0.0, min(max(measured, 0.0), 1.0), 1.0])
