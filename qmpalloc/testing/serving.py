"""A Unix socket that serves one client at a time, as QEMU's do."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio


async def serve_unix(
    path: str,
    serve: Callable[[trio.SocketStream], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen on `path` and serve clients one after the other until cancelled, then remove the socket.

    A second client connects, because the kernel accepts it on the listener's behalf, and hears nothing until the
    first has gone.

    Args:
        path: Of the socket; one left over from a dead process is replaced.
        serve: Serves one client and returns when it has gone.
        task_status: Started when clients can connect.
    """
    _remove(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Not trio's way, a thread: how long that takes is chance, and a run in virtual time would not replay.
    try:
        bound.bind(path)
    except OSError:
        bound.close()
        raise
    with trio.socket.from_stdlib_socket(bound) as listener:
        listener.listen(1)
        try:
            task_status.started()
            while True:
                client, _ = await listener.accept()
                async with trio.SocketStream(client) as stream:
                    await serve(stream)
        finally:
            _remove(path)


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)
