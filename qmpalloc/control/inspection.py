"""What a QEMU is asked when we connect, and what makes it one that must not be controlled."""

from __future__ import annotations

from pathlib import Path

from qmpalloc.control.guest import Facts
from qmpalloc.errors import NonsenseError, RefusedError
from qmpalloc.qmp import Monitor

MIGRATION_ENDED = frozenset({"none", "completed", "failed", "cancelled"})
BALLOON_HINT = "start it with -device virtio-balloon-pci,id=balloon0,deflate-on-oom=on,free-page-reporting=on"


async def ask_facts(monitor: Monitor) -> Facts:
    """Return what a guest's QEMU was started with.

    Raises:
        RefusedError: It has no balloon device, or one that gives nothing back to the host.
        NonsenseError: It answers what QMP does not allow.
    """
    path = await monitor.find_balloon()
    if path is None:
        raise _unfit(monitor, "this QEMU has no balloon device", BALLOON_HINT)
    await _refuse_pinned_memory(monitor)
    memory = await monitor.execute("query-memory-size-summary")
    sizes = [memory.get(key) for key in ("base-memory", "plugged-memory")] if isinstance(memory, dict) else [None]
    if type(sizes[0]) is not int or sizes[0] <= 0:
        raise NonsenseError(f"{monitor.address}: query-memory-size-summary gave no base-memory")
    deflate = await monitor.execute("qom-get", {"path": path, "property": "deflate-on-oom"})
    return Facts(
        ram_bytes=sum(size for size in sizes if type(size) is int),
        balloon_path=path,
        deflate_on_oom=deflate is True,
        qemu_version=".".join(str(part) for part in monitor.qemu_version),
        process_id=monitor.process_id,
    )


async def ask_migrating(monitor: Monitor) -> bool:
    """Return whether somebody migrates this guest right now."""
    try:
        answer = await monitor.execute("query-migrate")
    except RefusedError:
        return False
    status = answer.get("status", "none") if isinstance(answer, dict) else "none"
    return isinstance(status, str) and status not in MIGRATION_ENDED


async def _refuse_pinned_memory(monitor: Monitor) -> None:
    """Refuse a guest whose balloon takes memory from it without giving it to the host.

    An assigned device pins all of a guest's memory, and QEMU then ignores what the balloon hands over
    (``ram_block_discard_disable``); a huge page only comes back when the guest happens to hand over all of it.
    """
    for container in ("/machine/peripheral", "/machine/peripheral-anon"):
        if await _children(monitor, container, "vfio"):
            hint = "remove the assigned device, or take the guest out of the configuration"
            raise _unfit(monitor, "an assigned device (vfio) pins the guest's memory", hint)
    for kind, prop in (("memory-backend-memfd", "hugetlb"), ("memory-backend-file", "mem-path")):
        for name in await _children(monitor, "/objects", kind):  # a guest with NUMA nodes has several
            try:
                value = await monitor.execute("qom-get", {"path": f"/objects/{name}", "property": prop})
            except RefusedError:
                continue
            if value is True or (isinstance(value, str) and on_hugetlbfs(value, Path("/proc/mounts"))):
                hint = "use plain RAM (-m): the balloon works in 4 KiB pages"
                raise _unfit(monitor, "the guest's memory is made of huge pages", hint)


async def _children(monitor: Monitor, container: str, kind: str) -> list[str]:
    """Return the names of the children of that kind of a QOM container."""
    try:
        listing = await monitor.execute("qom-list", {"path": container})
    except RefusedError:
        return []
    children = [child for child in listing if isinstance(child, dict)] if isinstance(listing, list) else []
    return [str(child.get("name")) for child in children if str(child.get("type")).startswith(f"child<{kind}")]


def on_hugetlbfs(path: str, mounts: Path) -> bool:
    """Tell whether a path lies on a file system of huge pages, by the host's mounts."""
    try:
        table = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return False
    places = [Path(fields[1]) for fields in table if len(fields) > 2 and fields[2] == "hugetlbfs"]
    return any(Path(path).is_relative_to(place) for place in places)


def _unfit(monitor: Monitor, what: str, hint: str) -> RefusedError:
    return RefusedError(f"{monitor.address}: {what}", command="query-balloon", error_class="DeviceNotActive", hint=hint)
