"""Who watches chaos: sees every event of the controller and every command that the fakes receive, and objects."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from qmpalloc.events import (
    AnyEvent,
    ControlChanged,
    Decided,
    Reloaded,
    Sampled,
    SamplesDropped,
    SizeChanged,
    StateChanged,
)
from qmpalloc.model import GuestState, Limiter
from qmpalloc.testing.fake_qemu import FakeQemu
from qmpalloc.text import LINE_LIMIT, is_visible
from qmpalloc.units import align_down, format_size
from tests.chaos.faults import HOSTILE

PROMISES_MAX = 64
"""Targets of a guest that are remembered: the command for one may arrive late, or twice."""


class ViolationError(AssertionError):
    """An invariant did not hold."""


class Witness:
    """Sees every event and every command, and objects.

    Args:
        budget_bytes: Of all guests.
        floor_bytes: The configured floor of each.
        interval_s: Between two decisions.

    Attributes:
        budget_bytes: The budget in force.
        events: Of each guest of which something is wrong: what was reported since, and what was decided about it.
        sampled: Samples accepted, by guest.
        dropped: Times that sampled accesses were told to be of no use.
        wrong: Guests of which something is wrong now.
        broken: Guests of which something has been wrong since the last decision.
        guest_cycles: Decisions times guests of which something was wrong.
        shown: Faults that were seen in the record, by name.
        decisions: All of them.
        violation: The first thing that did not hold.
    """

    def __init__(self, *, budget_bytes: int, floor_bytes: int, interval_s: float) -> None:
        self.budget_bytes = budget_bytes
        self._floor_bytes = floor_bytes
        self._interval_s = interval_s
        self.events: dict[str, list[object]] = {}
        self.states: dict[str, GuestState] = {}
        self.sampled: Counter[str] = Counter()
        self.dropped = 0
        self.wrong: Counter[str] = Counter()
        self.broken: set[str] = set()
        self.guest_cycles = 0
        self.decisions = 0
        self.shown: Counter[str] = Counter()
        self.violation = ""
        self.news = trio.Event()
        self._renamed: dict[str, str] = {}  # the name in the record of a guest that was renamed, to that of its fake
        self._told: dict[str, int] = {}
        self._promises: dict[str, deque[int]] = {}
        self._answered: dict[str, int] = {}
        self._targets: dict[str, int] = {}
        self._tick_t: float | None = None
        self._cycle = 0

    def object(self, what: str) -> None:
        """Note that something did not hold."""
        self.violation = self.violation or what
        self.news.set()

    # --- the record -------------------------------------------------------------------------------------------------

    def __call__(self, event: AnyEvent) -> None:
        """Take one event."""
        name = getattr(event, "guest", None)
        if name in self.events:
            self.events[name].append(event)
        match event:
            case Sampled() if event.sample.kernel == HOSTILE:
                self.object(f"{name}: a spoilt sample was accepted: {event.sample}")
            case Sampled():
                self.sampled[event.guest] += 1
            case SamplesDropped():
                self.dropped += 1
            case StateChanged():
                self.states[event.guest] = event.state
            case SizeChanged(actual_bytes=0):  # its QEMU has ended
                self.forget(self._fake(event.guest))
            case Reloaded():
                fakes = {new: self._fake(old) for old, new in event.renamed.items()}
                self._renamed |= fakes
            case SizeChanged():
                self._promise(event)
            case Decided():
                self._judge(event)
            case ControlChanged(control="settling" | "running"):
                self._tick_t, self._cycle = None, 0
        for text in (getattr(event, field, "") for field in ("message", "hint", "detail", "error")):
            if not is_visible(text) or len(text) > LINE_LIMIT:
                self.object(f"text that is not one printable line was reported: {text!r}")
        self.news.set()
        self.news = trio.Event()

    def _fake(self, name: str) -> str:
        """Return the name of the fake behind a guest."""
        return self._renamed.get(name, name)

    def _judge(self, event: Decided) -> None:
        for seen, verdict in zip(event.snapshot.guests, event.decision.guests, strict=True):
            change = verdict.target_bytes - seen.target_bytes
            self.events.get(seen.name, []).extend((seen, verdict))
            may_shrink = seen.state is GuestState.FRESH and not seen.frozen
            home = verdict.target_bytes >= min(seen.baseline_bytes, seen.target_bytes)
            if change < 0 and not may_shrink and not home:
                self.object(f"{seen.name} is {seen.state} ({seen.frozen}) and was shrunk: {verdict}")
            if change < 0 and verdict.target_bytes < seen.floor_bytes:
                self.object(f"{seen.name} was shrunk below its floor of {format_size(seen.floor_bytes)}: {verdict}")
            # By the snapshot, too: where all need more than there is, the budget is what limits a guest in danger.
            in_danger = verdict.limiter is Limiter.DANGER or seen.frozen.startswith("danger")
            in_need = in_danger or seen.state is GuestState.LOST
            if change > 0 and seen.state is not GuestState.FRESH and not in_need:
                self.object(f"{seen.name} is {seen.state} and was to grow: {verdict}")
        if event.snapshot.cycle == self._cycle:
            return  # one that did not wait for the next tick
        self._cycle = event.snapshot.cycle
        self.decisions += 1
        self.guest_cycles += len(self.broken)
        self.broken = set(+self.wrong)
        if self._tick_t is not None and event.t - self._tick_t > self._interval_s + 0.5:
            self.object(f"a decision came {event.t - self._tick_t - self._interval_s:.1f} s late")
        self._tick_t = event.t

    # --- the wire ---------------------------------------------------------------------------------------------------

    def listen(self, name: str, qemu: FakeQemu) -> None:
        """Listen to what a fake is asked."""

        def asked(target_bytes: int) -> None:
            if target_bytes > qemu.actuator.grid.start_bytes:
                self._command(name, target_bytes)
            else:  # nothing is to be plugged; what is there all the same, as a DIMM since a moment ago, is no grant
                self._targets[name] = target_bytes
            self._targets[name] = min(self._targets[name], qemu.actuator.memory_bytes)  # more than all means all

        def queried() -> None:
            self._answered[name] = qemu.actuator.told_bytes

        qemu.on_order, qemu.on_query = asked, queried
        plug = qemu.actuator.plug

        def plugged(size_bytes: int) -> None:
            plug(size_bytes)
            # QEMU counts a target down from all RAM, so it moves with that. That there is more counts once it is told.
            if name in self._targets:
                self._targets[name] = min(self._targets[name], qemu.actuator.target_bytes)

        setattr(qemu.actuator, "plug", plugged)  # noqa: B010 - a method is no attribute to mypy

    @contextmanager
    def trouble(self, name: str) -> Iterator[None]:
        """Note that something is wrong with a guest for the time of a block."""
        self.broken.add(name)
        self.wrong[name] += 1
        try:
            yield
        finally:
            self.wrong[name] -= 1

    def forget(self, name: str) -> None:
        """Note that a QEMU has ended."""
        for known in (self._told, self._targets, self._promises):
            known.pop(name, None)

    def _promise(self, event: SizeChanged) -> None:
        """Check a target when it enters the books, which is before its command is sent."""
        name = self._fake(event.guest)
        before = max(self._known(name), event.actual_bytes)
        self._told[name] = event.actual_bytes
        self._promises.setdefault(name, deque(maxlen=PROMISES_MAX)).append(event.target_bytes)
        total = sum(self._known(each) for each in self._told)
        if event.target_bytes > before and total > self.budget_bytes:
            sizes = {each: (self._targets.get(each), self._told[each]) for each in self._told}
            self.object(f"{name} was granted {format_size(event.target_bytes)}: {format_size(total)} in all, {sizes}")

    def _command(self, name: str, target_bytes: int) -> None:
        answered = align_down(self._answered.get(name, self._floor_bytes))
        if target_bytes < min(self._floor_bytes, answered):
            self.object(f"{name} was asked for {format_size(target_bytes)}, below its floor")
        if target_bytes > self._known(name) and target_bytes not in self._promises.get(name, ()):
            self.object(f"{name} was asked for {format_size(target_bytes)}, which is not in the books")
        self._targets[name] = target_bytes

    def _known(self, name: str) -> int:
        """Return what a guest may occupy: what it has told, what it was asked for, what the books say."""
        promised = self._promises[name][-1] if name in self._promises else 0
        return max(self._told.get(name, 0), self._targets.get(name, 0), promised)

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        """Wait until something holds; that it does not is a violation."""
        with trio.move_on_after(limit_s) as scope:
            while not condition() and not self.violation:
                await self.news.wait()
        if scope.cancelled_caught and not condition():
            self.object(what)
