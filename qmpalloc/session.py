"""The connections to one guest: keep them, feed `Guest` with what they tell, send its balloon commands.

`run_guest` never ends by itself and never raises for what a guest or its QEMU does: that becomes a state of the guest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import trio

from qmpalloc.config import ControlConfig
from qmpalloc.errors import (
    DeadlineError,
    DisconnectedError,
    NonsenseError,
    QmpallocError,
    RefusedError,
    SampleError,
    SampleFault,
    UnreachableError,
)
from qmpalloc.events import Commanded, Sampled, SampleRejected
from qmpalloc.guest import Facts, Guest, Link
from qmpalloc.journal import Journal
from qmpalloc.ledger import Order
from qmpalloc.qmp import Agent, Monitor, deadline, open_agent, open_monitor
from qmpalloc.sample import FILE_MAX_BYTES, parse
from qmpalloc.units import align_down

Purpose = Literal["adopt", "shrink", "grant"]

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 5.0

CONFIRM_AFTER_S = 0.2
"""A size queried this long after QEMU took a command counts as its effect: a driver in mid-move completes the 1 MiB
it is working on before it looks at the new target (``update_balloon_size_func`` in drivers/virtio/virtio_balloon.c)."""


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
        self._timeout_s = float(control.command_timeout)
        self._sample_interval_s = float(control.sample_interval)
        self._balloon_poll_s = float(control.balloon_poll)
        self._may_command = may_command
        self._on_change = on_change
        self._on_reset = on_reset
        self._order: tuple[int, int, Purpose] | None = None
        self._unanswered: Purpose | None = None
        self._order_given = trio.Event()
        self._poll_now = trio.Event()
        self._confirm_from_s: float | None = None

    def give(self, order: Order) -> None:
        """Take an order for this guest, charged at once and sent soon; it replaces one that was not sent yet."""
        self._give(order.target_bytes, order.purpose)

    def _give(self, target_bytes: int, purpose: Purpose) -> None:
        assert self._may_command, "this run observes only"
        previous_bytes = self.guest.target_bytes
        self.guest.ordered(target_bytes)
        self._confirm_from_s = self._unanswered = None
        self._order = (target_bytes, previous_bytes, purpose)
        self._order_given.set()

    async def run(self) -> None:
        """Connect, serve, and connect again, for ever."""
        delay_s = RETRY_FIRST_S
        while True:
            try:
                async with open_monitor(self.guest.config.monitor, timeout_s=self._timeout_s) as monitor:
                    delay_s = RETRY_FIRST_S
                    await self._serve(monitor)
            except UnreachableError as error:
                self._lost(Link.GONE if error.absent else Link.HUNG, error)
            except (NonsenseError, RefusedError) as error:
                self._lost(Link.HELD, error)
            await trio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_MOST_S)

    def _lost(self, link: Link, error: QmpallocError) -> None:
        # A connection that just broke says nothing about the QEMU behind it; the next attempt will. Until then the
        # guest stays charged. One that never answered before is still expected.
        if self.guest.link is Link.CONNECTING and link is Link.GONE:
            link = Link.CONNECTING
        self.guest.disconnected(link, error.message)
        self._order = self._unanswered = None
        self._journal.fault(self.guest.name, "monitor", error.message, error.hint)
        self._on_change()

    async def _serve(self, monitor: Monitor) -> None:
        """Serve one monitor connection until it ends."""
        guest = self.guest
        with deadline(self._timeout_s, monitor.address, "the questions at connection"):
            facts = await ask_facts(monitor)
            status = await monitor.query_status()
            actual_bytes = await monitor.query_balloon()
        guest.connected(facts, actual_bytes, self._journal.now_s(), paused=not status.running)
        self._journal.clear_fault(guest.name, "monitor")
        if self._may_command:
            # QEMU cannot be asked for its target. Setting it to the size found makes it known, and ends a move that
            # another controller may have left half done.
            self._give(align_down(guest.target_bytes), "adopt")
            guest.desired_bytes = guest.target_bytes
        self._on_change()
        async with trio.open_nursery() as nursery:
            for task in (self._watch_balloon, self._send_orders, self._watch_events):
                nursery.start_soon(_until_disconnected, task, monitor)
            nursery.start_soon(self._read_samples)
            await monitor.closed.wait()
            nursery.cancel_scope.cancel()
        raise DisconnectedError(f"{monitor.address}: the monitor connection ended", address=monitor.address)

    # --- balloon ----------------------------------------------------------------------------------------------------

    async def _watch_balloon(self, monitor: Monitor) -> None:
        guest = self.guest
        while True:
            self._poll_now = trio.Event()
            asked_s = self._journal.now_s()
            try:
                with deadline(self._timeout_s, monitor.address, "query-balloon"):
                    actual_bytes = await monitor.query_balloon()
            except DeadlineError as error:
                self._hung(error)
                continue
            except RefusedError as error:
                guest.link, guest.detail = Link.HELD, error.message
                self._journal.fault(guest.name, "balloon", error.message, error.hint)
                self._on_change()
                await trio.sleep(RETRY_MOST_S)
                continue
            self._answered()
            changed = actual_bytes != guest.actual_bytes
            guest.actual_bytes = actual_bytes
            if self._confirm_from_s is not None and asked_s >= self._confirm_from_s:
                self._confirm_from_s = None
                guest.confirmed()
                changed = True
            if changed:
                self._on_change()
            with trio.move_on_after(self._sample_interval_s if guest.settled else self._balloon_poll_s):
                await self._poll_now.wait()

    def _hung(self, error: DeadlineError) -> None:
        if self.guest.link is Link.UP:
            self.guest.link, self.guest.detail = Link.HUNG, error.message
            self._journal.fault(self.guest.name, "monitor", error.message, error.hint)
            self._on_change()

    def _answered(self) -> None:
        if self.guest.link in {Link.HUNG, Link.HELD}:
            self.guest.link, self.guest.detail = Link.UP, ""
            self._journal.clear_fault(self.guest.name, "monitor")
            self._journal.clear_fault(self.guest.name, "balloon")
            self._on_change()
        if self._unanswered is not None:
            self._give(self.guest.target_bytes, self._unanswered)

    async def _send_orders(self, monitor: Monitor) -> None:
        guest = self.guest
        while True:
            await self._order_given.wait()
            self._order_given = trio.Event()
            if self._order is None:
                continue
            (target_bytes, previous_bytes, purpose), self._order = self._order, None
            error_text = ""
            try:
                with deadline(self._timeout_s, monitor.address, "balloon"):
                    await monitor.balloon(target_bytes)
            except DeadlineError as error:
                # Whether it took effect is unknown, so both sizes stay charged until a later command is confirmed.
                error_text = error.message
                self._unanswered = purpose
                self._hung(error)
            except RefusedError as error:
                error_text = error.message
                guest.refused(previous_bytes)
                guest.link, guest.detail = Link.HELD, error.message
                self._journal.fault(guest.name, "balloon", error.message, error.hint)
            else:
                if self._order is None:
                    self._confirm_from_s = self._journal.now_s() + CONFIRM_AFTER_S
            self._journal.emit(
                Commanded,
                guest=guest.name,
                target_bytes=target_bytes,
                previous_bytes=previous_bytes,
                purpose=purpose,
                error=error_text,
            )
            self._poll_now.set()
            self._on_change()

    async def _watch_events(self, monitor: Monitor) -> None:
        guest = self.guest
        with monitor.subscribe() as events:
            async for event in events:
                match event.name:
                    case "BALLOON_CHANGE":
                        self._poll_now.set()
                    case "STOP":
                        guest.paused = True
                    case "RESUME":
                        guest.paused = False
                    case "RESET":
                        guest.was_reset()
                        self._on_reset(guest)
                    case _:
                        continue
                self._on_change()

    # --- samples ----------------------------------------------------------------------------------------------------

    async def _read_samples(self) -> None:
        guest, name = self.guest, self.guest.name
        while True:
            try:
                async with open_agent(guest.config.agent, timeout_s=self._timeout_s) as agent:
                    next_s = trio.current_time()
                    while True:
                        await self._read_sample(agent)
                        self._journal.clear_fault(name, "agent")
                        # Monotonic schedule without drift; a late reading does not cause a burst.
                        next_s = max(next_s + self._sample_interval_s, trio.current_time())
                        await trio.sleep_until(next_s)
            except (UnreachableError, NonsenseError) as error:
                self._journal.fault(name, "agent", error.message, error.hint)
                await trio.sleep(self._sample_interval_s)

    async def _read_sample(self, agent: Agent) -> None:
        guest = self.guest
        try:
            with deadline(self._timeout_s, guest.config.agent, "reading the counters file"):
                data = await agent.read_file(guest.config.counters_file, FILE_MAX_BYTES)
        except RefusedError as error:
            fault = SampleFault.MISSING
            self._journal.emit(SampleRejected, guest=guest.name, fault=fault, message=error.message)
            return
        try:
            accepted = guest.take_sample(parse(data), self._journal.now_s())
        except SampleError as error:
            if error.fault is not SampleFault.REPEATED:
                self._journal.emit(SampleRejected, guest=guest.name, fault=error.fault, message=error.message)
            return
        self._journal.emit(Sampled, guest=guest.name, sample=accepted.sample, delta=accepted.delta)


async def _until_disconnected(task: Callable[[Monitor], object], monitor: Monitor) -> None:
    """Run one of the tasks of a connection; its end is noticed by who waits for `monitor.closed`."""
    try:
        await task(monitor)  # type: ignore[misc]
    except DisconnectedError:
        return


async def ask_facts(monitor: Monitor) -> Facts:
    """Return what a guest's QEMU was started with.

    Raises:
        RefusedError: It has no balloon device.
        NonsenseError: It answers what QMP does not allow.
    """
    path = await monitor.find_balloon()
    if path is None:
        raise RefusedError(
            f"{monitor.address}: this QEMU has no balloon device",
            command="query-balloon",
            error_class="DeviceNotActive",
            hint="start it with -device virtio-balloon-pci,id=balloon0,deflate-on-oom=on,free-page-reporting=on",
        )
    memory = await monitor.execute("query-memory-size-summary")
    ram_bytes = memory.get("base-memory") if isinstance(memory, dict) else None
    if not isinstance(ram_bytes, int) or ram_bytes <= 0:
        raise NonsenseError(f"{monitor.address}: query-memory-size-summary gave no base-memory")
    deflate = await monitor.execute("qom-get", {"path": path, "property": "deflate-on-oom"})
    version = ".".join(str(part) for part in monitor.qemu_version)
    return Facts(ram_bytes=ram_bytes, balloon_path=path, deflate_on_oom=deflate is True, qemu_version=version)
