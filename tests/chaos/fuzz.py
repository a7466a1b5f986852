"""Bytes that a guest or a QEMU might send, at random: nothing but a valid value or a `QmpallocError` may come of them.

    python -m tests.chaos.fuzz [--seconds 60] [--seed 1]

Valid counters files and replies are changed a few times each and given to what reads them. A finding is any other
exception, a message that is not printable, or an accepted sample that does not survive being written and read again. It
is shown with the bytes, and the exit code is 1. A seed replays.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

import click
import msgspec
import trio
import trio.testing
from msgspec import Struct
from qemu.qmp import Message

from qmpalloc.config import ControlConfig, GuestConfig, Size
from qmpalloc.control.guest import Guest
from qmpalloc.control.memory import Facts
from qmpalloc.control.snapshot import snapshot_of
from qmpalloc.errors import QmpallocError
from qmpalloc.model import GuestSnapshot, Snapshot
from qmpalloc.policy import load
from qmpalloc.qmp.agent_channel import AgentChannel
from qmpalloc.qmp.agent_types import ExecReply, ExecStatusReply, Handle, InfoReply, ReadReply, WriteReply, decode_base64
from qmpalloc.qmp.connection import Connection
from qmpalloc.qmp.framing import Framer, MessageFramer, decode
from qmpalloc.qmp.monitor import Monitor
from qmpalloc.qmp.monitor_types import BalloonActual, BlockEntry, GuestStats, MemoryDevice, QomProperty, VmStatus
from qmpalloc.qmp.replies import typed, unpack
from qmpalloc.qmp.subscriptions import parse_event
from qmpalloc.sample import (
    AGE_BINS,
    GHOST_BINS,
    Ages,
    AgesByKind,
    Duty,
    RefaultDistances,
    SwapPages,
    parse,
)
from qmpalloc.sim.load import Load
from qmpalloc.testing.simulated_guest import SimulatedGuest
from qmpalloc.text import is_visible
from qmpalloc.units import MIB

CHANGES_MOST = 4
RAM_BYTES, SIZE_BYTES = 512 * MIB, 384 * MIB

TOKENS = (
    b"NaN", b"-1", b"1e999", b"18446744073709551616", b"9223372036854775807", b"1" * 5000, b"0.5", b"true", b"null",
    b'"\\u001b[2J"', b'"\\ud800"', b'"\\u0000"', b"\xff", b"\xfe", b"\n", b"{", b"}", b"[" * 2000, b'{"a":' * 500,
    b'"', b",", b":", b"\\", b"\x00", b"\x1b]0;owned\x07", b"[red]",
)  # fmt: skip


class FindingError(AssertionError):
    """Something came of the bytes that may not."""


class Target(Struct, frozen=True):
    """Something that reads bytes from outside.

    Attributes:
        name: For people.
        corpus: Valid bytes for it.
        read: Reads them; raises a `QmpallocError` when they are not valid.
    """

    name: str
    corpus: tuple[bytes, ...]
    read: Callable[[bytes], object]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with a few changes of the kinds that break parsers."""
    for _ in range(rng.randint(0, CHANGES_MOST)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice([0, 1, 2, 8, 64]))
        match rng.randrange(7):
            case 0:
                data = data[:start] + bytes([rng.randrange(256)]) + data[start + 1 :]
            case 1:
                data = data[:start] + data[end:]
            case 2:
                data = data[:end] + data[start:]
            case 3:
                data = data[:start] + rng.choice(TOKENS) + data[end:]
            case 4:
                data = data[:start]
            case _:  # often, as it leaves the JSON whole
                data = _with_another_value(data, rng)
    return data


def _with_another_value(data: bytes, rng: random.Random) -> bytes:
    values = list(re.finditer(rb'(?<=[:\[,])("[^"]*"|[-0-9.]+|true|false|null)(?=[,\]}])', data))
    if not values:
        return data
    place = rng.choice(values)
    return data[: place.start()] + rng.choice([*TOKENS, rng.choice(values).group()]) + data[place.end() :]


def targets() -> tuple[Target, ...]:
    """Return all that reads bytes from outside. Call it in a trio loop."""
    return (
        Target("counters file", tuple(_files()), _read_file),
        Target("monitor's lines", MONITOR_LINES, _read_monitor),
        Target("agent's lines", AGENT_LINES, _read_agent),
        *(Target(f"reply as {kind}", REPLIES, _reader(kind)) for kind in KINDS),
    )


def _simulated() -> SimulatedGuest:
    return SimulatedGuest("fuzz", load=Load(file_pages=1, accesses_per_s=1.0), memory_bytes=RAM_BYTES)


def _files() -> Iterator[bytes]:
    guest = _simulated()
    guest.sequence = 2
    honest = msgspec.structs.replace(guest.sample(), monotonic_ns=2_000_000_000)
    yield msgspec.json.encode(honest)
    yield msgspec.json.encode(msgspec.structs.replace(honest, error="it cannot count", missing_hooks=("a", "b")))
    by_age = AgesByKind(**{kind: tuple(range(AGE_BINS)) for kind in AgesByKind.__struct_fields__})
    distances = tuple(range(GHOST_BINS))
    tables = msgspec.structs.replace(
        honest,
        ages=Ages(step_ms=1000, pages_each=128, steps=2, idle=by_age, touched=by_age),
        refault_distances=RefaultDistances(pages_each=64, pages_first=1024, read=distances, fault=distances),
        swap_pages=SwapPages(in_=5, out=9, in_zram=3, read_ahead=1),
        memory_bytes=msgspec.structs.replace(
            honest.memory_bytes, zram=4 * MIB, swap_total=RAM_BYTES, swap_free=RAM_BYTES // 2
        ),
        duty=Duty(share=0.5, attached_ms=500, sampled=1, accesses_variance=7),
    )
    yield msgspec.json.encode(tables)
    yield b'{"format":"qmpalloc-counters","version":2}'


def _read_file(data: bytes) -> object:
    """Read a counters file as the second of a guest, everything that is derived from it, and decide beside another."""
    guest, other = _met("fuzz"), _met("other")
    sample = parse(data)
    if parse(msgspec.json.encode(sample)) != sample:
        raise FindingError("a sample changes by being written and read")
    accepted = guest.take_sample(sample, 1.0)
    seen = snapshot_of(guest, 1.0)
    if msgspec.json.decode(msgspec.json.encode(seen), type=GuestSnapshot) != seen:
        raise FindingError("a snapshot changes by being recorded")
    if seen.idle is not None and seen.idle.hot_pages * sample.page_size > (sample.memory_bytes.total or 0):
        raise FindingError(f"{seen.idle.hot_pages} pages are in use")
    if not 0 < guest.memory.floor_bytes <= RAM_BYTES:
        raise FindingError(f"the floor is {guest.memory.floor_bytes}")
    for name in ("curve", "hill"):
        guests, known = (seen, snapshot_of(other, 1.0)), {"since_s": -600.0, "load_since_s": -600.0}
        carry = {"version": 1, "guests": dict.fromkeys(("fuzz", "other"), known)} if name == "curve" else None
        snapshot = Snapshot(
            cycle=1, time_s=1.0, budget_bytes=2 * SIZE_BYTES, interval_s=1.0, guests=guests, carry=carry
        )
        decided = load(name, {}).decide(snapshot)
        if sum(one.target_bytes for one in decided.guests) > snapshot.budget_bytes:
            raise FindingError(f"policy {name} gives more than there is")
        msgspec.json.encode(decided)
    return accepted


def _met(name: str) -> Guest:
    """Return a guest of which there is one honest sample."""
    size = Size(RAM_BYTES)
    config = GuestConfig(name=name, monitor="m", agent="a", floor=Size(MIB), cap=size, baseline=Size(SIZE_BYTES))
    guest = Guest(config, ControlConfig())
    facts = Facts(ram_bytes=RAM_BYTES, balloon_path="/b", deflate_on_oom=True, qemu_version="9.2.0")
    guest.connected(facts, SIZE_BYTES, 0.0, paused=False)
    simulated = _simulated()
    simulated.sequence = 1
    guest.take_sample(msgspec.structs.replace(simulated.sample(), monotonic_ns=1_000_000_000), 0.0)
    return guest


def _read_monitor(data: bytes) -> object:
    monitor = Monitor(trio.testing.memory_stream_pair()[0], "fuzz")
    with monitor.subscribe():
        for frame in MessageFramer().feed(data):
            monitor.on_frame(frame)
    return monitor.qemu_version


def _read_agent(data: bytes) -> object:
    channel = AgentChannel(Connection(trio.testing.memory_stream_pair()[0], "fuzz"))
    for frame in Framer().feed(data):
        channel.on_frame(frame)
    return channel.skipped


def _reader(kind: str) -> Callable[[bytes], object]:
    convert = KINDS[kind]

    def read(data: bytes) -> object:
        return convert(unpack(decode(data), "command", "fuzz"))

    return read


def _typed(kind: object) -> Callable[[object], object]:
    return lambda value: typed(value, kind, "command", "fuzz")  # type: ignore[arg-type]


def _read_chunk(value: object) -> object:
    return decode_base64(typed(value, ReadReply, "command", "fuzz").buf_b64, "fuzz")


def _statistics(value: object) -> object:
    stats = typed(value, GuestStats, "command", "fuzz")
    try:
        return stats.values()
    except ValueError as error:  # documented; the monitor makes nonsense of it
        return error


KINDS: dict[str, Callable[[object], object]] = {
    "size": _typed(BalloonActual),
    "status": _typed(VmStatus),
    "children": _typed(list[QomProperty]),
    "memory devices": _typed(list[MemoryDevice]),
    "statistics": _statistics,
    "disks": lambda value: [entry.values() for entry in typed(value, list[BlockEntry], "command", "fuzz")],
    "agent": lambda value: typed(value, InfoReply, "command", "fuzz").values(),
    "handle": _typed(Handle),
    "data": _read_chunk,
    "written": _typed(WriteReply),
    "process": _typed(ExecReply),
    "end of a process": lambda value: typed(value, ExecStatusReply, "command", "fuzz").values("fuzz"),
    "event": lambda value: parse_event(Message({"event": "X", "data": value})),
}

REPLIES = (
    b'{"return":{"actual":536870912},"id":"qmpalloc-1"}',
    b'{"return":{"status":"running","running":true,"singlestep":false},"id":"qmpalloc-1"}',
    b'{"return":{"name":"web"},"id":"qmpalloc-1"}',
    b'{"return":[{"name":"balloon0","type":"child<virtio-balloon-pci>"}],"id":"qmpalloc-1"}',
    b'{"return":[{"type":"virtio-mem","data":{"size":0,"requested-size":2097152,"block-size":2097152,"memaddr":1}}]}',
    b'{"return":{"stats":{"stat-oom-kills":0,"stat-alloc-stalls":7,"stat-swap-in":-1},"last-update":1700000000}}',
    b'{"return":[{"device":"vd0","stats":{"rd_bytes":1,"rd_operations":2,"rd_total_time_ns":3}}]}',
    b'{"return":[{"qdev":"/machine/peripheral/vd0/virtio-backend","stats":{"rd_bytes":1,"rd_operations":2}}]}',
    b'{"return":{"version":"7.2.22","supported_commands":[{"name":"guest-ping","enabled":true}]}}',
    b'{"return":1000,"id":"qmpalloc-1"}',
    b'{"return":{"count":3,"buf-b64":"YWJj","eof":true},"id":"qmpalloc-1"}',
    b'{"return":{"exited":true,"exitcode":0,"out-data":"YWJj","err-data":"","out-truncated":false}}',
    b'{"return":{"pid":77}}',
    b'{"error":{"class":"GenericError","desc":"no such thing"},"id":"qmpalloc-1"}',
)
GREETING = b'{"QMP":{"version":{"qemu":{"major":9,"minor":2,"micro":0},"package":"x"},"capabilities":["oob"]}}\r\n'
EVENT = (
    b'{"timestamp":{"seconds":1700000000,"microseconds":5},"event":"BALLOON_CHANGE","data":{"actual":536870912}}\r\n'
)
MONITOR_LINES = (
    GREETING + EVENT + REPLIES[0] + b"\r\n",
    EVENT + GREETING + EVENT * 3,
    b"".join(json.dumps(json.loads(line), indent=4).encode() + b"\r\n" for line in (GREETING, EVENT, *REPLIES)),
)
AGENT_LINES = (b'\xff{"return":123456,"id":"qmpalloc-1"}\n' + REPLIES[9] + b"\n", b"\n".join(REPLIES) + b"\n")


def run_cases(rng: random.Random, enough: Callable[[int], bool]) -> Counter[str]:
    """Try cases until `enough` of them; return how many were valid and how many were refused, by target.

    Raises:
        FindingError: With the bytes.
    """
    seen: Counter[str] = Counter()
    all_targets = targets()
    for number in itertools.count():
        if enough(number):
            return seen
        target = rng.choice(all_targets)
        data = mutate(rng.choice(target.corpus), rng)
        seen[f"{target.name}: {_try(target, data)}"] += 1
    raise AssertionError  # never: the count has no end


def _try(target: Target, data: bytes) -> str:
    try:
        target.read(data)
    except QmpallocError as error:
        if not is_visible(error.message) or not is_visible(error.hint):
            raise FindingError(f"{target.name}: unprintable: {error.message!r} of {data!r}") from error
        return "refused"
    except Exception as error:  # what is looked for
        raise FindingError(f"{target.name}: {type(error).__name__}: {error} of {data!r}") from error
    return "valid"


@click.command()
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(seconds: float, seed: int) -> None:
    """Try random bytes on everything that reads bytes from outside; exit code 1 with the first finding."""

    async def run() -> Counter[str]:
        end_s = time.monotonic() + seconds
        return run_cases(random.Random(seed), lambda _: time.monotonic() >= end_s)

    try:
        seen = trio.run(run)
    except FindingError as finding:
        click.echo(f"seed {seed}: {finding}", err=True)
        sys.exit(1)
    click.echo(f"seed {seed}: {seen.total()} cases in {seconds:g} s, no finding")
    for name, count in sorted(seen.items()):
        click.echo(f"{count:9} {name}")


if __name__ == "__main__":
    main()
