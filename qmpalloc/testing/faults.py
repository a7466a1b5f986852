"""Ways in which a fake peer can misbehave, switched on and off while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from qmpalloc.qmp.framing import encode


class PeerDied(Exception):
    """The fake ends the connection now. Stays inside the fakes."""


@dataclass(kw_only=True)
class Faults:
    """What a fake does wrong. All attributes can be changed at any time; the next answer obeys.

    Attributes:
        drop: Commands that are never answered; later ones are.
        delay_s: Time before each answer.
        split: Send one byte at a time.
        garbage: Bytes sent before each answer, as they are.
        strangers: Send an answer with an id that nobody sent before each answer.
        twice: Send each answer twice.
        die_after: End the connection after that many answers; None is never.
    """

    drop: set[str] = field(default_factory=set)
    delay_s: float = 0.0
    split: bool = False
    garbage: bytes = b""
    strangers: bool = False
    twice: bool = False
    die_after: int | None = None
    _stuck: trio.Event | None = field(default=None, init=False, repr=False)

    @property
    def hang(self) -> bool:
        """True while the peer is as if stopped by a signal: it answers nothing, and everything once released."""
        return self._stuck is not None

    @hang.setter
    def hang(self, on: bool) -> None:
        if on and self._stuck is None:
            self._stuck = trio.Event()
        elif not on and self._stuck is not None:
            self._stuck.set()
            self._stuck = None

    async def wait_released(self) -> None:
        """Return when the peer does not hang."""
        while self._stuck is not None:
            await self._stuck.wait()


class Wire:
    """The fake's end of one connection: sends whole lines, with the faults that are on."""

    def __init__(self, stream: trio.abc.Stream, faults: Faults) -> None:
        self._stream = stream
        self._faults = faults
        self._lock = trio.Lock()
        self._answered = 0

    async def send(self, data: bytes) -> None:
        """Send bytes, never mixed with those of another task.

        Raises:
            PeerDied: The client has gone.
        """
        pieces = [data[i : i + 1] for i in range(len(data))] if self._faults.split else [data]
        async with self._lock:
            await self._faults.wait_released()
            try:
                for piece in pieces:
                    await self._stream.send_all(piece)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise PeerDied from error

    async def answer(self, command: str, body: Mapping[str, object], *, prefix: bytes = b"") -> None:
        """Answer a command: `prefix`, then `body` as a line.

        Raises:
            PeerDied: The faults say so, or the client has gone.
        """
        faults = self._faults
        await faults.wait_released()
        if command in faults.drop:
            return
        if faults.delay_s:
            await trio.sleep(faults.delay_s)
        if faults.garbage:
            await self.send(faults.garbage)
        if faults.strangers:
            await self.send(encode({"return": {}, "id": "stranger"}))
        for _ in range(2 if faults.twice else 1):
            await self.send(prefix + encode(body))
        self._answered += 1
        if faults.die_after is not None and self._answered >= faults.die_after:
            raise PeerDied
