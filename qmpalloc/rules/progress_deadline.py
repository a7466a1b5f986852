"""How long to wait for guests that are on their way: as long as they come closer. Pure.

How fast a balloon moves is the guest's affair. Under emulation a kernel that clears pages which used to hold code gives
up 5 MiB a second, and 100 a few seconds later: no fixed time is right for both.
"""

from __future__ import annotations

import math

from qmpalloc.rules.balloon_progress import PROGRESS_BYTES

LONGEST = 8.0
"""Not longer than that many times the limit in all, however steadily they come closer."""


class ProgressDeadline:
    """A time limit that begins anew whenever the way that is left becomes shorter than it has ever been."""

    def __init__(self, limit_s: float, now_s: float) -> None:
        """Begin to wait.

        Args:
            limit_s: How long nothing may come closer.
            now_s: The time.
        """
        self._limit_s = limit_s
        self._ends_s = now_s + limit_s
        self._last_s = now_s + LONGEST * limit_s
        self._least_bytes = math.inf

    def passed(self, missing_bytes: int, now_s: float) -> bool:
        """Note how far away they are, all together; return True when there is no more waiting."""
        if missing_bytes <= self._least_bytes - PROGRESS_BYTES:
            self._least_bytes = missing_bytes
            self._ends_s = now_s + self._limit_s
        return now_s >= min(self._ends_s, self._last_s)
