"""``qemus``: the balloon controller of the container images of qemus (``src/balloon.py``): PI control of host memory.

e is how much less of the host is free than wanted (20 %). A guest's size changes by (0.5 e + 0.05 ∫e dt) times its
maximum, the integral within ±1 and set back when the size is at a bound. The lower bound is what the guest uses without
its cache, and its minimum once the host is used to 90 %; the upper bound comes down to the minimum as the host's
pressure (PSI ``some avg10``) rises from 10 % to 50 %. Changes below 128 MiB wait, unless they reach a bound. Choices:

* Each guest has a controller of its own, as in its images; all see the same host.
* Budget, minimum and maximum: see `qmpalloc.policy.rivals.host`. The minimum is a setting there too, 33 % by default.
* The limit of the container is not looked at: here the budget is the limit.
* Where the host tells no PSI, the upper bound is the maximum. As published, where a guest does not tell what is
  available, what its QEMU has resident is used.
"""

from __future__ import annotations

from qmpalloc.model import Decision, Snapshot
from qmpalloc.policy.rivals.host import WANTED_SHARE, Seen, budget_of, carried, decided, fitted, seen
from qmpalloc.units import MIB

_KP, _KI = 0.5, 0.05
_HARD_FREE = 0.1
_PSI_FROM, _PSI_TO = 10.0, 50.0
_LEAST_BYTES = 128 * MIB


class QemusPolicy:
    """A PI controller for each guest."""

    def decide(self, snapshot: Snapshot) -> Decision:
        """Let each guest's controller answer how much of the host is free."""
        guests = seen(snapshot)
        room = budget_of(snapshot, [one.guest for one in guests])
        free = 1.0 - sum(one.used_bytes for one in guests) * WANTED_SHARE / max(1, room)
        pressure = snapshot.host.psi_some_avg10 if snapshot.host is not None else None
        integrals, sizes = dict(carried(snapshot, "integrals")), {}
        for one in guests:
            low, high = bounds(one, free, pressure)
            before = integrals.get(one.guest.name, 0.0)
            size, integrals[one.guest.name] = controlled(one, low, high, free, before, snapshot.interval_s)
            changes = abs(size - one.size_bytes) >= _LEAST_BYTES or size in (low, high)
            sizes[one.guest.name] = size if changes else one.size_bytes
        terms = {one.guest.name: {"integral": round(integrals[one.guest.name], 4)} for one in guests}
        carry = {"sizes": sizes, "integrals": integrals}
        reason = f"{max(0.0, free):.0%} of the host free"
        return decided(snapshot, fitted(room, guests, sizes), reason, carry=carry, terms=terms)


def bounds(one: Seen, free: float, pressure: float | None) -> tuple[int, int]:
    """Return between which sizes the controller may choose, with that share of the host free."""
    low, high = one.guest.floor_bytes, one.guest.cap_bytes
    if pressure is not None:
        high -= int(min(1.0, max(0.0, pressure - _PSI_FROM) / (_PSI_TO - _PSI_FROM)) * (high - low))
    if free >= _HARD_FREE:
        memory = one.guest.memory
        used = one.guest.resident_bytes
        if memory is not None and memory.total is not None and memory.available is not None:
            used = memory.total - memory.available
        low = max(low, used or 0)
    return min(low, high), high


def controlled(one: Seen, low: int, high: int, free: float, integral: float, interval_s: float) -> tuple[int, float]:
    """Return the size that the controller chooses, and the integral it goes on with."""
    most, error = one.guest.cap_bytes, (1.0 - WANTED_SHARE) - free
    summed = _clipped(integral + error * interval_s)
    size = min(high, max(low, int(one.size_bytes - (_KP * error + _KI * summed) * most)))
    if (size == low and error > 0) or (size == high and error < 0):
        summed = _clipped((one.size_bytes - size) / (_KI * most) - _KP * error / _KI)
    return size, summed


def _clipped(integral: float) -> float:
    return max(-1.0, min(1.0, integral))
