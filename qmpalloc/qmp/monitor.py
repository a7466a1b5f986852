"""The QMP client: one monitor of one QEMU.

The models of greeting and errors are qemu.qmp's; the transport is ours, because qemu.qmp's is asyncio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TypeVar

import trio
from qemu.qmp.models import Greeting

from qmpalloc.errors import BusyError, DeadlineError, NonsenseError, QmpallocError, RefusedError
from qmpalloc.qmp.connect import ONE_CLIENT_HINT, connect, listening_process
from qmpalloc.qmp.connection import Connection, running
from qmpalloc.qmp.framing import MESSAGE_MAX_BYTES, SENTINEL, Frame, Mark, MessageFramer, decode, encode
from qmpalloc.qmp.monitor_types import (
    BalloonActual,
    BalloonStats,
    BlockEntry,
    BlockStats,
    GuestStats,
    MemoryDevice,
    MemorySummary,
    QomProperty,
    VersionTriple,
    VmStatus,
)
from qmpalloc.qmp.pending import PendingReplies
from qmpalloc.qmp.replies import Count, convert, typed, unpack
from qmpalloc.qmp.subscriptions import MonitorEvent, Subscriptions, parse_event

NO_BALLOON_HINT = "start QEMU with -device virtio-balloon-pci,id=balloon0,deflate-on-oom=on,free-page-reporting=on"
NOT_QMP_HINT = "give the path of a socket made with -qmp, not of a human monitor (-monitor), console or agent"
SWAPPED_HINT = "are monitor and agent swapped in the configuration? the monitor is a socket made with -qmp"
PRECONFIG_HINT = "it has no machine yet: let it go on (QMP 'x-exit-preconfig'), or start it without --preconfig"
PRECONFIG_TEXT = "after machine initialization"
"""How a QEMU that waits because of ``--preconfig`` refuses a command, since 6.0 and before; from then on its status is
``prelaunch``, as with ``-S``. QEMU's texts are not translated."""

UNUSED_LIMITS = ("iops_rd", "iops_wr", "bps", "bps_rd", "bps_wr")
T = TypeVar("T")
BALLOON_TYPE = "virtio-balloon"
"""How the types of all balloon devices begin: -pci and its transitional kinds, -ccw, and -device on virtio-mmio."""

DEVICE_CONTAINERS = ("/machine/peripheral", "/machine/peripheral-anon")


class Monitor:
    """A QMP connection after its handshake. Open one with `open_monitor`.

    Commands can be sent from many tasks at once. None has a time limit of its own: wrap them in `deadline`. Cancelling
    one is safe for the connection, but whether the command took effect is then unknown.

    Attributes:
        address: Path of the socket.
        qemu_version: Major, minor, micro of the QEMU behind it.
        process_id: Of the process that listens on the socket, to tell a new QEMU from the last; None if not known.
        unexpected: Messages nobody waited for (replies to cancelled commands, unknown kinds), counted and dropped.
    """

    def __init__(self, stream: trio.abc.Stream, address: str) -> None:
        self.address = address
        self.qemu_version = (0, 0, 0)
        self.unexpected = 0
        self.process_id: int | None = None
        self._connection = Connection(stream, address, MessageFramer())
        self._pending = PendingReplies()
        self._subscriptions = Subscriptions()
        self._greeted = trio.Event()

    def __repr__(self) -> str:
        state = "closed" if self.closed.is_set() else f"{len(self._pending)} pending"
        return f"<Monitor {self.address} {state}>"

    @property
    def closed(self) -> trio.Event:
        """Set when the connection has ended; `cause` then says why."""
        return self._connection.closed

    @property
    def cause(self) -> QmpallocError | None:
        """Why the connection ended; None while it lives."""
        return self._connection.cause

    @property
    def events_dropped(self) -> int:
        """Events thrown away because a subscriber did not take them in time."""
        return self._subscriptions.dropped

    def subscribe(
        self, names: Container[str] | None = None
    ) -> AbstractContextManager[trio.MemoryReceiveChannel[MonitorEvent]]:
        """Collect QEMU's events for the time of a ``with`` block.

        Iterating over the channel ends with the connection. The buffer is bounded: who reads too slowly loses the
        oldest events, counted in `events_dropped`.

        Args:
            names: Collect only these; None for all.
        """
        return self._subscriptions.subscribe(names)

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Run a QMP command and return what it returned.

        Raises:
            RefusedError: QEMU answered with an error.
            DisconnectedError: The connection ended before the answer. Whether the command took effect is unknown.
            NonsenseError: The answer is not QMP.
        """
        return await self._execute(command, arguments)

    async def query_balloon(self) -> int:
        """Return the guest's actual size in bytes.

        Raises:
            RefusedError: There is no balloon device (``DeviceNotActive``). Otherwise as `execute`.
        """
        result = await self._execute("query-balloon", hint=NO_BALLOON_HINT)
        return self._typed(result, BalloonActual, "query-balloon").actual

    async def balloon(self, target_bytes: int) -> None:
        """Ask the guest to have that size. Success means only that QEMU noted it; see `query_balloon`.

        Raises:
            RefusedError: There is no balloon device. Otherwise as `execute`.
        """
        await self._execute("balloon", {"value": target_bytes}, hint=NO_BALLOON_HINT)

    async def query_status(self) -> VmStatus:
        """Return whether the virtual CPUs run, and if not, why."""
        return self._typed(await self._execute("query-status"), VmStatus, "query-status")

    async def base_memory(self) -> int:
        """Return the RAM that QEMU was started with (``-m``), in bytes; what was plugged later does not count."""
        result = await self._execute("query-memory-size-summary")
        return self._typed(result, MemorySummary, "query-memory-size-summary").base_memory

    async def memory_devices(self) -> list[MemoryDevice]:
        """Return what was plugged: DIMMs, virtio-mem devices and others."""
        result = await self._execute("query-memory-devices")
        return self._typed(result, list[MemoryDevice], "query-memory-devices")

    async def memory_address(self, qom_path: str) -> int:
        """Return where a memory device begins in the guest's memory.

        Args:
            qom_path: Of the device, from `devices`.
        """
        result = await self._execute("qom-get", {"path": qom_path, "property": "memaddr"})
        return self._typed(result, Count, "qom-get memaddr")

    async def devices(self) -> list[tuple[str, str]]:
        """Return QOM path and type of each device of the command line, or plugged later, with an id or without."""
        found = []
        for container in DEVICE_CONTAINERS:
            try:
                listing = await self._execute("qom-list", {"path": container})
            except RefusedError:
                continue  # a machine type without that container
            children = self._typed(listing, list[QomProperty], "qom-list")
            found += [(f"{container}/{child.name}", child.child_type) for child in children if child.child_type]
        return found

    async def find_balloon(self) -> str | None:
        """Return the QOM path of the balloon device; None when there is none."""
        return next((path for path, kind in await self.devices() if kind.startswith(BALLOON_TYPE)), None)

    async def balloon_stats(self, qom_path: str) -> BalloonStats:
        """Return what the guest's balloon driver last reported.

        Args:
            qom_path: Of the balloon device, from `find_balloon`.
        """
        result = await self._execute("qom-get", {"path": qom_path, "property": "guest-stats"})
        try:
            return self._typed(result, GuestStats, "qom-get guest-stats").values()
        except ValueError as error:
            raise NonsenseError(f"{self.address}: guest-stats: {error}") from error

    async def set_stats_interval(self, qom_path: str, seconds: int) -> None:
        """Let QEMU ask the guest's balloon driver every so many seconds; 0 stops it."""
        arguments = {"path": qom_path, "property": "guest-stats-polling-interval", "value": seconds}
        await self._execute("qom-set", arguments)

    async def block_stats(self) -> tuple[BlockStats, ...]:
        """Return what was read from each block device since QEMU started."""
        entries = self._typed(await self._execute("query-blockstats"), list[BlockEntry], "query-blockstats")
        return tuple(entry.values() for entry in entries)

    async def set_io_throttle(self, device: str, iops: int) -> None:
        """Limit the requests of a block device; bytes are not limited, and no bursts are granted beyond QEMU's own.

        QEMU lets a tenth of a second's worth of requests through at once after a pause (``docs/experiments.md``).

        Args:
            device: The ``-drive`` id.
            iops: Reads and writes per second together; 0 removes the limit.

        Raises:
            RefusedError: There is no such device (``DeviceNotFound``), or the limit is out of QEMU's range.
        """
        arguments = {"device": device, "iops": iops} | dict.fromkeys(UNUSED_LIMITS, 0)
        await self._execute("block_set_io_throttle", arguments)

    async def _execute(self, command: str, arguments: Mapping[str, object] | None = None, *, hint: str = "") -> object:
        if self.closed.is_set():
            await trio.lowlevel.checkpoint()
            raise self._connection.ended()
        request: dict[str, object] = {"execute": command, "id": self._pending.next_id()}
        if arguments is not None:
            request["arguments"] = arguments
        with self._pending.expect(str(request["id"])) as reply:
            await self._connection.send(encode(request))
            message = await reply.wait()
        try:
            return unpack(message, command, self.address, hint=hint)
        except RefusedError as error:
            if PRECONFIG_TEXT in error.message:
                error.hint = PRECONFIG_HINT
            raise

    def _typed(self, result: object, kind: type[T], command: str) -> T:
        return typed(result, kind, command, self.address)

    # What follows is for the connection and for `open_monitor_on`.

    def on_bytes(self, count: int) -> None:
        """Take notice that bytes came. A QEMU may send as much as it likes."""

    def on_frame(self, frame: Frame) -> None:
        """Take a message from the connection."""
        if frame is Mark.OVERLONG and self._greeted.is_set():
            self._skip()
            return
        if frame is Mark.SENTINEL and not self._greeted.is_set():
            raise NonsenseError("a guest agent answers on this socket, not QMP", hint=SWAPPED_HINT)
        if isinstance(frame, Mark):
            raise NonsenseError("the peer sent bytes that QMP does not have", hint=NOT_QMP_HINT)
        if not self._greeted.is_set():
            self._take_greeting(frame)
            return
        message = decode(frame)
        if "event" in message:
            try:
                self._subscriptions.publish(parse_event(message))
            except NonsenseError:
                self.unexpected += 1  # of a kind we do not know; the replies around it are sound
        elif not self._pending.deliver(message):
            self.unexpected += 1

    def _skip(self) -> None:
        """Take notice of a message that was too long. QEMU answers in order, so it was to the oldest command."""

        def too_long() -> NonsenseError:
            return NonsenseError(f"{self.address}: QEMU's answer is longer than {MESSAGE_MAX_BYTES >> 20} MiB")

        if not self._pending.fail_oldest(too_long):
            self.unexpected += 1

    def on_end(self) -> None:
        """Take notice that the connection has ended."""
        self._greeted.set()  # wakes the handshake, which then finds the connection closed
        self._pending.fail(self._connection.ended)
        self._subscriptions.end()

    def _take_greeting(self, line: bytes) -> None:
        try:
            message = decode(line)
            if "event" in message or "return" in message or "error" in message:
                # Meant for the client before us: QEMU greets a moment after it has taken a new one. Or what answers is
                # an agent, which never greets.
                self.unexpected += 1
                return
            greeting = Greeting(message)
            version = convert(greeting.QMP.version.get("qemu"), VersionTriple, "the greeting's version")
        except (KeyError, TypeError, NonsenseError) as error:
            raise NonsenseError("what answers on this socket is not QMP", hint=NOT_QMP_HINT) from error
        self.qemu_version = (version.major, version.minor, version.micro)
        self._greeted.set()

    async def handshake(self, timeout_s: float) -> None:
        """Wait for the greeting and leave capabilities negotiation.

        A socket that does not greet for half the time is asked what only a guest agent answers. To a QEMU that serves
        somebody else, or is stopped, that is an unknown command from a client that has gone.

        Raises:
            DisconnectedError, NonsenseError: The connection ended, or is not QMP.
        """
        with trio.move_on_after(timeout_s / 2):
            await self._greeted.wait()
        if not self._greeted.is_set():
            await self._connection.send(SENTINEL + encode({"execute": "guest-sync-delimited", "arguments": {"id": 1}}))
            await self._greeted.wait()
        await self._execute("qmp_capabilities")

    def silence(self, timeout_s: float) -> QmpallocError:
        """Return why the handshake took longer than `timeout_s`."""
        if self._greeted.is_set():
            return DeadlineError(f"{self.address}: no answer to qmp_capabilities", address=self.address)
        if self._connection.pending_bytes or self.unexpected:
            return NonsenseError(f"{self.address}: what answers on this socket is not QMP", hint=NOT_QMP_HINT)
        return BusyError(
            f"{self.address}: connected, but no greeting within {timeout_s:.3g} s",
            address=self.address,
            hint=ONE_CLIENT_HINT,
        )


@asynccontextmanager
async def open_monitor(path: str, *, timeout_s: float = 5.0) -> AsyncIterator[Monitor]:
    """Connect to a QMP socket and complete the handshake.

    Args:
        path: Of the Unix socket.
        timeout_s: For connecting and the handshake together.

    Raises:
        UnreachableError: Nobody listens, or we may not connect.
        BusyError: Connected, but not greeted: another client holds the socket, or QEMU is stopped.
        DeadlineError: Greeted, but QEMU does not answer.
        NonsenseError: What answers is not QMP.
    """
    started = trio.current_time()
    stream = await connect(path, timeout_s=timeout_s)
    left_s = max(0.0, started + timeout_s - trio.current_time())
    async with open_monitor_on(stream, address=path, timeout_s=left_s) as monitor:
        monitor.process_id = listening_process(stream)
        yield monitor


@asynccontextmanager
async def open_monitor_on(stream: trio.abc.Stream, *, address: str, timeout_s: float = 5.0) -> AsyncIterator[Monitor]:
    """Complete the handshake on a stream that is already open, and own the stream from then on.

    Errors as in `open_monitor`. `address` names the peer in them.
    """
    monitor = Monitor(stream, address)
    async with running(monitor._connection, monitor):
        with trio.move_on_after(timeout_s) as scope:
            await monitor.handshake(timeout_s)
        if scope.cancelled_caught:
            raise monitor.silence(timeout_s)
        yield monitor
