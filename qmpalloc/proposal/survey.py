"""Asks QEMUs that run, one monitor each, what they are. Questions only: nothing about a guest is changed."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import trio
from msgspec import structs

from qmpalloc.config.addresses import QEMU_OPTION
from qmpalloc.control.inspection import BALLOON_HINT, choose_actuator
from qmpalloc.errors import NonsenseError, QmpallocError, RefusedError
from qmpalloc.host.process import resident_bytes
from qmpalloc.host.qemus import Qemu
from qmpalloc.host.sockets import holders
from qmpalloc.proposal.seen import Lack, Memory, Seen
from qmpalloc.qemu.argv import AGENT_PORT
from qmpalloc.qemu.options import guest_name, qmp_addresses
from qmpalloc.qmp import MANY_COMMANDS, Actuator, Monitor, deadline, open_monitor
from qmpalloc.text import one_line

TIMEOUT_S = 5.0
"""For connecting to one monitor; three times as much for all its answers."""

NAME_MAX = 28
"""A configuration allows 32; what is shorter leaves room to tell two of one name apart."""

COMMON_NAMES = frozenset({"qmp", "monitor", "mon", "control", "socket", "people"})
"""A socket called so names no guest; its directory may."""

NO_MACHINE = "none-machine"

AGENT_OPTIONS = (
    "-device virtio-serial-pci -chardev socket,id=agent,path={path},server=on,wait=off "
    "-device virtserialport,chardev=agent,name=org.qemu.guest_agent.0"
)
BETTER_BALLOON = {
    "deflate-on-oom": "deflate-on-oom=on: a squeezed guest can then save itself",
    "free-page-reporting": "free-page-reporting=on: memory that it frees comes back to the host by itself",
    "guest-stats-polling-interval": "guest-stats-polling-interval=1: its driver then tells what it uses",
}


async def survey(qemus: Sequence[Qemu], timeout_s: float = TIMEOUT_S) -> list[Seen]:
    """Return what was found of each QEMU, all asked at the same time, in their order."""
    found: dict[int, Seen] = {}

    async def look(qemu: Qemu) -> None:
        found[qemu.pid] = await _look(qemu, timeout_s)

    async with trio.open_nursery() as nursery:
        for qemu in qemus:
            nursery.start_soon(look, qemu)
    return _told_apart([found[qemu.pid] for qemu in qemus])


async def _look(qemu: Qemu, timeout_s: float) -> Seen:
    """Ask over the first QMP socket that answers. Where none does, what is wrong with each rules the QEMU out."""
    lacks: list[Lack] = []
    addresses = qmp_addresses(qemu.argv)
    for address in addresses:
        if not address.path:
            lacks.append(Lack(f"a QMP monitor is no Unix socket of its own: {one_line(address.what, 80)}", _qmp(qemu)))
            continue
        path = _socket(qemu, address.path)
        if path is None:
            lacks.append(Lack(f"its QMP socket {one_line(address.path)} is not there", _gone(qemu)))
            continue
        held = await trio.to_thread.run_sync(holders, path)
        if held:
            todo = f"end that, or give qmpalloc a QMP socket of its own: {_qmp(qemu)}"
            lacks.append(Lack(f"its QMP socket {one_line(path)} is held by {', '.join(held)}", todo))
            continue
        try:
            async with open_monitor(path, timeout_s=timeout_s) as monitor:
                with deadline(MANY_COMMANDS * timeout_s, path, "the questions of init"):
                    if monitor.process_id not in {qemu.pid, None}:
                        raise NonsenseError(f"{path}: process {monitor.process_id} answers", hint=_gone(qemu))
                    return await _ask(monitor, qemu, path)
        except QmpallocError as error:
            lacks.append(Lack(one_line(error.message), one_line(error.hint)))
    if not addresses:
        lacks.append(Lack("it has no QMP socket", _qmp(qemu)))
    name, named = _name(qemu, guest_name(qemu.argv), addresses[0].path if addresses else "")
    return Seen(pid=qemu.pid, program=qemu.program, name=name, named=named, lacks=tuple(lacks))


async def _ask(monitor: Monitor, qemu: Qemu, path: str) -> Seen:
    """Return all that a QEMU tells over its monitor.

    Raises:
        QmpallocError: It does not answer, or not as QMP allows.
    """
    answer = await monitor.execute("query-name")
    told = answer.get("name") if isinstance(answer, dict) else None
    name, named = _name(qemu, told if isinstance(told, str) else "", path)
    if await monitor.execute("qom-get", {"path": "/machine", "property": "type"}) == NO_MACHINE:
        lack = Lack("it has no machine (-M none)", "start it with one: -M q35")
        return Seen(pid=qemu.pid, program=qemu.program, name=name, named=named, monitor=path, lacks=(lack,))
    lacks: list[Lack] = []
    weak: list[Lack] = []
    memory = None
    try:
        actuator = await choose_actuator(monitor)
    except RefusedError as error:
        lacks.append(Lack(_without(path, error.message), one_line(error.hint)))
    else:
        memory, weak = await _memory(actuator)
    agent, trouble = await _agent(monitor, qemu, name)
    if trouble is not None:
        lacks.append(trouble)
    return Seen(
        pid=qemu.pid,
        program=qemu.program,
        name=name,
        named=named,
        monitor=path,
        agent=agent,
        memory=memory,
        lacks=tuple(lacks),
        weak=tuple(weak),
    )


async def _memory(actuator: Actuator) -> tuple[Memory, list[Lack]]:
    """Return the guest's memory, and what its balloon could do besides."""
    monitor, sizes = actuator.monitor, await actuator.memory()
    used_bytes: int | None = None
    weak: list[Lack] = []
    balloon = await monitor.find_balloon()
    if balloon is not None:
        stats = await monitor.balloon_stats(balloon)
        if stats.last_update and stats.total_bytes is not None and stats.available_bytes is not None:
            used_bytes = max(stats.total_bytes - stats.available_bytes, 0)
        if actuator.takes_back:
            weak = [Lack(f"its balloon lacks {why}", BALLOON_HINT) for why in await _missing(monitor, balloon)]
    version = ".".join(map(str, monitor.qemu_version))
    memory = Memory(
        ram_bytes=sizes.ram_bytes,
        size_bytes=await actuator.size_bytes(),
        least_bytes=sizes.grid.start_bytes,
        outside_bytes=sizes.outside_bytes,
        used_bytes=used_bytes,
        resident_bytes=resident_bytes(monitor.process_id),
        actuator=f"QEMU {version}, its memory moved by {'the balloon' if actuator.takes_back else 'virtio-mem'}",
    )
    return memory, weak


async def _missing(monitor: Monitor, balloon: str) -> list[str]:
    """Return what is off in a balloon, with what it is good for."""
    missing = []
    for name, why in BETTER_BALLOON.items():
        try:
            value = await monitor.execute("qom-get", {"path": balloon, "property": name})
        except RefusedError:
            value = None  # an older QEMU
        if not value:
            missing.append(why)
    return missing


async def _agent(monitor: Monitor, qemu: Qemu, name: str) -> tuple[str, Lack | None]:
    """Return the guest agent's socket; or nothing, and why."""
    ports = [path for path, kind in await monitor.devices() if kind == "virtserialport"]
    labels = [
        await monitor.execute("qom-get", {"path": path, "property": "chardev"})
        for path in ports
        if await monitor.execute("qom-get", {"path": path, "property": "name"}) == AGENT_PORT
    ]
    if not labels:
        options = AGENT_OPTIONS.format(path=Path(monitor.address).with_name(f"{name}.agent"))
        return "", Lack("it has no port for the guest agent", f"start it with {options}")
    chardevs = await monitor.execute("query-chardev")
    files = {each.get("label"): each.get("filename") for each in chardevs} if isinstance(chardevs, list) else {}
    written = unix_path(str(files.get(labels[0])))
    path = _socket(qemu, written) if written else None
    if path is None:
        shown = one_line(str(files.get(labels[0])))
        todo = "give its chardev a Unix socket: -chardev socket,id=agent,path=PATH,server=on,wait=off"
        return "", Lack(f"the guest agent's port is no Unix socket that is there: {shown}", todo)
    held = await trio.to_thread.run_sync(holders, path)
    if held:
        return "", Lack(f"its agent's socket {one_line(path)} is held by {', '.join(held)}", "end that")
    return path, None


def unix_path(filename: str) -> str:
    """Return the path in QEMU's description of a socket, as ``disconnected:unix:/run/a,server=on``; empty if none."""
    kind, _, rest = filename.removeprefix("disconnected:").partition(":")
    option = QEMU_OPTION.search(rest)
    if kind != "unix" or rest.startswith("@"):
        return ""
    return rest[: option.start()] if option else rest


def _socket(qemu: Qemu, written: str) -> str | None:
    """Return the absolute path of a socket of a QEMU; None where there is none."""
    for directory in qemu.directories or (Path("/"),):
        path = directory / written
        try:
            if stat.S_ISSOCK(path.stat().st_mode):
                return str(path)
        except OSError:
            continue
    return None


def _gone(qemu: Qemu) -> str:
    return f"somebody removed it, or it is in a container; {_qmp(qemu)}"


def _qmp(qemu: Qemu) -> str:
    directory = qemu.directories[0] if qemu.directories else Path("/run")
    return f"start it with -qmp unix:{one_line(str(directory / f'{qemu.pid}.qmp'))},server=on,wait=off"


def _without(address: str, message: str) -> str:
    return one_line(message.removeprefix(f"{address}: "))


def _name(qemu: Qemu, told: str, socket: str) -> tuple[str, str]:
    """Return a name for a configuration, and where it is from; the first of these that there is.

    1. ``-name``;
    2. the name of its QMP socket, or where that is a common one, of the socket's directory;
    3. its process id.
    """
    path = Path(socket)
    stem = path.name.split(".")[0]
    for text, named in (
        (told, "its -name"),
        ("" if stem in COMMON_NAMES else stem, "from its QMP socket"),
        (path.parent.name, "from its QMP socket's directory"),
    ):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:NAME_MAX]
        if name:
            return name, named
    return f"qemu-{qemu.pid}", "its process id: it has no -name"


def _told_apart(guests: Sequence[Seen]) -> list[Seen]:
    """Return guests of which no two have one name."""
    taken = {guest.name for guest in guests}
    seen: set[str] = set()
    apart = []
    for guest in guests:
        if guest.name in seen:
            name = next(name for number in count(2) if (name := f"{guest.name}-{number}") not in taken)
            taken.add(name)
            named = f"{guest.named}, which another QEMU has too: start it with another -name to choose"
            apart.append(structs.replace(guest, name=name, named=named))
        else:
            seen.add(guest.name)
            apart.append(guest)
    return apart
