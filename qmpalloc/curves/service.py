"""What a miss costs a load, and whether the load waits for it: learnt from how its rate follows its miss ratio."""

from __future__ import annotations

import math
from collections import deque
from functools import cache

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qmpalloc.curves.tuning import TUNING

# Of so many fourth differences one is independent of the others: 1 + 2 * (56^2 + 28^2 + 8^2 + 1) / 70^2.
ALIKE_NEIGHBOURS = 2.6


class Fit(Struct, frozen=True, kw_only=True):
    """A straight line through time per access against miss ratio.

    Attributes:
        slope_s: How much longer an access takes that misses, seconds.
        miss_ratio: Median of the miss ratios.
        access_s: Median of the times per access, seconds.
        error: Standard error of `slope_s`, by `most_s`.
        spread: How much the times vary, drift apart: median deviation as a standard deviation, by `access_s`.
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

    The slope is the median of those between all pairs of samples, weighted by how far their miss ratios are apart
    (Theil 1950, Sen 1968): loads pause, guests stall for a second, and a mean would follow these few. But a load whose
    rate drifts while its misses do is no load that waits. So the slope is also found from what a smooth curve through
    its neighbours leaves of each sample, which no drift changes. That is less certain, and is believed where the two
    disagree (Hausman 1978).

    What was learnt before counts by how certain it is, and gets less certain with time: while the miss ratio stands
    still, hardly anything is to be learnt.

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
        self._samples: deque[tuple[float, float, int]] = deque(maxlen=TUNING.service.intervals)
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
        self._samples.append((m, t, accesses))
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


def _fit(samples: deque[tuple[float, float, int]]) -> Fit | None:
    """Return the line through miss ratios and times per access; None with few samples or without any difference."""
    if len(samples) < TUNING.service.telling:
        return None
    m, t, accesses = np.array(samples).T
    miss_ratio, access_s = float(np.median(m)), float(np.median(t))
    alike = TUNING.service.alike / float(np.median(accesses))
    first, second = _pairs(len(m))
    line = _line(m[first] - m[second], t[first] - t[second], len(m), alike)
    if line is None:
        return None
    beside = _beside_neighbours(t)
    near = _line(_beside_neighbours(m), beside, len(m) / ALIKE_NEIGHBOURS, alike)
    drifts = near is not None and abs(near[0] - line[0]) > TUNING.service.disagree * near[1]
    if near is not None and drifts:
        line = near
    slope_s, error_s = line
    error = error_s / (access_s / max(miss_ratio, TUNING.service.misses_least))
    return Fit(
        slope_s=slope_s,
        miss_ratio=miss_ratio,
        access_s=access_s,
        error=max(error, TUNING.service.error_least),
        spread=_deviation(beside if drifts else t) / access_s,
    )


def _line(
    apart: NDArray[np.float64], longer: NDArray[np.float64], samples: float, alike: float
) -> tuple[float, float] | None:
    """Return the slope of differences over differences and its standard error; None where hardly any are apart."""
    spread = float(np.quantile(np.abs(apart), 0.8)) / 1.2816
    if spread <= alike:
        return None
    some = apart != 0
    slopes = longer[some] / apart[some]
    order = np.argsort(slopes)
    weights = np.cumsum(np.abs(apart[some][order]))
    slope = float(slopes[order][np.searchsorted(weights, weights[-1] / 2)])
    return slope, _deviation(longer - slope * apart) / spread / samples**0.5


def _beside_neighbours(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what is left of each value when the cubic through two before it and two after it is taken off.

    Values that are chance keep their standard deviation; but those near each other share neighbours.
    """
    left: NDArray[np.float64] = 6.0 * values[2:-2] - 4.0 * (values[1:-3] + values[3:-1]) + values[:-4] + values[4:]
    left /= 70.0**0.5
    return left


@cache
def _pairs(number: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of all pairs of so many samples."""
    first, second = np.triu_indices(number, 1)
    return first, second


def _deviation(values: NDArray[np.float64]) -> float:
    """Return the standard deviation as most of the values have it: 1.4826 times their median deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))
