"""The other end: attaching to a run, and asking something of it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec
import trio
from msgspec import Struct

from qmpalloc import events
from qmpalloc.errors import DeadlineError, DisconnectedError, NonsenseError, RefusedError, UnreachableError
from qmpalloc.events import Answer, AnyEvent, Header, Request
from qmpalloc.record import LINE_MAX_BYTES
from qmpalloc.status.place import STATUS
from qmpalloc.status.protocol import encode_request

ANSWER_S = 10.0
FIRST_S = 10.0
"""What a controller may take to begin: it is asked between two of its steps."""

SAME_HINT = "the controller is another version of qmpalloc, or this is none; attach with the qmpalloc that it runs"


class _Envelope(Struct, frozen=True, kw_only=True):
    """The part of a header that is the same in all versions."""

    type: Literal["header"]
    format: Literal["qmpalloc-record"]
    version: int


@asynccontextmanager
async def _connected(path: Path) -> AsyncIterator[trio.SocketStream]:
    try:
        stream = await trio.open_unix_socket(str(path))
    except (OSError, ValueError) as error:
        raise UnreachableError(
            f"{path}: {getattr(error, 'strerror', None) or error}",
            address=str(path),
            hint="the controller has just ended, or is another user's",
        ) from error
    async with stream:
        yield stream


class Attached:
    """A run that is looked at.

    Attributes:
        header: Its first event.
    """

    def __init__(self, stream: trio.SocketStream, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._data = bytearray()
        self.header: Header

    async def begin(self) -> None:
        """Receive the header.

        Raises:
            NonsenseError: It is none, or of another version.
            DeadlineError: There is none.
        """
        with trio.move_on_after(FIRST_S):
            line = await self._line()
            try:
                version = msgspec.json.decode(line, type=_Envelope).version
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise NonsenseError(f"{self._path}: no qmpalloc answers here: {error}", hint=SAME_HINT) from error
            if version != events.VERSION:
                message = f"{self._path}: the controller speaks version {version}, and this is version {events.VERSION}"
                raise NonsenseError(message, hint=SAME_HINT)
            first = self._decoded(line)
            assert isinstance(first, Header)
            self.header = first
            return
        raise DeadlineError(
            f"{self._path}: the controller does not answer", address=str(self._path), hint="is its process stopped?"
        )

    async def next(self) -> AnyEvent:
        """Return the next event; the last is an `Ended`.

        Raises:
            DisconnectedError: The stream ends without one.
            NonsenseError: What came is no event.
        """
        return self._decoded(await self._line())

    def _decoded(self, line: bytes) -> AnyEvent:
        try:
            return events.decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NonsenseError(f"{self._path}: not an event: {error}", hint=SAME_HINT) from error

    async def _line(self) -> bytes:
        searched = 0
        while (end := self._data.find(b"\n", searched)) < 0:
            searched = len(self._data)
            if searched > LINE_MAX_BYTES:
                raise NonsenseError(f"{self._path}: a line longer than {LINE_MAX_BYTES} bytes", hint=SAME_HINT)
            try:
                data = await self._stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                raise DisconnectedError(
                    f"{self._path}: the controller closed the stream before its run had ended",
                    address=str(self._path),
                    hint="it was killed, or this was too slow for it (stopped with Ctrl-Z?): attach again",
                )
            self._data += data
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line


@asynccontextmanager
async def attach(path: Path) -> AsyncIterator[Attached]:
    """Attach to the run that serves its status on a socket.

    Raises:
        UnreachableError: Nobody does.
        NonsenseError: Something else does, or another version.
    """
    assert path.suffix == f".{STATUS}"
    async with _connected(path) as stream:
        run = Attached(stream, path)
        await run.begin()
        yield run


async def ask(path: Path, request: Request) -> Answer:
    """Ask a run to do something and return its answer.

    Raises:
        UnreachableError: Nobody answers.
        NonsenseError: The answer is none.
        RefusedError: It says no.
    """
    async with _connected(path) as stream:
        data = bytearray()
        with trio.move_on_after(ANSWER_S) as waiting:
            try:
                await stream.send_all(encode_request(request))
                stream.socket.shutdown(socket.SHUT_WR)
                while part := await stream.receive_some(65536):
                    data += part
            except (OSError, trio.BrokenResourceError):
                pass  # what came, or nothing, says it
    if waiting.cancelled_caught or not data:
        raise DeadlineError(
            f"{path}: the controller does not answer",
            address=str(path),
            hint="whether it did what was asked is shown by: qmpalloc status",
        )
    try:
        answer = msgspec.json.decode(data, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NonsenseError(f"{path}: no answer: {error}", hint=SAME_HINT) from error
    if not answer.done:
        raise RefusedError(answer.message, command=request.verb, error_class="Refused", hint=answer.hint)
    return answer
