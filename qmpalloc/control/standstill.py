"""Whether this whole process stood still: stopped by Ctrl-Z, or with its host."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from qmpalloc.control.guest import Guest
from qmpalloc.control.journal import Journal

TICK_S = 0.5
"""How often `Standstill.check` is called at least."""

ABSENT_S = 2.0
"""A call that comes this much too late means that the process stood still."""


class Standstill:
    """Notices from calls that come too late that the process stood still."""

    def __init__(self, guests: Sequence[Guest], journal: Journal) -> None:
        self._guests = guests
        self._journal = journal
        self._alive_s = trio.current_time()

    def check(self) -> bool:
        """Tell whether the process stood still just now, and let nothing have grown old by that."""
        now_s = trio.current_time()
        away_s, self._alive_s = now_s - self._alive_s - TICK_S, now_s
        if away_s < ABSENT_S:
            return False
        for guest in self._guests:
            guest.stood_still(away_s)
        hint = "nothing was decided meanwhile"
        self._journal.fault(None, "absence", f"this process did not run for {away_s:.1f} s", hint, again=True)
        return True
