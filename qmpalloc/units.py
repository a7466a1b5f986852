"""Sizes and durations, as people write them and as we print them."""

from __future__ import annotations

import re

from msgspec import Struct

PAGE_BYTES = 4096
"""Unit of the balloon, by ``VIRTIO_BALLOON_PFN_SHIFT``, and of all page counts: guests with other pages are refused."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

SIZE_UNITS = {
    "B": 1,
    "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB,
    "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB,  # as `format_size` prints them, and QEMU
}  # fmt: skip
DURATION_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}

LARGEST = 2.0**50
"""More bytes, or seconds, than anybody means."""

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def _parse(text: str, units: dict[str, float] | dict[str, int], example: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity; write for example {example}")
    number, unit = match.groups()
    if not unit:
        raise ValueError(f"{text!r} has no unit; write for example {example}")
    if unit not in units:
        raise ValueError(f"{text!r} has the unknown unit {unit!r}; known are {', '.join(units)}")
    value = float(number) * units[unit]
    if not value < LARGEST:
        raise ValueError(f"{text[:40]!r} is too large")
    return value


def parse_size(text: str) -> int:
    """Return the bytes of a size with a unit: ``1GiB`` or ``1G`` (binary), ``100MB`` (decimal), ``1.5GiB``.

    Raises:
        ValueError: No unit, an unknown unit, or no number. A size without a unit is refused because tools disagree on
            what it means (QEMU's ``-m`` takes MiB, its ``balloon`` command takes bytes).
    """
    return round(_parse(text, SIZE_UNITS, "512MiB or 2GiB"))


def parse_duration(text: str) -> float:
    """Return the seconds of a duration with a unit: ``500ms``, ``2s``, ``5min``.

    Raises:
        ValueError: No unit, an unknown unit, or no number.
    """
    return _parse(text, DURATION_UNITS, "2s or 500ms")


def align_down(size_bytes: int, unit_bytes: int = PAGE_BYTES) -> int:
    """Return the largest multiple of `unit_bytes` that is not above `size_bytes`."""
    return size_bytes - size_bytes % unit_bytes


def align_up(size_bytes: int, unit_bytes: int = PAGE_BYTES) -> int:
    """Return the smallest multiple of `unit_bytes` that is not below `size_bytes`."""
    return -align_down(-size_bytes, unit_bytes)


class Grid(Struct, frozen=True):
    """The sizes that a guest can be set to: from `start_bytes` on, in steps of `unit_bytes`. By default whole pages."""

    start_bytes: int = 0
    unit_bytes: int = PAGE_BYTES

    def down(self, size_bytes: int) -> int:
        """Return the largest size of the grid, continued below its start, that is not above `size_bytes`."""
        return self.start_bytes + align_down(size_bytes - self.start_bytes, self.unit_bytes)

    def fit(self, size_bytes: int) -> int:
        """Return the largest size of the grid that is not above `size_bytes`; its start if none is that small."""
        return max(self.down(size_bytes), self.start_bytes)

    def fit_up(self, size_bytes: int) -> int:
        """Return the smallest size of the grid that is not below `size_bytes`."""
        return max(self.start_bytes + align_up(size_bytes - self.start_bytes, self.unit_bytes), self.start_bytes)


def format_size(size_bytes: float) -> str:
    """Return a size for people, in binary units, at most seven characters: ``1536 MiB`` is ``1.50G``.

    Units are written K, M, G, T and always mean powers of 1024, as in QEMU's own output.
    """
    size = float(size_bytes)
    for unit, scale in (("T", 1024 * GIB), ("G", GIB), ("M", MIB), ("K", KIB)):
        if abs(size) >= scale:
            value = size / scale
            return f"{value:.0f}{unit}" if abs(value) >= 100 else f"{value:.3g}{unit}"
    return f"{size:.0f}B"


def format_duration(seconds: float) -> str:
    """Return a duration for people: ``45 s``, ``10 min``, ``2.5 h``."""
    if seconds < 100:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.3g} h"


def format_count(number: float) -> str:
    """Return a count or rate for people in at most five characters: ``33600`` is ``33.6k``."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= scale:
            value = number / scale
            return f"{value:.0f}{unit}" if abs(value) >= 100 else f"{value:.3g}{unit}"
    return f"{number:.0f}" if number == round(number) or abs(number) >= 100 else f"{number:.3g}"
