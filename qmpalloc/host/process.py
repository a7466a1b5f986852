"""Reads what the host's kernel tells of the memory of another process."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")


def pinned_bytes(process_id: int | None, proc: Path = PROC) -> int:
    """Return how much of a process's memory is locked (``mlock``) or pinned for devices; 0 when that is not known.

    Args:
        process_id: Of the process; None is not known.
        proc: Where ``/proc`` is.
    """
    if process_id is None:
        return 0
    try:
        lines = (proc / str(process_id) / "status").read_text(errors="replace").splitlines()
    except OSError:  # it has ended, or is not shown to us
        return 0
    fields = [line.split() for line in lines if line.startswith(("VmLck:", "VmPin:"))]
    return sum(int(field[1]) * 1024 for field in fields if len(field) > 1 and field[1].isdecimal())
