"""Checks of one guest: its monitor and what QEMU was started with, its agent, its collector."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio
from msgspec import Struct

from qmpalloc.config import ControlConfig, GuestConfig
from qmpalloc.control.inspection import choose_actuator, find_pinned
from qmpalloc.control.run_state import ASLEEP
from qmpalloc.control.sampling import ABSENT_HINT
from qmpalloc.curves.observer import NOT_SAMPLED
from qmpalloc.curves.samples import FILE_MAX_BYTES as SAMPLES_MAX_BYTES
from qmpalloc.curves.samples import unpack
from qmpalloc.doctor.checks import Check, Verdict, failed, passed, warned
from qmpalloc.errors import DeadlineError, QmpallocError, RefusedError, SampleError, SampleFault
from qmpalloc.host.sockets import holders, who_else_may_open
from qmpalloc.model import MemorySizes
from qmpalloc.qemu.image import images_dir
from qmpalloc.qmp import (
    MANY_COMMANDS,
    Actuator,
    Agent,
    FileTrouble,
    Monitor,
    deadline,
    file_trouble,
    find_actuators,
    open_agent,
    open_monitor,
)
from qmpalloc.sample import FILE_MAX_BYTES, STARTING, Sample, parse
from qmpalloc.units import format_size

NEEDED_COMMANDS = ("guest-sync-delimited", "guest-info", "guest-file-open", "guest-file-read", "guest-file-close")
BALLOON_OPTIONS = "-device virtio-balloon-pci,id=balloon0,deflate-on-oom=on,free-page-reporting=on"
WITHOUT_CURVE = "policy curve goes by bounds, hill gives it nothing"
AGENT_TODO = "install qemu-guest-agent in the guest and start QEMU with its port (README.md shows it)"


COUNTED = ("accesses", "inserts_read", "inserts_fault", "inserts_write", "inserts_other", "evictions")
NEEDED_COUNTERS = ("accesses", "inserts_read")
"""What hits and misses are made of."""

UNKNOWN_REFUSAL_TODO = (
    "these are the guest's words for why; if they say that there is no such file, install guest_agent/ in the guest "
    "(docs/guests.md)"
)
SERVICES = "/sys/fs/cgroup/system.slice"
SERVICE = "qmpalloc-collector.service"
PROCESSES_MAX_BYTES = 4096
STARTING_TODO = (
    "wait a few seconds, under emulation up to a minute; if it stays so: journalctl -u qmpalloc-collector in the guest"
)
NO_AGENT_TODO = "what answers on this socket is not the guest agent: correct the path in the configuration"


async def check_guest(guest: GuestConfig, control: ControlConfig) -> AsyncIterator[Check]:
    """Yield the checks of a guest, as they are made. Nothing about the guest is changed."""
    timeout_s = float(control.command_timeout)
    socket = _socket(guest.name, "monitor socket", guest.monitor)
    yield socket
    if socket.verdict is not Verdict.FAIL:
        for check in await _check_monitor(guest, timeout_s):
            yield check
    socket = _socket(guest.name, "agent socket", guest.agent)
    yield socket
    if socket.verdict is not Verdict.FAIL:
        for check in await _check_agent(guest, timeout_s, float(control.sample_interval)):
            yield check


def _socket(name: str, what: str, path: str) -> Check:
    """Check that a socket can be opened and that nobody else has; only then is it worth connecting."""
    try:
        facts = Path(path).stat()
    except FileNotFoundError:
        return failed(name, what, f"{path} does not exist", "start the guest, or correct the path in the configuration")
    except OSError as error:
        return failed(name, what, f"{path}: {error.strerror}", "run as the user who started QEMU")
    if not stat.S_ISSOCK(facts.st_mode):
        return failed(name, what, f"{path} is not a socket", "give the path that QEMU's -qmp or -chardev option names")
    if not os.access(path, os.R_OK | os.W_OK):
        return failed(name, what, f"{path} may not be opened by this user", "run as the user who started QEMU")
    held = holders(path)
    if held:
        todo = "end it, or give it a socket of its own (a second -qmp): QEMU serves one client per socket"
        return failed(name, what, f"{path} is held by {', '.join(held)}", todo)
    others = who_else_may_open(Path(path))
    if others:
        todo = "put it in a directory of mode 700: who opens a guest's sockets owns the guest (docs/safety.md)"
        return warned(name, what, f"{path} may be opened by {others}", todo)
    return passed(name, what, path)


async def _check_monitor(guest: GuestConfig, timeout_s: float) -> list[Check]:
    name = guest.name
    try:
        async with open_monitor(guest.monitor, timeout_s=timeout_s) as monitor:
            with deadline(MANY_COMMANDS * timeout_s, guest.monitor, "the questions of doctor"):
                version = ".".join(str(part) for part in monitor.qemu_version)
                checks = [passed(name, "monitor", f"QEMU {version}")]
                checks.append(await _run_state(name, monitor))
                checks.append(await _accelerator(name, monitor))
                checks += await _actuators(guest, monitor)
                checks += [check async for check in _disks(name, monitor)]
                checks += [check async for check in _preallocated(name, monitor)]
            return checks
    except QmpallocError as error:
        return [failed(name, "monitor", error.message, error.hint or "is this the path of a -qmp socket?")]


async def _run_state(name: str, monitor: Monitor) -> Check:
    status = await monitor.query_status()
    if status.running:
        return passed(name, "state", status.status)
    command = "system_wakeup" if status.status == ASLEEP else "cont"
    todo = f"let it go on (QMP '{command}'): nothing is decided about a guest that does not run"
    return warned(name, "state", f"QEMU is {status.status}", todo)


async def _accelerator(name: str, monitor: Monitor) -> Check:
    kvm = await monitor.execute("query-kvm")
    if isinstance(kvm, dict) and kvm.get("enabled") is True:
        return passed(name, "accelerator", "KVM")
    todo = "times are not those of hardware; counts are"
    return warned(name, "accelerator", "emulated (TCG)", todo)


async def _actuators(guest: GuestConfig, monitor: Monitor) -> list[Check]:
    """Check what could move the guest's memory, and say which of it does, and why."""
    name, found = guest.name, await find_actuators(monitor)
    if not found:
        todo = f"start QEMU with {BALLOON_OPTIONS}, or with virtio-mem (docs/guests.md), which vfio and huge pages need"
        return [failed(name, "balloon", "no balloon device, and no virtio-mem device", todo)]
    checks: list[Check] = []
    for actuator in found:
        checks += await (_balloon(name, actuator) if actuator.takes_back else _virtio_mem(guest, actuator))
        pinned = await find_pinned(actuator, (await actuator.memory()).ram_bytes)
        if pinned is not None and len(found) == 1:
            checks.append(failed(name, "pinned memory", pinned.what, pinned.hint))
    if len(found) > 1:
        checks.append(await _choice(name, monitor))
    checks.append(_ram(guest, await found[0].memory()))
    return checks


async def _choice(name: str, monitor: Monitor) -> Check:
    """Say which of two moves the guest's memory."""
    try:
        chosen = await choose_actuator(monitor)
    except RefusedError as error:
        return failed(name, "pinned memory", error.message, error.hint)
    if chosen.takes_back:
        return passed(name, "moved by", "the balloon: what virtio-mem has plugged is charged to the budget, not moved")
    pinned = [
        await find_pinned(actuator, (await actuator.memory()).ram_bytes) for actuator in await find_actuators(monitor)
    ]
    why = next((each.what for each in pinned if each is not None), "the balloon gives nothing back")
    return passed(name, "moved by", f"virtio-mem, as {why}")


async def _balloon(name: str, actuator: Actuator) -> list[Check]:
    monitor, path = actuator.monitor, actuator.path
    checks = [passed(name, "balloon", f"{path}, size now {format_size(await actuator.size_bytes())}")]
    for prop, why in (("deflate-on-oom", "a squeezed guest can save itself"), ("free-page-reporting", "freed memory")):
        value = await monitor.execute("qom-get", {"path": path, "property": prop})
        if value is True:
            checks.append(passed(name, prop, "on"))
        else:
            note = f"off ({why} only with it)" if prop == "deflate-on-oom" else f"off ({why} stays with QEMU)"
            checks.append(warned(name, prop, note, f"start QEMU with {BALLOON_OPTIONS}"))
    stats = await monitor.balloon_stats(path)
    if not stats.last_update:
        todo = "add guest-stats-polling-interval=1 to the balloon device; or the guest has no balloon driver (yet)"
        checks.append(warned(name, "balloon stats", "never updated", todo))
    else:
        checks.append(passed(name, "balloon stats", "the guest's balloon driver answers"))
    return checks


async def _virtio_mem(guest: GuestConfig, actuator: Actuator) -> list[Check]:
    """Check how far the device can move the guest, and whether it has what it was asked to have."""
    name, memory, size_bytes = guest.name, await actuator.memory(), await actuator.size_bytes()
    least, block = format_size(memory.grid.start_bytes), format_size(memory.grid.unit_bytes)
    detail = f"{actuator.path}, size now {format_size(size_bytes)}: {least} and what is plugged in blocks of {block}"
    checks = [passed(name, "virtio-mem", detail)]
    if memory.grid.start_bytes > guest.floor:
        todo = f"start QEMU with less RAM (-m {guest.floor >> 20}), or raise floor"
        checks.append(warned(name, "floor", f"virtio-mem takes nothing of the RAM of {least}, above the floor", todo))
    arguments = {"path": actuator.path, "property": "requested-size"}
    requested = await actuator.monitor.execute("qom-get", arguments)
    if isinstance(requested, int) and memory.grid.start_bytes + requested != size_bytes:
        asked = format_size(memory.grid.start_bytes + requested)
        checks.append(warned(name, "virtio-mem driver", f"the guest was asked to have {asked}", actuator.stuck_hint))
    return checks


def _ram(guest: GuestConfig, memory: MemorySizes) -> Check:
    """Check the most that the guest can have, DIMMs included, and say what stands outside of it."""
    detail = format_size(memory.ram_bytes)
    if memory.outside_bytes:
        detail += f", and {format_size(memory.outside_bytes)} by virtio-mem: charged to the budget, not moved"
    if memory.ram_bytes >= guest.cap:
        return passed(guest.name, "RAM", detail)
    todo = f"lower cap, or start QEMU with -m {guest.cap >> 20}"
    if memory.grid.start_bytes:
        todo = f"lower cap, or give virtio-mem's memory backend {guest.cap - memory.grid.start_bytes >> 20} MiB"
    return warned(guest.name, "RAM", f"{detail}; below the cap of {format_size(guest.cap)}", todo)


async def _disks(name: str, monitor: Monitor) -> AsyncIterator[Check]:
    blocks = await monitor.execute("query-block")
    nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
    for disk in disks(blocks, nodes):
        if disk.direct:
            detail = "cache=none" + (", but for what is written: with snapshot=on" if disk.thrown_away else "")
            yield passed(name, f"disk {disk.name}", detail)
        elif disk.of_reference_image:
            detail = "the system of the reference image, cached by the host: loads read another disk"
            yield passed(name, f"disk {disk.name}", detail)
        else:
            todo = "use cache=none: the host's cache answers this guest's misses and hides what they cost"
            yield warned(name, f"disk {disk.name}", "cached by the host", todo)


class Disk(Struct, frozen=True, kw_only=True):
    """A disk of a guest.

    Attributes:
        name: Of the drive, or of the device.
        file: What is read: with ``snapshot=on`` the file below the temporary one.
        direct: Reads pass by the host's cache.
        thrown_away: What is written goes to a temporary file (``snapshot=on``), which the host always caches.
    """

    name: str
    file: str
    direct: bool
    thrown_away: bool

    @property
    def of_reference_image(self) -> bool:
        """True for the system of a guest that was built here: not what loads read."""
        return Path(self.file).resolve().is_relative_to(images_dir().resolve())


def disks(blocks: object, nodes: object) -> Iterator[Disk]:
    """Yield the disks in the replies to ``query-block`` and ``query-named-block-nodes``.

    With ``snapshot=on`` the first tells the cache mode of the temporary file only, which is not that of the option.
    """
    below: dict[str, bool] = {}
    for node in nodes if isinstance(nodes, list) else []:
        if isinstance(node, dict) and isinstance(cache := node.get("cache"), dict):
            file = str(node.get("file"))
            below[file] = below.get(file, True) and cache.get("direct") is True
    for device in blocks if isinstance(blocks, list) else []:
        inserted = device.get("inserted") if isinstance(device, dict) else None
        cache = inserted.get("cache") if isinstance(inserted, dict) else None
        if isinstance(inserted, dict) and isinstance(cache, dict):
            backing = inserted.get("backing_file")
            thrown_away = isinstance(backing, str) and cache.get("no-flush") is True
            file = str(backing if thrown_away else inserted.get("file"))
            yield Disk(
                name=str(device.get("device") or device.get("qdev") or "?").removesuffix("/virtio-backend"),
                file=file,
                direct=below.get(file, False) if thrown_away else cache.get("direct") is True,
                thrown_away=thrown_away,
            )


async def _preallocated(name: str, monitor: Monitor) -> AsyncIterator[Check]:
    backends = await monitor.execute("query-memdev")
    for backend in backends if isinstance(backends, list) else []:
        if isinstance(backend, dict) and backend.get("prealloc") is True:
            todo = "use plain RAM: this takes all of it from the host before the balloon gives any back"
            yield warned(name, "RAM backend", "preallocated", todo)


async def _check_agent(guest: GuestConfig, timeout_s: float, interval_s: float) -> list[Check]:
    name = guest.name
    try:
        async with open_agent(guest.agent, timeout_s=timeout_s) as agent:
            try:
                with deadline(timeout_s, guest.agent, "guest-info"):
                    info = await agent.info()
            except DeadlineError as error:
                return [failed(name, "agent", error.message, NO_AGENT_TODO if agent.skipped else AGENT_TODO)]
            missing = [command for command in NEEDED_COMMANDS if command not in info.enabled]
            if missing:
                if "guest-fsfreeze-status" in info.enabled and await _is_frozen(guest, agent, timeout_s):
                    return [failed(name, "agent", f"version {info.version}, frozen", FileTrouble.FROZEN.hint)]
                todo = "allow them in /etc/qemu/qemu-ga.conf of the guest (allow-rpcs / block-rpcs)"
                return [failed(name, "agent", f"version {info.version}, not allowed: {', '.join(missing)}", todo)]
            checks = [passed(name, "agent", f"version {info.version}")]
            if "guest-exec" in info.enabled:
                todo = "block guest-exec in /etc/qemu/qemu-ga.conf if nothing needs it: qmpalloc does not"
                checks.append(warned(name, "agent commands", "whoever holds the socket may run programs", todo))
            return checks + await _check_collector(guest, agent, timeout_s, interval_s)
    except QmpallocError as error:
        return [failed(name, "agent", error.message, error.hint or AGENT_TODO)]


async def _is_frozen(guest: GuestConfig, agent: Agent, timeout_s: float) -> bool:
    with deadline(timeout_s, guest.agent, "guest-fsfreeze-status"):
        return await agent.is_frozen()


async def _check_collector(guest: GuestConfig, agent: Agent, timeout_s: float, interval_s: float) -> list[Check]:
    name = guest.name
    try:
        first = await _read(guest, agent, timeout_s)
        await trio.sleep(max(interval_s, first.interval_ms / 1000) * 1.5)
        second = await _read(guest, agent, timeout_s)
    except RefusedError as error:
        absent = file_trouble(error) is FileTrouble.ABSENT
        if absent and await _collector_runs(guest, agent, timeout_s):
            return [warned(name, "collector", f"is starting: {error.message}", STARTING_TODO)]
        todo = ABSENT_HINT if absent else error.hint or UNKNOWN_REFUSAL_TODO
        return [failed(name, "collector", error.message, todo)]
    except SampleError as error:
        if error.fault is SampleFault.COLLECTOR and STARTING in error.message:
            if await _collector_runs(guest, agent, timeout_s) is not False:
                return [warned(name, "collector", error.message, STARTING_TODO)]
            todo = "it ended while it did: journalctl -u qmpalloc-collector in the guest"
            return [failed(name, "collector", error.message, todo)]
        todo = error.hint or "guest_agent/README.md explains it; in the guest: journalctl -u qmpalloc-collector"
        return [failed(name, "collector", error.message, todo)]
    checks = []
    if first.sequence == second.sequence and first.start_id == second.start_id:
        todo = "systemctl restart qmpalloc-collector in the guest"
        checks.append(failed(name, "collector", "its file does not change: it has stopped", todo))
    else:
        lru = {"lru_gen": "multi-generational LRU", "two_list": "two-list LRU"}.get(second.lru or "", "LRU unknown")
        ages = "" if second.ages else "; ages of memory are not told, so what programs map is kept"
        told = f"kernel {second.kernel}, {lru}, writes every {first.interval_ms} ms{ages}"
        checks.append(passed(name, "collector", told))
    checks += counter_checks(name, second)
    checks.append(await _check_samples(guest, agent, timeout_s))
    if second.psi_memory.some_avg10 is None:
        checks.append(warned(name, "guest PSI", "not available", "boot the guest with psi=1"))
    return checks


async def _collector_runs(guest: GuestConfig, agent: Agent, timeout_s: float) -> bool | None:
    """Tell whether the collector's service has a process, by its control group; None where systemd does not say so."""
    with deadline(timeout_s, guest.agent, "looking for the collector's processes"):
        try:
            await agent.read_file(f"{SERVICES}/cgroup.procs", PROCESSES_MAX_BYTES)
        except RefusedError:
            return None
        try:
            return bool(await agent.read_file(f"{SERVICES}/{SERVICE}/cgroup.procs", PROCESSES_MAX_BYTES))
        except RefusedError:
            return False


async def _check_samples(guest: GuestConfig, agent: Agent, timeout_s: float) -> Check:
    """Check the sampled accesses. Only policies by curves need them, so that a guest without is well."""
    name, path = guest.name, guest.samples_path
    try:
        with deadline(timeout_s, guest.agent, "reading the sampled accesses"):
            batch = unpack(await agent.read_file(path, SAMPLES_MAX_BYTES))
    except RefusedError as error:
        if file_trouble(error) not in {FileTrouble.ABSENT, FileTrouble.OTHER}:
            return warned(name, "curve", f"no curve: {error.message}", error.hint)
        return passed(name, "curve", f"no curve: {NOT_SAMPLED} ({path} cannot be read); {WITHOUT_CURVE}")
    except QmpallocError as error:
        todo = error.hint or f"{WITHOUT_CURVE}: journalctl -u qmpalloc-collector"
        return warned(name, "curve", f"no curve: {path}: {error.message}", todo)
    return passed(name, "curve", f"one page in {2**batch.shift} is sampled, {len(batch.events)} events last")


def counter_checks(name: str, sample: Sample) -> list[Check]:
    """Return what is wrong with the counts of a guest: which are absent, and why; what was lost on the way."""
    absent = [field for field in COUNTED if getattr(sample.counters, field) is None]
    kernel = f"; this kernel has no usable {', '.join(sample.missing_hooks)}" if sample.missing_hooks else ""
    needed = [field for field in absent if field in NEEDED_COUNTERS]
    checks = []
    if needed:
        todo = (
            "decisions by hits hold this guest: boot a kernel that has all hooks (docs/counters-file.md), 6.1 or later"
        )
        checks.append(failed(name, "counters", f"not counted: {', '.join(absent)}{kernel}", todo))
    elif absent:
        todo = "nothing is decided by them; a newer kernel may have them"
        checks.append(warned(name, "counters", f"not counted: {', '.join(absent)}{kernel}", todo))
    if sample.duty is not None:
        todo = "experiments refuse it, curves take long: without --duty in its collector's OPTIONS all is counted"
        told = f"estimated: cached reads are counted {sample.duty.share:.0%} of the time"
        checks.append(warned(name, "hits", told, todo))
    lost, missed = sample.counters.events_lost, sample.collector.intervals_missed
    if lost:
        todo = (
            "counts are short by that many reads or insertions: its kernel is preemptible; before Linux 7.0, "
            "preempt=voluntary avoids it (docs/counters-file.md)"
        )
        checks.append(warned(name, "losses", f"{lost} events were not counted since the collector started", todo))
    if missed:
        todo = "the guest has too little CPU, or cannot write its counters file: journalctl -u qmpalloc-collector"
        checks.append(warned(name, "intervals", f"{missed} were missed since the collector started", todo))
    return checks


async def _read(guest: GuestConfig, agent: Agent, timeout_s: float) -> Sample:
    with deadline(timeout_s, guest.agent, "reading the counters file"):
        return parse(await agent.read_file(guest.counters_file, FILE_MAX_BYTES))
