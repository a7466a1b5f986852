"""What a kernel that can be booted says of itself (Linux, ``Documentation/arch``: ``x86/boot``, ``arm64/booting``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

HEADER_BYTES = 64 * 1024
MAGICS = {"bzImage": (0x202, b"HdrS"), "Image": (0x38, b"ARM\x64")}
"""Where each format has which bytes."""

VERSION_AT, VERSION_FROM = 0x20E, 0x200
"""Of a ``bzImage``: where it is told how far behind what its version begins."""

BANNER = re.compile(rb"Linux version (\S+) ")
"""Somewhere in an ``Image``, which is the kernel's memory as it is; its header tells no version."""


def kernel_release(vmlinuz: Path, kernel_format: Literal["bzImage", "Image"]) -> str:
    """Return what ``uname -r`` says under the kernel in a file; empty when it is none of that format.

    Raises:
        OSError: It cannot be read.
    """
    with vmlinuz.open("rb") as file:
        head = file.read(HEADER_BYTES)
        at, magic = MAGICS[kernel_format]
        if head[at : at + len(magic)] != magic:
            return ""
        if kernel_format == "Image":
            banner = BANNER.search(head + file.read())
            return banner[1].decode("ascii", errors="replace") if banner else ""
    start = VERSION_FROM + int.from_bytes(head[VERSION_AT : VERSION_AT + 2], "little")
    words = head[start : start + 256].partition(b"\0")[0].decode("ascii", errors="replace").split()
    return words[0] if words else ""
