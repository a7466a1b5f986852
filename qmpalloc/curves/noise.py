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
    """Ratios in windows of time that follow each other, and how much a mean of them swings."""

    def __init__(self) -> None:
        self._ratios: deque[Ratios] = deque(maxlen=TUNING.noise.windows)
        self.begin_window()

    def begin_window(self) -> None:
        """Begin a window anew."""
        self._part, self._whole = np.zeros(1), 0.0

    def observe(self, part: NDArray[np.float64], whole: float, needed: float) -> None:
        """Add to the window, which ends once `whole` has come to what is needed."""
        self._part = self._part + part
        self._whole += whole
        if self._whole >= max(1.0, needed):
            self._ratios.append(self._part / self._whole)
            self.begin_window()

    def swings(self, half_life: float) -> NDArray[np.float64] | None:
        """Return numbers whose squares sum up to the variance of a mean, for each ratio; None after too few windows.

        In the mean a window counts half after `half_life` more. Windows that follow each other are alike where a load
        has phases: their covariances count as well.
        """
        number, kept = len(self._ratios), 0.5 ** (1.0 / half_life)
        share = (1.0 - kept) / (1.0 + kept)  # of the variance of a window, were they independent
        known = 1.0 - 1.0 / (max(1, number) * share)
        if known < TUNING.noise.known_least:
            return None
        ratios, index = np.array(self._ratios), np.arange(number)
        alike = share / number / known * kept ** np.abs(index[:, None] - index)
        return np.asarray(np.linalg.cholesky(alike).T @ (ratios - ratios.mean(axis=0)))


class Noise:
    """The variance of the LRU curve of a sample, from how much its parts differ.

    Accesses are not independent: those of a page, and those of a moment, are alike. So parts are compared that are:
    groups of pages, by the low bits of their keys, each a sample like the whole at a lower rate (random groups;
    K. Wolter, Introduction to Variance Estimation, chapter 2); and windows of time.
    """

    def __init__(self, sizes: Sizes) -> None:
        """Begin with nothing seen; sizes, rising, are in pages of the sample."""
        self._sizes = sizes
        self._misses = np.zeros((TUNING.noise.groups, len(sizes)))
        self._expected = 0.0
        self.begin()

    def begin(self) -> None:
        """Forget when accesses came: another load begins, or this one has settled and is steady only from now on."""
        self._windows, self._measured, self._cached = Windows(), Windows(), 0.0

    def observe(self, keys: Keys, shift: int, distances: Ids, expected: float, half_life: float) -> None:
        """Learn from accesses.

        Args:
            keys: Keys of the pages, in order.
            shift: The rate of the sample is 2 ** -shift.
            distances: Of their reuses, -1 for a first one.
            expected: How many accesses the sample should have held.
            half_life: Accesses after which what was learnt counts half.
        """
        groups, ends = self._misses.shape
        group = (keys >> np.uint64(shift - BLOCK_SHIFT)).astype(np.int64) % groups
        # An access of distance d misses in caches of d pages and less: in the first so many.
        first = distances < 0
        missed = np.where(first, ends, np.searchsorted(self._sizes, distances, side="right"))
        counts = np.bincount(group * (ends + 1) + missed, minlength=groups * (ends + 1)).reshape(groups, ends + 1)
        misses = counts[:, :0:-1].cumsum(axis=1)[:, ::-1]
        self._misses += misses
        self._expected += expected
        # First accesses miss at any size and get fewer with time, which is no noise: only the others are compared.
        firsts = int(first.sum())
        needed = half_life / TUNING.change.windows
        self._windows.observe(misses.sum(axis=0) - firsts, max(0.0, expected - firsts), needed)

    def measure(self, accesses: int, misses: int, cached: float, half_life: float) -> None:
        """Learn what was counted in the guest with so much in its cache; `half_life` is in the same accesses."""
        if abs(cached - self._cached) > TUNING.tracking.sideways * self._cached:
            self._measured, self._cached = Windows(), cached
        self._measured.observe(np.array([misses]), accesses, half_life / TUNING.change.windows)

    def forget(self, factor: float) -> None:
        """Multiply the weight of what was learnt of pages by `factor`."""
        self._misses *= factor
        self._expected *= factor

    def coarsen(self, halvings: int) -> None:
        """Go on at a lower rate, as `Estimator.coarsen`."""
        self._sizes = self._sizes * 2.0**-halvings
        self.forget(2.0**-halvings)
        self._windows.begin_window()

    def variances(self, here: float | None) -> NDArray[np.float64]:
        """Return the variance of the curve at each size.

        Args:
            here: The size, in pages of the sample, at which it is made to pass through what is measured; None: at none.
        """
        groups, ratios = len(self._misses), np.clip(self.ratios, 1e-6, 1.0 - 1e-6)
        pages = (self._misses - self._misses.mean(axis=0)) / max(1.0, self._expected) * (groups / (groups - 1)) ** 0.5
        times = self._windows.swings(TUNING.change.windows)
        swing = self._measured.swings(TUNING.change.windows / 2)
        at, tied = 0, np.zeros(len(self._sizes))
        if here is not None:
            at = int(np.abs(self._sizes - here).argmin())
            # By so much of its own error there is the curve corrected elsewhere: see `anchored`.
            tied = np.where(ratios < ratios[at], ratios / ratios[at], (1.0 - ratios) / (1.0 - ratios[at]))
        parts = [pages] if times is None else [pages, times]
        variances = [((part - np.outer(part[:, at], tied)) ** 2).sum(axis=0) for part in parts]
        moved = 0.0 if swing is None else float((swing**2).sum())
        return np.asarray(np.max(variances, axis=0) + tied**2 * moved)

    @property
    def ratios(self) -> Ratios:
        """The miss ratio at each size."""
        return np.asarray(self._misses.sum(axis=0) / max(1.0, self._expected))

    def by_share(self, here: float | None) -> float:
        """Return the standard deviation of a miss ratio by its square root, as `variances`, or less at most sizes.

        Each size counts by its misses: where a load is new, first accesses make the few at large sizes look unsteady.
        """
        ratios = np.maximum(1e-6, self.ratios)
        by_share = self.variances(here) / ratios
        order = np.argsort(by_share)
        below = np.cumsum(ratios[order])
        index = np.searchsorted(below, below[-1] * TUNING.noise.most)
        return float(np.sqrt(by_share[order[min(index, len(order) - 1)]]))
