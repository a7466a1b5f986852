"""What was measured of each guest at the sizes it has had: what counts where its curve turned out to be wrong.

A curve tells what nobody has seen yet. If a guest was taken down because of it and then misses far more than it said,
its sizes before are known better than by any curve: by exact counters. So it gets back what it lost, if that is where
it is worth most, and its curve is not believed at that size again for as long as the load had lasted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec import Struct, structs

from qmpalloc.model import Curve, GuestSnapshot, GuestState, Snapshot
from qmpalloc.policy.bounds import unconfirmed, uncounted
from qmpalloc.units import MIB, format_size

_ARRIVED = 0.02
"""A guest whose size is as near as this to its target, by its share, has it."""

_SAME_BYTES = 8 * MIB
"""Sizes that differ by less are one: the one seen first, or a drift in small steps would leave none behind."""

_POINTS_MOST = 8
"""Sizes of a guest that are kept, smallest and largest among them."""

_WORTH_KNOWING_BYTES, _WORTH_KNOWING = 16 * MIB, 0.05
"""A larger size counts if it is larger by so much and less was missed there by this share of the accesses."""

_TWICE = 2
"""What was measured is forgotten when a load has gone on for as many accesses again."""


class Point(Struct, frozen=True):
    """A miss ratio measured at a size.

    Attributes:
        size_bytes: Size of the guest.
        miss_ratio: Misses by accesses, 0 to 1, as counted in the guest.
        accesses: Of the guest between the last change of its load and this.
        load: Which of its loads it was, `Curve.load`.
    """

    size_bytes: int
    miss_ratio: float
    accesses: int
    load: int


class Measured:
    """What was measured of each guest since its load last changed, and where that contradicted its curve.

    Attributes:
        carry: What is handed to the next decision.
    """

    def __init__(self, carry: Mapping[str, Any], snapshot: Snapshot, squeezed: str) -> None:
        """Continue from what was carried over, with what the snapshot adds to it.

        Args:
            carry: What `carry` was after the decision before, or nothing.
            snapshot: What is decided on.
            squeezed: Guest that is being squeezed, of which no miss ratio counts; empty when there is none.
        """
        known = carry.get("measured", {})
        self._points: dict[str, list[Point]] = {}
        self._wrong: dict[str, list[Point]] = {}
        self._now: dict[str, Point] = {}
        for guest in snapshot.guests:
            before = known.get(guest.name, {})
            points, wrong = (_still(before.get(key, ()), guest.curve) for key in ("points", "wrong"))
            now = None if guest.name == squeezed else _point(guest)
            if now is not None:
                points = _with(points, now)
                wrong = [point for point in wrong if not _same(point, now)]
                if _contradicted(guest) and _larger(points, now):
                    wrong = _with(wrong, now)
            self._points[guest.name], self._wrong[guest.name] = points, wrong
            here = now or _passing(guest)
            if here is not None:
                self._now[guest.name] = here
        self.carry: dict[str, Any] = {
            "measured": {
                name: {
                    "points": [structs.astuple(point) for point in points],
                    "wrong": [structs.astuple(point) for point in self._wrong[name]],
                }
                for name, points in self._points.items()
                if points
            }
        }

    @property
    def better_with_more(self) -> set[str]:
        """Guests that missed less at a larger size they have had."""
        return {name for name, now in self._now.items() if _larger(self._points[name], now)}

    def instead(self, guest: GuestSnapshot) -> Curve | None:
        """Return what to plan with for a guest whose curve is contradicted where it was better off with more memory.

        None if it was not, or if its counts are in doubt themselves. With less than now it is taken to miss all.
        """
        now = _point(guest)
        if now is None or not _contradicted(guest):
            return None
        larger = _larger(self._points[guest.name], now)
        if not larger:
            return None
        sizes = [guest.target_bytes, *(point.size_bytes for point in larger)]
        ratios = np.minimum.accumulate([now.miss_ratio, *(point.miss_ratio for point in larger)])
        if guest.floor_bytes < guest.target_bytes - 1:
            sizes = [guest.floor_bytes, guest.target_bytes - 1, *sizes]
            ratios = np.concatenate([[1.0, 1.0], ratios])
        return Curve(
            sizes_bytes=tuple(sizes),
            miss_ratio=tuple(float(ratio) for ratio in ratios),
            measured=now.miss_ratio,
            steady_accesses=now.accesses,
            estimator="measured",
        )

    def corrected(self, guest: GuestSnapshot, curve: Curve) -> Curve:
        """Return a guest's curve with no less than was measured at smaller sizes that it was wrong for."""
        wrong = [point for point in self._wrong[guest.name] if point.size_bytes < guest.target_bytes]
        if not wrong or curve.measured is None:
            return curve
        sizes = np.unique([*curve.sizes_bytes, *(point.size_bytes for point in wrong), guest.target_bytes])
        ratios = np.interp(sizes, curve.sizes_bytes, curve.miss_ratio)
        for point in wrong:
            between = np.interp(sizes, [point.size_bytes, guest.target_bytes], [point.miss_ratio, curve.measured])
            ratios = np.where(sizes < guest.target_bytes, np.maximum(ratios, between), ratios)
        falling = np.minimum.accumulate(ratios)
        return structs.replace(curve, sizes_bytes=tuple(sizes.tolist()), miss_ratio=tuple(falling.tolist()))

    def basis(self, guest: GuestSnapshot) -> str:
        """Return in words what is planned with instead of a contradicted curve."""
        best = min(_larger(self._points[guest.name], self._now[guest.name]), key=_miss_ratio)
        return f"by what it missed with {format_size(best.size_bytes)}, {best.miss_ratio:.2f} of all"


def _still(points: list[list[Any]], curve: Curve | None) -> list[Point]:
    """Return the points of those carried over that still count: none of another load, nor any of long ago."""
    known = [Point(*point) for point in points]
    if curve is None:  # not there for a moment
        return known
    if any(point.accesses > curve.steady_accesses or point.load != curve.load for point in known):
        return []
    return [point for point in known if curve.steady_accesses < _TWICE * point.accesses]


def _point(guest: GuestSnapshot) -> Point | None:
    """Return what was measured of a guest at its size, if that is known and its disks do not deny it."""
    curve = guest.curve
    known = guest.decidable and guest.state is GuestState.FRESH and guest.interval_s and not guest.frozen
    if not known or curve is None or curve.measured is None or curve.steady_accesses <= 0:
        return None
    if abs(guest.actual_bytes - guest.target_bytes) > _ARRIVED * guest.target_bytes:
        return None
    if unconfirmed(guest) or uncounted(guest):
        return None
    return Point(guest.target_bytes, curve.measured, curve.steady_accesses, curve.load)


def _passing(guest: GuestSnapshot) -> Point | None:
    """Return the same by the last interval alone, while the miss ratio at a new size is not known."""
    curve, accesses = guest.curve, (guest.hits or 0) + (guest.misses or 0)
    if curve is None or accesses <= 0 or not guest.decidable:
        return None
    return Point(guest.target_bytes, max(0, guest.misses or 0) / accesses, curve.steady_accesses, curve.load)


def _contradicted(guest: GuestSnapshot) -> bool:
    return guest.curve is not None and bool(guest.curve.weak) and guest.curve.contradicted > 0


def _same(point: Point, other: Point) -> bool:
    return abs(point.size_bytes - other.size_bytes) < _SAME_BYTES


def _with(points: list[Point], now: Point) -> list[Point]:
    """Return the points with a new one; too many are thinned out where they are nearest to each other."""
    same = next((point for point in points if _same(point, now)), None)
    if same is not None:
        points = [point for point in points if point is not same]
        now = structs.replace(now, size_bytes=same.size_bytes)
    points = sorted([*points, now], key=_size)
    while len(points) > _POINTS_MOST:
        inner = [number for number in range(1, len(points) - 1) if points[number] is not now]
        gaps = {number: points[number + 1].size_bytes - points[number - 1].size_bytes for number in inner}
        del points[min(gaps, key=gaps.__getitem__)]
    return points


def _larger(points: list[Point], now: Point) -> list[Point]:
    """Return the points, by size, of which one at least shows that the guest missed less with more."""
    larger = sorted((point for point in points if point.size_bytes > now.size_bytes), key=_size)
    useful = any(
        point.size_bytes - now.size_bytes >= _WORTH_KNOWING_BYTES
        and now.miss_ratio - point.miss_ratio >= _WORTH_KNOWING
        for point in larger
    )
    return larger if useful else []


def _size(point: Point) -> int:
    return point.size_bytes


def _miss_ratio(point: Point) -> float:
    return point.miss_ratio
