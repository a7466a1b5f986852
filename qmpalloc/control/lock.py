"""One controller for one configuration: a lock that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qmpalloc.errors import HostError
from qmpalloc.qemu.rundir import ANOTHER_HINT, prepare_run_dir

NAME_DIGITS = 16


def lock_path(file: str, directory: Path) -> Path:
    """Return where the lock of a configuration file is: by its real path, so that a link is the same configuration."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(file))).hexdigest()
    return directory / f"{digest[:NAME_DIGITS]}.lock"


def holder_of(path: Path) -> tuple[int | None, str]:
    """Return who holds a lock, or held it last: process id and configuration; None and ``""`` where it does not say."""
    try:
        pid, _, file = path.read_bytes()[:8192].partition(b"\n")
    except OSError:
        return None, ""
    return int(pid) if pid.strip().isdigit() else None, os.fsdecode(file.partition(b"\n")[0])


@contextmanager
def hold_lock(file: str, directory: Path) -> Iterator[None]:
    """Hold the lock of a configuration file for the time of a block.

    The file stays behind: removing it would let two processes hold two different ones of the same name.

    Args:
        file: The configuration.
        directory: Where locks are; made for its owner only.

    Raises:
        HostError: Another process holds it, or the directory is not ours alone.
    """
    prepare_run_dir(directory)
    path = lock_path(file, directory)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(f"{path} cannot be opened: {error.strerror}", hint=ANOTHER_HINT) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HostError(
                f"{file} is in use by another qmpalloc (process {holder_of(path)[0] or 'unknown'})",
                hint="two controllers would undo each other's work; end the other one first",
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode() + os.fsencode(os.path.realpath(file)) + b"\n", 0)
        yield
    finally:
        os.close(handle)
