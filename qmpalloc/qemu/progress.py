"""Progress lines for work that takes long: what is being done, and how long it has taken so far."""

from __future__ import annotations

import time
from collections.abc import Callable

Report = Callable[[str], None]
"""Takes one line for people, without a newline."""


def silent(line: str) -> None:
    """Report nothing."""


class Stopwatch:
    """Reports steps, each with the seconds since the whole began."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._start_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stopwatch was made."""
        return time.monotonic() - self._start_s

    def step(self, text: str) -> None:
        """Report that the step `text` begins (or that the fact `text` is reached) now."""
        self._report(f"{self.elapsed_s:6.1f} s  {text}")
