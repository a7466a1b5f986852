"""Splits what a client sends into JSON objects, as QEMU's parser does: by their braces, not by lines."""

from __future__ import annotations

from qmpalloc.qmp.framing import SENTINEL, Mark


class RequestSplitter:
    """Finds the objects in a byte stream; qemu.qmp's client, for one, sends no line ends."""

    def __init__(self) -> None:
        self._partial = bytearray()
        self._depth = 0
        self._in_text = False
        self._escaped = False

    def feed(self, data: bytes | bytearray) -> list[bytes | Mark]:
        """Return the objects, lines outside of objects, and sentinels that `data` completes, in order."""
        requests: list[bytes | Mark] = []
        for value in data:
            byte = bytes([value])
            if byte == SENTINEL:
                self._clear()
                requests.append(Mark.SENTINEL)
            elif byte == b"\n" and self._depth == 0:
                self._complete(requests)
            else:
                self._partial += byte
                if self._ends_object(byte):
                    self._complete(requests)
        return requests

    def _ends_object(self, byte: bytes) -> bool:
        if self._in_text:
            self._in_text = self._escaped or byte != b'"'
            self._escaped = byte == b"\\" and not self._escaped
            return False
        if byte == b'"':
            self._in_text = True
        elif byte in b"{[":
            self._depth += 1
        elif byte in b"}]":
            self._depth -= 1
            return self._depth <= 0
        return False

    def _complete(self, requests: list[bytes | Mark]) -> None:
        if request := bytes(self._partial).strip():
            requests.append(request)
        self._clear()

    def _clear(self) -> None:
        self._partial.clear()
        self._depth = 0
        self._in_text = False
        self._escaped = False
