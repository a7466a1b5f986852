"""Events of a monitor, handed to everyone who subscribed, without ever waiting for them."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Annotated, NamedTuple

import msgspec
import trio
from msgspec import Meta, Struct
from qemu.qmp import Message

from qmpalloc.qmp.replies import convert

BUFFER_EVENTS = 64


class MonitorEvent(Struct, frozen=True, kw_only=True):
    """Something QEMU reports of its own accord.

    Attributes:
        name: For example ``BALLOON_CHANGE``, ``STOP``, ``RESET``, ``SHUTDOWN``.
        data: What belongs to it, as QEMU sent it; empty for many.
    """

    name: str
    data: dict[str, object] = {}


class _Wire(Struct):
    event: Annotated[str, Meta(min_length=1, max_length=128)]
    data: dict[str, object] = msgspec.field(default_factory=dict)


class _Buffer(NamedTuple):
    """A subscriber: the end we send to, and a clone of theirs from which the oldest event can be taken."""

    names: Container[str] | None
    send: trio.MemorySendChannel[MonitorEvent]
    oldest: trio.MemoryReceiveChannel[MonitorEvent]


def parse_event(message: Message) -> MonitorEvent:
    """Return the event that a message holds.

    Raises:
        NonsenseError: It is none.
    """
    wire: _Wire = convert(dict(message), _Wire, "an event")
    return MonitorEvent(name=wire.event, data=wire.data)


class Subscriptions:
    """Everyone who wants a monitor's events.

    Each subscriber has a bounded buffer. When it is full the oldest event makes room: the newest says most about how
    things are, and who needs certainty queries QEMU.

    Attributes:
        dropped: Events thrown away for lack of room, all subscribers together.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._ended = False
        self._buffers: list[_Buffer] = []

    @contextmanager
    def subscribe(self, names: Container[str] | None = None) -> Iterator[trio.MemoryReceiveChannel[MonitorEvent]]:
        """Collect events, all or those of these names, for the time of a block.

        Iterating over the channel ends when the connection does.
        """
        send, receive = trio.open_memory_channel[MonitorEvent](BUFFER_EVENTS)
        buffer = _Buffer(names, send, receive.clone())
        self._buffers.append(buffer)
        if self._ended:
            send.close()
        try:
            with send, receive, buffer.oldest:
                yield receive
        finally:
            self._buffers.remove(buffer)

    def publish(self, event: MonitorEvent) -> None:
        """Give an event to all subscribers."""
        for buffer in self._buffers:
            if buffer.names is not None and event.name not in buffer.names:
                continue
            try:
                buffer.send.send_nowait(event)
            except trio.WouldBlock:
                buffer.oldest.receive_nowait()
                buffer.send.send_nowait(event)
                self.dropped += 1

    def end(self) -> None:
        """Let every subscriber's iteration end after what is buffered."""
        self._ended = True
        for buffer in self._buffers:
            buffer.send.close()
