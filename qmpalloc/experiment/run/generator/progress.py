"""The file that tells the host how far a load has come."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

PROGRESS_S = 0.5
ERROR_CHARS = 4000
"""Of why it gave up: words of the user's may be of any length, and the host reads so much."""


class GaveUpError(Exception):
    """The load cannot go on; its text is for the host."""


class PhaseState:
    """How far a phase has come; `details` returns what there is to say besides its time, keys of ``PhaseProgress``.

    Attributes:
        done: Whether it is over.
    """

    def __init__(self, name: str, details: Callable[[], dict[str, Any]]) -> None:
        self.done = False
        self._name = name
        self._started_s = time.monotonic()
        self._details = details
        self._seconds = 0.0

    def finish(self) -> None:
        """Note that it is over."""
        self._seconds = time.monotonic() - self._started_s
        self.done = True

    def values(self) -> dict[str, Any]:
        """Return what the host reads as ``PhaseProgress``."""
        return {
            "name": self._name,
            "reads": 0,
            "seconds": self._seconds if self.done else time.monotonic() - self._started_s,
            "started_s": self._started_s,
            "done": self.done,
            **self._details(),
        }


class Progress:
    """The file that tells the host how far the load is; replaced by rename, so that it is never seen half written."""

    def __init__(self, path: str) -> None:
        self.phases: list[PhaseState] = []
        self._path = path
        self._sequence = 0
        self._writing = False

    def write(self, *, finished: bool = False, error: str = "") -> None:
        """Write the present state."""
        if self._writing:
            return  # interrupted by the timer's signal; what is being written is as new
        self._writing = True
        try:
            state = {
                "sequence": self._sequence,
                "monotonic_s": time.monotonic(),
                "phases": [phase.values() for phase in self.phases],
                "finished": finished,
                "error": error[:ERROR_CHARS],
            }
            scratch = f"{self._path}.new"
            Path(scratch).write_text(json.dumps(state))
            os.replace(scratch, self._path)  # noqa: PTH105 - the atomic rename, by its name
            self._sequence += 1
        finally:
            self._writing = False

    def start_timer(self) -> None:
        """Write every `PROGRESS_S` from now on, by a signal: between two reads, with no thread to share Python with."""

        def on_alarm(_number: int, _frame: FrameType | None) -> None:
            self.write()

        signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, PROGRESS_S, PROGRESS_S)

    def stop_timer(self) -> None:
        """Write no more by itself."""
        signal.setitimer(signal.ITIMER_REAL, 0)
