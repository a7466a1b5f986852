"""What simulating samples may cost the host: a share of one core for all guests, by what one is seen to cost here."""

from __future__ import annotations

from weakref import WeakSet

SHARE = 0.15
"""Of one core, for simulating the samples of all guests together; with what reading them takes, less than a fifth."""

LEAST_PER_S = 250.0
"""Sampled accesses a second that each guest may always have: with fewer it would have no curve."""

_COST_S = 5e-6
_FEW = 100
_KEEP = 0.95


class Effort:
    """Divides the share evenly. The cost of a sampled access is measured, for machines differ by a factor of three."""

    def __init__(self, share: float = SHARE) -> None:
        self._share, self._cost_s = share, _COST_S
        self._guests: WeakSet[object] = WeakSet()

    def join(self, guest: object) -> None:
        """Count a guest, for as long as it exists."""
        self._guests.add(guest)

    def spent(self, count: int, cpu_s: float) -> None:
        """Take note of what it took to simulate `count` sampled accesses, in seconds of CPU; few tell nothing."""
        if count >= _FEW and cpu_s > 0:
            self._cost_s = _KEEP * self._cost_s + (1.0 - _KEEP) * cpu_s / count

    @property
    def per_s(self) -> float:
        """Sampled accesses that each guest may have simulated in a second."""
        return max(LEAST_PER_S, self._share / (self._cost_s * max(1, len(self._guests))))
