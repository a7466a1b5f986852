"""Commands that wait for their replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
from qemu.qmp import Message

from qmpalloc.errors import QmpallocError


class Reply:
    """A reply to come, or the error that comes instead. Set once."""

    def __init__(self) -> None:
        self._arrived = trio.Event()
        self._outcome: Message | QmpallocError | None = None

    @property
    def is_set(self) -> bool:
        """True when the outcome is there."""
        return self._outcome is not None

    def set(self, outcome: Message | QmpallocError) -> None:
        """Deliver the outcome; a second one is ignored."""
        if self._outcome is None:
            self._outcome = outcome
            self._arrived.set()

    async def wait(self) -> Message:
        """Return the reply once it is there, or raise the error that came instead."""
        await self._arrived.wait()
        if isinstance(self._outcome, QmpallocError):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome


class PendingReplies:
    """Replies expected on one connection, by the id sent with the command."""

    def __init__(self) -> None:
        self._expected: dict[str, Reply] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._expected)

    def next_id(self) -> str:
        """Return an id not used before. Text, because JSON's 1, 1.0 and true are equal as Python keys."""
        self._serial += 1
        return f"qmpalloc-{self._serial}"

    @contextmanager
    def expect(self, reply_id: str) -> Iterator[Reply]:
        """Expect the reply with that id for the time of a block, and forget it after, however the block ends."""
        reply = self._expected[reply_id] = Reply()
        try:
            yield reply
        finally:
            del self._expected[reply_id]

    def deliver(self, message: Message) -> bool:
        """Hand a reply to whoever expects it; False when nobody does."""
        reply_id = message.get("id")
        reply = self._expected.get(reply_id) if isinstance(reply_id, str) else None
        if reply is None:
            return False
        reply.set(message)
        return True

    def fail_oldest(self, make_error: Callable[[], QmpallocError]) -> bool:
        """Give the one who has waited longest an error; False when nobody waits."""
        for reply in self._expected.values():
            if not reply.is_set:
                reply.set(make_error())
                return True
        return False

    def fail(self, make_error: Callable[[], QmpallocError]) -> None:
        """Give everyone who waits an error of their own: one exception raised in many tasks mixes tracebacks."""
        for reply in self._expected.values():
            reply.set(make_error())
