"""Reads what the host's kernel tells of its memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qmpalloc.rules.hostguard import HostMemory

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def read_host_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> HostMemory | None:
    """Return the host's memory; None where this kernel does not tell the least of it."""
    memory = meminfo(proc / "meminfo")
    if "MemTotal" not in memory or "MemAvailable" not in memory:
        return None
    return HostMemory(
        total_bytes=memory["MemTotal"],
        available_bytes=memory["MemAvailable"],
        swapped_in_pages=_field(proc / "vmstat", "pswpin"),
        stalled_us=_stalled_us(proc / "pressure" / "memory"),
        group_left_bytes=_group_left_bytes(cgroups, proc / "self" / "cgroup"),
    )


def meminfo(path: Path) -> dict[str, int]:
    """Return ``/proc/meminfo`` in bytes; empty when it cannot be read."""
    fields = [line.split() for line in _lines(path)]
    return {name.rstrip(":"): int(size) * 1024 for name, size, *_ in (each for each in fields if len(each) >= 2)}


def groups(root: Path, membership: Path) -> Iterator[Path]:
    """Yield the directories of the control groups (v2) that this process is in, from the innermost."""
    for line in _lines(membership):
        if line.startswith("0::"):
            place = root / line[3:].lstrip("/")
            yield from (directory for directory in (place, *place.parents) if directory.is_relative_to(root))


def group_limit(directory: Path) -> int | None:
    """Return a control group's limit in bytes; None when it has none."""
    try:
        return int((directory / "memory.max").read_text())
    except (OSError, ValueError):  # "max"
        return None


def _group_left_bytes(root: Path, membership: Path) -> int | None:
    left = []
    for directory in groups(root, membership):
        limit, used = group_limit(directory), _number(directory / "memory.current")
        if limit is not None and used is not None:
            cache = _field(directory / "memory.stat", "inactive_file") or 0
            left.append(limit - max(used - cache, 0))
    return min(left, default=None)


def _stalled_us(path: Path) -> int | None:
    for line in _lines(path):
        if line.startswith("full"):
            return int(line.rpartition("total=")[2])
    return None


def _field(path: Path, name: str) -> int | None:
    for line in _lines(path):
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
