"""The limits on memory of the control groups that this process is in: v1, v2, or both side by side (hybrid).

A controller belongs to one hierarchy at a time, so that ``/proc/self/cgroup`` says which counts: the one of v1 that
names ``memory``, else v2. Groups lie in each other, and each may have a limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from qmpalloc.host.kernel_files import KernelFiles

_UNLIMITED_BYTES = 2**60
"""v1 writes "no limit" as the largest page counter, a little below 2^63."""

_LOWEST = "hierarchical_memory_limit"
"""In ``memory.stat`` of v1: it also holds for groups around that cannot be seen from here, as in a container."""


class Limit(Struct, frozen=True, kw_only=True):
    """A limit of a control group. Sizes in bytes.

    Attributes:
        file: Where it is written.
        limit_bytes: Of the group and all in it.
        left_bytes: What it still allows, cache that can be dropped counted as free; None if not known.
    """

    file: Path
    limit_bytes: int
    left_bytes: int | None


class Hierarchy(Struct, frozen=True, kw_only=True):
    """The hierarchy in which the memory of this process is limited.

    Attributes:
        version: 1 or 2.
        top: The outermost directory that can be seen.
        innermost: The directory of the group that this process is in.
    """

    version: int
    top: Path
    innermost: Path

    @property
    def groups(self) -> Iterator[Path]:
        """The directories of the groups, from the innermost."""
        place = self.innermost
        yield place
        while place != self.top:
            place = place.parent
            yield place


def find_hierarchy(files: KernelFiles, proc: Path) -> Hierarchy | None:
    """Return where the limits are; None where there are no control groups, or they cannot be seen (then `unread`)."""
    membership = _membership(files.lines(proc / "self" / "cgroup"))
    if membership is None:
        return None
    version, path = membership
    known = len(files.unread)
    inside = ".." not in path.parts  # else it lies outside of the namespace of this process
    mounts = [(root, place) for root, place in _mounts(files, proc, version) if inside and path.is_relative_to(root)]
    if not mounts:
        if len(files.unread) == known:
            files.miss(f"the control group {path} (v{version}): no mount shows it")
        return None
    root, place = min(mounts, key=lambda mount: len(mount[0].parts))  # the one that shows most of the groups around it
    return Hierarchy(version=version, top=place, innermost=place / path.relative_to(root))


def limits(files: KernelFiles, hierarchy: Hierarchy) -> Iterator[Limit]:
    """Yield all limits that hold for this process, those of the innermost group first."""
    if hierarchy.version == 2:
        for group in hierarchy.groups:
            yield from _limits_v2(files, group)
        return
    for group in hierarchy.groups:
        # Not so long ago a group of v1 could leave those in it alone: it neither counts nor limits them.
        if group != hierarchy.innermost and files.limit(group / "memory.use_hierarchy") == 0:
            return
        yield from _limits_v1(files, group)


def _limits_v2(files: KernelFiles, group: Path) -> Iterator[Limit]:
    for name in ("memory.max", "memory.high"):  # above the second the kernel reclaims and slows down: no room either
        limit_bytes = files.limit(group / name)
        if limit_bytes is not None:
            used_bytes = files.limit(group / "memory.current")
            cache = files.fields(group / "memory.stat", "inactive_file", "active_file")
            yield _limit(group / name, limit_bytes, used_bytes, sum(cache.values()))


def _limits_v1(files: KernelFiles, group: Path) -> Iterator[Limit]:
    own_bytes = files.limit(group / "memory.limit_in_bytes")
    stat = files.fields(group / "memory.stat", _LOWEST, "total_inactive_file", "total_active_file")
    lowest_bytes = stat.pop(_LOWEST, None)
    limit_bytes = min((size for size in (own_bytes, lowest_bytes) if size is not None), default=_UNLIMITED_BYTES)
    if limit_bytes < _UNLIMITED_BYTES:
        file = group / ("memory.limit_in_bytes" if limit_bytes == own_bytes else "memory.stat")
        yield _limit(file, limit_bytes, files.limit(group / "memory.usage_in_bytes"), sum(stat.values()))


def _limit(file: Path, limit_bytes: int, used_bytes: int | None, cache_bytes: int) -> Limit:
    """Return a limit and what is left of it; page cache can be dropped, as ``MemAvailable`` has it of the host."""
    left_bytes = None if used_bytes is None else limit_bytes - max(used_bytes - cache_bytes, 0)
    return Limit(file=file, limit_bytes=limit_bytes, left_bytes=left_bytes)


def _membership(lines: list[str]) -> tuple[int, Path] | None:
    """Return the version of the hierarchy, and the path in it, of ``/proc/self/cgroup``: ``4:memory:/user/lab``."""
    found: dict[int, Path] = {}
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            found[1] = Path(path)
        elif (number, controllers) == ("0", ""):
            found[2] = Path(path)
    return min(found.items(), default=None)


def _mounts(files: KernelFiles, proc: Path, version: int) -> Iterator[tuple[Path, Path]]:
    """Yield the root within the hierarchy, and the place, of its mounts in ``/proc/self/mountinfo``."""
    for line in files.lines(proc / "self" / "mountinfo"):
        mount, _, source = line.partition(" - ")
        place, kind = mount.split(), source.split()
        if len(place) < 5 or not kind:
            continue
        if kind[0] == "cgroup2" if version == 2 else kind[0] == "cgroup" and "memory" in kind[-1].split(","):
            yield _unescaped(place[3]), _unescaped(place[4])


def _unescaped(path: str) -> Path:
    """Return a path of ``mountinfo``, in which blanks are written as three octal digits."""
    return Path(re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), path))
