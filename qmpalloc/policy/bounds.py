"""What a guest can lose at most, whatever is known of its curve."""

from __future__ import annotations

from qmpalloc.model import GuestSnapshot


def accesses_per_s(guest: GuestSnapshot) -> float:
    """Return the guest's accesses per second; 0 when they are not known."""
    return max(0, (guest.hits or 0) + (guest.misses or 0)) / guest.interval_s if guest.interval_s else 0.0


def missed_anyway(guest: GuestSnapshot) -> float:
    """Return the share of its accesses that a guest misses for no passing reason, and so cannot lose.

    0 unless its cache has turned over: one that is still being filled misses what it will hit.
    """
    if guest.curve is None or not guest.curve.turned_over or guest.curve.measured is None:
        return 0.0
    accesses = max(1, (guest.hits or 0) + (guest.misses or 0))
    return min(guest.curve.measured, (guest.misses or 0) / accesses)


def losable_per_s(guest: GuestSnapshot) -> float:
    """Return the hits per second that the guest can lose, at most."""
    return accesses_per_s(guest) * (1.0 - missed_anyway(guest))
