"""Whether a guest's size comes closer to its target, and what to make of one whose does not. Pure.

``balloon`` and ``requested-size`` succeed also where no driver listens, and virtio-mem's may find no block that it can
empty, so only the size shows whether memory moves. A guest that makes no
progress is *stuck*: its target is set to what was achieved, so that what is committed is what it has, and it is left
alone for a time that doubles: it gives nothing, so nobody may count on it as a donor, and it is granted nothing.
"""

from __future__ import annotations

import math
from collections import deque

from qmpalloc.units import MIB, format_size

STUCK_AFTER_S = 12.0
"""No progress for this long while nothing excuses it (a pause, danger, a reset). Longer than two repeats of the
command; a slow balloon under emulation still moves tens of MiB in that time."""

PROGRESS_BYTES = MIB
"""What counts as progress: less could be a guest that only pretends."""

BACK_OFF_FIRST_S = 30.0
BACK_OFF_MOST_S = 600.0

INTERFERENCES_MAX = 3
INTERFERENCE_WINDOW_S = 300.0
"""That many changes of a size nobody here asked for, within that time, are another controller's work."""


class BalloonProgress:
    """The record of one guest's obedience, whether a balloon or virtio-mem moves its memory."""

    def __init__(self) -> None:
        self._anchor_bytes = 0
        self._direction = 0
        self._since_s = 0.0
        self._until_s = -math.inf
        self._back_off_s = BACK_OFF_FIRST_S
        self._reason = ""
        self._interferences: deque[float] = deque(maxlen=INTERFERENCES_MAX)

    def see(self, actual_bytes: int, target_bytes: int, now_s: float, *, excused: bool) -> bool:
        """Note the size; return True when the guest turns out to be stuck now.

        Args:
            actual_bytes: As QEMU reports it.
            target_bytes: As it was asked for.
            now_s: The time.
            excused: Nothing can be expected of it at present.
        """
        missing = target_bytes - actual_bytes
        direction = (missing > 0) - (missing < 0)
        progressed = (actual_bytes - self._anchor_bytes) * direction >= PROGRESS_BYTES and direction == self._direction
        if progressed:
            self._back_off_s = BACK_OFF_FIRST_S
        if progressed or excused or direction == 0 or direction != self._direction or now_s < self._until_s:
            self._anchor_bytes, self._direction, self._since_s = actual_bytes, direction, now_s
            return False
        if now_s - self._since_s < STUCK_AFTER_S:
            return False
        self._until_s = now_s + self._back_off_s
        what = "does not shrink" if direction < 0 else "does not grow"
        self._reason = f"stuck: {what} beyond {format_size(actual_bytes)}, left alone for {self._back_off_s:.0f} s"
        self._back_off_s = min(self._back_off_s * 2, BACK_OFF_MOST_S)
        return True

    def stuck(self, now_s: float) -> str:
        """Return why the guest is left alone; empty when it is not."""
        return self._reason if now_s < self._until_s else ""

    def forgive(self) -> None:
        """End the time for which it is left alone: the run ends, and everything is tried once more."""
        self._until_s = -math.inf

    def interfered(self, now_s: float) -> bool:
        """Note that the size changed without anything here having asked; return True when that is a habit."""
        self._interferences.append(now_s)
        full = len(self._interferences) == INTERFERENCES_MAX
        return full and now_s - self._interferences[0] < INTERFERENCE_WINDOW_S

    def stood_still(self, seconds: float) -> None:
        """Note that this process did not run for a while."""
        self._since_s += seconds
