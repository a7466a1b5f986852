"""Who watches chaos: sees every event of the controller and every command that the fakes receive, and objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from qmpalloc.events import AnyEvent, ControlChanged, Decided, Sampled, SizeChanged, StateChanged
from qmpalloc.model import GuestState, Limiter
from qmpalloc.testing.chaos_faults import HOSTILE
from qmpalloc.testing.fake_qemu import FakeQemu
from qmpalloc.units import align_down, format_size


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
        self.wrong: Counter[str] = Counter()
        self.broken: set[str] = set()
        self.guest_cycles = 0
        self.decisions = 0
        self.shown: Counter[str] = Counter()
        self.violation = ""
        self.news = trio.Event()
        self._told: dict[str, tuple[float, int, int]] = {}
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
            case StateChanged():
                self.states[event.guest] = event.state
            case SizeChanged():
                self._hear(event.guest, event.actual_bytes)
            case Decided():
                self._judge(event)
            case ControlChanged(control="settling" | "running"):
                self._tick_t, self._cycle = None, 0
        for text in (getattr(event, field, "") for field in ("message", "hint", "detail", "error")):
            if not text.isprintable():
                self.object(f"unprintable text was reported: {text!r}")
        self.news.set()
        self.news = trio.Event()

    def _judge(self, event: Decided) -> None:
        for seen, verdict in zip(event.snapshot.guests, event.decision.guests, strict=True):
            change = verdict.target_bytes - seen.target_bytes
            self.events.get(seen.name, []).append(verdict)
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
        balloon, query = qemu.commands["balloon"], qemu.commands["query-balloon"]

        def asked(arguments: dict[str, Any]) -> object:
            self._grant(name, arguments["value"])
            return balloon(arguments)

        def queried(arguments: dict[str, Any]) -> object:
            self._answered[name] = qemu.balloon.actual_bytes
            return query(arguments)

        qemu.commands |= {"balloon": asked, "query-balloon": queried}

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
        self._told.pop(name, None)
        self._targets.pop(name, None)

    def _grant(self, name: str, target_bytes: int) -> None:
        if target_bytes < min(self._floor_bytes, align_down(self._answered.get(name, self._floor_bytes))):
            self.object(f"{name} was asked for {format_size(target_bytes)}, below its floor")
        before = max(self._known(name), *self._told.get(name, (0.0, 0, 0))[1:])
        self._targets[name] = target_bytes
        total = sum(self._known(each) for each in self._told)
        if self._known(name) > before and total > self.budget_bytes:
            sizes = {each: (self._targets.get(each), told[1:]) for each, told in self._told.items()}
            self.object(f"{name} was granted {format_size(target_bytes)}: {format_size(total)} in all, {sizes}")

    def _known(self, name: str) -> int:
        """Return what a guest may occupy by the last command, and by what the controller had heard when it sent it."""
        heard_s, before, now = self._told.get(name, (0.0, 0, 0))
        # In virtual time a command arrives at the instant it was sent; what was heard at that instant may be younger.
        heard = min(before, now) if heard_s == trio.current_time() else now
        return max(heard, self._targets.get(name, 0))

    def _hear(self, name: str, actual_bytes: int) -> None:
        if actual_bytes == 0:  # its QEMU has ended
            self.forget(name)
            return
        now_s = trio.current_time()
        heard_s, before, latest = self._told.get(name, (0.0, actual_bytes, actual_bytes))
        self._told[name] = (now_s, min(before, latest) if heard_s == now_s else latest, actual_bytes)

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        """Wait until something holds; that it does not is a violation."""
        with trio.move_on_after(limit_s) as scope:
            while not condition() and not self.violation:
                await self.news.wait()
        if scope.cancelled_caught and not condition():
            self.object(what)
