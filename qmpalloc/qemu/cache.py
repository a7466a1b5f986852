"""The per-user cache: what takes long to make is made once, in a directory beside its place, and renamed into it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qmpalloc.errors import HostError
from qmpalloc.qemu.host import remove_tree
from qmpalloc.qemu.progress import Report, silent

CACHE_HINT = "set XDG_CACHE_HOME to a directory that you can write to"


def cache_dir() -> Path:
    """Return the user's cache: ``$XDG_CACHE_HOME/qmpalloc``, by default ``~/.cache/qmpalloc``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "qmpalloc"


def make_place(directory: Path) -> None:
    """Make a directory of the cache, and make sure that it can be written to.

    Raises:
        HostError: It cannot.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"{directory} cannot be made: {error.strerror}", hint=CACHE_HINT) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise HostError(f"{directory} cannot be written by you", hint=CACHE_HINT)


@contextmanager
def locked(target: Path, report: Report = silent) -> Iterator[None]:
    """Hold the lock of `target`, so that one process at a time makes it. The lock ends with the process.

    Raises:
        HostError: The cache cannot be written.
    """
    make_place(target.parent)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting: another qmpalloc is making {target.name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def obtain(target: Path, make: Callable[[Path], None], *, replace: bool = False, report: Report = silent) -> Path:
    """Return the directory `target`, made now if it does not exist.

    It is there completely or not at all: `make` fills an empty directory beside it, which is then renamed. What an
    interrupted process left behind is removed by the next one.

    Args:
        target: The directory.
        make: Called with the empty directory to fill. Its errors pass through, and leave nothing.
        replace: Make it anew even if it exists. Who uses the old one keeps it.
        report: Told when another process is waited for.
    """
    if target.is_dir() and not replace:
        return target
    with locked(target, report):
        if target.is_dir() and not replace:  # made while we waited
            return target
        for abandoned in target.parent.glob(f".{target.name}.*.partial"):
            remove_tree(abandoned)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        try:
            make(partial)
            if target.is_dir():
                target.rename(partial.with_suffix(".former.partial"))
            partial.rename(target)
        finally:
            remove_tree(partial)
            remove_tree(partial.with_suffix(".former.partial"))
    return target
