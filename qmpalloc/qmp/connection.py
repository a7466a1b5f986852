"""One connection: whole lines out, frames in, one reader and one writer task, and how it ended.

Knows frames, not commands; `Monitor` and `Agent` are built on it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from qmpalloc.allowance import Allowance
from qmpalloc.errors import DisconnectedError, NonsenseError, QmpallocError
from qmpalloc.qmp.framing import Frame, Framer, Splitter

CLOSE_LIMIT_S = 1.0
RECEIVE_BYTES = 65536

PIECES_PER_S = 100
PIECES_AT_ONCE = 500
PAUSE_S = 0.02
"""A peer that sends crumbs costs a wake-up of this process for each. After so many pieces a second reading pauses
before the next, and the kernel joins them meanwhile: nothing is lost, and large pieces come as fast as before."""


class Handler(Protocol):
    """What a connection delivers to. The methods are called from the connection's tasks and must not block."""

    def on_bytes(self, count: int) -> None:
        """Take notice that so many bytes came, before what they hold; raising `NonsenseError` ends the connection."""
        ...

    def on_frame(self, frame: Frame) -> None:
        """Take a frame; raising `NonsenseError` ends the connection."""
        ...

    def on_end(self) -> None:
        """Take notice that nothing more will come."""
        ...


class Connection:
    """A stream of lines out, and of frames in.

    What the kernel does not take of a line at once is written by a task of its own: cancelling a sender can drop a
    line, but never leaves half of one on the wire, which would spoil every later command.

    Args:
        splitter: How what comes in is split into frames; by lines if it is not given.

    Attributes:
        address: Names the peer in errors; the path of a Unix socket.
        closed: Set when the connection has ended, whoever ended it.
        cause: Why it ended; None while it lives.
    """

    def __init__(self, stream: trio.abc.Stream, address: str, splitter: Splitter | None = None) -> None:
        self.address = address
        self.closed = trio.Event()
        self.cause: QmpallocError | None = None
        self._stream = stream
        self._splitter: Splitter = splitter or Framer()
        self._outbox, self._outgoing = trio.open_memory_channel[bytes](0)

    @property
    def pending_bytes(self) -> int:
        """Bytes received of a frame that has not ended yet."""
        return self._splitter.pending_bytes

    async def send(self, line: bytes) -> None:
        """Write a line, or hand it to the writer. Cancelling is safe: it is then written whole, or not at all.

        Raises:
            DisconnectedError: The connection has ended.
        """
        try:
            if self._outbox.statistics().tasks_waiting_receive:  # the writer rests: nothing is to go before this line
                line = line[self._write_now(line) :]
                if line:
                    self._outbox.send_nowait(line)
            else:
                await self._outbox.send(line)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self.ended() from error

    def _write_now(self, line: bytes) -> int:
        """Return how many bytes of a line the kernel has taken without waiting: none where the stream is no socket."""
        if not isinstance(self._stream, trio.SocketStream):
            return 0
        try:
            return os.write(self._stream.socket.fileno(), line)
        except OSError:
            return 0  # the writer tells why, if it cannot wait for better

    def ended(self) -> QmpallocError:
        """Return a new error that says why the connection ended, for one waiter."""
        cause = self.cause
        if isinstance(cause, NonsenseError):
            error: QmpallocError = type(cause)(cause.message, hint=cause.hint)
        else:
            reason = cause.message if cause is not None else f"{self.address}: the connection is closed"
            error = DisconnectedError(reason, address=self.address)
        error.__cause__ = cause
        return error

    async def run(self, handler: Handler) -> None:
        """Deliver frames to `handler` until the peer hangs up, breaks the protocol, or we are cancelled."""
        cause: QmpallocError = self._disconnected("the connection was closed by us")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_writer)
                cause = await self._run_reader(handler)
                nursery.cancel_scope.cancel()
        finally:
            self.cause = cause
            self.closed.set()
            self._outgoing.close()
            self._outbox.close()
            handler.on_end()
            with trio.move_on_after(CLOSE_LIMIT_S, shield=True):
                await trio.aclose_forcefully(self._stream)

    async def _run_reader(self, handler: Handler) -> QmpallocError:
        try:
            pieces = Allowance(PIECES_PER_S, PIECES_AT_ONCE)
            while data := await self._stream.receive_some(RECEIVE_BYTES):
                if len(data) < RECEIVE_BYTES // 2 and not pieces.take(1, trio.current_time()):
                    await trio.sleep(PAUSE_S)
                handler.on_bytes(len(data))
                for frame in self._splitter.feed(data):
                    handler.on_frame(frame)
        except NonsenseError as error:
            return type(error)(f"{self.address}: {error.message}", hint=error.hint)
        except trio.BrokenResourceError as error:
            return self._disconnected(f"the connection broke: {error.__cause__ or error}")
        except trio.ClosedResourceError:
            return self._disconnected("the peer stopped reading")  # found by the writer, who then closed the stream
        return self._disconnected("the peer closed the connection")

    async def _run_writer(self) -> None:
        async for line in self._outgoing:
            try:
                await self._stream.send_all(line)
            except trio.BrokenResourceError:
                # The reader finds the end itself, unless the peer only stopped reading; closing makes it certain.
                await trio.aclose_forcefully(self._stream)
                return

    def _disconnected(self, reason: str) -> DisconnectedError:
        return DisconnectedError(f"{self.address}: {reason}", address=self.address)


@asynccontextmanager
async def running(connection: Connection, handler: Handler) -> AsyncIterator[None]:
    """Run a connection's tasks around a block and close it after.

    The tasks outlive a cancellation from outside until the block has ended, so that its shielded clean-up can still
    send commands: return a guest to its baseline, close a file. An exception of the block leaves as it is, not in an
    exception group, so that callers can catch `RefusedError`.
    """
    service = trio.CancelScope(shield=True)

    async def serve() -> None:
        with service:
            await connection.run(handler)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                yield
            finally:
                service.cancel()
    except BaseExceptionGroup as group:
        single = _single(group)
        if single is None:
            raise
        # Raised from what it was raised from before: the group is our nursery's doing and says nothing to anyone.
        raise single from single.__cause__


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """Return the one exception that is not a cancellation, else None. Groups inside are the block's own: kept."""
    others = [error for error in group.exceptions if not isinstance(error, trio.Cancelled)]
    return others[0] if len(others) == 1 else None
