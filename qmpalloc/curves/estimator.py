"""What all curve estimators have in common, so that they are interchangeable."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.keys import Ids

Ratios = NDArray[np.float64]
Sizes = NDArray[np.float64]


class Estimator(ABC):
    """Learns a miss-ratio curve from accesses to sampled pages. All sizes are in pages of the sample.

    Attributes:
        name: For people.
        sampled: Weight of the accesses learnt from.
        expected: Weight of those that the sample should have held.
    """

    name: str

    def __init__(self, counts: int) -> None:
        """Begin with nothing learnt, and so many things to count."""
        self._counts = np.zeros(counts)
        self.sampled = self.expected = 0.0

    def observe(self, ids: Ids, expected: float) -> None:
        """Learn from accesses.

        Args:
            ids: Numbers of the pages, in the order of their accesses.
            expected: How many accesses the sample should have held (the exact count times the rate). The difference
                is put down to pages hot enough to hit at any size: SHARDS's count adjustment.
        """
        self._counts += self._count(ids)
        self.sampled += len(ids)
        self.expected += expected

    def forget(self, factor: float) -> None:
        """Multiply the weight of all that was learnt by `factor`."""
        self._counts *= factor
        self.sampled *= factor
        self.expected *= factor

    def coarsen(self, halvings: int) -> None:
        """Go on at a lower rate: what was learnt now stands for a sample of 2 ** -halvings times the pages."""
        self._coarsen(halvings)
        self.forget(2.0**-halvings)

    def miss_ratios(self, sizes: Sizes) -> Ratios:
        """Return the miss ratio for each cache size, never rising when `sizes` rise; 1 before anything was learnt."""
        return falling(self._miss_ratios(sizes)) if self.expected > 0 else np.ones(len(sizes))

    @abstractmethod
    def renumber(self, new: Ids) -> None:
        """Give pages new numbers; -1 for those to be dropped."""

    @abstractmethod
    def _count(self, ids: Ids) -> NDArray[np.int64]:
        """Return what accesses add to the counts."""

    @abstractmethod
    def _coarsen(self, halvings: int) -> None:
        """Shrink sizes, but no weights."""

    @abstractmethod
    def _miss_ratios(self, sizes: Sizes) -> Ratios:
        """Return the miss ratios once something was learnt."""


def falling(ratios: Ratios) -> Ratios:
    """Return ratios within 0 to 1 and never rising: a larger cache is never predicted to miss more.

    FIFO-like policies can miss more with more memory (Bélády's anomaly); a decision must not rest on that.
    """
    return np.minimum.accumulate(np.clip(ratios, 0.0, 1.0))
