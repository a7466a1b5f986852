"""What simulating samples may cost the host: a share of one core for all guests, by what one is seen to cost here."""

from __future__ import annotations

from weakref import WeakSet

from qmpalloc.curves.tuning import TUNING


class CpuBudget:
    """Divides the share evenly. The cost of a sampled access is measured, for machines differ by a factor of three."""

    def __init__(self) -> None:
        self._cost_s = TUNING.sampling.cpu_cost_s
        self._guests: WeakSet[object] = WeakSet()

    def join(self, guest: object) -> None:
        """Count a guest, for as long as it exists."""
        self._guests.add(guest)

    def spent(self, count: int, cpu_s: float) -> None:
        """Take note of what it took to simulate `count` sampled accesses, in seconds of CPU; few tell nothing."""
        if count >= TUNING.sampling.cpu_few and cpu_s > 0:
            keep = TUNING.sampling.cpu_keep
            self._cost_s = keep * self._cost_s + (1.0 - keep) * cpu_s / count

    @property
    def per_s(self) -> float:
        """Sampled accesses that each guest may have simulated in a second."""
        share = TUNING.sampling.cpu_share / (self._cost_s * max(1, len(self._guests)))
        return max(TUNING.sampling.cpu_least_per_s, share)
