"""When a trial ends: with the decision that closes the controller's interval."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from qmpalloc.events import AnyEvent, ControlChanged, Decided, SizeChanged


class TrialClock:
    """A sink that follows a controller: when it begins to decide, when each of its intervals is over, and its targets.

    Attributes:
        begun: Set when the controller has taken control.
        trials: Intervals over so far. A decision out of turn, for a guest in danger, ends none.
        targets: Guest to the size last asked of QEMU, bytes.
    """

    def __init__(self, targets: Mapping[str, int]) -> None:
        self.begun = trio.Event()
        self.trials = 0
        self.targets = dict(targets)
        self._over = trio.Event()

    def __call__(self, event: AnyEvent) -> None:
        """Take an event."""
        match event:
            case ControlChanged(control="running"):
                self.begun.set()
            case SizeChanged(guest=guest, target_bytes=target_bytes):
                self.targets[guest] = target_bytes
            case Decided(snapshot=snapshot) if snapshot.cycle > self.trials:
                self.trials = snapshot.cycle
                self._over.set()
                self._over = trio.Event()
            case _:
                pass

    async def next_trial(self, after: int) -> int:
        """Wait until more than `after` trials are over, and return how many are."""
        while self.trials <= after:
            await self._over.wait()
        return self.trials
