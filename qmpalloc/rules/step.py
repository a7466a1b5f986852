"""How much a guest may lose in one decision."""

from __future__ import annotations

from qmpalloc.model import GuestSnapshot
from qmpalloc.units import MIB

TAKE_MIN_BYTES = 128 * MIB
TAKE_SHARE = 0.25
"""A guest loses at most max(128 MiB, a quarter of its size) in one decision: reclaim needs time, and a wrong decision
must be cheap to take back."""


def take_step(size_bytes: int) -> int:
    """Return the most that a guest of this size loses in one decision of a policy, in bytes."""
    return max(TAKE_MIN_BYTES, int(size_bytes * TAKE_SHARE))


def lowest_bytes(guest: GuestSnapshot) -> int:
    """Return the least size that one step leaves a guest, on its grid; its target, if a step before is still due.

    Counted from the size it really has, where that is larger: steps that a slow balloon has not taken yet do not add
    up.
    """
    size_bytes = max(guest.target_bytes, guest.actual_bytes)
    return min(guest.target_bytes, guest.grid.fit_up(size_bytes - take_step(size_bytes)))
