"""Curves of an LRU cache from reuse times, to hold those from reuse distances against.

AET: X. Hu et al., Fast Miss Ratio Curve Modeling for Storage Cache, ACM TOS 14(2), 2018.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.estimator import Estimator, Ratios, Sizes
from qmpalloc.curves.keys import Ids


class ReuseTimes(Estimator):
    """The curve of an LRU cache from reuse times alone (AET): no distances, so it could run inside a guest.

    A page not accessed again for time T has sunk by the sum of P(t) for t < T, P(t) being the part of accesses whose
    reuse takes longer than t; a cache of c pages evicts it when that sum reaches c, so its miss ratio is P(T). Counts
    accesses by the logarithm of their reuse time.
    """

    name = "aet"
    _STEPS = 16  # per octave

    def __init__(self) -> None:
        super().__init__(self._STEPS * 40)
        self._last: dict[int, int] = {}
        self._clock = 0

    def renumber(self, new: Ids) -> None:
        """Give pages new numbers, as `Estimator.renumber`."""
        self._last = {int(new[page]): then for page, then in self._last.items() if new[page] >= 0}

    def _count(self, ids: Ids) -> NDArray[np.int64]:
        last, times = self._last, []
        for clock, page in enumerate(ids.tolist(), self._clock):
            then = last.get(page)
            if then is not None:
                times.append(max(1, clock - then))
            last[page] = clock
        self._clock += len(ids)
        bins = np.minimum(np.log2(np.array(times, dtype=float)) * self._STEPS, len(self._counts) - 1).astype(np.int64)
        return np.bincount(bins, minlength=len(self._counts))

    def _coarsen(self, halvings: int) -> None:
        steps = self._STEPS * halvings
        counts = np.zeros(len(self._counts))
        counts[: len(counts) - steps] = self._counts[steps:]
        counts[0] += self._counts[:steps].sum()
        self._counts = counts
        self._last = {page: then >> halvings for page, then in self._last.items()}
        self._clock >>= halvings

    def _miss_ratios(self, sizes: Sizes) -> Ratios:
        edges = 2.0 ** (np.arange(len(self._counts) + 1) / self._STEPS)
        # Accesses the sample lacks belong to pages so hot that they are reused at once.
        reused = self.expected - self.sampled + np.concatenate([[0.0], self._counts.cumsum()])
        longer = np.clip(1.0 - reused / self.expected, 0.0, 1.0)
        sunk = np.concatenate([[1.0], 1.0 + np.cumsum(np.diff(edges) * (longer[1:] + longer[:-1]) / 2)])
        return np.where(sizes <= 0, 1.0, np.interp(sizes, sunk, longer))
