"""Bytes in, JSON messages out: the line format of QMP and of the guest agent. Pure, no I/O.

Both protocols send one JSON object per line. The guest agent's ``guest-sync-delimited`` adds the byte 0xFF, which never
occurs in UTF-8 and so marks a clean start whatever came before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from qemu.qmp import Message
from qemu.qmp.error import ProtocolError

from qmpalloc.errors import NonsenseError

LINE_MAX_BYTES = 1024 * 1024
"""Longest line that is accepted. QEMU's longest reply, ``query-qmp-schema``, stays below 300 KiB."""

SENTINEL = b"\xff"


class Mark(Enum):
    """What a framer reports besides lines."""

    SENTINEL = "sentinel"  # 0xFF: what was before it, and had no line end, is thrown away
    OVERLONG = "overlong"  # a line exceeded the limit: thrown away up to its end


Frame = bytes | Mark


class Framer:
    """Splits a byte stream into lines and sentinels, holding at most one line of limited length.

    Args:
        limit_bytes: Longest line, without its end.
    """

    def __init__(self, limit_bytes: int = LINE_MAX_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._partial = bytearray()
        self._skipping = False

    @property
    def pending_bytes(self) -> int:
        """Bytes of a line that has not ended yet."""
        return len(self._partial)

    def feed(self, data: bytes | bytearray) -> list[Frame]:
        """Return the lines (without their ends; empty ones left out) and marks that `data` completes, in order."""
        frames: list[Frame] = []
        pieces = bytes(data).split(SENTINEL)
        self._feed_lines(pieces[0], frames)
        for piece in pieces[1:]:
            self._partial.clear()
            self._skipping = False
            frames.append(Mark.SENTINEL)
            self._feed_lines(piece, frames)
        return frames

    def _feed_lines(self, data: bytes, frames: list[Frame]) -> None:
        *ended, rest = data.split(b"\n")
        for line in ended:
            if not line and not self._partial and not self._skipping:
                continue  # at once: a peer may send nothing but line ends
            self._extend(line, frames)
            if not self._skipping and (whole := bytes(self._partial).strip()):
                frames.append(whole)
            self._partial.clear()
            self._skipping = False
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
