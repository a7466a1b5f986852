"""What a kernel that can be booted says of itself (Linux, ``Documentation/arch/x86/boot.rst``)."""

from __future__ import annotations

from pathlib import Path

HEADER_BYTES = 64 * 1024
MAGIC_AT, MAGIC = 0x202, b"HdrS"
VERSION_AT, VERSION_FROM = 0x20E, 0x200


def kernel_release(vmlinuz: Path) -> str:
    """Return what ``uname -r`` says under the kernel in a file; empty when it is no ``bzImage``.

    Raises:
        OSError: It cannot be read.
    """
    with vmlinuz.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if head[MAGIC_AT : MAGIC_AT + len(MAGIC)] != MAGIC:
        return ""
    start = VERSION_FROM + int.from_bytes(head[VERSION_AT : VERSION_AT + 2], "little")
    words = head[start : start + 256].partition(b"\0")[0].decode("ascii", errors="replace").split()
    return words[0] if words else ""
