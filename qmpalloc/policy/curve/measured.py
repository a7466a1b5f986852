"""What a guest missed at the sizes it has had: exact, and true for as long again as its load had lasted."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, structs

from qmpalloc.model import Curve, GuestSnapshot
from qmpalloc.policy.evidence import unconfirmed, uncounted
from qmpalloc.units import MIB

_ARRIVED = 0.02
"""A guest whose size is as near as this to its target, by its share, has it."""

_SAME_BYTES = 8 * MIB
"""Sizes that differ by less are one: the one seen first, or a drift in small steps would leave none behind."""

_MOST = 8
"""Sizes of a guest that are kept, smallest and largest among them."""

_TWICE = 2
"""What was measured is forgotten when a load has gone on for as many accesses again."""


class Point(Struct, frozen=True):
    """A miss ratio measured at a size.

    Attributes:
        size_bytes: Size of the guest.
        miss_ratio: Misses by accesses, 0 to 1, as counted in the guest.
        accesses: Of the guest between the last change of its load and this.
        load: Which of its loads it was, `Curve.load`.
        contradicts: Whether the curve had promised clearly less.
    """

    size_bytes: int
    miss_ratio: float
    accesses: int
    load: int
    contradicts: bool = False


def noted(points: Sequence[Point], guest: GuestSnapshot, *, squeezed: bool) -> tuple[Point, ...]:
    """Return the points that still count, with what is measured now.

    Args:
        points: Known before.
        guest: It must have a curve.
        squeezed: Whether it is squeezed: then nothing is measured.
    """
    assert guest.curve is not None
    kept = _still(points, guest.curve)
    now = None if squeezed else point_now(guest)
    if now is None:
        return tuple(kept)
    same = next((point for point in kept if abs(point.size_bytes - now.size_bytes) < _SAME_BYTES), None)
    if same is not None:
        kept = [point for point in kept if point is not same]
        now = structs.replace(now, size_bytes=same.size_bytes)
    kept = sorted([*kept, now], key=lambda point: point.size_bytes)
    while len(kept) > _MOST:
        inner = [number for number in range(1, len(kept) - 1) if kept[number] is not now]
        gaps = {number: kept[number + 1].size_bytes - kept[number - 1].size_bytes for number in inner}
        del kept[min(gaps, key=gaps.__getitem__)]
    return tuple(kept)


def point_now(guest: GuestSnapshot) -> Point | None:
    """Return what is measured of a guest at its size, if that is known and its disks do not deny it."""
    curve = guest.curve
    if curve is None or curve.measured is None or curve.steady_accesses <= 0:
        return None
    if not guest.decidable or guest.frozen or unconfirmed(guest) or uncounted(guest):
        return None
    if abs(guest.actual_bytes - guest.target_bytes) > _ARRIVED * guest.target_bytes:
        return None
    contradicts = bool(curve.weak) and curve.contradicted > 0
    return Point(guest.target_bytes, curve.measured, curve.steady_accesses, curve.load, contradicts)


def _still(points: Sequence[Point], curve: Curve) -> list[Point]:
    """Return the points that count: none of another load, nor any of long ago."""
    if any(point.accesses > curve.steady_accesses or point.load != curve.load for point in points):
        return []
    return [point for point in points if curve.steady_accesses < _TWICE * point.accesses]
