"""Progress lines for work that takes long: what is being done, and how long it has taken so far."""

from __future__ import annotations

import time
from collections.abc import Callable

Report = Callable[[str], None]
"""Takes one line for people, without a newline."""


def silent(line: str) -> None:
    """Report nothing."""


class Stopwatch:
    """Reports steps, each with the seconds since the whole began.

    Args:
        report: Where the lines go.
        clock: Monotonic seconds.
    """

    def __init__(self, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._start_s = clock()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stopwatch was made."""
        return self._clock() - self._start_s

    def step(self, text: str) -> None:
        """Report that the step `text` begins (or that the fact `text` is reached) now."""
        self._report(f"{self.elapsed_s:6.1f} s  {text}")
