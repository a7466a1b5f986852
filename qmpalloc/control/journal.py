"""Stamps events with the run's time and hands them to the sinks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import trio

from qmpalloc.events import AnyEvent, Faulted, Sink
from qmpalloc.text import one_line

CALM_S = 30.0
"""How long a condition must have been over before its return is news: one near a threshold comes and goes."""


class Journal:
    """Where the parts of a run report what happens.

    A sink that raises is dropped and the others are told; control goes on. When none is left nobody sees what happens,
    and `on_deaf` is called.

    Attributes:
        started_s: ``trio.current_time()`` at the start of the run.
    """

    def __init__(self, sinks: Sequence[Sink], on_deaf: Callable[[], None]) -> None:
        self._sinks = list(sinks)
        self._on_deaf = on_deaf
        self.started_s = trio.current_time()
        self._faults: dict[tuple[str | None, str], str] = {}
        self._conditions: dict[tuple[str | None, str], float | None] = {}  # when each was over, None while it lasts

    def now_s(self) -> float:
        """Return the seconds since the run began."""
        return trio.current_time() - self.started_s

    def emit(self, event: type[AnyEvent], /, **fields: Any) -> None:
        """Report an event of this class that happens now. Whoever wrote its texts, each is one printable line."""
        for name, value in fields.items():
            if type(value) is str:
                fields[name] = one_line(value)
        self.pass_on(event(t=round(self.now_s(), 6), wall=round(time.time(), 6), **fields))

    def pass_on(self, event: AnyEvent) -> None:
        """Report an event that is made already. Every sink has it before any is told that another has failed."""
        failed: list[BaseException] = []
        for sink in tuple(self._sinks):
            try:
                sink(event)
            except (Exception, SystemExit) as error:  # rich ends the program when standard output is closed
                self._sinks.remove(sink)
                failed.append(error)
        if failed and not self._sinks:
            self._on_deaf()
        for failure in failed:
            self.fault(None, "output", f"an output failed and is not used any more: {failure!r}")

    def fault(
        self,
        guest: str | None,
        kind: str,
        message: str,
        hint: str = "",
        *,
        again: bool = False,
        once: bool = False,
    ) -> None:
        """Report a fault; the same message of the same kind is reported once until `clear_fault`.

        With `again` it is an event of its own, reported even if it reads like the last. With `once` it is a condition
        that may come and go, with other numbers each time: reported once until it has been over for `CALM_S`.
        """
        key = (guest, kind)
        if self._begins(key) if once else again or self._faults.get(key) != message:
            self._faults[key] = message
            self.emit(Faulted, guest=guest, kind=kind, message=message, hint=hint)

    def _begins(self, key: tuple[str | None, str]) -> bool:
        """Note that a condition holds; return whether that is news."""
        over_s = self._conditions.get(key, -math.inf)
        self._conditions[key] = None
        return over_s is not None and self.now_s() - over_s >= CALM_S

    def forget(self, guest: str) -> None:
        """Forget the faults of a guest that has left: should it come back, they are news."""
        self._faults = {key: message for key, message in self._faults.items() if key[0] != guest}
        self._conditions = {key: over_s for key, over_s in self._conditions.items() if key[0] != guest}

    def clear_fault(self, guest: str | None, kind: str) -> None:
        """Note that the fault is over, so that its return is reported again."""
        self._faults.pop((guest, kind), None)
        if self._conditions.get((guest, kind), 0.0) is None:
            self._conditions[guest, kind] = self.now_s()
