"""What was found of a QEMU, as values. Pure."""

from __future__ import annotations

from msgspec import Struct


class Lack(Struct, frozen=True):
    """What a QEMU lacks, and what to do about it: mostly an option to start it with."""

    what: str
    todo: str


class Memory(Struct, frozen=True, kw_only=True):
    """The memory of a guest, in bytes.

    Attributes:
        ram_bytes: The most that it can have.
        size_bytes: What it has now.
        least_bytes: What cannot be taken from it: with virtio-mem its RAM, with a balloon 0.
        outside_bytes: What it has beside its size.
        used_bytes: What its programs and its kernel use, as its balloon driver tells; None if it does not.
        resident_bytes: What of it the host has behind it; None when not known.
        actuator: What moves it, and which QEMU that is, for people.
    """

    ram_bytes: int
    size_bytes: int
    least_bytes: int = 0
    outside_bytes: int = 0
    used_bytes: int | None = None
    resident_bytes: int | None = None
    actuator: str = ""


class Seen(Struct, frozen=True, kw_only=True):
    """A QEMU that runs, as it was found.

    Attributes:
        pid: Its process id.
        program: What it is called.
        name: Its name, fit for a configuration, and that of no other.
        named: Where the name is from, for people.
        monitor: Path of its QMP socket; empty if there is none that can be used.
        agent: Path of its guest agent's socket, the same.
        memory: Its memory; None if that could not be asked.
        lacks: What rules it out.
        weak: What works less well than it could.
    """

    pid: int
    program: str
    name: str
    named: str
    monitor: str = ""
    agent: str = ""
    memory: Memory | None = None
    lacks: tuple[Lack, ...] = ()
    weak: tuple[Lack, ...] = ()
