"""How often a policy has taken back what it had given, while the loads stayed as they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpalloc.model import Snapshot

_MOST = 10
"""Beyond, a guest's reversals count no more: what gains much is never held for them."""


class Reversals:
    """Counts, for each guest, moves in the direction opposite to its move before, until its load changes.

    The miss ratio of a steady load is not steady: the kernel ages its lists in rounds that take minutes, and at the
    same size a guest may miss a half now and three fifths later. A split that follows this moves to and fro for ever.
    So the gain that a move must promise rises with each reversal: whatever the noise, the moves of a steady load end.

    Attributes:
        counts: Guest to its reversals so far, at most 10.
    """

    def __init__(self, carry: Mapping[str, Any], snapshot: Snapshot) -> None:
        """Continue from what was carried over, but for guests that are new or whose load has changed since.

        What is best for the others changes with it: the next move of each, in whichever direction, takes nothing back.

        Args:
            carry: What `carry` was after the decision before, or nothing.
            snapshot: What is decided on.
        """
        known = carry.get("reversals", {})
        before, loads = known.get("steady", {}), known.get("loads", {})
        # Of a guest whose curve is not there for a moment nothing is known that has changed.
        self._steady = {
            guest.name: guest.curve.steady_accesses if guest.curve else before.get(guest.name, 0)
            for guest in snapshot.guests
        }
        self._loads = {
            guest.name: guest.curve.load if guest.curve else loads.get(guest.name, 0) for guest in snapshot.guests
        }
        same = {
            name
            for name in self._steady
            if name in before and self._steady[name] >= before[name] and self._loads[name] == loads.get(name)
        }
        counts = known.get("counts", {})
        self.counts: dict[str, int] = {name: count for name, count in counts.items() if name in same}
        unchanged = before.keys() == self._steady.keys() == same
        self._directions: dict[str, int] = dict(known.get("directions", {})) if unchanged else {}

    def most(self, before: Mapping[str, int], after: Mapping[str, int]) -> int:
        """Return the reversals of that guest, among those whose sizes would change, that has most."""
        return max((self.counts.get(name, 0) for name, size in after.items() if size != before[name]), default=0)

    def moved(self, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """Note a decision: sizes before and after it, in bytes."""
        for name, size in after.items():
            direction = (size > before[name]) - (size < before[name])
            if not direction:
                continue
            if self._directions.get(name, direction) != direction:
                self.counts[name] = min(_MOST, self.counts.get(name, 0) + 1)
            self._directions[name] = direction

    @property
    def carry(self) -> dict[str, Any]:
        """What is handed to the next decision."""
        return {
            "reversals": {
                "counts": self.counts,
                "directions": self._directions,
                "steady": self._steady,
                "loads": self._loads,
            }
        }
