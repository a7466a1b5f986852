"""The files that a run or an experiment leaves: for their owner only, and never through a symbolic link.

What runs leave tells much of a host and its guests, and the directory may be one that others can write to, ``/tmp`` for
example. So directories get mode 700 and files 600, unless `follow_umask` was called. A file is made anew under its own
name, or beside it and renamed: what lies there already, a link included, is replaced and not written through.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import IO

import msgspec

from qmpalloc.errors import ConfigError, HostError

_group_and_others = 0
"""What group and others may have of the rights that the umask leaves them."""


def follow_umask() -> None:
    """From now on, in this process, let the umask alone decide who may read what is made here."""
    global _group_and_others
    _group_and_others = 0o077


def check_place(path: Path, *, hint: str) -> None:
    """Make sure that a directory is, or can be made, where it may be written to, before anything else is done.

    Raises:
        ConfigError: It cannot; with this hint.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # what is above it tells more
    except OSError as error:
        raise ConfigError(str(error.strerror), file=str(path), hint=hint) from error
    place = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not place.is_dir():
        raise ConfigError("is not a directory", file=str(place), hint=hint)
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError("cannot be written by you", file=str(place), hint=hint)


def make_directory(path: Path) -> None:
    """Make a directory and those above it that are missing; one that exists stays as it is.

    Raises:
        OSError: It cannot be made.
    """
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700 | _group_and_others, exist_ok=True)


def create(path: Path) -> IO[bytes]:
    """Return a new file, open for writing.

    Raises:
        FileExistsError: There is something of that name.
        OSError: It cannot be made.
    """
    return os.fdopen(_open(path, os.O_EXCL), "wb")


def append(path: Path, data: bytes) -> None:
    """Append to a file of our own, which is made if it is missing.

    Raises:
        OSError: It is a link, or it cannot be written.
    """
    with os.fdopen(_open(path, os.O_APPEND | os.O_NOFOLLOW), "ab") as file:
        file.write(data)


def write_whole(path: Path, data: bytes, *, for_all: bool = False) -> None:
    """Write a file, whole or not at all, over what lies there; `for_all` lets every user of the host read it.

    Raises:
        HostError: It cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()
        try:
            with create(scratch) as file:
                file.write(data)
                if for_all:
                    os.fchmod(file.fileno(), 0o644)
            os.replace(scratch, path)  # noqa: PTH105 - the atomic rename, by its name
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        hint = "make room on its file system" if error.errno == errno.ENOSPC else ""
        raise HostError(f"{path} cannot be written: {error.strerror}", hint=hint) from error


def write_json(path: Path, value: object) -> None:
    """Write a file as indented JSON, whole or not at all.

    Raises:
        HostError: It cannot be written.
    """
    write_whole(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def _open(path: Path, flags: int) -> int:
    mode = 0o600 | (_group_and_others & 0o066)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, mode)
