"""What a miss costs a load, and whether the load waits for it: learnt from how its rate follows its miss ratio."""

from __future__ import annotations

import math
from collections import deque
from functools import cache

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qmpalloc.curves.tuning import TUNING


class Fit(Struct, frozen=True, kw_only=True):
    """A straight line through time per access against miss ratio.

    Attributes:
        slope_s: How much longer an access takes that misses, seconds.
        miss_ratio: Median of the miss ratios.
        access_s: Median of the times per access, seconds.
        error: Standard error of `slope_s`, by `most_s`.
        spread: How much the times vary: median deviation as a standard deviation, by `access_s`.
    """

    slope_s: float
    miss_ratio: float
    access_s: float
    error: float
    spread: float

    @property
    def most_s(self) -> float:
        """What a miss would cost if all of the load's time went to misses."""
        return self.access_s / max(self.miss_ratio, TUNING.service.misses_least)

    @property
    def some(self) -> bool:
        """Whether it is known what a miss costs."""
        share = self.slope_s / self.most_s
        return (
            self.error <= TUNING.service.error_most and share > 0 and share >= TUNING.service.significant * self.error
        )

    @property
    def none(self) -> bool:
        """Whether it is known that the load does not wait, or hardly; never so where `some` is."""
        little = abs(self.slope_s) / self.most_s + 2.0 * self.error <= TUNING.service.all_but_none
        return little and self.spread <= TUNING.service.steady and not self.some


class ServiceTimes:
    """Time per access as a straight line in the miss ratio, fitted to the last samples.

    A load that waits takes ``hit_s + m * waits * miss_s`` per access; one that does not takes the same time at any m.
    How well the slope is known decides, not how much the miss ratio has varied: chance is enough to tell that a load
    keeps to its rate. Until then, the time that QEMU measured for the reads of the disk stands in, if known: a load
    that spends most of its time waiting for the disk is taken for one that waits.

    The slope is the median of those between all pairs of samples, weighted by their distance (Theil 1950, Sen 1968):
    loads pause, guests stall for a second, and a mean would follow these few. What was learnt before counts by how
    certain it is, and gets less certain with time: while the miss ratio stands still, hardly anything is to be learnt.

    A load with n reads outstanding at a time is held up by 1/n of what one of them takes. So `waits` is small for reads
    that have piled up, as those of a fixed rate do when it is more than the disk can serve.

    Attributes:
        hit_s: Time of an access that hits; None if not known.
        miss_s: Additional time of one that misses, all of it; None if not known.
        waits: The part of it that holds the load up: 1 for a load that waits for each read, 1/n for one that has n
            outstanding, 0 for one that does not wait; None if not known.
    """

    def __init__(self) -> None:
        self.hit_s: float | None = None
        self.miss_s: float | None = None
        self.waits: float | None = None
        self._samples: deque[tuple[float, float]] = deque(maxlen=TUNING.service.intervals)
        self._slope_s, self._error_s = 0.0, math.inf
        self._disk_misses = self._disk_s = 0.0

    def observe(self, accesses: int, misses: int, interval_s: float, *, disk_miss_s: float | None = None) -> None:
        """Learn from an interval.

        Args:
            accesses: Pages accessed in it.
            misses: Pages brought in for them.
            interval_s: Its length, seconds of guest time.
            disk_miss_s: Time the disk took for a read of a page, as QEMU measured it; None if not known.
        """
        if accesses < TUNING.service.accesses_least or interval_s <= 0:
            return
        m, t = min(1.0, max(0.0, misses / accesses)), interval_s / accesses
        self._samples.append((m, t))
        if disk_miss_s is not None:
            self._disk_misses = TUNING.service.disk_keep * self._disk_misses + max(0, misses)
            self._disk_s = TUNING.service.disk_keep * self._disk_s + max(0, misses) * disk_miss_s
        self._error_s *= TUNING.service.ageing
        fit = _fit(self._samples)
        if fit is not None and (fit.some or fit.none):
            self._learn(fit)
        if fit is not None and self._error_s < math.inf:
            self._tell(fit)
        elif self.waits is None and disk_miss_s is not None:
            self.miss_s = disk_miss_s
            self.hit_s = max(0.0, t - m * disk_miss_s)
            self.waits = min(1.0, t / (m * disk_miss_s)) if m * disk_miss_s > TUNING.service.busy * t else None

    def _learn(self, fit: Fit) -> None:
        error_s = fit.error * fit.most_s
        self._error_s = max(self._error_s, error_s / TUNING.service.stubborn)
        certainty = 1.0 / (1.0 + (error_s / self._error_s) ** 2)
        weight = max(certainty, TUNING.service.caught_up) if fit.none else certainty
        self._slope_s += weight * ((0.0 if fit.none else fit.slope_s) - self._slope_s)
        self._error_s = error_s * certainty**0.5

    def _tell(self, fit: Fit) -> None:
        """Say what was learnt, as far as it agrees with the time that accesses take now."""
        slope_s = min(self._slope_s, fit.access_s / max(fit.miss_ratio, 1e-9))
        # Without the disk's own time, what misses can cost at most is all of the time there is.
        disk_miss_s = self._disk_s / self._disk_misses if self._disk_misses else None
        expected = disk_miss_s if disk_miss_s is not None else fit.most_s
        self.waits = min(1.0, slope_s / expected) if expected > 0 else 0.0
        if disk_miss_s is None and self.waits > TUNING.service.waits_all:
            self.waits = 1.0
        self.miss_s = slope_s / self.waits if self.waits > TUNING.service.waits_least else expected
        self.hit_s = max(0.0, fit.access_s - fit.miss_ratio * slope_s)


def _fit(samples: deque[tuple[float, float]]) -> Fit | None:
    """Return the line through miss ratios and times per access; None with few samples or without any difference."""
    if len(samples) < TUNING.service.telling:
        return None
    m, t = np.array(samples).T
    ranked = np.sort(m)
    low, high = float(ranked[len(m) // 10]), float(ranked[-1 - len(m) // 10])
    if high <= low:
        return None
    first, second = _pairs(len(m))
    apart = m[first] - m[second]
    pairs = apart != 0
    apart, slopes = apart[pairs], (t[first] - t[second])[pairs] / apart[pairs]
    order = np.argsort(slopes)
    weights = np.cumsum(np.abs(apart[order]))
    slope = float(slopes[order][np.searchsorted(weights, weights[-1] / 2)])
    rest = t - slope * m
    miss_ratio, access_s = float(np.median(m)), float(np.median(t))
    standard = (high - low) / 2.563
    error = _deviation(rest) / standard / len(m) ** 0.5 / (access_s / max(miss_ratio, TUNING.service.misses_least))
    error = max(error, TUNING.service.error_least)
    return Fit(slope_s=slope, miss_ratio=miss_ratio, access_s=access_s, error=error, spread=_deviation(t) / access_s)


@cache
def _pairs(number: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of all pairs of so many samples."""
    first, second = np.triu_indices(number, 1)
    return first, second


def _deviation(values: NDArray[np.float64]) -> float:
    """Return the standard deviation as most of the values have it: 1.4826 times their median deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))
