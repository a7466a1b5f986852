"""Reads what the host's kernel tells of its memory."""

from __future__ import annotations

import re
from pathlib import Path

from qmpalloc.host.cgroups import find_hierarchy, limits
from qmpalloc.host.kernel_files import KernelFiles
from qmpalloc.model import HostMemory
from qmpalloc.rules.hostguard import least_bytes

PROC = Path("/proc")


def read_host_memory(proc: Path = PROC) -> HostMemory:
    """Return the host's memory, and what of it could not be read.

    Args:
        proc: Where ``/proc`` is. Where the control groups are is written in it.
    """
    files = KernelFiles()
    memory = files.sizes(proc / "meminfo")
    if not files.unread and not {"MemTotal", "MemAvailable"} <= memory.keys():
        files.miss(f"{proc / 'meminfo'}: tells no MemTotal or no MemAvailable")
    hierarchy = find_hierarchy(files, proc)
    found = limits(files, hierarchy) if hierarchy is not None else ()
    known = [(limit.left_bytes, limit.limit_bytes) for limit in found if limit.left_bytes is not None]
    left_bytes, limit_bytes = min(known, key=lambda each: each[0] - least_bytes(each[1]), default=(None, None))
    return HostMemory(
        total_bytes=memory.get("MemTotal"),
        available_bytes=memory.get("MemAvailable"),
        swapped_in_pages=files.fields(proc / "vmstat", "pswpin").get("pswpin"),
        stalled_us=_stalled_us(files, proc / "pressure" / "memory"),
        psi_some_avg10=_some_avg10(files, proc / "pressure" / "memory"),
        group_left_bytes=left_bytes,
        group_limit_bytes=limit_bytes,
        unread=tuple(files.unread),
    )


def _stalled_us(files: KernelFiles, path: Path) -> int | None:
    for line in files.lines(path):
        if line.startswith("full"):
            return files.number(path, line.rpartition("total=")[2])
    return None


def _some_avg10(files: KernelFiles, path: Path) -> float | None:
    for line in files.lines(path):
        found = re.match(r"some avg10=(\d+\.\d+) ", line)
        if found:
            return float(found[1])
    return None
