"""What a miss costs a load, and whether the load waits for it: learnt from how its rate follows its miss ratio."""

from __future__ import annotations

_KEEP = 0.98
_SPREAD_LEAST = 0.02
"""Standard deviation of the miss ratio from which on it says something about the rate."""

_BUSY = 0.8


class ServiceTimes:
    """Time per access as a straight line in the miss ratio, fitted with exponential forgetting.

    A load that waits takes ``hit_s + m * waits * miss_s`` per access; one that does not takes the same time at any m.
    Until the miss ratio has varied enough, the time that QEMU measured for the reads of the disk stands in, if known: a
    load that spends most of its time waiting for the disk is taken for one that waits.

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
        self._n = self._m = self._t = self._mm = self._mt = 0.0
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
        if disk_miss_s is not None:
            self._disk_misses = _KEEP * self._disk_misses + max(0, misses)
            self._disk_s = _KEEP * self._disk_s + max(0, misses) * disk_miss_s
        mean_m, mean_t = self._m / self._n, self._t / self._n
        variance = self._mm / self._n - mean_m**2
        if self._n >= 5 and variance >= _SPREAD_LEAST**2:
            slope = (self._mt / self._n - mean_m * mean_t) / variance
            self._fitted(max(0.0, slope), mean_m, mean_t)
        elif self.waits is None and disk_miss_s is not None:
            self.miss_s = disk_miss_s
            self.hit_s = max(0.0, t - m * disk_miss_s)
            self.waits = min(1.0, t / (m * disk_miss_s)) if m * disk_miss_s > _BUSY * t else None

    def _fitted(self, slope: float, mean_m: float, mean_t: float) -> None:
        # Without the disk's own time, what misses can cost at most is all of the time there is.
        disk_miss_s = self._disk_s / self._disk_misses if self._disk_misses else None
        expected = disk_miss_s if disk_miss_s is not None else mean_t / max(mean_m, 0.05)
        self.waits = min(1.0, slope / expected) if expected > 0 else 0.0
        if disk_miss_s is None and self.waits > 0.25:
            self.waits = 1.0
        self.miss_s = slope / self.waits if self.waits > 0.05 else expected
        self.hit_s = max(0.0, mean_t - mean_m * slope)
