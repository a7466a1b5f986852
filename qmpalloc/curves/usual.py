"""Tell what is unusual from what always varies."""

from __future__ import annotations

import math

_KEEP = 0.8
_DEVIATIONS = 4.0


class Usual:
    """Exponentially weighted mean and deviation of a figure, and whether it has left them for more than one window.

    A lasting difference between a model and what it models is usual; so is a figure that swings. Only values that are
    not suspect change what is usual, so that a real change does not become usual while it is being noticed.
    """

    def __init__(self, least: float, *, strikes: int = 2) -> None:
        """Make one that knows nothing.

        Args:
            least: No difference below this is unusual.
            strikes: So many unusual values in a row are needed.
        """
        self._needed = strikes
        self._least = least
        self._values = 0
        self._mean = self._variance = 0.0
        self._strikes = 0

    def unusual(self, value: float, *, rising_only: bool = False) -> bool:
        """Learn from a value; return True when it, and enough before it, are far from what is usual."""
        away = value - self._mean
        bound = max(self._least, _DEVIATIONS * math.sqrt(self._variance))
        far = away > bound or (away < -bound and not rising_only)
        if self._values < 3 or not far:
            self._values += 1
            share = max(1.0 - _KEEP, 1.0 / self._values)
            self._mean += share * away
            self._variance = (1.0 - share) * (self._variance + share * away * away)
            self._strikes = 0
            return False
        self._strikes += 1
        return self._strikes >= self._needed
