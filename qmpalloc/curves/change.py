"""Tell a change from what always varies."""

from __future__ import annotations

import math

from qmpalloc.curves.tuning import TUNING


class ChangeDetector:
    """Watches a ratio, window after window, for a lasting departure from its weighted mean and deviation.

    A lasting difference between a model and what it models is usual; so is a figure that swings. Only values that are
    not suspect change what is usual, so that a real change does not become usual while it is being noticed.
    """

    def __init__(self, least: float, strikes: int, *, rising_only: bool = False) -> None:
        """Make one that knows nothing.

        Args:
            least: No difference below this is unusual.
            strikes: So many unusual windows in a row are a change.
            rising_only: Whether less than usual is never a change.
        """
        self._least, self._needed, self._rising_only = least, strikes, rising_only
        self.forget()
        self.begin_window(0)

    def forget(self) -> None:
        """Forget what is usual."""
        self._values = self._strikes = 0
        self._mean = self._variance = 0.0

    def begin_window(self, clock: int) -> None:
        """Begin a window now, by any clock."""
        self._began_at = clock
        self._part = self._whole = 0.0

    def observe(self, part: float, whole: float) -> None:
        """Add to the window whose ratio is part by whole."""
        self._part += part
        self._whole += whole

    def changed_since(self, needed: float, clock: int, *, judge: bool) -> int | None:
        """Close the window once it has what is needed; return when it began if it shows a change, else None.

        Args:
            needed: Its `whole`.
            clock: The time now.
            judge: False to learn nothing from it.
        """
        if self._whole < needed:
            return None
        ratio, began_at = self._part / self._whole, self._began_at
        self.begin_window(clock)
        return began_at if judge and self.unusual(ratio) else None

    def unusual(self, value: float) -> bool:
        """Learn from a window's ratio; return True when it, and enough before it, are far from what is usual."""
        tuning = TUNING.change
        away = value - self._mean
        bound = max(self._least, tuning.deviations * math.sqrt(self._variance))
        far = away > bound or (away < -bound and not self._rising_only)
        if self._values < tuning.values_least or not far:
            self._values += 1
            share = max(1.0 - tuning.keep, 1.0 / self._values)
            self._mean += share * away
            self._variance = (1.0 - share) * (self._variance + share * away * away)
            self._strikes = 0
            return False
        self._strikes += 1
        return self._strikes >= self._needed
