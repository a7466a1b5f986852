"""What a miss costs a load, and whether the load waits for it: learnt from how its rate follows its miss ratio."""

from __future__ import annotations

import math

_KEEP = 0.96
"""Of what was seen before, with each interval: a load that has caught up must be known for what it is in a minute."""

_ERROR_MOST = 0.25
"""Standard error of what a miss costs, by what it would cost if all of the load's time went to misses, up to which the
fit is believed."""

_TELLING = 5.0
_BUSY = 0.8


class ServiceTimes:
    """Time per access as a straight line in the miss ratio, fitted with exponential forgetting.

    A load that waits takes ``hit_s + m * waits * miss_s`` per access; one that does not takes the same time at any m.
    How well the slope is known decides, not how much the miss ratio has varied: chance is enough to tell that a load
    keeps to its rate. Until then, the time that QEMU measured for the reads of the disk stands in, if known: a load
    that spends most of its time waiting for the disk is taken for one that waits.

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
        self._n = self._m = self._t = self._mm = self._mt = self._tt = 0.0
        self._disk_misses = self._disk_s = 0.0

    def observe(self, accesses: int, misses: int, interval_s: float, *, disk_miss_s: float | None = None) -> None:
        """Learn from an interval.

        Args:
            accesses: Pages accessed in it.
            misses: Pages brought in for them.
            interval_s: Its length, seconds of guest time.
            disk_miss_s: Time the disk took for a read of a page, as QEMU measured it; None if not known.
        """
        if accesses < 100 or interval_s <= 0:
            return
        m, t = min(1.0, max(0.0, misses / accesses)), interval_s / accesses
        self._n = _KEEP * self._n + 1.0
        self._m = _KEEP * self._m + m
        self._t = _KEEP * self._t + t
        self._mm = _KEEP * self._mm + m * m
        self._mt = _KEEP * self._mt + m * t
        self._tt = _KEEP * self._tt + t * t
        if disk_miss_s is not None:
            self._disk_misses = _KEEP * self._disk_misses + max(0, misses)
            self._disk_s = _KEEP * self._disk_s + max(0, misses) * disk_miss_s
        slope = self._slope()
        if slope is not None:
            self._fitted(slope)
        elif self._n >= _TELLING and self.miss_s is not None and self.waits:
            self._bounded(self.miss_s, self.waits)
        elif self.waits is None and disk_miss_s is not None:
            self.miss_s = disk_miss_s
            self.hit_s = max(0.0, t - m * disk_miss_s)
            self.waits = min(1.0, t / (m * disk_miss_s)) if m * disk_miss_s > _BUSY * t else None

    def _slope(self) -> float | None:
        """Return how much longer an access takes that misses; None if it is not known well enough."""
        n = self._n
        mean_m, mean_t = self._m / n, self._t / n
        variance = self._mm / n - mean_m**2
        if n < _TELLING or variance <= 0:
            return None
        slope = (self._mt / n - mean_m * mean_t) / variance
        rest = max(0.0, self._tt / n - mean_t**2 - slope**2 * variance)
        error = math.sqrt(rest / variance / n)
        return max(0.0, slope) if error <= _ERROR_MOST * mean_t / max(mean_m, 0.05) else None

    def _bounded(self, miss_s: float, waits: float) -> None:
        """Keep what was learnt before, as far as it agrees with the time that accesses take now."""
        mean_m, mean_t = self._m / self._n, self._t / self._n
        if waits * mean_m * miss_s > mean_t:
            self.miss_s, self.hit_s = mean_t / (waits * mean_m), 0.0

    def _fitted(self, slope: float) -> None:
        mean_m, mean_t = self._m / self._n, self._t / self._n
        # Without the disk's own time, what misses can cost at most is all of the time there is.
        disk_miss_s = self._disk_s / self._disk_misses if self._disk_misses else None
        expected = disk_miss_s if disk_miss_s is not None else mean_t / max(mean_m, 0.05)
        self.waits = min(1.0, slope / expected) if expected > 0 else 0.0
        if disk_miss_s is None and self.waits > 0.25:
            self.waits = 1.0
        self.miss_s = slope / self.waits if self.waits > 0.05 else expected
        self.hit_s = max(0.0, mean_t - mean_m * slope)
