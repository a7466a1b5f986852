"""The connections to one guest: keep them, and feed `Guest` with what they tell.

`Session.run` never ends by itself, and never raises for what a guest or its QEMU does: that becomes the guest's state.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from qmpalloc.config import ControlConfig
from qmpalloc.control.guest import Guest, Link
from qmpalloc.control.inspection import (
    MIGRATION_ENDED,
    ask_facts,
    ask_migrating,
    choose_actuator,
    measure,
    require_returning,
    resident,
)
from qmpalloc.control.journal import Journal
from qmpalloc.control.resizer import Resizer
from qmpalloc.control.run_state import ARRIVING, ASLEEP, STATE_EVENTS, Activity, activity
from qmpalloc.control.sampling import run_sampling
from qmpalloc.curves.disk_check import Reads
from qmpalloc.errors import (
    DeadlineError,
    DisconnectedError,
    NonsenseError,
    QmpallocError,
    RefusedError,
    UnreachableError,
)
from qmpalloc.qmp import MANY_COMMANDS, Actuator, Monitor, MonitorEvent, VmStatus, deadline, open_monitor
from qmpalloc.text import one_line, printable
from qmpalloc.units import PAGE_BYTES

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 5.0

MEMORY_EVENTS = frozenset({"MEMORY_DEVICE_SIZE_CHANGE", "DEVICE_DELETED"})
"""What tells that the guest may have more or less memory than before; that a DIMM was plugged no event tells."""

SIZE_EVENTS = frozenset({"BALLOON_CHANGE", "MEMORY_DEVICE_SIZE_CHANGE"})
"""What tells that a guest may have another size, by a balloon and by virtio-mem; at most once a second each."""

EVENTS = STATE_EVENTS | MEMORY_EVENTS | SIZE_EVENTS
"""The events a session heeds. Others, some of which a guest may cause in any number, must not drive these out."""

LOOK_S = 5.0
"""Time between two looks at what events may not have told: QEMU sends one of a migration only to who asked for it, and
none of a DIMM that is plugged, or of another ``requested-size`` of a virtio-mem device."""

RETURNING_LOOK_S = 60.0
"""Time between two looks whether memory that is handed over still comes back to the host."""

STATS_VERSION = (9, 2, 0)
"""First QEMU whose balloon statistics tell of allocation stalls and OOM kills; older ones would tell nothing new."""


class Session:
    """One guest and its connections.

    Attributes:
        guest: What is known of it.
        resizer: Takes its orders.
    """

    def __init__(
        self,
        guest: Guest,
        journal: Journal,
        control: ControlConfig,
        *,
        may_command: bool,
        on_change: Callable[[], None],
        on_order: Callable[[], None],
        on_reset: Callable[[Guest], None],
    ) -> None:
        self.guest = guest
        self._journal = journal
        self._control = control
        self._timeout_s = float(control.command_timeout)
        self._sample_interval_s = float(control.sample_interval)
        self._may_command = may_command
        self._on_change = on_change
        self._on_reset = on_reset
        self._news = trio.Event()
        self._arriving = False
        self._told = 0
        self.resizer = Resizer(guest, journal, control, may_command=may_command, on_change=on_change, on_order=on_order)

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
                if error.absent:
                    self.guest.gone(error.message)
                else:
                    self.guest.note_link(Link.HUNG, error.message)
                self._journal.fault(self.guest.name, "monitor", error.message, error.hint)
            except (NonsenseError, RefusedError) as error:
                self.guest.note_link(Link.HELD, error.message)
                self._journal.fault(self.guest.name, "monitor", error.message, error.hint)
            except Exception as error:  # a defect of ours must not take the other guests along
                defect = one_line(f"{type(error).__name__}: {error}")
                self.guest.note_link(Link.HELD, defect)
                self._journal.fault(self.guest.name, "internal", defect, "please report this")
            self._end_of_connection()
            lasted = self._journal.now_s() - was_up_s > RETRY_MOST_S
            await trio.sleep(RETRY_FIRST_S if lasted else delay_s)
            delay_s = RETRY_FIRST_S if lasted else min(delay_s * 2, RETRY_MOST_S)

    def _end_of_connection(self) -> None:
        self.guest.disconnected()
        self.resizer.disconnected()
        self._on_change()

    async def _serve(self, monitor: Monitor) -> None:
        """Serve one monitor connection until it ends, and raise why it ended."""
        guest = self.guest
        guest.met(monitor.process_id)
        with monitor.subscribe(EVENTS) as events:  # before asking, so that no event falls in between
            with deadline(MANY_COMMANDS * self._timeout_s, monitor.address, "the questions at connection"):
                actuator = await choose_actuator(monitor)
                facts = await ask_facts(actuator)
                status, migrating = await monitor.query_status(), await ask_migrating(monitor)
                facts, actual_bytes = await measure(actuator, facts)
            stopped = activity(status) is not Activity.RUNS
            guest.connected(facts, actual_bytes, self._journal.now_s(), paused=stopped)
            self._arriving = False
            self._take_state(status, migrating=migrating)
            self._journal.clear_fault(guest.name, "monitor")
            self.resizer.adopt()
            self._on_change()
            failures: list[QmpallocError] = []
            async with trio.open_nursery() as nursery:

                async def guard(task: Callable[[], Awaitable[None]]) -> None:
                    try:
                        await task()
                    except QmpallocError as error:
                        failures.append(error)
                        nursery.cancel_scope.cancel()

                nursery.start_soon(guard, lambda: self.resizer.watch(actuator))
                nursery.start_soon(guard, lambda: self._watch_events(actuator, events))
                nursery.start_soon(guard, lambda: self._watch_state(actuator))
                if monitor.qemu_version >= STATS_VERSION and facts.balloon_path:
                    nursery.start_soon(guard, lambda: self._watch_stats(monitor, facts.balloon_path))
                nursery.start_soon(guard, lambda: self._watch_disks(monitor))
                nursery.start_soon(guard, lambda: self._read_samples(actuator))
                if self._may_command:
                    nursery.start_soon(guard, lambda: self.resizer.send_orders(actuator))
                await monitor.closed.wait()
                nursery.cancel_scope.cancel()
        causes = [*failures, monitor.cause]
        for cause in causes:
            if cause is not None and not isinstance(cause, DisconnectedError):
                raise cause
        raise DisconnectedError(f"{monitor.address}: the monitor connection ended", address=monitor.address)

    async def _watch_events(self, actuator: Actuator, events: trio.MemoryReceiveChannel[MonitorEvent]) -> None:
        guest, monitor, dropped = self.guest, actuator.monitor, 0
        async for event in events:
            if monitor.events_dropped > dropped:  # one of them may have said that it was stopped, or that it goes on
                dropped = monitor.events_dropped
                message = f"{dropped} events of its QEMU were lost: they came faster than they could be heard"
                self._journal.fault(guest.name, "events", message, "whether it runs is asked for again")
                await self._look(actuator)
            self._heed(event)
            self._on_change()  # what it told is shown before QEMU has answered more
            if event.name in STATE_EVENTS:
                self._told += 1
                await self._look(actuator)
            if event.name in MEMORY_EVENTS:
                await self._ask_memory(actuator)
            self._on_change()

    def _heed(self, event: MonitorEvent) -> None:
        """Take what an event tells by itself: what holds a guest does so at once, also while QEMU does not answer."""
        guest, now_s = self.guest, self._journal.now_s()
        match event.name:
            case name if name in SIZE_EVENTS:
                self.resizer.poll_soon()
            case "RESET":
                guest.was_reset(now_s)
                self._on_reset(guest)
                self.resizer.poll_soon()  # before its driver tells another size
            case "STOP" | "SUSPEND":
                guest.stopped(f"QEMU told of {event.name}", now_s, asleep=event.name == "SUSPEND")
            case "MIGRATION":
                guest.migrating = guest.migrating or event.data.get("status") not in MIGRATION_ENDED

    async def _watch_state(self, actuator: Actuator) -> None:
        """Look now and then at what no event may have told.

        Raises:
            RefusedError: What the guest hands over does not come back any more: a device was plugged that pins it, say.
        """
        looked_s = self._journal.now_s()
        while True:
            await trio.sleep(LOOK_S)
            await self._look(actuator)
            await self._ask_memory(actuator)
            if self._journal.now_s() - looked_s >= RETURNING_LOOK_S and self.guest.memory.facts is not None:
                looked_s = self._journal.now_s()
                limit_s = MANY_COMMANDS * self._timeout_s
                limit = deadline(limit_s, actuator.monitor.address, "the questions about pinned memory")
                with suppress(DeadlineError), limit:  # who watches the size reports it
                    await require_returning(actuator, self.guest.memory.facts.ram_bytes)

    async def _look(self, actuator: Actuator) -> None:
        """Ask whether the virtual CPUs run, and whether somebody migrates the guest."""
        guest, monitor, arriving, told = self.guest, actuator.monitor, self._arriving, self._told
        before = guest.paused, guest.migrating
        try:
            with deadline(self._timeout_s, monitor.address, "query-status"):
                status, migrating = await monitor.query_status(), await ask_migrating(monitor)
                arrived = arriving and status.status != ARRIVING
                actual_bytes = await self.resizer.ask_size(actuator) if arrived else 0
        except DeadlineError:
            return  # who watches the size reports it
        if told != self._told:
            return  # this is from before the last event, which has it asked for again
        self._take_state(status, migrating=migrating)
        if arrived:  # with the balloon of the QEMU that it came from
            self.resizer.adopt_at(actual_bytes)
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

    async def _ask_memory(self, actuator: Actuator) -> None:
        """Ask how much memory the guest has, which changes when memory is plugged or unplugged."""
        limit = deadline(self._timeout_s, actuator.monitor.address, "query-memory-devices")
        with suppress(DeadlineError), limit:  # who watches the size reports it
            await self.resizer.ask_size(actuator)

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
                pass  # who watches the size reports it
            except (NonsenseError, RefusedError) as error:
                self._journal.fault(guest.name, "stats", error.message, error.hint)
            else:
                self._journal.clear_fault(guest.name, "stats")
                if stats.last_update is not None and stats.alloc_stalls is not None and stats.oom_kills is not None:
                    guest.danger.take_stats(
                        stats.last_update, stats.alloc_stalls, stats.oom_kills, self._journal.now_s()
                    )
                    self._on_change()
            await trio.sleep(self._sample_interval_s)

    async def _watch_disks(self, monitor: Monitor) -> None:
        """Read what QEMU has read from the disks right after each sample: the guest cannot forge that.

        All disks count, for any of them may hold the files whose pages are missed. QEMU's memory is looked at, too.
        """
        guest = self.guest
        while True:
            await self._news.wait()
            self._news = trio.Event()
            guest.memory.resident_bytes = resident(monitor)
            try:
                with deadline(self._timeout_s, monitor.address, "query-blockstats"):
                    disks = await monitor.block_stats()
            except DeadlineError:
                continue  # who watches the size reports it
            except (NonsenseError, RefusedError) as error:
                self._journal.fault(guest.name, "disks", error.message, error.hint)
                continue
            self._journal.clear_fault(guest.name, "disks")
            if disks:  # a guest without any has its files from elsewhere
                pages = sum(disk.rd_bytes for disk in disks) / PAGE_BYTES
                guest.samples.curves.take_reads(Reads(pages, sum(disk.rd_total_time_ns for disk in disks) / 1e9))

    async def _read_samples(self, actuator: Actuator) -> None:
        def on_news() -> None:
            self._news.set()
            self._on_change()

        async def ask_memory() -> None:
            with suppress(QmpallocError):  # who watches the size reports it: nothing is wrong with the agent
                await self._ask_memory(actuator)

        await run_sampling(self.guest, self._journal, self._control, on_news, ask_memory)


async def send_once(guest: Guest, target_bytes: int, timeout_s: float) -> None:
    """Ask for one size over a connection of its own: the last resort when no session runs any more."""
    async with open_monitor(guest.config.monitor, timeout_s=timeout_s) as monitor:
        with deadline(timeout_s, monitor.address, "the last command"):
            await (await choose_actuator(monitor)).order(target_bytes)
