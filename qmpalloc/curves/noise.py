"""How far a curve may be off by chance: by which pages are in the sample, and by when their accesses came."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.estimator import Ratios, Sizes
from qmpalloc.curves.keys import Ids
from qmpalloc.curves.samples import BLOCK_SHIFT, Keys
from qmpalloc.curves.tuning import TUNING


class Windows:
    """A ratio in windows of time that follow each other, and how much a mean of them swings."""

    def __init__(self) -> None:
        self._ratios: deque[float] = deque(maxlen=TUNING.noise.windows)
        self._part = self._whole = 0.0

    def observe(self, part: float, whole: float, needed: float) -> None:
        """Add to the window, which ends once `whole` has come to what is needed."""
        self._part += part
        self._whole += whole
        if self._whole >= max(1.0, needed):
            self._ratios.append(self._part / self._whole)
            self._part = self._whole = 0.0

    def variance(self, half_life: float) -> float:
        """Return the variance of a mean in which a window counts half after `half_life` more; 0 after too few windows.

        Windows that follow each other are alike where a load has phases: their covariances count as well.
        """
        number, kept = len(self._ratios), 0.5 ** (1.0 / half_life)
        share = (1.0 - kept) / (1.0 + kept)  # of the variance of a window, were they independent
        known = 1.0 - 1.0 / (max(1, number) * share)
        if known < TUNING.noise.known_least:
            return 0.0
        apart, index = np.array(self._ratios) - np.mean(self._ratios), np.arange(number)
        return float(apart @ kept ** np.abs(index[:, None] - index) @ apart * share / number / known)


class Noise:
    """The variance of the LRU curve of a sample, from how much its parts differ.

    Accesses are not independent: those of a page, and those of a moment, are alike. So parts are compared that are:
    groups of pages, by the low bits of their keys, each a sample like the whole at a lower rate (random groups;
    K. Wolter, Introduction to Variance Estimation, chapter 2); and windows of what is measured at the present size,
    where the curve is made to pass through.
    """

    def __init__(self, sizes: Sizes) -> None:
        """Begin with nothing seen; sizes, rising, are in pages of the sample."""
        self._sizes = sizes
        self._misses = np.zeros((TUNING.noise.groups, len(sizes)))
        self._expected = 0.0
        self.begin()

    def begin(self) -> None:
        """Forget what was measured: another load begins, or this one has settled and is steady only from now on."""
        self._measured, self._cached = Windows(), 0.0

    def observe(self, keys: Keys, shift: int, distances: Ids, expected: float) -> None:
        """Learn from accesses.

        Args:
            keys: Keys of the pages, in order.
            shift: The rate of the sample is 2 ** -shift.
            distances: Of their reuses, -1 for a first one.
            expected: How many accesses the sample should have held.
        """
        groups, ends = self._misses.shape
        group = (keys >> np.uint64(shift - BLOCK_SHIFT)).astype(np.int64) % groups
        # An access of distance d misses in caches of d pages and less: in the first so many.
        missed = np.where(distances < 0, ends, np.searchsorted(self._sizes, distances, side="right"))
        counts = np.bincount(group * (ends + 1) + missed, minlength=groups * (ends + 1)).reshape(groups, ends + 1)
        self._misses += counts[:, :0:-1].cumsum(axis=1)[:, ::-1]
        self._expected += expected

    def measure(self, accesses: int, misses: int, cached: float, half_life: float) -> None:
        """Learn what was counted in the guest with so much in its cache; `half_life` is in the same accesses."""
        if abs(cached - self._cached) > TUNING.tracking.sideways * self._cached:
            self._measured, self._cached = Windows(), cached
        self._measured.observe(misses, accesses, half_life / TUNING.change.windows)

    def forget(self, factor: float) -> None:
        """Multiply the weight of what was learnt of pages by `factor`."""
        self._misses *= factor
        self._expected *= factor

    def coarsen(self, halvings: int) -> None:
        """Go on at a lower rate, as `Estimator.coarsen`."""
        self._sizes = self._sizes * 2.0**-halvings
        self.forget(2.0**-halvings)

    def variances(self, here: float | None) -> NDArray[np.float64]:
        """Return the variance of the curve at each size.

        Args:
            here: The size, in pages of the sample, at which it is made to pass through what is measured; None: at none.
        """
        groups, ratios = len(self._misses), np.clip(self.ratios, 1e-6, 1.0 - 1e-6)
        pages = (self._misses - self._misses.mean(axis=0)) / max(1.0, self._expected) * (groups / (groups - 1)) ** 0.5
        at, tied = 0, np.zeros(len(self._sizes))
        if here is not None:
            at = int(np.abs(self._sizes - here).argmin())
            # By so much of its own error there is the curve corrected elsewhere: see `anchored`.
            tied = np.where(ratios < ratios[at], ratios / ratios[at], (1.0 - ratios) / (1.0 - ratios[at]))
        swing = self._measured.variance(TUNING.change.windows / 2)
        return np.asarray(((pages - np.outer(pages[:, at], tied)) ** 2).sum(axis=0) + tied**2 * swing)

    @property
    def ratios(self) -> Ratios:
        """The miss ratio at each size."""
        return np.asarray(self._misses.sum(axis=0) / max(1.0, self._expected))

    def by_share(self, here: float | None) -> float:
        """Return the standard deviation of a miss ratio by its square root, as `variances`, or less at most sizes.

        Each size counts by its misses: where hardly anything is missed, little is at stake.
        """
        ratios = np.maximum(1e-6, self.ratios)
        by_share = self.variances(here) / ratios
        order = np.argsort(by_share)
        below = np.cumsum(ratios[order])
        index = np.searchsorted(below, below[-1] * TUNING.noise.most)
        return float(np.sqrt(by_share[order[min(index, len(order) - 1)]]))
