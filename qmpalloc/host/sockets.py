"""Who is connected to a Unix socket, from ``ss`` (iproute2), and who else may connect, by its mode."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from qmpalloc.text import one_line

_USERS = re.compile(r'\("([^"]*)",pid=(\d+)')


def who_else_may_open(path: Path) -> str:
    """Return who but its owner may connect to a socket, in words; empty if nobody.

    That takes the right to write to it and to search every directory above it (unix(7)). Access lists do not count.
    """
    path = path.resolve()
    return who_else(path.stat().st_mode, [directory.stat().st_mode for directory in path.parents])


def who_else(socket_mode: int, directory_modes: Iterable[int]) -> str:
    """Return what `who_else_may_open` does, from the modes of a socket and of all directories above it."""
    modes = list(directory_modes)
    for who, write, search in (("everybody", stat.S_IWOTH, stat.S_IXOTH), ("its group", stat.S_IWGRP, stat.S_IXGRP)):
        # Directories may be of other groups: what everybody may search, a group may, too.
        if socket_mode & write and all(mode & (search | stat.S_IXOTH) for mode in modes):
            return who
    return ""


def holders(path: str) -> list[str]:
    """Return ``name (pid N)`` of every process connected to the socket at `path`; empty if none or not known."""
    program = shutil.which("ss")
    if program is None:
        return []
    output = subprocess.run([program, "-xpHn", "state", "connected"], capture_output=True, check=False)
    # Names of programs and sockets are any bytes: the kernel cuts the first within a letter.
    return parse_holders(os.fsdecode(output.stdout), path, _working_directory)


def _working_directory(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def parse_holders(table: str, path: str, directory_of: Callable[[int], Path | None]) -> list[str]:
    """Return the clients in the output of ``ss -xpHn`` whose peer is bound to `path`.

    A line is: type, state, receive queue, send queue, local path and inode, peer path and inode, users. A path is as
    the server gave it when it bound the socket, so it may be relative to the server's working directory.

    Args:
        table: The output.
        path: Absolute.
        directory_of: Working directory of a process, or None if that is not known.
    """
    rows = [line.split(maxsplit=8) for line in table.splitlines()]
    rows = [row for row in rows if len(row) == 9 and row[1].isalpha()]
    wanted = Path(path).resolve()

    def bound_to_it(row: list[str]) -> bool:
        bound = Path(row[4])
        if row[4] == "*" or bound.name != wanted.name:
            return False
        if bound.is_absolute():
            return bound.resolve() == wanted
        directories = [directory_of(int(pid)) for _, pid in _USERS.findall(row[8])]
        return any(directory is not None and (directory / bound).resolve() == wanted for directory in directories)

    clients = {row[7] for row in rows if bound_to_it(row)}
    found = [user for row in rows if row[5] in clients for user in _USERS.findall(row[8])]
    return [f"{one_line(name)} (pid {pid})" for name, pid in dict.fromkeys(found)]
