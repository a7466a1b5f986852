"""Where the sockets of a run are: beside its lock, made for their owner only; those of a dead run are replaced."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from qmpalloc.control.lock import holder_of, lock_path
from qmpalloc.errors import ConfigError, HostError, UnreachableError
from qmpalloc.text import one_line

BACKLOG = 16
STATUS, REQUESTS = "status", "requests"


class Peer(Struct, frozen=True):
    """The process at the other end of a Unix socket; `pid` is 0 where the kernel does not tell."""

    pid: int
    uid: int


def peer_of(connected: socket.socket) -> Peer:
    """Return who is at the other end (``SO_PEERCRED``)."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return Peer(pid, uid)


def socket_path(file: str, directory: Path, kind: str) -> Path:
    """Return where the socket of that kind is, of the run of a configuration file."""
    return lock_path(file, directory).with_suffix(f".{kind}")


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen on a Unix socket for the time of a block, for its owner only. One that nobody listens on is replaced.

    Raises:
        UnreachableError: Somebody listens there already.
        HostError: There is something else, or somebody else's, or it cannot be made.
    """
    _make_way(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with bound:
        try:
            os.fchmod(bound.fileno(), 0o600)  # before it has a name: Linux gives the name the socket's mode
            bound.bind(os.fspath(path))
            path.chmod(0o600)
            bound.listen(BACKLOG)
        except OSError as error:
            hint = "the path may have 107 bytes; choose a shorter XDG_RUNTIME_DIR" if len(str(path)) > 100 else ""
            raise HostError(f"{path} cannot be made: {error.strerror or error}", hint=hint) from error
        made = path.lstat().st_ino
        bound.setblocking(False)
        try:
            yield bound
        finally:
            with contextlib.suppress(OSError):
                if path.lstat().st_ino == made:
                    path.unlink()


def _make_way(path: Path) -> None:
    """Remove what a dead run has left at a path.

    Raises:
        UnreachableError: It is not dead.
        HostError: It is no socket, or not ours.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error
    if status.st_uid != os.geteuid():
        raise HostError(f"{path} belongs to another user ({status.st_uid})", hint="remove it, or ask its owner to")
    if not stat.S_ISSOCK(status.st_mode):
        raise HostError(f"{path} is in the way, and is no socket", hint="move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pid = 0
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}", hint="move it away") from error
        else:
            pid = peer_of(probe).pid
    raise UnreachableError(
        f"another controller (process {pid or 'unknown'}) serves {path}",
        address=str(path),
        hint="two controllers would undo each other's work; end the other one first",
    )


def find(config: Path | None, directory: Path, kind: str) -> Path:
    """Return the socket of the run of a configuration, or without one that of the only run there is.

    Raises:
        ConfigError: There is no such configuration.
        UnreachableError: Nothing runs, or more than one run could be meant.
    """
    if config is not None:
        if not config.exists():
            raise ConfigError("cannot be read: no such file", file=str(config))
        path = socket_path(str(config), directory, kind)
        if not _is_served(path):
            raise UnreachableError(
                f"no controller runs for {config}",
                address=str(path),
                absent=True,
                hint=f"start one with: qmpalloc run {config}",
            )
        return path
    served = [path for path in sorted(directory.glob(f"*.{kind}")) if _is_served(path)]
    if not served:
        hint = "start one with: qmpalloc run CONFIG"
        raise UnreachableError("no controller of yours runs", address=str(directory), absent=True, hint=hint)
    if len(served) > 1:
        files = ", ".join(one_line(holder_of(path.with_suffix(".lock"))[1] or path.name) for path in served)
        raise UnreachableError(
            f"{len(served)} controllers run", address=str(directory), hint=f"name the configuration of one: {files}"
        )
    return served[0]


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:  # whoever connects says what is wrong with it
            return True
    return True
