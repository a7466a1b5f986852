"""Bytes in, JSON messages out: the line formats of QMP and of the guest agent. Pure, no I/O.

A guest agent sends one JSON object per line, and its ``guest-sync-delimited`` adds the byte 0xFF, which never occurs in
UTF-8 and so marks a clean start whatever came before it. A monitor sends one object per line as well or, with
``pretty=on``, over many.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum

from qemu.qmp import Message
from qemu.qmp.error import ProtocolError

from qmpalloc.errors import NonsenseError

LINE_MAX_BYTES = 1024 * 1024
"""Longest line that is accepted from a guest."""

MESSAGE_MAX_BYTES = 16 * 1024 * 1024
"""Longest message that is accepted from a QEMU: ``query-blockstats`` of some hundred disks is longer than a MiB."""

SENTINEL = b"\xff"


class Mark(Enum):
    """What a framer reports besides lines."""

    SENTINEL = "sentinel"  # 0xFF: what was before it, and had no line end, is thrown away
    OVERLONG = "overlong"  # a line exceeded the limit: thrown away up to its end


Frame = bytes | Mark

_OUTERMOST = re.compile(rb"\n[{}]")
"""The beginning or the end of a message, at the beginning of a line."""


class Splitter(ABC):
    """Splits a byte stream into frames and sentinels, holding at most one frame of limited length."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._partial = bytearray()
        self._skipping = False

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that has not ended yet."""
        return len(self._partial)

    def feed(self, data: bytes | bytearray) -> list[Frame]:
        """Return the frames (without their ends; empty ones left out) and marks that `data` completes, in order."""
        frames: list[Frame] = []
        pieces = bytes(data).split(SENTINEL)
        self._feed(pieces[0], frames)
        for piece in pieces[1:]:
            self._forget()
            frames.append(Mark.SENTINEL)
            self._feed(piece, frames)
        return frames

    @abstractmethod
    def _feed(self, data: bytes, frames: list[Frame]) -> None:
        """Add to `frames` what is completed by bytes between sentinels."""

    def _forget(self) -> None:
        self._partial.clear()
        self._skipping = False


class Framer(Splitter):
    """Splits a byte stream into lines."""

    def __init__(self, limit_bytes: int = LINE_MAX_BYTES) -> None:
        super().__init__(limit_bytes)

    def _feed(self, data: bytes, frames: list[Frame]) -> None:
        *ended, rest = data.split(b"\n")
        for line in ended:
            if not line and not self._partial and not self._skipping:
                continue  # at once: a peer may send nothing but line ends
            self._extend(line, frames)
            if not self._skipping and (whole := bytes(self._partial).strip()):
                frames.append(whole)
            self._forget()
        self._extend(rest, frames)

    def _extend(self, data: bytes, frames: list[Frame]) -> None:
        if self._skipping:
            return
        if len(self._partial) + len(data) > self._limit_bytes:
            self._partial.clear()
            self._skipping = True
            frames.append(Mark.OVERLONG)
        else:
            self._partial += data


class MessageFramer(Splitter):
    """Splits what a monitor sends into messages, each on one line or on many; lines outside of any are frames too.

    QEMU indents all that is inside of a message, so that one over many lines is between two lines that hold a bracket
    alone, and what does not end, or is longer than the limit, spoils no message but itself. After one that was too long
    its lines may follow: they are skipped.
    """

    def __init__(self, limit_bytes: int = MESSAGE_MAX_BYTES) -> None:
        super().__init__(limit_bytes)
        self._searched = 0  # so much of what is held has no end
        self._inside = False  # it is a message over many lines

    def _feed(self, data: bytes, frames: list[Frame]) -> None:
        self._partial += data
        while self._take_message(frames) if self._inside else self._take_line(frames):
            pass
        if len(self._partial) > self._limit_bytes:
            if self._partial.startswith(b"{") or not self._skipping:
                frames.append(Mark.OVERLONG)
            in_line = not self._partial.endswith(b"\n")
            self._forget()
            self._skipping = True
            if in_line:
                self._partial += b"?"  # the rest of the line begins no message, whatever it begins with

    def _take_line(self, frames: list[Frame]) -> bool:
        end = self._partial.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._partial)
            return False
        begins = self._partial.startswith(b"{")
        if begins and not self._partial[1:end].strip():
            self._searched, self._inside, self._skipping = end, True, False
        elif begins or not self._skipping:
            self._complete(end, frames)
        else:
            self._remove(end)
        return True

    def _take_message(self, frames: list[Frame]) -> bool:
        found = _OUTERMOST.search(self._partial, self._searched)
        if found is None:
            self._searched = max(self._searched, len(self._partial) - 1)
            return False
        end = found.start()
        if found[0] == b"\n}":  # else another begins, and this one is half a message, as its reader will find
            self._searched = end
            end = self._partial.find(b"\n", found.end())
            if end < 0:
                return False
        self._complete(end, frames)
        return True

    def _complete(self, end: int, frames: list[Frame]) -> None:
        """Take a frame that ends before the line end at `end`."""
        if end > self._limit_bytes:
            frames.append(Mark.OVERLONG)
            self._skipping = True
        elif frame := bytes(self._partial[:end]).strip():
            frames.append(frame)
            self._skipping = False
        self._remove(end)

    def _remove(self, end: int) -> None:
        del self._partial[: end + 1]
        self._searched, self._inside = 0, False

    def _forget(self) -> None:
        super()._forget()
        self._searched, self._inside = 0, False


def decode(line: bytes) -> Message:
    """Return the JSON object that a line holds.

    Raises:
        NonsenseError: It is not a JSON object, not UTF-8, or nested deeper than can be read. The line itself is not
            quoted: it may hold terminal escapes.
    """
    try:
        return Message(line)
    # ValueError covers bytes that are not UTF-8 and integers with more digits than Python converts.
    except (ProtocolError, ValueError, RecursionError) as error:
        raise NonsenseError(f"a line of {len(line)} bytes is not a JSON object") from error


def encode(message: Mapping[str, object]) -> bytes:
    """Return a message as one line.

    Raises:
        TypeError, ValueError: The message holds what JSON cannot; a bug of the caller.
    """
    return bytes(Message(message)) + b"\n"
