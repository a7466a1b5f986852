"""How often a policy has taken back what it had given, while the loads stayed as they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpalloc.model import Snapshot


class Reversals:
    """Counts moves in the direction opposite to a guest's move before, until a load changes.

    The miss ratio of a steady load is not steady: the kernel ages its lists in rounds that take minutes, and at the
    same size a guest may miss a half now and three fifths later. A split that follows this moves to and fro for ever.
    So the gain that a move must promise rises with each reversal: whatever the noise, the moves of a steady load end.

    Attributes:
        count: Reversals so far.
    """

    def __init__(self, carry: Mapping[str, Any], snapshot: Snapshot) -> None:
        """Continue from what was carried over, or begin anew if a guest's load has changed since, or the guests have.

        Args:
            carry: What `carry` was after the decision before, or nothing.
            snapshot: What is decided on.
        """
        known = carry.get("reversals", {})
        self._steady = {guest.name: guest.curve.steady_accesses if guest.curve else 0 for guest in snapshot.guests}
        before = known.get("steady", {})
        same = before.keys() == self._steady.keys() and all(self._steady[name] >= before[name] for name in before)
        self.count: int = known.get("count", 0) if same else 0
        self._directions: dict[str, int] = dict(known.get("directions", {})) if same else {}

    def moved(self, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """Note a decision: sizes before and after it, in bytes."""
        reversed_ = False
        for name, size in after.items():
            direction = (size > before[name]) - (size < before[name])
            if direction:
                reversed_ |= self._directions.get(name, direction) != direction
                self._directions[name] = direction
        self.count += reversed_

    @property
    def carry(self) -> dict[str, Any]:
        """What is handed to the next decision."""
        return {"reversals": {"count": self.count, "directions": self._directions, "steady": self._steady}}
