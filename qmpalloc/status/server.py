"""Serves a run's status and takes requests, beside control: whoever connects can delay nothing of it.

Nothing here waits for a client but that client's own task. What is on its way to one is bounded in bytes and in time;
who takes it too slowly is dropped, which the run tells. Events go out in bundles, encoded once for all.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
import trio

from qmpalloc.allowance import Allowance
from qmpalloc.events import Answer, AnyEvent, Request, encode
from qmpalloc.status.feed import Feed
from qmpalloc.status.place import Peer, peer_of
from qmpalloc.status.protocol import LINE_MAX_BYTES, decode_request

BUNDLE_S = 0.5
"""Events of this time go out together: guests are heard of once a second."""

WAITING_MAX_BYTES = 4 * 1024 * 1024
"""More than this may not wait for a client."""

STALL_S = 10.0
"""A client that takes nothing for so long is dropped."""

CLIENTS_MAX = 64
REQUESTS_MAX = 8
REQUEST_S = 5.0
BETWEEN_REQUESTS_S = 0.05
LAST_S = 1.0
TELL_PER_S, TELL_AT_ONCE = 0.1, 5


class Steered(Protocol):
    """The run: a `Controller`."""

    def ask(self, request: Request, by: str = "") -> Answer:
        """Do what a person asks, or refuse it."""
        ...

    def tell(self, kind: str, message: str, hint: str = "") -> None:
        """Report that something beside control is wrong."""
        ...


class _Client:
    """One that looks on.

    Attributes:
        since: Number of the last event that it was sent, or will be, before what waits.
    """

    def __init__(self, since: int) -> None:
        self.since = since
        self.scope = trio.CancelScope()
        self.dropped = ""
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._more = trio.Event()
        self._ends = False

    def offer(self, bundle: bytes) -> None:
        """Let a bundle wait for it; drop it if that is too much."""
        self._waiting.append(bundle)
        self._bytes += len(bundle)
        if self._bytes > WAITING_MAX_BYTES:
            self.drop("does not read")
        self._more.set()

    def drop(self, why: str) -> None:
        """End it."""
        self.dropped = self.dropped or why
        self.scope.cancel()

    def end(self) -> None:
        """End it when it has what waits."""
        self._ends = True
        self._more.set()

    async def next(self) -> bytes:
        """Return the next bundle; nothing when there will be none."""
        while not self._waiting and not self._ends:
            self._more = trio.Event()
            await self._more.wait()
        if not self._waiting:
            return b""
        bundle = self._waiting.popleft()
        self._bytes -= len(bundle)
        return bundle


class Server:
    """Serves one run. Start `run`, once; `end` lets every client have the rest."""

    def __init__(self, feed: Feed, steered: Steered) -> None:
        self._feed = feed
        self._steered = steered
        self._clients: set[_Client] = set()
        self._pending: list[tuple[int, AnyEvent]] = []
        self._fresh = trio.Event()
        self._asking = trio.Lock()
        self._requests = 0
        self._ending = False
        self._telling = Allowance(TELL_PER_S, TELL_AT_ONCE)
        self._scope = trio.CancelScope()
        self._begun, self._all_gone = trio.Event(), trio.Event()

    async def run(
        self,
        status: socket.socket,
        requests: socket.socket,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled, or `end`. A defect of ours in it ends the service, not the run: that is told."""
        self._feed.on_event = self._take
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._accept, status, self._look_on)
                    nursery.start_soon(self._accept, requests, self._take_request)
                    nursery.start_soon(self._broadcast)
                    task_status.started()
        except Exception as error:
            self._steered.tell("status", f"nobody can attach any more: {error!r}", "control goes on")
        finally:
            self._feed.on_event = None
            self._all_gone.set()

    async def end(self) -> None:
        """Let all who look on have the last events, for a moment, and end."""
        self._ending = True
        self._fresh.set()
        with trio.move_on_after(LAST_S):
            if self._clients:
                await self._all_gone.wait()
        self._scope.cancel()

    # --- who looks on -----------------------------------------------------------------------------------------------

    def _take(self, number: int, event: AnyEvent) -> None:
        """Take an event of the run: this much is done in its time."""
        self._begun.set()
        if self._clients:
            self._pending.append((number, event))
            self._fresh.set()

    async def _broadcast(self) -> None:
        while True:
            await self._fresh.wait()
            if not self._ending:
                await trio.sleep(BUNDLE_S)
            self._fresh = trio.Event()
            pending, self._pending = self._pending, []
            lines = []
            for number, event in pending:
                lines.append((number, encode(event) + b"\n"))
                await trio.lowlevel.checkpoint()  # a decision about many guests takes a while
            bundle = b"".join(line for _, line in lines)
            for client in tuple(self._clients):
                new = bundle
                if lines and client.since >= lines[0][0]:  # it came meanwhile and was told some of it
                    new = b"".join(line for number, line in lines if number > client.since)
                if new:
                    client.offer(new)
                if self._ending and not self._pending:
                    client.end()

    async def _look_on(self, stream: trio.SocketStream, peer: Peer) -> None:
        if len(self._clients) >= CLIENTS_MAX:
            return
        if not self._feed.number:
            await self._begun.wait()
        so_far = self._feed.so_far(os.getpid())
        client = _Client(self._feed.number)
        self._clients.add(client)
        try:
            with client.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen_to, stream, client)
                    for event in so_far:
                        await _send(stream, client, encode(event) + b"\n")
                    while bundle := await client.next():
                        await _send(stream, client, bundle)
                    nursery.cancel_scope.cancel()
        except* OSError:
            pass  # it has gone
        except* trio.BrokenResourceError:
            pass
        finally:
            self._clients.discard(client)
            if self._ending and not self._clients:
                self._all_gone.set()
        if client.dropped:
            who = f"a dashboard (process {peer.pid}) was dropped"
            self._tell("status", f"{who}: it {client.dropped}", "control goes on; it may attach again")

    def _tell(self, kind: str, message: str, hint: str) -> None:
        """Let the run tell what is wrong, but not as often as others make it so."""
        if self._telling.take(1.0, trio.current_time()):
            self._steered.tell(kind, message, hint)

    async def _listen_to(self, stream: trio.SocketStream, client: _Client) -> None:
        """Notice that a client has gone. It has nothing to say."""
        if await stream.receive_some(64):
            client.drop("sends, where there is only to read")
        client.scope.cancel()

    # --- who asks ---------------------------------------------------------------------------------------------------

    async def _take_request(self, stream: trio.SocketStream, peer: Peer) -> None:
        if self._requests >= REQUESTS_MAX:
            return
        self._requests += 1
        try:
            with trio.move_on_after(REQUEST_S):
                line = await read_head(stream, b"\n", LINE_MAX_BYTES)
                if not line:
                    return
                # One after the other, with room between: a script that asks all the time must not keep us busy.
                async with self._asking:
                    answer = self._answer(line, peer)
                    await trio.sleep(BETWEEN_REQUESTS_S)
                await stream.send_all(msgspec.json.encode(answer) + b"\n")
        except (OSError, trio.BrokenResourceError):
            pass  # it did not want to know
        finally:
            self._requests -= 1

    def _answer(self, line: bytes, peer: Peer) -> Answer:
        decoded = decode_request(line)
        if isinstance(decoded, Answer):
            self._tell("request", f"process {peer.pid} was refused: {decoded.message}", decoded.hint)
            return decoded
        user = "" if peer.uid == os.geteuid() else f" of user {peer.uid}"
        return self._steered.ask(decoded, f"process {peer.pid}{user}")

    async def _accept(
        self, listener: socket.socket, serve: Callable[[trio.SocketStream, Peer], Awaitable[None]]
    ) -> None:
        """Serve each client in a task of its own."""

        async def serve_one(client: trio.socket.SocketType) -> None:
            async with trio.SocketStream(client) as stream:
                await serve(stream, peer_of(stream.socket))  # type: ignore[arg-type]

        accepting = trio.socket.from_stdlib_socket(listener.dup())
        with accepting:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        client, _ = await accepting.accept()
                    except OSError:  # no descriptor is left, or it has gone already
                        await trio.sleep(BUNDLE_S)
                        continue
                    nursery.start_soon(serve_one, client)


async def _send(stream: trio.SocketStream, client: _Client, data: bytes) -> None:
    with trio.move_on_after(STALL_S) as waiting:
        await stream.send_all(data)
    if waiting.cancelled_caught:
        client.drop("does not read")
        await trio.lowlevel.checkpoint()


async def read_head(stream: trio.SocketStream, end: bytes, most: int) -> bytes:
    """Return what a client sends before `end`; without that, what came, at most so many bytes: which makes it junk."""
    head = bytearray()
    while end not in head and len(head) < most:
        data = await stream.receive_some(most)
        if not data:
            break
        head += data
    return bytes(head.partition(end)[0][:most])
