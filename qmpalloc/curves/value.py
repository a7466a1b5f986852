"""What memory is worth to a guest: the objective as a function of the miss ratio.

A load that waits for its reads goes slower because it misses. Its present rate understates what it would do with more
memory, so rates are predicted from the time of a hit and the additional time of a miss. For one access the load takes

    T(m) = T(m0) + waits * (m - m0) * miss_s

at miss ratio m, where m0 is the present one: the time of hits and any pauses are in T(m0) = 1 / rate. Misses are waited
for no longer than all the time there is, whatever one was thought to cost before: waits * m0 * miss_s is at most T(m0).

A load that has many reads outstanding may be one that waits for all of them, or one that comes at a rate of its own and
has fallen behind: both go as fast as the disk lets them now, but the second will not go faster than its own rate for
longer than it takes to catch up. Nothing that can be seen from outside tells them apart until then. So the more reads
are outstanding, the less of the speed that fewer misses would bring is counted.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qmpalloc.curves.tuning import TUNING

Objective = Literal["hits", "misses", "fair"]

Values = NDArray[np.float64]

_IDLE_PER_S = 0.001

OUTSTANDING_SURE = 8.0
"""Reads outstanding up to which a load is taken for one that waits for each of them, as that many threads do."""


class Load(Struct, frozen=True, kw_only=True):
    """A guest's load at its present size.

    Attributes:
        accesses_per_s: Pages accessed per second.
        miss_ratio: Misses by accesses.
        miss_s: Additional time of a miss, seconds by access; None if not known.
        waits: 1 for a load that waits for its reads, 0 for one whose reads come at a rate of their own, 1/n for one
            that has n reads outstanding.
        weight: Relative importance.
    """

    accesses_per_s: float
    miss_ratio: float
    miss_s: float | None = None
    waits: float = 0.0
    weight: float = 1.0

    def rates(self, miss_ratios: Values) -> Values:
        """Return accesses per second at each miss ratio."""
        if self.accesses_per_s < _IDLE_PER_S:
            return np.zeros(len(miss_ratios))
        now_s = 1.0 / self.accesses_per_s
        waited_s = self.waits * (self.miss_s or 0.0)
        if waited_s * self.miss_ratio > now_s:
            waited_s = now_s / self.miss_ratio
        slower_s = waited_s * (miss_ratios - self.miss_ratio)
        slower_s = np.where(slower_s < 0, min(1.0, self.waits * OUTSTANDING_SURE) * slower_s, slower_s)
        return np.asarray(1.0 / np.maximum(now_s + slower_s, now_s / TUNING.value.faster_most))

    def values(self, miss_ratios: Values, objective: Objective) -> Values:
        """Return the objective, to be maximised, at each miss ratio.

        ``hits``: weighted hits per second, the paper's measure. ``misses``: minus the weighted page-ins per second;
        those of other causes than reads are as they are at every size, and left out.
        ``fair``: weight times the logarithm of the hits per second: a tenth more is worth the same to every guest, so
        that none is left to starve for the sake of a faster one.
        """
        rates = self.rates(miss_ratios)
        match objective:
            case "hits":
                return np.asarray(self.weight * rates * (1.0 - miss_ratios))
            case "misses":
                return np.asarray(-self.weight * rates * miss_ratios)
            case "fair":
                if self.accesses_per_s < _IDLE_PER_S:
                    return np.zeros(len(miss_ratios))
                share = np.maximum(1.0 - miss_ratios, TUNING.value.hits_least)
                return np.asarray(self.weight * np.log(rates / self.accesses_per_s * share))
