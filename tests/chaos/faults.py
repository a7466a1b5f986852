"""What can go wrong with one guest, as pairs of doing and undoing, and how each must show in the record."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import numpy as np
from msgspec import Struct

from qmpalloc.config import DEFAULT_COUNTERS_FILE
from qmpalloc.curves.samples import BLOCK_SHIFT, EVENTS_MAX, Batch, pack
from qmpalloc.events import Commanded, Faulted, Sampled, SampleRejected, SizeChanged, StateChanged
from qmpalloc.model import GuestDecision, GuestSnapshot, GuestState, Limiter
from qmpalloc.qmp.framing import LINE_MAX_BYTES
from qmpalloc.sim.load import MappedFile
from qmpalloc.testing.faults import Faults
from qmpalloc.testing.simulated_guest import SimulatedGuest
from qmpalloc.units import MIB, PAGE_BYTES

HOSTILE = "hostile"
"""Kernel release in all samples that must not be accepted."""

LEAST_BYTES = 128 * MIB
"""No less is asked of a balloon by others: below every floor, and yet no less than the simulated guest itself needs."""

RESTARTED = "restarted"
"""Stands among the events where one controller was followed by another."""

SPOILT_SAMPLES = "samples file is hostile"
"""Does no harm: the counters go on. That it shows is seen over the whole run, for it is told once and then seldom."""

Shows = Callable[[Sequence[object]], bool]
Break = Callable[[SimulatedGuest, random.Random], Callable[[], None]]


class Fault(Struct, frozen=True):
    """Something that goes wrong.

    Attributes:
        name: For people.
        do: Breaks a guest, and returns what mends it.
        shows: Whether the events of the guest since then show it. For a fault that must do no harm: whether samples go
            on.
        ends_qemu: The guest's QEMU ends; whoever breaks it starts another.
        of_balloons: Only a guest with a balloon has what breaks.
    """

    name: str
    do: Break
    shows: Shows
    ends_qemu: bool = False
    of_balloons: bool = False

    def can_befall(self, guest: SimulatedGuest) -> bool:
        """Tell whether the guest has what breaks."""
        return not (self.of_balloons and guest.qemu.virtio_mem is not None)


def shows(fault: Fault, events: Sequence[object]) -> bool:
    """Return whether the events show a fault; after a restart, in whatever way a controller finds it that begins."""
    if fault.shows(events):
        return True
    later = events[events.index(RESTARTED) :] if RESTARTED in events else ()
    return unharmed(later) or any(isinstance(event, (Faulted, StateChanged, SampleRejected)) for event in later)


def state(*wanted: GuestState) -> Shows:
    """Return whether the guest came into one of these states."""
    return lambda events: any(isinstance(event, StateChanged) and event.state in wanted for event in events)


def fault(*kinds: str) -> Shows:
    """Return whether a fault of one of these kinds was reported."""
    return lambda events: any(isinstance(event, Faulted) and event.kind in kinds for event in events)


def rejected(events: Sequence[object]) -> bool:
    """Return whether a sample was rejected."""
    return any(isinstance(event, SampleRejected) for event in events)


def unharmed(events: Sequence[object]) -> bool:
    """Return whether samples go on."""
    return sum(isinstance(event, Sampled) for event in events) >= 3


def danger(events: Sequence[object]) -> bool:
    """Return whether the guest was found in danger; one sign can hide another."""
    verdicts = [event for event in events if isinstance(event, GuestDecision)]
    limiters = {verdict.limiter for verdict in verdicts}
    # When all guests need more than the budget holds, a guest in danger is limited by that.
    needy = any(verdict.reason.startswith("less than it needs") for verdict in verdicts)
    seen = any(isinstance(event, GuestSnapshot) and event.frozen.startswith("danger") for event in events)
    return needy or seen or Limiter.DANGER in limiters or fault("danger")(events)


def _unheard(events: Sequence[object]) -> bool:
    return rejected(events) or state(GuestState.LATE, GuestState.LOST)(events)


def _faulted(events: Sequence[object]) -> bool:
    """Return whether pages that page faults brought in were told, or the guest was found in need of memory."""
    samples = [event for event in events if isinstance(event, Sampled)]
    return any(event.delta is not None and (event.delta.inserts_fault or 0) > 0 for event in samples) or danger(events)


def resized(events: Sequence[object]) -> bool:
    """Return whether the size changed and was corrected or reported."""
    return any(isinstance(event, (SizeChanged, Commanded)) for event in events)


def nuisances() -> tuple[Fault, ...]:
    """Return the faults that must do no harm, and under which a guest must recover from all others."""
    return tuple(fault for fault in catalogue() if fault.shows is unharmed)


def catalogue() -> tuple[Fault, ...]:
    """Return all faults of guests."""
    agent, monitor = fault("agent"), state(GuestState.HELD, GuestState.HUNG, GuestState.CONNECTING)
    return (
        Fault("agent gone", lambda guest, _: _both(guest.agent.stop, guest.agent.start), agent),
        Fault("agent hangs", lambda guest, _: _set(guest.agent.faults, "hang", True), agent),
        Fault("agent disconnects", lambda guest, _: _set(guest.agent.faults, "die_after", 1), agent),
        Fault("agent sends noise", lambda guest, _: _set(guest.agent.faults, "garbage", b"\xfe\x1b[2J\n"), agent),
        Fault(
            "agent sends an endless line",
            lambda guest, _: _set(guest.agent.faults, "garbage", b"x" * LINE_MAX_BYTES),
            agent,
        ),
        Fault("agent splits its answers", lambda guest, _: _set(guest.agent.faults, "split", True), unharmed),
        Fault("agent answers twice", lambda guest, _: _set(guest.agent.faults, "twice", True), unharmed),
        Fault("agent answers others", lambda guest, _: _set(guest.agent.faults, "strangers", True), unharmed),
        Fault("agent is slow", lambda guest, _: _set(guest.agent.faults, "delay_s", 0.2), unharmed),
        Fault("agent lies", _lie, agent),
        Fault("counters file is hostile", _spoil, rejected),
        Fault("counters file is missing", lambda guest, _: _write(guest, None), rejected),
        Fault(SPOILT_SAMPLES, _spoil_samples, unharmed),
        Fault("collector stops", lambda guest, _: _set(guest, "collecting", False), _unheard),
        Fault("monitor hangs", lambda guest, _: _set(guest.qemu.faults, "hang", True), state(GuestState.HUNG)),
        Fault("monitor sends noise", lambda guest, _: _set(guest.qemu.faults, "garbage", b"\xff\x1b[m\n"), monitor),
        Fault("monitor disconnects", lambda guest, _: _set(guest.qemu.faults, "die_after", 1), fault("monitor")),
        Fault("monitor splits its answers", lambda guest, _: _set(guest.qemu.faults, "split", True), unharmed),
        Fault("monitor answers twice", lambda guest, _: _set(guest.qemu.faults, "twice", True), unharmed),
        Fault("monitor answers others", lambda guest, _: _set(guest.qemu.faults, "strangers", True), unharmed),
        Fault("size is never told", lambda guest, _: _set(guest.qemu.faults, "drop", {size_query(guest)}), monitor),
        Fault("size is nonsense", _lie_about_size, monitor),
        Fault("guest reboots", lambda guest, _: _both(guest.reboot, lambda: None), state(GuestState.LOST)),
        Fault("guest is paused", lambda guest, _: _both(guest.qemu.stop, guest.qemu.resume), state(GuestState.PAUSED)),
        Fault("guest falls asleep", _sleep, state(GuestState.PAUSED)),
        Fault("guest grows by itself", _grow, resized),
        Fault("guest needs all its memory", _squeeze, danger),
        Fault("guest takes more than the budget holds", _take_all, danger),
        Fault("a mapped file begins to fault", _map, _faulted),
        Fault("memory is plugged", _plug, unharmed),
        Fault("somebody else asks for another size", _interfere, resized),
        Fault("size is stuck", _stall, resized),
        Fault("statistics jump", _jump, danger, of_balloons=True),
        Fault("guest is migrated", lambda guest, _: _set(guest.qemu, "migration", "active"), state(GuestState.HELD)),
        Fault("QEMU ends", lambda guest, _: _both(guest.qemu.shut_down, lambda: None), state(GuestState.GONE), True),
    )


def _both(do: Callable[[], None], undo: Callable[[], None]) -> Callable[[], None]:
    do()
    return undo


def _set(thing: object, name: str, value: object) -> Callable[[], None]:
    before = getattr(thing, name)
    setattr(thing, name, value)
    return lambda: setattr(thing, name, before)


def _lie(guest: SimulatedGuest, rng: random.Random) -> Callable[[], None]:
    return _set(guest.agent, "lie", rng.choice(["count", "more", "base64", "endless"]))


def _lie_about_size(guest: SimulatedGuest, rng: random.Random) -> Callable[[], None]:
    sizes: list[object] = [-1, 2**64, 2**62, "much", True, None, 1.5, guest.qemu.actuator.memory_bytes + MIB]
    value, commands, query = rng.choice(sizes), guest.qemu.commands, size_query(guest)
    before = commands[query]

    def lie(arguments: dict[str, Any]) -> object:
        if guest.qemu.virtio_mem is None:
            return {"actual": value}
        first, *others = cast("list[dict[str, Any]]", before(arguments))
        return [first | {"data": first["data"] | {"size": value}}, *others]

    commands[query] = lie
    return lambda: commands.update({query: before})


def size_query(guest: SimulatedGuest) -> str:
    """Return the command by which a guest's size is asked for."""
    return "query-balloon" if guest.qemu.virtio_mem is None else "query-memory-devices"


def _write(guest: SimulatedGuest, content: bytes | None) -> Callable[[], None]:
    guest.collecting = False
    if content is None:
        guest.agent.files.pop(DEFAULT_COUNTERS_FILE, None)
    else:
        guest.agent.files[DEFAULT_COUNTERS_FILE] = content
    return lambda: setattr(guest, "collecting", True)


def _spoil(guest: SimulatedGuest, rng: random.Random) -> Callable[[], None]:
    return _write(guest, rng.choice(list(hostile_files(guest))))


def _spoil_samples(guest: SimulatedGuest, rng: random.Random) -> Callable[[], None]:
    guest.agent.files[guest.samples_file] = rng.choice(list(hostile_samples(rng)))

    def undo() -> None:
        guest.agent.files.pop(guest.samples_file, None)

    return undo


def hostile_samples(rng: random.Random) -> Iterator[bytes]:
    """Yield contents of a samples file, of any guest, by which no memory must move."""
    yield from (b"", b"QMPSAMP1", rng.randbytes(4096), bytes(48_000_000))
    keys = np.array([rng.randrange(2**60) for _ in range(2000)], dtype=np.uint64)
    honest = Batch(
        boot_id=rng.randbytes(16),
        start_id=rng.randbytes(8),
        first=0,
        accesses=len(keys) << BLOCK_SHIFT,
        lost=0,
        shift=BLOCK_SHIFT,
        events=keys << np.uint64(4),
    )
    yield pack(honest)[:-8]
    each: tuple[dict[str, object], ...] = (
        {},  # well-formed, of a guest that reads no page twice
        {"accesses": 2**63},
        {"first": 2**64 - 1},
        {"lost": 2**62},
        {"shift": 255},
        {"accesses": 0},
        {"events": keys | np.uint64(7)},
        {"events": np.resize(keys, EVENTS_MAX)},
    )
    for changes in each:
        yield pack(msgspec.structs.replace(honest, **changes))


def hostile_files(guest: SimulatedGuest) -> Iterator[bytes]:
    """Yield contents of a counters file that must not be accepted of this guest."""
    yield from (b"", b"{", b"\xff\xfe\x00", b"[" * 4000, b'{"a":' * 800, b" " * 5000, b"NaN", b"\x1b[2J[red]")
    yield b'{"format":"qmpalloc-counters","version":99}'
    yield bytes(48_000_000)
    honest = msgspec.to_builtins(guest.sample())
    for path, value in (
        (("counters", "accesses"), 2**64),
        (("counters", "accesses"), -5),
        (("counters", "accesses"), 2**62),
        (("counters", "inserts_read"), 1.5),
        (("counters", "inserts_read"), True),
        (("memory_bytes", "total"), 2**49),
        (("memory_bytes", "available"), 2**49),
        (("psi_memory", "some_avg10"), 1e300),
        (("kernel",), "\x1b]0;owned\x07[bold]"),
        (("error",), "it cannot count"),
        (("monotonic_ns",), 2**62),
        (("boot_id",), "../../../../etc/passwd"),
    ):
        with _changed(honest, path, value) as sample:
            yield msgspec.json.encode(sample)
    yield msgspec.json.encode(honest | {"kernel": HOSTILE}).replace(b'"oom_kills":0', b'"oom_kills":NaN')


@contextmanager
def _changed(honest: dict[str, object], path: Sequence[str], value: object) -> Iterator[dict[str, object]]:
    sample: dict[str, object] = msgspec.json.decode(msgspec.json.encode(honest | {"kernel": HOSTILE}))
    place = sample
    for key in path[:-1]:
        inner = place[key]
        assert isinstance(inner, dict)
        place = inner
    place[path[-1]] = value
    sequence = sample["sequence"]
    assert isinstance(sequence, int)
    sample["sequence"] = sequence + 1
    yield sample


def _grow(guest: SimulatedGuest, rng: random.Random) -> Callable[[], None]:
    before = guest.qemu.actuator.actual_bytes
    guest.qemu.actuator.take_back(rng.randrange(8, 64) * MIB)
    guest.qemu.actuator.least_bytes = 0
    if guest.qemu.actuator.actual_bytes == before:  # it has all, or cannot grow by itself
        return _interfere(guest, rng)
    return lambda: None


def _sleep(guest: SimulatedGuest, _: random.Random) -> Callable[[], None]:
    guest.qemu.actuator.take_back(guest.qemu.actuator.memory_bytes)  # its driver empties the balloon first
    guest.qemu.suspend()
    return guest.qemu.wake


def _take_all(guest: SimulatedGuest, _: random.Random) -> Callable[[], None]:
    """Let a program want all memory there is, and the guest take it by itself (deflate-on-oom)."""
    balloon = guest.qemu.actuator
    undo = _set(guest.cache, "own_bytes", balloon.memory_bytes)
    balloon.take_back(balloon.memory_bytes)
    return undo


def _map(guest: SimulatedGuest, rng: random.Random) -> Callable[[], None]:
    """Map a file of which not all is in memory."""
    pages = guest.qemu.actuator.memory_bytes // PAGE_BYTES
    return _set(guest, "mapped", MappedFile(file_pages=pages, touches_per_s=rng.uniform(100, 5000)))


def _plug(guest: SimulatedGuest, rng: random.Random) -> Callable[[], None]:
    """Plug a DIMM, and unplug it again if the guest can do without: its kernel lets go of none that it needs."""
    size_bytes, balloon = rng.randrange(1, 4) * 128 * MIB, guest.qemu.actuator
    if guest.qemu.virtio_mem is not None:
        size_bytes = 128 * MIB  # which it cannot give while that is plugged, and still fits below its baseline

    def undo() -> None:
        if min(balloon.actual_bytes, balloon.target_bytes) - size_bytes >= LEAST_BYTES:
            guest.qemu.unplug("dimm0")

    if "dimm0" not in guest.qemu.memory_devices:
        guest.qemu.plug("dimm0", "dimm", size_bytes)
        return undo
    return lambda: None


def _squeeze(guest: SimulatedGuest, _: random.Random) -> Callable[[], None]:
    before = guest.cache.own_bytes
    guest.cache.own_bytes = guest.qemu.actuator.memory_bytes
    return lambda: setattr(guest.cache, "own_bytes", before)


def _interfere(guest: SimulatedGuest, rng: random.Random) -> Callable[[], None]:
    size_bytes, change_bytes = guest.qemu.actuator.actual_bytes, rng.randrange(8, 160) * MIB
    shrinks = size_bytes - change_bytes >= LEAST_BYTES
    guest.qemu.actuator.request(size_bytes - change_bytes if shrinks else size_bytes + change_bytes)
    return lambda: None


def _stall(guest: SimulatedGuest, rng: random.Random) -> Callable[[], None]:
    balloon = guest.qemu.actuator
    undo_inflation = _set(balloon, "inflate_bytes_per_s", math.inf)
    undo_deflation = _set(balloon, "deflate_bytes_per_s", math.inf)
    _interfere(guest, rng)
    balloon.stalled = True

    def undo() -> None:
        undo_inflation()
        undo_deflation()
        balloon.stalled = False

    return undo


def _jump(guest: SimulatedGuest, rng: random.Random) -> Callable[[], None]:
    stats = guest.qemu.stats
    stats["stat-alloc-stalls"] = rng.choice([2**62, 2**63, 5])
    stats["stat-oom-kills"] = stats["stat-oom-kills"] % 1000 + 1 + rng.randrange(9)
    return lambda: stats.update({"stat-alloc-stalls": 0})


def mend(faults: Faults) -> None:
    """Switch all faults of a fake off."""
    faults.hang = False
    fresh = Faults()
    for name in ("drop", "delay_s", "split", "garbage", "strangers", "twice", "die_after"):
        setattr(faults, name, getattr(fresh, name))
