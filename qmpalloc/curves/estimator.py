"""What all curve estimators have in common, so that they are interchangeable."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.keys import Ids

Ratios = NDArray[np.float64]
Sizes = NDArray[np.float64]


class Estimator(Protocol):
    """Learns a miss-ratio curve from accesses to sampled pages. All sizes are in pages of the sample.

    Attributes:
        name: For people.
    """

    name: str

    def observe(self, ids: Ids, expected: float) -> None:
        """Learn from accesses.

        Args:
            ids: Numbers of the pages, in the order of their accesses.
            expected: How many accesses the sample should have held (the exact count times the rate). The difference
                is put down to pages hot enough to hit at any size: SHARDS's count adjustment.
        """
        ...

    def forget(self, factor: float) -> None:
        """Multiply the weight of all that was learnt by `factor`."""
        ...

    def renumber(self, new: Ids) -> None:
        """Give pages new numbers; -1 for those to be dropped."""
        ...

    def coarsen(self, halvings: int) -> None:
        """Go on at a lower rate: what was learnt now stands for a sample of 2 ** -halvings times the pages."""
        ...

    def miss_ratios(self, sizes: Sizes) -> Ratios:
        """Return the miss ratio, from 0 to 1, for each cache size; never rising when `sizes` rise."""
        ...


def falling(ratios: Ratios) -> Ratios:
    """Return ratios within 0 to 1 and never rising: a larger cache is never predicted to miss more.

    FIFO-like policies can miss more with more memory (Bélády's anomaly); a decision must not rest on that.
    """
    return np.minimum.accumulate(np.clip(ratios, 0.0, 1.0))
