"""Guests that qmpalloc does not make: which run already, or which a command of the user's starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from qmpalloc.config import DEFAULT_COUNTERS_FILE, Duration
from qmpalloc.config.keys import MAX_SOCKET_PATH_BYTES, Found, GuestPath, command_mistakes
from qmpalloc.config.schema import CHANNEL

SOCKETS = ("monitor", "second_monitor", "agent")
"""Keys of `Attach` that are paths of sockets."""

SECOND_HINT = (
    "an experiment reads a guest beside the controller, and QEMU serves one client per socket: give it a second "
    "-qmp unix:PATH,server=on,wait=off"
)


class Attach(Struct, frozen=True, kw_only=True):
    """``[guest.attach]``: a guest that is there: its sockets, and how programs are run in it.

    Attributes:
        monitor: Path of a QMP socket, for the controller.
        second_monitor: Path of another, for what is read beside the controller.
        agent: Path of the guest agent's socket.
        channel: ``agent``, if it may execute programs, or a command of this host that takes a line for a shell.
        disks: Drives that are throttled, and whose reads count; none: all count, and none is throttled.
        data: Directory in the guest for the files that are read.
        counters_file: Path in the guest.
    """

    monitor: str
    second_monitor: str
    agent: str
    channel: Literal["agent"] | tuple[str, ...] = "agent"
    disks: tuple[str, ...] = ()
    data: GuestPath = "/var/tmp/qmpalloc-data"
    counters_file: GuestPath = DEFAULT_COUNTERS_FILE

    def mistakes(self) -> Found:
        """Yield what cannot be."""
        for key in SOCKETS:
            path = getattr(self, key)
            if not path or len(path.encode("utf-8", "surrogateescape")) > MAX_SOCKET_PATH_BYTES:
                message = f"{path!r} is no path of a Unix socket ({MAX_SOCKET_PATH_BYTES} bytes at most)"
                yield key, message, "a shorter directory, for example under /run or /tmp"
        if self.monitor == self.second_monitor:
            yield "second_monitor", "is the same as monitor", SECOND_HINT
        if self.agent in {self.monitor, self.second_monitor}:
            yield "agent", "is a monitor's socket", "the socket of QEMU's virtserialport named org.qemu.guest_agent.0"
        if self.channel != "agent":
            yield from command_mistakes("channel", self.channel, CHANNEL)


class Start(Struct, frozen=True, kw_only=True):
    """``[guest.start]``: commands of this host that start the guest of ``[guest.attach]`` for every run, and end it.

    Attributes:
        command: Starts QEMU: it stays as long as the guest runs, or ends with 0 when that runs (``-daemonize``).
        stop: Ends it; without, QEMU is told to quit.
        timeout: From its start to the first sample of its collector.
    """

    command: tuple[str, ...]
    stop: tuple[str, ...] = ()
    timeout: Duration = Duration(600.0)

    def mistakes(self) -> Found:
        """Yield what cannot be run."""
        for key, words in (("command", self.command), ("stop", self.stop or ("true",))):
            yield from command_mistakes(key, words, 'program and arguments: ["./start-vm", "g1"]')
        if self.timeout <= 0:
            yield "timeout", "must be above 0", 'for example "10min"'


def not_reset(guest: str, attach: Attach, start: Start | None) -> Iterator[str]:
    """Yield what of such a guest is not the same at the beginning of every arm, a sentence each."""
    if start is None:
        yield (
            f"guest {guest} runs on from arm to arm: its caches are dropped and its size is set before each, but not "
            "reset are its processes, what its kernel has learnt, and what was written to its disks"
        )
    else:
        yield (
            f"guest {guest} is started by your command for every run: what is written to its disks stays, unless the "
            "command says otherwise (snapshot=on)"
        )
    if not attach.disks:
        yield f"guest {guest}: its disks are not throttled, and all of them count as read (no attach.disks)"
