"""How far evicted pages of files had gone when they came back: their refault distances, as program.c tells them.

A page that returns after n others were evicted would still have been there with n pages more (the kernel's own idea:
mm/workingset.c). This is told of one page of every 64 of a file, the watched ones: of those that reads
bring in, and of those that page faults ask for, not of the neighbours that come with them.
"""

from __future__ import annotations

import struct

from guest_agent import bpf

BINS = 40
"""Less than 16 watched pages were evicted meanwhile; less than 20, 24, 28, 32, 40, … 12,288; and more."""

PAGES_EACH = 64
_FIRST = 16

_RESULT = struct.Struct(f"={1 + 2 * BINS}Q")


class Ghosts:
    """What program.c knows of evicted pages that came back.

    Args:
        map_fd: Descriptor of its map.
    """

    def __init__(self, map_fd: int) -> None:
        self._element = bpf.Element(map_fd, _RESULT.size)

    def read(self) -> dict[str, object]:
        """Return the part of the counters file.

        Raises:
            OSError: The map cannot be read.
        """
        _, *numbers = _RESULT.unpack(self._element.read())
        return {"pages_each": PAGES_EACH, "pages_first": _FIRST * PAGES_EACH,
                "read": numbers[:BINS], "fault": numbers[BINS:]}  # fmt: skip
