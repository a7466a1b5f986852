"""Reads what the host's kernel tells of the memory of another process."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")


def pinned_bytes(process_id: int | None, proc: Path = PROC) -> int:
    """Return how much of a process's memory is locked (``mlock``) or pinned for devices; 0 when that is not known.

    Args:
        process_id: Of the process; None is not known.
        proc: Where ``/proc`` is.
    """
    return sum(_sizes(process_id, proc, "VmLck:", "VmPin:"))


def resident_bytes(process_id: int | None, proc: Path = PROC) -> int | None:
    """Return how much memory the host has behind a process; None when that is not known.

    Args:
        process_id: Of the process; None is not known.
        proc: Where ``/proc`` is.
    """
    if process_id is None:
        return None
    try:  # not "status", which has it too: it is read every second, and that takes longer
        return int((proc / str(process_id) / "statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):  # it has ended, or is not shown to us
        return None


def _sizes(process_id: int | None, proc: Path, *names: str) -> list[int]:
    """Return those of the sizes called `names` that the kernel tells of a process, in bytes."""
    if process_id is None:
        return []
    try:
        lines = (proc / str(process_id) / "status").read_text(errors="replace").splitlines()
    except OSError:  # it has ended, or is not shown to us
        return []
    fields = [line.split() for line in lines if line.startswith(names)]
    return [int(field[1]) * 1024 for field in fields if len(field) > 1 and field[1].isdecimal()]
