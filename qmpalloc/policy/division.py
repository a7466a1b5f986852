"""How policies that know curves divide a budget: values on a grid, the best split, and whether to move at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qmpalloc.curves.split import best_split
from qmpalloc.curves.value import Load, Objective, Values
from qmpalloc.model import Curve, GuestSnapshot, GuestState, Snapshot
from qmpalloc.rules.step import lowest_bytes
from qmpalloc.units import MIB, PAGE_BYTES, align_down

UNITS_MAX = 512

_FINE_BYTES, _FINER = 4 * MIB, 32
"""Steps to which sizes are told apart at last: 4 MiB, or 1/32 of the first ones."""

_NEXT_TO_NOTHING = 0.01
"""Of all that a split gains: for that, no size is changed by less than a step."""

_CLIFF = 0.15
"""A miss ratio that rises by so much within the margin does not slope: it breaks off."""

_PARTS = 512
"""Of a growth, to sum up what it is worth."""


class Candidate(Struct, frozen=True, kw_only=True):
    """A guest whose size may be chosen.

    Attributes:
        guest: Its snapshot.
        curve: Its miss-ratio curve.
        load: Its load at the present size.
        margin_bytes: The curve is read this much to the left: memory that the guest is given but not credited with.
        horizon_s: How long a size is thought to last. Memory that a guest is given is worth something once it has been
            filled, by its misses, so that only what is left of the horizon then counts. None: for ever.
        basis: What the curve rests on, in words; empty for samples.
    """

    guest: GuestSnapshot
    curve: Curve
    load: Load
    margin_bytes: int = 0
    horizon_s: float | None = None
    basis: str = ""

    def miss_ratios(self, sizes_bytes: Sequence[float] | NDArray[Any]) -> Values:
        """Return the miss ratio to plan with at each size.

        A guest that stands at the edge of a cliff, nearer than the margin, keeps what it has if it does not shrink: one
        whose file fits by less must not be robbed as if it missed everything already.
        """
        sizes, target = np.asarray(sizes_bytes, dtype=float), float(self.guest.target_bytes)
        known = self.curve.sizes_bytes, self.curve.miss_ratio
        planned = np.interp(sizes - self.margin_bytes, *known)
        below, now = np.interp([target - self.margin_bytes, target], *known)
        if below - now >= _CLIFF:
            planned = np.where(sizes < target, planned, np.minimum(planned, now))
        return np.asarray(planned)

    def values(self, sizes_bytes: Sequence[float] | NDArray[Any], objective: Objective) -> Values:
        """Return the objective at each size, on average over the horizon."""
        sizes = np.asarray(sizes_bytes, dtype=float)
        if self.horizon_s is None:
            return self.load.values(self.miss_ratios(sizes), objective)
        target = float(self.guest.target_bytes)
        values = self.load.values(self.miss_ratios(np.minimum(sizes, target)), objective)
        most = float(sizes.max()) - target
        if most <= 0:
            return values
        # Each part of the growth is worth what it adds, for the time that is left once it has been filled.
        growth = np.linspace(0.0, most, _PARTS + 1)
        added = np.diff(self.load.values(self.miss_ratios(target + growth), objective))
        filled_per_s = max(1e-9, self.load.accesses_per_s * self.load.miss_ratio) * PAGE_BYTES
        lasting = np.maximum(0.0, 1.0 - growth[1:] / filled_per_s / self.horizon_s)
        gained = np.concatenate([[0.0], np.cumsum(added * lasting)])
        return np.asarray(values + np.interp(sizes - target, growth, gained))


def room_bytes(snapshot: Snapshot, chosen: Sequence[str]) -> int:
    """Return what is left of the budget for the sizes of the guests named in `chosen`."""
    here = [guest for guest in snapshot.guests if guest.state is not GuestState.GONE]
    taken = sum(guest.outside_bytes if guest.name in chosen else guest.promised_bytes for guest in here)
    return snapshot.budget_bytes - taken


def free_bytes(snapshot: Snapshot) -> int:
    """Return what is left of the budget when all keep what they have, and who is still to come gets its baseline."""
    awaited = [guest for guest in snapshot.guests if guest.state is GuestState.CONNECTING]
    kept = sum(max(0, guest.baseline_bytes - guest.promised_bytes) for guest in awaited)
    return max(0, room_bytes(snapshot, []) - kept)


def divide(candidates: Sequence[Candidate], room: int, objective: Objective) -> dict[str, int] | None:
    """Return the best size in bytes for each candidate; None when the room does not hold all floors.

    Sizes are whole steps above the floors, or the caps, a step being at least 1 MiB and at least 1/512 of what is to be
    divided. Where that is more than 4 MiB, the split is found anew in smaller steps, each guest within a step of what
    it would get: next to large guests a small one may need less than a step.
    Of equal splits, the one nearest to the present sizes is taken. Memory that improves nothing stays where it is.
    """
    free = room - sum(candidate.guest.floor_bytes for candidate in candidates)
    if free < 0:
        return None
    ranges = {
        one.guest.name: (one.guest.floor_bytes, max(one.guest.floor_bytes, one.guest.cap_bytes)) for one in candidates
    }
    step = max(MIB, -align_down(-(free // UNITS_MAX), MIB))
    sizes = _best_within(candidates, ranges, room, step, objective)
    if step > _FINE_BYTES:
        fine = max(_FINE_BYTES, -align_down(-(step // _FINER), MIB))
        for candidate in candidates:
            name, target = candidate.guest.name, candidate.guest.target_bytes
            least, most = ranges[name]
            least, most = max(least, sizes[name] - step), min(most, sizes[name] + step)
            # With the present size on the grid, what improves nothing stays where it is to the byte.
            aligned = least + (target - least) % fine if least <= target <= most else least
            ranges[name] = (aligned if aligned <= sizes[name] else least, most)
        sizes, step = _best_within(candidates, ranges, room, fine, objective), fine
        left = room - sum(sizes.values())
        for candidate in candidates:
            name = candidate.guest.name
            back = max(0, min(left, candidate.guest.target_bytes - sizes[name]))
            sizes[name], left = sizes[name] + back, left - back
    return _settled(candidates, sizes, room, step, objective)


def _best_within(
    candidates: Sequence[Candidate],
    ranges: Mapping[str, tuple[int, int]],
    room: int,
    step: int,
    objective: Objective,
) -> dict[str, int]:
    """Return the best sizes that are whole steps above the least of each guest's range, or its most."""
    free = room - sum(ranges[candidate.guest.name][0] for candidate in candidates)
    units = free // step
    grids, values = [], []
    for candidate in candidates:
        least, most = ranges[candidate.guest.name]
        steps = min(units, -(-(most - least) // step))
        grids.append(np.minimum(least + float(step) * np.arange(steps + 1), most))
        values.append(candidate.values(grids[-1], objective))
    # A tie-break far below any gain that counts: what changes nothing stays where it is.
    scale = 1e-6 * (max(float(np.ptp(own)) for own in values) + 1e-9) / max(free, step)
    for candidate, sizes, own in zip(candidates, grids, values, strict=True):
        own -= scale * np.abs(sizes - candidate.guest.target_bytes)
    given = best_split(values, units)
    return {
        candidate.guest.name: int(grid[count]) for candidate, grid, count in zip(candidates, grids, given, strict=True)
    }


def _settled(
    candidates: Sequence[Candidate], sizes: dict[str, int], room: int, step: int, objective: Objective
) -> dict[str, int]:
    """Undo what is only the grid's: changes below a step that are worth next to nothing, where there is room for it."""
    if not any(0 < abs(sizes[one.guest.name] - one.guest.target_bytes) < step for one in candidates):
        return sizes
    gains = {}
    for candidate in candidates:
        now, then = candidate.values([candidate.guest.target_bytes, sizes[candidate.guest.name]], objective)
        gains[candidate.guest.name] = float(then - now)
    little = _NEXT_TO_NOTHING * max(0.0, sum(gains.values()))
    for candidate in candidates:
        guest = candidate.guest
        if 0 < abs(sizes[guest.name] - guest.target_bytes) < step and gains[guest.name] <= little:
            kept = sizes | {guest.name: guest.target_bytes}
            if sum(kept.values()) <= room:
                sizes = kept
    return sizes


def take_slowly(candidates: Sequence[Candidate], wanted: Mapping[str, int], room: int) -> dict[str, int]:
    """Return the sizes after one step towards `wanted`: no guest loses more than the limit, receivers share the rest.

    The limit is that of `qmpalloc.rules.step`, applied here so that the growth fits what is really given up.
    """
    sizes, growth = {}, {}
    for candidate in candidates:
        guest = candidate.guest
        size = min(guest.target_bytes, max(wanted[guest.name], lowest_bytes(guest)))
        sizes[guest.name] = -align_down(-size)
        growth[guest.name] = max(0, wanted[guest.name] - guest.target_bytes)
    left = max(0, room - sum(sizes.values()))
    needed = sum(growth.values())
    share = min(1.0, left / needed) if needed else 0.0
    return {name: align_down(size + int(growth[name] * share)) for name, size in sizes.items()}
