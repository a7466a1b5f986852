"""Gives a run's metrics away, over HTTP and in a file, beside control: whoever asks can delay nothing of it.

Text is made from a copy, at most once a second, and all readers get the same. It is made one metric after the other,
and in between control has its turn: a thread would hold Python's lock for longer, and again and again. A client has a
few seconds to ask and to read, and few can be there at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import trio
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from qmpalloc.errors import ConfigError, HostError
from qmpalloc.files import write_whole
from qmpalloc.metrics.families import families
from qmpalloc.status.feed import Feed
from qmpalloc.status.server import read_head

FRESH_S = 1.0
"""Guests are heard of once a second: a text is good for so long."""

FILE_S = 5.0
"""A file is written so often: who collects such files looks every 15 s or so."""

CLIENT_S = 5.0
CLIENTS_MAX = 8
REQUEST_MAX_BYTES = 8192
Tell = Callable[[str, str, str], None]


class _One(Collector):
    """One metric, for the library to make text of."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


class Exporter:
    """The metrics of one run.

    Args:
        feed: What is known of the run.
        tell: Reports what is wrong beside control: `Controller.tell`.
    """

    def __init__(self, feed: Feed, tell: Tell) -> None:
        self._feed = feed
        self._tell = tell
        self._making = trio.Lock()
        self._text, self._made_at = b"", -FRESH_S
        self._clients = 0

    async def text(self) -> bytes:
        """Return all metrics in Prometheus' text format, at most `FRESH_S` old."""
        async with self._making:
            if trio.current_time() - self._made_at >= FRESH_S:
                parts = []
                for metric in families(self._feed.now()):
                    parts.append(generate_latest(_One(metric)))
                    await trio.lowlevel.checkpoint()
                self._text, self._made_at = b"".join(parts), trio.current_time()
            return self._text

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        """Serve HTTP until cancelled."""
        await trio.serve_listeners(self._client, listeners)

    async def keep_file(self, path: Path) -> None:
        """Write a file again and again until cancelled, then remove it: nobody shall read it for a run that goes on."""
        failing = ""
        try:
            while True:
                reason = ""
                try:
                    await trio.to_thread.run_sync(partial(write_whole, path, await self.text(), for_all=True))
                except HostError as error:
                    reason = error.message
                if reason and reason != failing:
                    self._tell("metrics", reason, "control goes on; it is tried again")
                failing = reason
                await trio.sleep(FILE_S)
        finally:
            path.unlink(missing_ok=True)  # noqa: ASYNC240 - being cancelled, it may not wait

    async def _client(self, stream: trio.SocketStream) -> None:
        if self._clients >= CLIENTS_MAX:
            return
        self._clients += 1
        try:
            with trio.move_on_after(CLIENT_S):
                request = await read_head(stream, b"\r\n\r\n", REQUEST_MAX_BYTES)
                await stream.send_all(await self._answer(request.partition(b"\r\n")[0]))
        except (OSError, trio.BrokenResourceError):
            pass  # it has gone
        finally:
            self._clients -= 1

    async def _answer(self, request_line: bytes) -> bytes:
        """Return the reply to a request. One path of HTTP, without what else there is of it, needs no library."""
        method, _, rest = request_line.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method != b"GET":
            return _reply("405 Method Not Allowed", b"only GET\n")
        if path != b"/metrics":
            return _reply("404 Not Found", b"metrics are at /metrics\n")
        return _reply("200 OK", await self.text(), CONTENT_TYPE_LATEST)


async def listen(host: str, port: int) -> list[trio.SocketListener]:
    """Return sockets that listen on a port of an address of this host.

    Raises:
        HostError: It is in use, or not of this host.
    """
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise HostError(
            f"metrics cannot be served on {host}:{port}: {error.strerror or error}",
            hint="another run may serve its own there: choose another port, or end that",
        ) from error


def check_file(path: Path) -> None:
    """Make sure that a file of metrics can be written, before anything else is done.

    Raises:
        ConfigError: It cannot.
    """
    if path.suffix != ".prom":
        hint = "node_exporter's textfile collector reads no other"
        raise ConfigError("a file of metrics is called NAME.prom", file=str(path), hint=hint)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        hint = "name a file in the directory of node_exporter's --collector.textfile.directory, writable by you"
        raise ConfigError("cannot be written by you, or is no directory", file=str(path.parent), hint=hint)


def _reply(status: str, body: bytes, kind: str = "text/plain; charset=utf-8") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
