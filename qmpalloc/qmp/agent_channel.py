"""The guest agent's channel: one command in flight, and a way back to a known state after every doubt.

The channel is a serial line without connection semantics. What is written before the agent runs is answered when it
does; the answer to a command we gave up on still comes; a guest that reboots leaves half a line. QEMU's reference
therefore asks for ``guest-sync-delimited`` on connect and after every time-out, and to ignore all until its answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import trio
from qemu.qmp import Message

from qmpalloc.allowance import Allowance
from qmpalloc.errors import FloodError, NonsenseError
from qmpalloc.qmp.connection import Connection
from qmpalloc.qmp.framing import SENTINEL, Frame, Mark, decode, encode
from qmpalloc.qmp.pending import Reply
from qmpalloc.qmp.replies import unpack

SYNC = "guest-sync-delimited"
ABANDONED_MAX = 32
"""File handles, and openings of files without an answer, that are remembered; enough for minutes of a hung agent."""


FLOOD = "the agent floods the connection with what answers nothing"
NOISE_MAX_LINES = 1000
NOISE_MAX_BYTES = 2304 * 1024
NOISE_LINES_PER_S = 20
NOISE_BYTES_PER_S = 128 * 1024
"""Lines, and bytes, that are of no use: so much at once, and so much in each second after. With more the connection is
given up, for they cost this process time (up to 0.1 s for a MiB) that belongs to the other guests. Late answers of a
hung agent are far fewer, and two of the longest are not more. A second brings more than the longest reading of a guest
that floods no longer, which is counted before it is known to be of use."""

GREETING = b'"QMP"'
GREETING_WITHIN_BYTES = 64
"""What a monitor, and no agent, begins with."""

SWAPPED_HINT = (
    "are monitor and agent swapped in the configuration? the agent is the socket of QEMU's virtserialport named "
    "org.qemu.guest_agent.0"
)

ANSWER_BYTES = 128
"""Length of an answer that holds no data."""


class NoiseAllowance:
    """What one guest may send that is of no use. It outlives the connection: connecting again gains nothing."""

    def __init__(self) -> None:
        self._lines = Allowance(NOISE_LINES_PER_S, NOISE_MAX_LINES)
        self._bytes = Allowance(NOISE_BYTES_PER_S, NOISE_MAX_BYTES)

    def take_bytes(self, count: int) -> None:
        """Note bytes that came. `FloodError` when they are too many."""
        if not self._bytes.take(count, trio.current_time()):
            raise FloodError(FLOOD)

    def take_line(self) -> None:
        """Note a line that came. `FloodError` when it is one too many."""
        if not self._lines.take(1, trio.current_time()):
            raise FloodError(FLOOD)

    def answered(self) -> None:
        """Note that the last line was an answer: as many as we ask for may come, if they are short."""
        self._lines.give_back(1)
        self._bytes.give_back(ANSWER_BYTES)

    def used(self, count: int) -> None:
        """Note that so many bytes were what we asked for."""
        self._bytes.give_back(count)


class AgentChannel:
    """Sends one command at a time and finds its answer among whatever the guest sends.

    Attributes:
        skipped: Lines that were no answer to anything we wait for.
        late_handles: Handles of files that the guest opened for a command we had given up on.
        noise: What of it may still come. Who uses an answer tells how much of it was of use.
    """

    def __init__(self, connection: Connection, noise: NoiseAllowance | None = None) -> None:
        self.skipped = 0
        self.noise = noise or NoiseAllowance()
        self.late_handles: list[int] = []
        self._connection = connection
        self._synced = False
        self._met = False
        self._is_monitor = False
        self._serial = 0
        self._awaited: _Awaited | None = None
        self._abandoned_opens: dict[str, None] = {}

    @property
    def synced(self) -> bool:
        """True when the last command was answered and nothing else is to come."""
        return self._synced

    @property
    def owes_handles(self) -> bool:
        """True when the guest may have opened files that nobody reads."""
        return bool(self.late_handles or self._abandoned_opens)

    async def sync(self) -> None:
        """Make sure that the next answer will be to the next command.

        Raises:
            RefusedError: The agent does not know the command.
            NonsenseError: A monitor answers, not an agent.
            DisconnectedError: The connection ended.
        """
        self._synced = False
        # Never reuse a number: the answer to an earlier sync may still be under way.
        number = secrets.randbelow(2**52)
        message = await self._exchange(SYNC, {"id": number}, sync_number=number)
        unpack(message, SYNC, self._connection.address)
        # Everything sent before has been answered, or never will be.
        self._abandoned_opens.clear()
        self._synced = self._met = True

    async def command(self, command: str, arguments: Mapping[str, object] | None) -> object:
        """Run a command on a synced channel. Cancelling it leaves the channel to be synced again.

        Raises:
            RefusedError: The agent answered with an error.
            NonsenseError: The agent's answer is not one.
            DisconnectedError: The connection ended.
        """
        self._synced = False
        message = await self._exchange(command, arguments)
        self._synced = True
        return unpack(message, command, self._connection.address)

    async def _exchange(
        self, command: str, arguments: Mapping[str, object] | None, *, sync_number: int | None = None
    ) -> Message:
        if self._connection.closed.is_set():
            await trio.lowlevel.checkpoint()
            raise self._connection.ended()
        if self._is_monitor:
            await trio.lowlevel.checkpoint()
            raise self._no_agent()
        self._serial += 1
        awaited = self._awaited = _Awaited(f"qmpalloc-{self._serial}", command, sync_number)
        request: dict[str, object] = {"execute": command, "id": awaited.reply_id}
        if arguments is not None:
            request["arguments"] = arguments
        try:
            await self._connection.send((SENTINEL if sync_number is not None else b"") + encode(request))
            return await awaited.reply.wait()
        except BaseException:
            self._abandon(awaited)
            raise
        finally:
            self._awaited = None

    def _abandon(self, awaited: _Awaited) -> None:
        if awaited.command == "guest-file-open":
            while len(self._abandoned_opens) >= ABANDONED_MAX:
                self._abandoned_opens.pop(next(iter(self._abandoned_opens)))
            self._abandoned_opens[awaited.reply_id] = None

    def on_bytes(self, count: int) -> None:
        """Take notice that bytes came: also those that are no frame, such as empty lines, are a flood at last.

        Raises:
            FloodError: They are.
        """
        self.noise.take_bytes(count)

    def on_frame(self, frame: Frame) -> None:
        """Take a frame from the connection. Nothing that a guest sends ends the connection, unless it is a flood.

        Raises:
            FloodError: It is.
        """
        self.noise.take_line()
        if frame is Mark.SENTINEL:
            return  # the framer has thrown away what was before it, which is all it is for
        if not self._met and isinstance(frame, bytes) and GREETING in frame[:GREETING_WITHIN_BYTES]:
            self._take_greeting()
            return
        try:
            if isinstance(frame, Mark):
                raise NonsenseError("the agent sent a line longer than any answer")
            self._take(decode(frame))
        except NonsenseError as error:
            self.skipped += 1
            # While syncing, garbage is what is to be skipped; after, it can only be in place of the answer.
            if self._awaited is not None and self._awaited.sync_number is None:
                self._awaited.reply.set(NonsenseError(f"{self._connection.address}: {error.message}"))

    def _take_greeting(self) -> None:
        self._is_monitor = True
        if self._awaited is not None:
            self._awaited.reply.set(self._no_agent())

    def _no_agent(self) -> NonsenseError:
        message = f"{self._connection.address}: a QMP monitor answers on this socket, not a guest agent"
        return NonsenseError(message, hint=SWAPPED_HINT)

    def on_end(self) -> None:
        """Take notice that the connection has ended."""
        if self._awaited is not None:
            self._awaited.reply.set(self._connection.ended())

    def _take(self, message: Message) -> None:
        awaited = self._awaited
        if awaited is not None and self._answers(message, awaited):
            self.noise.answered()
            awaited.reply.set(message)
            return
        self.skipped += 1
        reply_id, handle = message.get("id"), message.get("return")
        if isinstance(reply_id, str) and reply_id in self._abandoned_opens:
            del self._abandoned_opens[reply_id]
            if type(handle) is int and 0 <= handle < 2**63 and len(self.late_handles) < ABANDONED_MAX:
                self.late_handles.append(handle)

    def _answers(self, message: Message, awaited: _Awaited) -> bool:
        # Agents report garbage in their input by errors without an id.
        if message.get("id") != awaited.reply_id:
            return False
        number = message.get("return")
        return (
            awaited.sync_number is None or "error" in message or (type(number) is int and number == awaited.sync_number)
        )


class _Awaited:
    """The command in flight."""

    def __init__(self, reply_id: str, command: str, sync_number: int | None) -> None:
        self.reply_id = reply_id
        self.command = command
        self.sync_number = sync_number
        self.reply = Reply()
