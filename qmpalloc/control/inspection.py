"""What a QEMU is asked when we connect, what moves its memory, and what makes it one that must not be controlled."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

from qmpalloc.control.memory import Facts
from qmpalloc.errors import NonsenseError, RefusedError
from qmpalloc.host.process import pinned_bytes, resident_bytes
from qmpalloc.qmp import Actuator, Monitor, find_actuators
from qmpalloc.text import printable
from qmpalloc.units import PAGE_BYTES, format_size

MIGRATION_ENDED = frozenset({"none", "completed", "failed", "cancelled"})
BALLOON_HINT = (
    "start it with -device virtio-balloon-pci,id=balloon0,deflate-on-oom=on,free-page-reporting=on, or with virtio-mem"
)

PINNING_DEVICES = {"vfio": "an assigned device (vfio)", "vhost-vdpa": "a vDPA device"}
"""What pins a guest's memory, by the beginning of its type's name."""

CONFIDENTIAL = "confidential-guest-support"
"""Property of the machine that names the object by which the guest's memory is kept from the host."""

DEVICE_HINT = "remove the device, or take the guest out of the configuration"
PLUG_HINT = "move its memory by virtio-mem, which works with that (docs/guests.md)"
CONFIDENTIAL_HINT = "start it as an ordinary guest, or take it out of the configuration"
READ_ONLY_HINT = "use plain RAM (-m): QEMU can give back no page of a file that it opened for reading only"
HUGE_HINT = f"the balloon works in 4 KiB pages: use plain RAM (-m), or {PLUG_HINT}"
LOCK_HINT = "start QEMU without -overcommit mem-lock=on, and without devices that pin memory"


async def choose_actuator(monitor: Monitor) -> Actuator:
    """Return what moves the guest's memory. The first case that holds decides.

    1. A balloon whose memory comes back to the host. It gives any page, in steps of 4 KiB, and a guest with
       deflate-on-oom can save itself; what a virtio-mem device beside it has is somebody else's, and charged.
    2. A virtio-mem device: because there is no balloon, or because something keeps the balloon's pages, as vfio or huge
       pages do, which virtio-mem works with.

    Nothing about that changes while QEMU runs, but for devices that are plugged: whoever looks again
    (`require_returning`) finds that out.

    Raises:
        RefusedError: It has no machine yet (``--preconfig``), nothing that could move its memory, or what it has gives
            nothing back to the host.
        NonsenseError: It answers what QMP does not allow.
    """
    # First, for a QEMU that waits because of --preconfig refuses it, and has no devices yet.
    await monitor.base_memory()
    unfit: RefusedError | None = None
    for actuator in await find_actuators(monitor):
        try:
            await require_returning(actuator, (await actuator.memory()).ram_bytes)
        except RefusedError as error:
            unfit = unfit or error  # of the balloon, if there is one: that is what people can mend
        else:
            return actuator
    raise unfit or _unfit(monitor, "this QEMU has no balloon device, and no virtio-mem device", BALLOON_HINT)


async def ask_facts(actuator: Actuator) -> Facts:
    """Return what a guest's QEMU was started with.

    Args:
        actuator: What moves its memory.

    Raises:
        RefusedError: It refuses to tell.
        NonsenseError: It answers what QMP does not allow.
    """
    monitor, memory = actuator.monitor, await actuator.memory()
    balloon_path = actuator.path if actuator.takes_back else await monitor.find_balloon()
    # A size that what is plugged adds up to is also what the guest's kernel counts.
    deflate = actuator.takes_back and await _property(monitor, actuator.path, "deflate-on-oom")
    facts = Facts(
        ram_bytes=memory.ram_bytes,
        actuator=actuator.kind,
        takes_back=actuator.takes_back,
        balloon_path=balloon_path or "",
        deflate_on_oom=deflate is True,
        qemu_version=".".join(str(part) for part in monitor.qemu_version),
        process_id=monitor.process_id,
    )
    return facts.with_memory(memory)


async def measure(actuator: Actuator, facts: Facts) -> tuple[Facts, int]:
    """Return the guest's size in bytes, which cannot be more than its RAM, and the facts it was held against.

    Raises:
        NonsenseError: It is more than the RAM, although that was asked for again.
    """
    actual_bytes = await actuator.size_bytes()
    if actual_bytes > facts.ram_bytes:  # a DIMM may have been plugged between the two questions
        facts = facts.with_memory(await actuator.memory())
    if actual_bytes > facts.ram_bytes:
        raise NonsenseError(f"{actuator.monitor.address}: {actuator.query} tells more memory than QEMU gives the guest")
    return facts, actual_bytes


def resident(monitor: Monitor) -> int | None:
    """Return how much memory the host has behind the guest's QEMU; None when that is not known."""
    return resident_bytes(monitor.process_id)


async def ask_migrating(monitor: Monitor) -> bool:
    """Return whether somebody migrates this guest right now."""
    try:
        answer = await monitor.execute("query-migrate")
    except RefusedError:
        return False
    status = answer.get("status", "none") if isinstance(answer, dict) else "none"
    return isinstance(status, str) and status not in MIGRATION_ENDED


class Pinned(Struct, frozen=True):
    """Why a guest's balloon takes memory from it without giving it to the host, and what to do about it."""

    what: str
    hint: str


async def require_returning(actuator: Actuator, ram_bytes: int) -> None:
    """Make sure that nothing found keeps the guest's memory from coming back to the host; see `find_pinned`.

    Raises:
        RefusedError: Something does.
    """
    pinned = await find_pinned(actuator, ram_bytes)
    if pinned is not None:
        raise _unfit(actuator.monitor, pinned.what, pinned.hint)


async def find_pinned(actuator: Actuator, ram_bytes: int) -> Pinned | None:
    """Return what keeps a guest's memory from coming back to the host; None if nothing is found.

    With an assigned device, a vDPA one, a disk driven by QEMU's own NVMe driver, or SEV, QEMU ignores what the balloon
    hands over (``ram_block_discard_disable``). The private memory of SEV-SNP and TDX is in a ``guest_memfd``, which the
    balloon does not reach. A huge page only comes back when the guest happens to hand over all of it; a locked page
    never (``madvise(MADV_DONTNEED)`` refuses). No QMP command tells of ``-overcommit mem-lock=on``, so the host's
    kernel is asked about the process behind the monitor. docs/safety.md has the table, with what is known to work.

    virtio-mem tells vfio and QEMU's NVMe driver what comes and goes, has blocks of the size of the backend's pages, and
    does not start where memory is locked or vDPA pins it (``ram_block_coordinated_discard_require``).

    Args:
        actuator: What would move it.
        ram_bytes: Its RAM.
    """
    monitor = actuator.monitor
    kept = await _kept_from_the_host(monitor)
    if kept is not None or actuator.coordinated:
        return kept
    found = await _pinning_device(monitor) or await _unfit_backend(monitor)
    if found is not None:
        return found
    pinned = pinned_bytes(monitor.process_id)
    if pinned * 2 > ram_bytes:  # a device's buffers are far less
        return Pinned(f"QEMU has {format_size(pinned)} of memory locked or pinned", LOCK_HINT)
    return None


async def _pinning_device(monitor: Monitor) -> Pinned | None:
    devices = await monitor.devices()
    for prefix, what in PINNING_DEVICES.items():
        if any(kind.startswith(prefix) for _, kind in devices):
            hint = f"{DEVICE_HINT}; or {PLUG_HINT}" if prefix == "vfio" else DEVICE_HINT
            return Pinned(f"{what} pins the guest's memory", hint)
    if "type=vhost-vdpa" in await _networks(monitor):
        return Pinned(f"{PINNING_DEVICES['vhost-vdpa']} pins the guest's memory", DEVICE_HINT)
    if await _drives_nvme(monitor):
        return Pinned("QEMU's own NVMe driver (nvme://) pins the guest's memory", f"{DEVICE_HINT}; or {PLUG_HINT}")
    return None


async def _kept_from_the_host(monitor: Monitor) -> Pinned | None:
    guard = await _property(monitor, "/machine", CONFIDENTIAL)
    if not isinstance(guard, str) or not guard:
        return None
    named = printable(str(await _property(monitor, guard, "type") or guard), 64)
    return Pinned(f"the guest's memory is kept from the host ({named})", CONFIDENTIAL_HINT)


async def _unfit_backend(monitor: Monitor) -> Pinned | None:
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    if page_bytes > PAGE_BYTES:
        return Pinned(f"the host's pages are of {format_size(page_bytes)}", HUGE_HINT)
    backend = await _property(monitor, "/machine", "memory-backend")
    if isinstance(backend, str) and await _property(monitor, backend, "readonly") is True:
        return Pinned("the guest's memory is a file that was opened for reading only", READ_ONLY_HINT)
    for kind, prop in (("memory-backend-memfd", "hugetlb"), ("memory-backend-file", "mem-path")):
        for name in await _children(monitor, "/objects", kind):  # a guest with NUMA nodes has several
            value = await _property(monitor, f"/objects/{name}", prop)
            if value is True or (isinstance(value, str) and on_hugetlbfs(value, Path("/proc/mounts"))):
                return Pinned("the guest's memory is made of huge pages", HUGE_HINT)
    return None


async def _networks(monitor: Monitor) -> str:
    """Return QEMU's list of network back ends, text for people: nothing else tells of one by vDPA."""
    try:
        text = await monitor.execute("human-monitor-command", {"command-line": "info network"})
    except RefusedError:
        return ""
    return text if isinstance(text, str) else ""


async def _drives_nvme(monitor: Monitor) -> bool:
    """Tell whether QEMU drives an NVMe disk itself; it maps all of the guest's memory for that."""
    try:
        nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
    except RefusedError:
        return False
    listing = nodes if isinstance(nodes, list) else []
    return any(isinstance(node, dict) and node.get("drv") == "nvme" for node in listing)


async def _property(monitor: Monitor, path: str, name: str) -> object:
    """Return a property of a QOM object; None where it has none of that name."""
    try:
        return await monitor.execute("qom-get", {"path": path, "property": name})
    except RefusedError:
        return None


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
