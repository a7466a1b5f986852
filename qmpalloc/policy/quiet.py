"""How long each guest has read next to nothing: a pause is not yet idleness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpalloc.model import Snapshot

QUIET_S = 15.0
"""A guest that has read next to nothing for less long may only pause, and would have to read anew what it lost."""


class Quiet:
    """Since when each guest has been quiet.

    Attributes:
        carry: What is handed to the next decision.
    """

    def __init__(self, carry: Mapping[str, Any], snapshot: Snapshot, quiet: Mapping[str, bool]) -> None:
        """Continue from what was carried over.

        Args:
            carry: What `carry` was after the decision before, or nothing.
            snapshot: What is decided on.
            quiet: Guest to whether it was quiet in the last interval; a guest whose counts are not known is left out.
        """
        before, self._now_s = carry.get("quiet_s", {}), snapshot.time_s
        covered_s = {guest.name: guest.interval_s or 0.0 for guest in snapshot.guests}
        self._since_s = {
            name: min(before.get(name, snapshot.time_s), snapshot.time_s - covered_s[name])
            for name, is_quiet in quiet.items()
            if is_quiet
        }
        self.carry: dict[str, Any] = {"quiet_s": self._since_s}

    def pause(self, name: str) -> str:
        """Return that the guest pauses, if it is quiet but not for long enough to be called idle; else nothing."""
        if name not in self._since_s or self.lasts(name):
            return ""
        return f"reads next to nothing, for {self._now_s - self._since_s[name]:.0f} s only"

    def lasts(self, name: str) -> bool:
        """Return whether the guest has been quiet for long enough to be called idle."""
        return bool(self._now_s - self._since_s.get(name, self._now_s) >= QUIET_S)
