"""The connections to one guest: keep them, feed `Guest` with what they tell, send its balloon commands.

`Session.run` never ends by itself, and never raises for what a guest or its QEMU does: that becomes the guest's state.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal

import trio
from msgspec import Struct

from qmpalloc.config import ControlConfig
from qmpalloc.control.guest import Guest, Link
from qmpalloc.control.inspection import MIGRATION_ENDED, ask_facts, ask_migrating, measure, require_returning
from qmpalloc.control.journal import Journal
from qmpalloc.control.run_state import ARRIVING, ASLEEP, STATE_EVENTS, Activity, activity
from qmpalloc.control.sampling import run_sampling
from qmpalloc.curves.observer import Reads
from qmpalloc.errors import (
    DeadlineError,
    DisconnectedError,
    NonsenseError,
    QmpallocError,
    RefusedError,
    UnreachableError,
)
from qmpalloc.events import Commanded
from qmpalloc.qmp import Monitor, MonitorEvent, VmStatus, deadline, open_monitor
from qmpalloc.rules.ledger import Order
from qmpalloc.text import one_line, printable
from qmpalloc.units import PAGE_BYTES, align_down, format_size

Purpose = Literal["adopt", "shrink", "grant", "repeat", "accept"]

STUCK_HINT = "is the virtio_balloon driver loaded in the guest, and can it give that much?"
FLOOR_HINT = "it is brought to its floor, as far as the budget has room"

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 5.0

MEMORY_EVENTS = frozenset({"MEMORY_DEVICE_SIZE_CHANGE", "DEVICE_DELETED"})
"""What tells that the guest may have more or less memory than before; that a DIMM was plugged no event tells."""

EVENTS = STATE_EVENTS | MEMORY_EVENTS | {"BALLOON_CHANGE"}
"""The events a session heeds. Others, some of which a guest may cause in any number, must not drive these out."""

CONFIRM_AFTER_S = 0.2
"""A size queried this long after QEMU took a command counts as its effect: a driver in mid-move completes the 1 MiB
it is working on before it looks at the new target (``update_balloon_size_func`` in drivers/virtio/virtio_balloon.c)."""

LOOK_S = 5.0
"""Time between two looks at what events may not have told: QEMU sends one of a migration only to who asked for it, and
none of a DIMM that is plugged, or of another ``requested-size`` of a virtio-mem device."""

RETURNING_LOOK_S = 60.0
"""Time between two looks whether memory that is handed over still comes back to the host."""

STATS_VERSION = (9, 2, 0)
"""First QEMU whose balloon statistics tell of allocation stalls and OOM kills; older ones would tell nothing new."""

INTERFERENCE_HOLD_S = 60.0
"""How long a guest is left to another controller before it is tried again."""

REPEAT_FIRST_S = 3.0
REPEAT_MOST_S = 60.0
"""A size that stands still beside its target is asked for again: after deflate-on-oom, or when somebody else sent a
``balloon`` command, no driver would come back by itself. Each time the wait doubles."""


class PendingOrder(Struct, frozen=True):
    """A command that was decided and charged, and is yet to be sent."""

    target_bytes: int
    previous_bytes: int
    doubt_bytes: int
    purpose: Purpose


class Session:
    """One guest, its connections and its pending order.

    Attributes:
        guest: What is known of it.
    """

    def __init__(
        self,
        guest: Guest,
        journal: Journal,
        control: ControlConfig,
        *,
        may_command: bool,
        on_change: Callable[[], None],
        on_reset: Callable[[Guest], None],
    ) -> None:
        self.guest = guest
        self._journal = journal
        self._control = control
        self._timeout_s = float(control.command_timeout)
        self._sample_interval_s = float(control.sample_interval)
        self._balloon_poll_s = float(control.balloon_poll)
        self._may_command = may_command
        self._on_change = on_change
        self._on_reset = on_reset
        self._order: PendingOrder | None = None
        self._unanswered: Purpose | None = None
        self._order_given = trio.Event()
        self._poll_now = trio.Event()
        self._news = trio.Event()
        self._confirm_from_s: float | None = None
        self._held_until_s = 0.0
        self._arriving = False
        self._told = 0
        self._still_since_s = 0.0
        self._repeat_after_s = REPEAT_FIRST_S

    def give(self, order: Order) -> None:
        """Take an order for this guest, charged at once and sent soon; it replaces one that was not sent yet."""
        self._repeat_after_s = REPEAT_FIRST_S
        self._give(order.target_bytes, order.purpose)

    def _give(self, target_bytes: int, purpose: Purpose) -> None:
        assert self._may_command, "this run observes only"
        guest, unsent = self.guest, self._order
        # What holds if QEMU refuses it: all as before, what is in doubt included.
        previous_bytes = unsent.previous_bytes if unsent is not None else guest.target_bytes
        doubt_bytes = unsent.doubt_bytes if unsent is not None else guest.doubt_bytes
        guest.ordered(target_bytes)
        self._confirm_from_s = self._unanswered = None
        self._still_since_s = self._journal.now_s()
        self._order = PendingOrder(target_bytes, previous_bytes, doubt_bytes, purpose)
        self._order_given.set()

    # --- connection -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, serve, and connect again, for ever."""
        delay_s = RETRY_FIRST_S
        while True:
            was_up_s = self._journal.now_s()
            try:
                async with open_monitor(self.guest.config.monitor, timeout_s=self._timeout_s) as monitor:
                    await self._serve(monitor)
            except UnreachableError as error:
                # A connection that just broke says nothing about the QEMU behind it; the next attempt will. Until then
                # the guest stays charged.
                (self.guest.gone if error.absent else self.guest.hung)(error.message)
                self._journal.fault(self.guest.name, "monitor", error.message, error.hint)
            except (NonsenseError, RefusedError) as error:
                self.guest.held(error.message)
                self._journal.fault(self.guest.name, "monitor", error.message, error.hint)
            except Exception as error:  # a defect of ours must not take the other guests along
                defect = one_line(f"{type(error).__name__}: {error}")
                self.guest.held(defect)
                self._journal.fault(self.guest.name, "internal", defect, "please report this")
            self._end_of_connection()
            lasted = self._journal.now_s() - was_up_s > RETRY_MOST_S
            await trio.sleep(RETRY_FIRST_S if lasted else delay_s)
            delay_s = RETRY_FIRST_S if lasted else min(delay_s * 2, RETRY_MOST_S)

    def _end_of_connection(self) -> None:
        self.guest.disconnected()
        self._order = self._unanswered = self._confirm_from_s = None
        self._on_change()

    async def _serve(self, monitor: Monitor) -> None:
        """Serve one monitor connection until it ends, and raise why it ended."""
        guest = self.guest
        guest.met(monitor.process_id)
        with monitor.subscribe(EVENTS) as events:  # before asking, so that no event falls in between
            with deadline(self._timeout_s, monitor.address, "the questions at connection"):
                facts = await ask_facts(monitor)
                status, migrating = await monitor.query_status(), await ask_migrating(monitor)
                facts, actual_bytes = await measure(monitor, facts)
            stopped = activity(status) is not Activity.RUNS
            guest.connected(facts, actual_bytes, self._journal.now_s(), paused=stopped)
            self._arriving = False
            self._take_state(status, migrating=migrating)
            self._journal.clear_fault(guest.name, "monitor")
            if self._may_command:
                self._adopt()
            self._on_change()
            failures: list[QmpallocError] = []
            async with trio.open_nursery() as nursery:

                async def guard(task: Callable[[], Awaitable[None]]) -> None:
                    try:
                        await task()
                    except QmpallocError as error:
                        failures.append(error)
                        nursery.cancel_scope.cancel()

                nursery.start_soon(guard, lambda: self._watch_balloon(monitor))
                nursery.start_soon(guard, lambda: self._watch_events(monitor, events))
                nursery.start_soon(guard, lambda: self._watch_state(monitor))
                if monitor.qemu_version >= STATS_VERSION:
                    nursery.start_soon(guard, lambda: self._watch_stats(monitor, facts.balloon_path))
                nursery.start_soon(guard, lambda: self._watch_disks(monitor))
                nursery.start_soon(guard, lambda: self._read_samples(monitor))
                if self._may_command:
                    nursery.start_soon(guard, lambda: self._send_orders(monitor))
                await monitor.closed.wait()
                nursery.cancel_scope.cancel()
        causes = [*failures, monitor.cause]
        for cause in causes:
            if cause is not None and not isinstance(cause, DisconnectedError):
                raise cause
        raise DisconnectedError(f"{monitor.address}: the monitor connection ended", address=monitor.address)

    def _adopt(self) -> None:
        """Begin to control a guest at the size it has; one below its floor is to have that."""
        guest = self.guest
        if not guest.migrating:
            # QEMU cannot be asked for its target. Setting it to what we know of it makes sure, and ends a move that
            # another controller may have left half done. Whether there is room for more is for the ledger to say.
            self._give(align_down(guest.target_bytes), "adopt")
        if guest.target_bytes >= guest.floor_bytes:
            self._journal.clear_fault(guest.name, "floor")
            return
        guest.desired_bytes = max(guest.desired_bytes, guest.floor_bytes)
        found, floor = format_size(guest.actual_bytes), format_size(guest.floor_bytes)
        self._journal.fault(guest.name, "floor", f"found at {found}, below its floor of {floor}", FLOOR_HINT)

    # --- balloon ----------------------------------------------------------------------------------------------------

    async def _watch_balloon(self, monitor: Monitor) -> None:
        guest = self.guest
        while True:
            self._poll_now = trio.Event()
            asked_s = self._journal.now_s()
            try:
                with deadline(self._timeout_s, monitor.address, "query-balloon"):
                    actual_bytes = await monitor.query_balloon()
                    if not guest.explains(actual_bytes):
                        actual_bytes = await self._ask_size(monitor)
            except DeadlineError as error:
                self._hung(error)
                continue
            except RefusedError as error:
                self._refused(error)
                await trio.sleep(RETRY_MOST_S)
                continue
            self._answered()
            self._take_size(actual_bytes, asked_s)
            with trio.move_on_after(self._sample_interval_s if guest.settled else self._balloon_poll_s):
                await self._poll_now.wait()

    def _take_size(self, actual_bytes: int, asked_s: float) -> None:
        guest, now_s = self.guest, self._journal.now_s()
        if not self._may_command:
            if guest.observed(actual_bytes) or guest.end_grace(now_s):
                self._on_change()
            return
        changed = guest.measured(actual_bytes, now_s)
        if changed or guest.settled:
            self._still_since_s = now_s
            if guest.settled:
                self._repeat_after_s = REPEAT_FIRST_S
        if self._confirm_from_s is not None and asked_s >= self._confirm_from_s:
            self._confirm_from_s = None
            guest.confirmed()
            changed = True
        if guest.end_grace(now_s):
            changed = True
        if guest.moved_unasked:
            self._interfered(now_s)
        if guest.is_stuck(now_s):
            self._accept(now_s)
        elif self._should_repeat(now_s):
            self._repeat_after_s = min(self._repeat_after_s * 2, REPEAT_MOST_S)
            self._give(guest.target_bytes, "repeat")
        if not guest.progress.stuck(now_s):
            self._journal.clear_fault(guest.name, "stuck")
        if changed:
            self._on_change()

    def _should_repeat(self, now_s: float) -> bool:
        """Tell whether the guest stands still beside its target; one in danger is not pressed."""
        guest = self.guest
        if guest.link is not Link.UP or guest.paused or self._order is not None or guest.danger(now_s):
            return False
        if guest.migrating or guest.progress.stuck(now_s):
            return False
        return guest.actual_bytes != guest.target_bytes and now_s - self._still_since_s >= self._repeat_after_s

    def _accept(self, now_s: float) -> None:
        """Set the target of a stuck guest to what it has achieved, so that nobody waits for the rest."""
        guest = self.guest
        self._journal.fault(guest.name, "stuck", guest.progress.stuck(now_s), STUCK_HINT)
        guest.desired_bytes = guest.achieved_bytes()
        self._give(guest.desired_bytes, "accept")
        self._on_change()

    def _interfered(self, now_s: float) -> None:
        """Report a size that changed by somebody else's command; leave the guest to them when it is a habit."""
        guest = self.guest
        found = f"its size fell to {format_size(guest.actual_bytes)} without a command of this run"
        habit = guest.progress.interfered(now_s)
        hint = "is another controller at work on a second monitor of this guest?"
        self._journal.fault(guest.name, "interference", found, hint, again=True)
        if habit and guest.link is Link.UP:
            self._held_until_s = now_s + INTERFERENCE_HOLD_S
            guest.held("another controller commands its balloon")
            self._on_change()

    def _hung(self, error: DeadlineError) -> None:
        if self.guest.link is Link.UP:
            self.guest.hung(error.message)
            self._journal.fault(self.guest.name, "monitor", error.message, error.hint)
            self._on_change()

    def _refused(self, error: RefusedError) -> None:
        self._held_until_s = self._journal.now_s() + RETRY_MOST_S
        self.guest.held(error.message)
        self._journal.fault(self.guest.name, "balloon", error.message, error.hint)
        self._on_change()

    def _answered(self) -> None:
        link = self.guest.link
        if link is Link.HUNG or (link is Link.HELD and self._journal.now_s() >= self._held_until_s):
            self.guest.answered()
            self._journal.clear_fault(self.guest.name, "monitor")
            self._on_change()
        if self._unanswered is not None and self.guest.link is Link.UP and not self.guest.migrating:
            self._give(self.guest.target_bytes, self._unanswered)

    async def _send_orders(self, monitor: Monitor) -> None:
        guest = self.guest
        while True:
            await self._order_given.wait()
            self._order_given = trio.Event()
            if self._order is None:
                continue
            order, self._order = self._order, None
            error_text = ""
            try:
                with deadline(self._timeout_s, monitor.address, "balloon"):
                    await monitor.balloon(order.target_bytes)
            except DeadlineError as error:
                # Whether it took effect is unknown, so both sizes stay charged until a later command is confirmed.
                error_text = error.message
                self._unanswered = order.purpose
                self._hung(error)
            except RefusedError as error:
                error_text = error.message
                if self._order is None:  # else the newer order's charge must stay
                    guest.refused(order.previous_bytes, order.doubt_bytes)
                    if order.doubt_bytes:
                        self._unanswered = order.purpose  # only a command that is confirmed ends a doubt
                self._refused(error)
            except QmpallocError as error:
                self._tell(order, error.message)
                raise
            else:
                self._journal.clear_fault(guest.name, "balloon")
                if self._order is None:
                    self._confirm_from_s = self._journal.now_s() + CONFIRM_AFTER_S
            self._tell(order, error_text)
            self._poll_now.set()
            self._on_change()

    def _tell(self, order: PendingOrder, error: str) -> None:
        self._journal.emit(
            Commanded,
            guest=self.guest.name,
            target_bytes=order.target_bytes,
            previous_bytes=order.previous_bytes,
            purpose=order.purpose,
            error=error,
        )

    async def _watch_events(self, monitor: Monitor, events: trio.MemoryReceiveChannel[MonitorEvent]) -> None:
        guest, dropped = self.guest, 0
        async for event in events:
            if monitor.events_dropped > dropped:  # one of them may have said that it was stopped, or that it goes on
                dropped = monitor.events_dropped
                message = f"{dropped} events of its QEMU were lost: they came faster than they could be heard"
                self._journal.fault(guest.name, "events", message, "whether it runs is asked for again")
                await self._look(monitor)
            self._heed(event)
            self._on_change()  # what it told is shown before QEMU has answered more
            if event.name in STATE_EVENTS:
                self._told += 1
                await self._look(monitor)
            if event.name in MEMORY_EVENTS:
                await self._ask_memory(monitor)
            self._on_change()

    def _heed(self, event: MonitorEvent) -> None:
        """Take what an event tells by itself: what holds a guest does so at once, also while QEMU does not answer."""
        guest, now_s = self.guest, self._journal.now_s()
        match event.name:
            case "BALLOON_CHANGE":
                self._poll_now.set()
            case "RESET":
                guest.was_reset(now_s)
                self._on_reset(guest)
            case "STOP" | "SUSPEND":
                guest.stopped(f"QEMU told of {event.name}", now_s, asleep=event.name == "SUSPEND")
            case "MIGRATION":
                guest.migrating = guest.migrating or event.data.get("status") not in MIGRATION_ENDED

    async def _watch_state(self, monitor: Monitor) -> None:
        """Look now and then at what no event may have told.

        Raises:
            RefusedError: What the guest hands over does not come back any more: a device was plugged that pins it, say.
        """
        looked_s = self._journal.now_s()
        while True:
            await trio.sleep(LOOK_S)
            await self._look(monitor)
            await self._ask_memory(monitor)
            if self._journal.now_s() - looked_s >= RETURNING_LOOK_S and self.guest.facts is not None:
                looked_s = self._journal.now_s()
                limit = deadline(self._timeout_s, monitor.address, "the questions about pinned memory")
                with suppress(DeadlineError), limit:  # who watches the balloon reports it
                    await require_returning(monitor, self.guest.facts.ram_bytes)

    async def _look(self, monitor: Monitor) -> None:
        """Ask whether the virtual CPUs run, and whether somebody migrates the guest."""
        guest, arriving, told = self.guest, self._arriving, self._told
        before = guest.paused, guest.migrating
        try:
            with deadline(self._timeout_s, monitor.address, "query-status"):
                status, migrating = await monitor.query_status(), await ask_migrating(monitor)
                arrived = arriving and status.status != ARRIVING
                actual_bytes = await self._ask_size(monitor) if arrived else 0
        except DeadlineError:
            return  # who watches the balloon reports it
        if told != self._told:
            return  # this is from before the last event, which has it asked for again
        self._take_state(status, migrating=migrating)
        if arrived:  # with the balloon of the QEMU that it came from
            self._adopt_at(actual_bytes)
        if before != (guest.paused, guest.migrating):
            self._on_change()

    def _take_state(self, status: VmStatus, *, migrating: bool) -> None:
        """Note what QEMU told of the guest's state."""
        guest, now_s, doing = self.guest, self._journal.now_s(), activity(status)
        self._arriving = status.status == ARRIVING
        guest.migrating = migrating or doing is Activity.MOVES
        if doing is Activity.RUNS:
            guest.resumed(now_s)
        else:
            guest.stopped(f"QEMU is in the state {printable(status.status, 32)}", now_s, asleep=status.status == ASLEEP)

    # --- memory -----------------------------------------------------------------------------------------------------

    async def _ask_memory(self, monitor: Monitor) -> None:
        """Ask how much memory the guest has, which changes when memory is plugged or unplugged."""
        limit = deadline(self._timeout_s, monitor.address, "query-memory-devices")
        with suppress(DeadlineError), limit:  # who watches the balloon reports it
            await self._ask_size(monitor)

    async def _ask_size(self, monitor: Monitor) -> int:
        """Ask for memory and size together, and adopt a guest that has more or less RAM than before at its new size.

        Raises:
            NonsenseError: The size is more than all of the RAM.
        """
        guest = self.guest
        assert guest.facts is not None
        facts, actual_bytes = await measure(monitor, guest.facts.with_memory(await monitor.memory_sizes()))
        before = guest.facts
        guest.given(facts)
        if facts.ram_bytes != before.ram_bytes:
            self._adopt_at(actual_bytes)
        elif facts != before:
            self._on_change()
        return actual_bytes

    def _adopt_at(self, actual_bytes: int) -> None:
        """Go on with a guest from the size it has, which neither a command of ours nor its own doing has changed."""
        self.guest.adopted(actual_bytes)
        if self._may_command:
            self._adopt()
        self._on_change()

    async def _watch_stats(self, monitor: Monitor, path: str) -> None:
        """Look for danger in the balloon's statistics. The guest chooses these numbers: they can only hold it."""
        guest = self.guest
        while True:
            try:
                with deadline(self._timeout_s, monitor.address, "guest-stats"):
                    stats = await monitor.balloon_stats(path)
                    if stats.last_update is None and self._may_command:
                        await monitor.set_stats_interval(path, max(1, round(self._sample_interval_s)))
            except DeadlineError:
                pass  # who watches the balloon reports it
            except (NonsenseError, RefusedError) as error:
                self._journal.fault(guest.name, "stats", error.message, error.hint)
            else:
                self._journal.clear_fault(guest.name, "stats")
                if stats.last_update is not None and stats.alloc_stalls is not None and stats.oom_kills is not None:
                    guest.take_stats(stats.last_update, stats.alloc_stalls, stats.oom_kills, self._journal.now_s())
                    self._on_change()
            await trio.sleep(self._sample_interval_s)

    async def _watch_disks(self, monitor: Monitor) -> None:
        """Read what QEMU has read from the disks right after each sample: the guest cannot forge that.

        All disks count, for any of them may hold the files whose pages are missed.
        """
        guest = self.guest
        while True:
            await self._news.wait()
            self._news = trio.Event()
            try:
                with deadline(self._timeout_s, monitor.address, "query-blockstats"):
                    disks = await monitor.block_stats()
            except DeadlineError:
                continue  # who watches the balloon reports it
            except (NonsenseError, RefusedError) as error:
                self._journal.fault(guest.name, "disks", error.message, error.hint)
                continue
            self._journal.clear_fault(guest.name, "disks")
            if disks:  # a guest without any has its files from elsewhere
                pages = sum(disk.rd_bytes for disk in disks) / PAGE_BYTES
                guest.curves.take_reads(Reads(pages, sum(disk.rd_total_time_ns for disk in disks) / 1e9))

    async def _read_samples(self, monitor: Monitor) -> None:
        def on_news() -> None:
            self._news.set()
            self._on_change()

        async def ask_memory() -> None:
            with suppress(QmpallocError):  # who watches the balloon reports it: nothing is wrong with the agent
                await self._ask_memory(monitor)

        await run_sampling(self.guest, self._journal, self._control, on_news, ask_memory)


async def send_once(guest: Guest, target_bytes: int, timeout_s: float) -> None:
    """Send one ``balloon`` command over a connection of its own: the last resort when no session runs any more."""
    async with open_monitor(guest.config.monitor, timeout_s=timeout_s) as monitor:
        with deadline(timeout_s, monitor.address, "balloon"):
            await monitor.balloon(target_bytes)
