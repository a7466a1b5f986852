"""How far a curve may be off by chance: by which pages are in the sample, and by when their accesses came."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.estimator import Ratios, Sizes
from qmpalloc.curves.keys import Ids
from qmpalloc.curves.samples import BLOCK_SHIFT, Keys
from qmpalloc.curves.tuning import TUNING

_AROUND = 7
"""Sizes that are compared to tell whether a curve is straight."""


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
    groups of pages, by the low bits of their keys, two and two neighbours in the file (K. Wolter, Introduction to
    Variance Estimation, chapter 8: the sample has a page of every block, so only what neighbours differ by is chance);
    and windows of what is measured at the present size, where the curve is made to pass through.
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

    def deviations(
        self, sizes: Sizes, here: float | None, lru: Callable[[Sizes], Ratios], pages: float
    ) -> NDArray[np.float64]:
        """Return the standard deviation of the curve at each size. All sizes are in pages of the sample.

        Args:
            sizes: The sizes, rising.
            here: The one at which the curve is made to pass through what is measured; None: none.
            lru: The LRU curve.
            pages: Pages that the load reads.
        """
        # Of all pages the sample has its share; of a part of them it has some more or less. So what is seen at a size
        # lies at sizes around it, which matters where the curve is not straight: beside a cliff.
        at = sizes if here is None else np.append(sizes, here)
        reach = TUNING.noise.reach * np.sqrt(at * np.clip(1.0 - at / pages, 0.0, 1.0))
        around = at + np.linspace(-1.0, 1.0, _AROUND)[:, None] * reach
        order, ratios = np.argsort(around, axis=None), np.empty(around.shape)
        ratios.flat[order] = lru(around.flat[order])
        seen = ratios[_AROUND // 2]
        off = ratios.mean(axis=0) - seen
        if here is not None:
            off = off[:-1] - corrected(seen[:-1], float(seen[-1])) * off[-1]
        return np.asarray(np.sqrt(np.interp(sizes, self._sizes, self.variances(here)) + off**2))

    def variances(self, here: float | None) -> NDArray[np.float64]:
        """Return the variance of the curve at each of the sizes of `Noise`, were it known where sizes lie."""
        ratios = self.ratios
        pages = (self._misses[::2] - self._misses[1::2]) / max(1.0, self._expected)
        at, tied = 0, np.zeros(len(self._sizes))
        if here is not None:
            at = int(np.abs(self._sizes - here).argmin())
            tied = corrected(ratios, float(ratios[at]))
        # Half the memory: what is to come swings as much as what was, and twice as much lies between the two.
        swing = self._measured.variance(TUNING.change.windows / 2)
        return np.asarray(((pages - np.outer(pages[:, at], tied)) ** 2).sum(axis=0) + tied**2 * swing)

    @property
    def ratios(self) -> Ratios:
        """The miss ratio at each size."""
        return np.asarray(self._misses.sum(axis=0) / max(1.0, self._expected))


def corrected(ratios: Ratios, here: float) -> NDArray[np.float64]:
    """Return by how much of its own error at the present size, `here`, a curve is corrected at each (`anchored`)."""
    ratios, here = np.clip(ratios, 1e-6, 1.0 - 1e-6), min(max(here, 1e-6), 1.0 - 1e-6)
    return np.asarray(np.where(ratios < here, ratios / here, (1.0 - ratios) / (1.0 - here)))
