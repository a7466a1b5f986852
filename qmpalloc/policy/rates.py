"""How fast each load has been over the last minutes: one that catches up is faster than it will be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpalloc.curves.value import OUTSTANDING_SURE
from qmpalloc.model import GuestSnapshot, Snapshot
from qmpalloc.policy.bounds import accesses_per_s


class Rates:
    """Accesses and time of each guest, each counting half after a horizon.

    Attributes:
        carry: What is handed to the next decision.
    """

    def __init__(self, carry: Mapping[str, Any], snapshot: Snapshot, horizon_s: float) -> None:
        """Continue from what was carried over, with the snapshot's interval.

        Args:
            carry: What `carry` was after the decision before, or nothing.
            snapshot: What is decided on.
            horizon_s: Time after which what was before counts half, seconds.
        """
        before = carry.get("rates", {})
        self._sums: dict[str, tuple[float, float]] = {}
        for guest in snapshot.guests:
            accesses, seconds = before.get(guest.name, (0.0, 0.0))
            interval_s = guest.interval_s or 0.0
            kept = 0.5 ** (interval_s / horizon_s)
            self._sums[guest.name] = (
                kept * accesses + accesses_per_s(guest) * interval_s,
                kept * seconds + interval_s,
            )
        self.carry: dict[str, Any] = {"rates": self._sums}

    def planned_per_s(self, guest: GuestSnapshot) -> float:
        """Return the accesses per second to plan with.

        A load whose reads have piled up (many outstanding) may be one of a rate of its own that works off what it owes:
        what it does now it will not do for long, so its average counts if that is less.
        """
        now = accesses_per_s(guest)
        accesses, seconds = self._sums[guest.name]
        piled_up = bool(guest.waits) and (guest.waits or 0.0) < 1.0 / OUTSTANDING_SURE
        return min(now, accesses / seconds) if piled_up and seconds else now
