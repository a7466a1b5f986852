"""``mom``: the balloon rules of the Memory Overcommitment Manager of oVirt (``doc/balloon.rules``).

The host is under pressure when less than a fifth of it is free. Then each guest shrinks, by 5 % at once, to what it
uses and a part of its size: a fifth, less as the host has less; below what it uses when the host has 5 % or less. Else
each grows by 5 %, and to at least what it uses and a fifth. A change of a quarter of a per cent or less is not made.
Cache counts as used. Choices:

* Budget, minimum and maximum: see `qmpalloc.policy.rivals.host`. The host is what the budget is 80 % of.
* What is used is what it is now, not the mean of ten readings: sizes change between them.
* It runs each interval and not each 10 s, so that all policies decide equally often.
"""

from __future__ import annotations

from qmpalloc.model import Decision, Snapshot
from qmpalloc.policy.rivals.host import WANTED_SHARE, Seen, budget_of, decided, fitted, seen

_PRESSURE, _CRITICAL, _ROUNDING = 0.20, 0.05, 1e-9
_GUEST_FREE = 0.20
_STEP, _LEAST_STEP = 0.05, 0.0025


class MomPolicy:
    """All guests shrink, or all grow."""

    def decide(self, snapshot: Snapshot) -> Decision:
        """Shrink or grow each guest by how much of the host is free."""
        guests = seen(snapshot)
        room = budget_of(snapshot, [one.guest for one in guests])
        free = 1.0 - sum(one.used_bytes for one in guests) * WANTED_SHARE / max(1, room)
        pressure = free < _PRESSURE - _ROUNDING
        sizes = {one.guest.name: _worth_it(one, shrunk(one, free) if pressure else grown(one)) for one in guests}
        reason = f"{max(0.0, free):.0%} of the host free: {'shrink' if pressure else 'grow'}"
        return decided(snapshot, fitted(room, guests, sizes), reason, carry={"sizes": sizes})


def shrunk(one: Seen, free: float) -> int:
    """Return the size of a guest on a host of which that share is free and too little."""
    keeps = free - _CRITICAL if free <= _CRITICAL else _GUEST_FREE * free / _PRESSURE
    least = max(one.guest.floor_bytes, one.used_bytes + keeps * one.size_bytes)
    return min(one.size_bytes, int(max(one.size_bytes * (1 - _STEP), least)))


def grown(one: Seen) -> int:
    """Return the size of a guest on a host that has enough free."""
    least = max(one.guest.floor_bytes, one.used_bytes + _GUEST_FREE * one.size_bytes)
    return min(one.guest.cap_bytes, int(max(one.size_bytes * (1 + _STEP), least)))


def _worth_it(one: Seen, size_bytes: int) -> int:
    return size_bytes if abs(size_bytes - one.size_bytes) > _LEAST_STEP * one.size_bytes else one.size_bytes
