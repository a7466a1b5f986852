"""So much at once, and so much in each second after: what a guest may cost the host."""

from __future__ import annotations


class Allowance:
    """A bucket that fills with time, up to its brim, and out of which is paid. Pure: the time is the caller's.

    Attributes:
        per_s: What comes in by the second; may be changed.

    Args:
        per_s: The same.
        at_once: The most it holds, and what it holds at first.
    """

    def __init__(self, per_s: float, at_once: float) -> None:
        self.per_s = per_s
        self._at_once = self._left = at_once
        self._then_s: float | None = None

    def left(self, now_s: float) -> float:
        """Return what may be taken now. Time that goes back counts as none."""
        if self._then_s is not None:
            self._left = min(self._at_once, self._left + max(0.0, now_s - self._then_s) * self.per_s)
        self._then_s = now_s
        return self._left

    def take(self, amount: float, now_s: float) -> bool:
        """Take so much; False, and nothing is taken, if there is less."""
        if amount > self.left(now_s):
            return False
        self._left -= amount
        return True

    def give_back(self, amount: float) -> None:
        """Put back what turned out to be no cost."""
        self._left = min(self._at_once, self._left + amount)
