"""The guest-agent client: commands, files and programs in one guest. Everything it returns is the guest's word."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

import trio

from qmpalloc.errors import NonsenseError, QmpallocError, RefusedError
from qmpalloc.qmp.agent_channel import AgentChannel, NoiseAllowance
from qmpalloc.qmp.agent_files import file_trouble, program_hint
from qmpalloc.qmp.agent_types import (
    AgentInfo,
    ExecReply,
    ExecResult,
    ExecStatusReply,
    Handle,
    InfoReply,
    ReadReply,
    WriteReply,
    decode_base64,
)
from qmpalloc.qmp.connect import connect
from qmpalloc.qmp.connection import Connection, running
from qmpalloc.qmp.framing import encode
from qmpalloc.qmp.replies import convert, typed

CLOSE_FILE_LIMIT_S = 1.0
"""How long closing a file in the guest may go on after its reader was cancelled."""

READ_CHUNK_BYTES = 512 * 1024
"""Largest single read; in base64 it stays below the limit of a line."""

SHORT_READS_MAX = 16
"""Reads of one file that bring less than was asked for. An agent reads on until it has all or the end (``fread``); one
that gives crumbs would have us ask for ever."""

WRITE_CHUNK_BYTES = 64 * 1024
"""Largest single write. An emulated guest takes 1 to 3 MB/s, no more in larger pieces; between two of them other
commands have their turn."""

EXEC_POLL_FIRST_S = 0.02
EXEC_POLL_MAX_S = 0.5

T = TypeVar("T")


class Agent:
    """A connection to a guest agent, which may not be running yet. Open one with `open_agent`.

    The agent executes one command at a time; calls from several tasks queue up. No call has a time limit of its own:
    wrap it in `deadline`. After a cancelled call, and before the first, the channel is synchronised.

    Attributes:
        address: Path of the socket.
    """

    def __init__(self, stream: trio.abc.Stream, address: str, noise: NoiseAllowance | None = None) -> None:
        self.address = address
        self._connection = Connection(stream, address)
        self._channel = AgentChannel(self._connection, noise)
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        state = "closed" if self.closed.is_set() else "synced" if self._channel.synced else "not synced"
        return f"<Agent {self.address} {state}>"

    @property
    def closed(self) -> trio.Event:
        """Set when the connection has ended; `cause` then says why."""
        return self._connection.closed

    @property
    def cause(self) -> QmpallocError | None:
        """Why the connection ended; None while it lives."""
        return self._connection.cause

    @property
    def skipped(self) -> int:
        """Lines the guest sent that answered nothing: late answers, error messages about noise, garbage."""
        return self._channel.skipped

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Run a guest-agent command and return what it returned.

        Raises:
            RefusedError: The agent answered with an error.
            DisconnectedError: The connection ended before the answer.
            NonsenseError: The answer breaks the protocol; the next call synchronises again.
        """
        async with self._lock:
            await self._prepare()
            return await self._channel.command(command, arguments)

    async def forward(self, command: str, arguments: Mapping[str, object] | None) -> object:
        """As `execute`, for another client, who judges the answer: all of it is taken for what was asked for."""
        result = await self.execute(command, arguments)
        self._channel.noise.used(len(encode({"return": result})))
        return result

    async def sync(self) -> None:
        """Synchronise now: returns when the agent runs and has answered everything sent before.

        Raises:
            RefusedError: The agent does not know ``guest-sync-delimited``.
            DisconnectedError: The connection ended.
        """
        async with self._lock:
            await self._channel.sync()

    async def info(self) -> AgentInfo:
        """Return the agent's version and the commands it executes. Errors as `execute`."""
        return (await self._typed("guest-info", None, InfoReply)).values()

    async def is_frozen(self) -> bool:
        """Return whether a backup has frozen the guest's file systems. The agent does little else then."""
        return await self.execute("guest-fsfreeze-status") == "frozen"

    async def read_file(self, path: str, max_bytes: int, *, chunk_bytes: int = READ_CHUNK_BYTES) -> bytes:
        """Return the content of a file in the guest, or its first ``max_bytes + 1`` bytes if it is longer.

        Cancelling closes the file in the guest, for which it takes up to a second; a file whose opening was cancelled
        is closed before the next command, or when the connection is.

        Args:
            path: Absolute, in the guest.
            max_bytes: Longest file of use to the caller, who should refuse a longer result.
            chunk_bytes: The most to ask for at once.

        Raises:
            RefusedError: No such file, no permission, or the agent may not read files; with a hint where `file_trouble`
                knows one.
            DisconnectedError: The connection ended.
            NonsenseError: The agent contradicts itself.
        """
        try:
            opened = await self.execute("guest-file-open", {"path": path, "mode": "r"})
        except RefusedError as error:
            error.hint = file_trouble(error).hint
            raise
        handle = convert(opened, Handle, f"{self.address}: the reply to guest-file-open")
        try:
            return await self._read_all(handle, max_bytes, min(chunk_bytes, READ_CHUNK_BYTES))
        finally:
            await self._close_late(handle)

    @asynccontextmanager
    async def follow_file(self, path: str) -> AsyncIterator[Follower]:
        """Open a file in the guest that grows while it is read; it is closed at the end of the block.

        Raises:
            QmpallocError: As `read_file`.
        """
        opened = await self.execute("guest-file-open", {"path": path, "mode": "r"})
        handle = convert(opened, Handle, f"{self.address}: the reply to guest-file-open")
        try:
            yield Follower(self, handle)
        finally:
            await self._close_late(handle)

    async def write_file(self, path: str, data: bytes) -> None:
        """Make a file in the guest, or replace the content of one that is there; not atomic.

        Cancelling leaves a part of `data` in it; the file is closed as in `read_file`.

        Args:
            path: Absolute, in the guest.
            data: All of the new content.

        Raises:
            RefusedError: No such directory, no permission, no room, or the agent may not write files.
            DisconnectedError: The connection ended.
            NonsenseError: The agent contradicts itself.
        """
        with _hinted():
            opened = await self.execute("guest-file-open", {"path": path, "mode": "w"})
        handle = convert(opened, Handle, f"{self.address}: the reply to guest-file-open")
        try:
            await self._write_all(handle, data)
            # Closing flushes, and so is where a full file system may be noticed: its error is the caller's.
            await self.execute("guest-file-close", {"handle": handle})
        except RefusedError as error:
            if error.command != "guest-file-close":  # else it is gone, and must not be closed a second time
                await self._close_late(handle)
            raise
        except BaseException:
            await self._close_late(handle)
            raise

    async def start(self, argv: Sequence[str]) -> int:
        """Start a program in the guest, not waiting for it, its output thrown away. Return its process id there.

        Raises:
            RefusedError: No such program, or the agent may not execute any. Otherwise as `execute`.
        """
        arguments = {"path": argv[0], "arg": list(argv[1:]), "capture-output": False}
        with _hinted():
            return (await self._typed("guest-exec", arguments, ExecReply)).pid

    async def run(self, argv: Sequence[str], *, input_data: bytes | None = None) -> ExecResult:
        """Run a program in the guest to its end.

        Cancelling stops waiting; the program goes on. Its output must fit into one line of the protocol, about
        700 KiB.

        Args:
            argv: Program and arguments; no shell is involved.
            input_data: Its standard input.

        Raises:
            RefusedError: No such program, or the agent may not execute any. Otherwise as `execute`.
        """
        arguments: dict[str, object] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if input_data is not None:
            arguments["input-data"] = base64.b64encode(input_data).decode("ascii")
        with _hinted():
            pid = (await self._typed("guest-exec", arguments, ExecReply)).pid
        pause_s = EXEC_POLL_FIRST_S
        while True:
            result = await self.poll(pid)
            if result is not None:
                return result
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, EXEC_POLL_MAX_S)

    async def poll(self, pid: int) -> ExecResult | None:
        """Return how a program that was started ended; None while it runs. The agent tells the end once only.

        Args:
            pid: From `start`.

        Raises:
            RefusedError: No such program was started, or its end was told before. Otherwise as `execute`.
        """
        status = await self._typed("guest-exec-status", {"pid": pid}, ExecStatusReply)
        if not status.exited:
            return None
        result = status.values(self.address)
        self._channel.noise.used(_base64_bytes(len(result.out)) + _base64_bytes(len(result.err)))
        return result

    async def _typed(self, command: str, arguments: Mapping[str, object] | None, kind: type[T]) -> T:
        return typed(await self.execute(command, arguments), kind, command, self.address)

    async def _prepare(self) -> None:
        """Under the lock: bring the channel to a known state and close files that nobody reads."""
        if not self._channel.synced:
            await self._channel.sync()
        handles = self._channel.late_handles
        while handles:
            handle = handles[-1]
            # A refusal says that it is not open, nonsense that asking again would not help.
            with suppress(RefusedError, NonsenseError):
                await self._channel.command("guest-file-close", {"handle": handle})
            handles.remove(handle)  # not pop: others may have been added meanwhile
            if not self._channel.synced:
                await self._channel.sync()

    async def close_leftovers(self) -> None:
        """Close the files that cancelled calls left open in the guest, within a second. Called before disconnecting."""
        if self._channel.owes_handles and not self.closed.is_set():
            with trio.move_on_after(CLOSE_FILE_LIMIT_S, shield=True):
                await self._close_handles()

    async def _close_late(self, handle: int) -> None:
        self._channel.late_handles.append(handle)
        await self.close_leftovers()

    async def _close_handles(self) -> None:
        with suppress(QmpallocError):  # the data, or the error of reading it, matters more to the caller
            async with self._lock:
                await self._prepare()

    async def _read_all(self, handle: int, max_bytes: int, chunk_bytes: int) -> bytes:
        data, short = bytearray(), 0
        while len(data) <= max_bytes:
            wanted = min(max_bytes + 1 - len(data), chunk_bytes)
            chunk, at_end = await self._read_chunk(handle, wanted)
            data += chunk
            if at_end:
                break
            short += len(chunk) < wanted
            if short > SHORT_READS_MAX:
                raise NonsenseError(f"{self.address}: the agent reads a file in crumbs")
            if not chunk:
                raise NonsenseError(f"{self.address}: the agent reads nothing and yet no end of the file")
        return bytes(data)

    async def _read_chunk(self, handle: int, wanted: int) -> tuple[bytes, bool]:
        """Return the next `wanted` bytes of a file, or fewer, and whether its end was met."""
        reply = await self._typed("guest-file-read", {"handle": handle, "count": wanted}, ReadReply)
        chunk = decode_base64(reply.buf_b64, self.address)
        if len(chunk) != reply.count or len(chunk) > wanted:
            raise NonsenseError(f"{self.address}: the agent lies about the length of what it read")
        self._channel.noise.used(_base64_bytes(len(chunk)))
        return chunk, reply.eof

    async def _write_all(self, handle: int, data: bytes) -> None:
        start = 0
        while start < len(data):
            chunk = data[start : start + WRITE_CHUNK_BYTES]
            arguments = {"handle": handle, "buf-b64": base64.b64encode(chunk).decode("ascii")}
            written = (await self._typed("guest-file-write", arguments, WriteReply)).count
            if not 0 < written <= len(chunk):
                raise NonsenseError(f"{self.address}: the agent lies about the length of what it wrote")
            start += written


class Follower:
    """A file in the guest, read on from where the last reading ended. See `Agent.follow_file`."""

    def __init__(self, agent: Agent, handle: int) -> None:
        self._agent = agent
        self._handle = handle

    async def read(self) -> bytes:
        """Return what has been added since, at most `READ_CHUNK_BYTES`; empty: nothing yet. Errors as `read_file`.

        A guest agent forgets that it met the end of a file, so that the next call sees what was added.
        """
        return (await self._agent._read_chunk(self._handle, READ_CHUNK_BYTES))[0]


@contextmanager
def _hinted() -> Iterator[None]:
    """Add what a person can do when an agent refuses to run a program, or to take a file."""
    try:
        yield
    except RefusedError as error:
        error.hint = error.hint or program_hint(error)
        raise


def _base64_bytes(count: int) -> int:
    """Return how long so many bytes are in base64."""
    return (count + 2) // 3 * 4


@asynccontextmanager
async def open_agent(path: str, *, timeout_s: float = 5.0, noise: NoiseAllowance | None = None) -> AsyncIterator[Agent]:
    """Connect to a guest agent's socket.

    QEMU accepts the connection whether or not an agent runs in the guest, and whether or not it already serves another
    client; the first command tells.

    Args:
        path: Of the Unix socket.
        timeout_s: For connecting.
        noise: What the guest may send that is of no use, for who connects again and again; else as much each time.

    Raises:
        UnreachableError: Nobody listens, or we may not connect.
    """
    stream = await connect(path, timeout_s=timeout_s)
    async with open_agent_on(stream, address=path, noise=noise) as agent:
        yield agent


@asynccontextmanager
async def open_agent_on(
    stream: trio.abc.Stream, *, address: str, noise: NoiseAllowance | None = None
) -> AsyncIterator[Agent]:
    """Use a stream that is already open, and own it from then on. `address` names the peer in errors."""
    agent = Agent(stream, address, noise)
    async with running(agent._connection, agent._channel):
        try:
            yield agent
        finally:
            await agent.close_leftovers()
