"""Who listens on a Unix socket, and who is connected to it: from ``ss`` (iproute2)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

_USERS = re.compile(r'\("([^"]*)",pid=(\d+)')


def holders(path: str) -> list[str]:
    """Return ``name (pid N)`` of every process connected to the socket at `path`; empty if none or not known."""
    program = shutil.which("ss")
    if program is None:
        return []
    output = subprocess.run([program, "-xpHn", "state", "connected"], capture_output=True, text=True, check=False)
    return parse_holders(output.stdout, str(Path(path)), str(Path(path).resolve()))


def parse_holders(table: str, *paths: str) -> list[str]:
    """Return the clients in the output of ``ss -xpHn`` whose peer is bound to one of `paths`.

    A line is: type, receive queue, send queue, local path and inode, peer path and inode, users.
    """
    rows = [line.split(maxsplit=8) for line in table.splitlines()]
    # With a state filter ss leaves the state column out.
    rows = [row if row and row[1].isdigit() else row[:1] + row[2:] for row in rows if len(row) > 6]
    peers = {row[6] for row in rows if len(row) > 6 and row[3] in paths}
    found = []
    for row in rows:
        if row[4] in peers and row[3] not in paths and len(row) > 7:
            found += [f"{name} (pid {pid})" for name, pid in _USERS.findall(" ".join(row[7:]))]
    return found
