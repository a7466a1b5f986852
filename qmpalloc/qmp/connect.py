"""Opening a Unix socket, with every way that can fail told apart."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from pathlib import Path

import trio

from qmpalloc.errors import BusyError, UnreachableError

QUEUE_POLL_S = 0.05  # the queue of a socket with one server is short, and a client that left stays in it for a moment
PATH_MAX_BYTES = 107  # sun_path of a Unix socket is 108 bytes with its closing zero


async def connect(path: str, *, timeout_s: float) -> trio.SocketStream:
    """Connect to a Unix socket.

    Raises:
        UnreachableError: `absent` is True when no process listens there.
        BusyError: For all of `timeout_s`, so many others waited for this socket that the kernel turned us away.
    """
    if len(os.fsencode(path)) > PATH_MAX_BYTES:
        raise UnreachableError(
            f"{path}: longer than the {PATH_MAX_BYTES} bytes a Unix socket's path may have",
            address=path,
            hint="use a shorter directory, for example under /run or /tmp",
        )
    try:
        with trio.move_on_after(timeout_s):
            while True:
                stream = await trio.open_unix_socket(path)
                if _is_connected(stream):
                    return stream
                await trio.aclose_forcefully(stream)
                await trio.sleep(QUEUE_POLL_S)
    except OSError as error:
        raise _explain(path, error) from error
    except ValueError as error:  # a zero byte in the path
        raise UnreachableError(f"{path!r}: not the path of a Unix socket", address=path) from error
    raise BusyError(f"{path}: too many clients wait for this socket", address=path, hint=ONE_CLIENT_HINT)


ONE_CLIENT_HINT = (
    "QEMU serves one client per socket; close the other one, or start QEMU with a second socket for qmpalloc: "
    "-qmp unix:PATH,server=on,wait=off"
)


ABSENT_HINT = "a QEMU that runs has made it if its -qmp or -chardev says server=on, and nobody has removed it"


def _is_connected(stream: trio.SocketStream) -> bool:
    # With a full backlog a non-blocking connect of a Unix socket fails with EAGAIN, which trio takes for "in progress"
    # and then for success.
    try:
        stream.socket.getpeername()
    except OSError:
        return False
    return True


def _explain(path: str, error: OSError) -> UnreachableError:
    match error.errno:
        case errno.ENOENT:
            return UnreachableError(f"{path}: no such socket", address=path, absent=True, hint=ABSENT_HINT)
        case errno.ENOTDIR:
            return UnreachableError(f"{path}: no such socket, a part of its path is a file", address=path)
        case errno.ECONNREFUSED if _is_something_else(path):
            return UnreachableError(f"{path}: is not a socket", address=path, absent=True)
        case errno.ECONNREFUSED:
            return UnreachableError(f"{path}: no process listens on this socket", address=path, absent=True)
        case errno.EACCES | errno.EPERM:
            return UnreachableError(
                f"{path}: permission denied",
                address=path,
                hint="connecting needs write permission on the socket and search permission on its directories; "
                "run qmpalloc as the user that runs QEMU",
            )
        case _:
            return UnreachableError(f"{path}: {error.strerror or error}", address=path)


def _is_something_else(path: str) -> bool:
    try:
        return not stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False


def listening_process(stream: trio.SocketStream) -> int | None:
    """Return the id of the process that listens on a Unix socket (``SO_PEERCRED``), None if it is not told."""
    size = struct.calcsize("3i")
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid = int(struct.unpack("3i", credentials)[0])
    return pid or None
