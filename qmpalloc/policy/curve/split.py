"""The best split of a budget by what is believed of each guest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qmpalloc.curves.split import best_split
from qmpalloc.curves.value import Objective
from qmpalloc.policy.curve.belief import Belief
from qmpalloc.rules.step import lowest_bytes
from qmpalloc.units import MIB, align_down

UNITS_MAX = 512

_FINE_BYTES, _FINER = 4 * MIB, 32
"""Steps to which sizes are told apart at last: 4 MiB, or 1/32 of the first ones."""

_NEXT_TO_NOTHING = 0.01
"""Of all that a split gains: for that, no size is changed by less than a step."""


def divide(beliefs: Sequence[Belief], room: int, objective: Objective) -> dict[str, int] | None:
    """Return the best size in bytes for each belief; None when the room does not hold all floors.

    Sizes are whole steps above the floors, or the caps, a step being at least 1 MiB and at least 1/512 of what is to be
    divided. Where that is more than 4 MiB, the split is found anew in smaller steps, each guest within a step of what
    it would get: next to large guests a small one may need less than a step.
    Of equal splits, the one nearest to the present sizes is taken. Memory that improves nothing stays where it is.
    """
    ranges = {one.guest.name: (one.floor_bytes, max(one.floor_bytes, one.cap_bytes)) for one in beliefs}
    free = room - sum(least for least, _ in ranges.values())
    if free < 0:
        return None
    step = max(MIB, -align_down(-(free // UNITS_MAX), MIB))
    sizes = _best_within(beliefs, ranges, room, step, objective)
    if step > _FINE_BYTES:
        fine = max(_FINE_BYTES, -align_down(-(step // _FINER), MIB))
        ranges = {
            name: (max(least, sizes[name] - step), min(most, sizes[name] + step))
            for name, (least, most) in ranges.items()
        }
        sizes, step = _best_within(beliefs, ranges, room, fine, objective), fine
        left = room - sum(sizes.values())
        for belief in beliefs:
            name = belief.guest.name
            back = max(0, min(left, belief.guest.target_bytes - sizes[name]))
            sizes[name], left = sizes[name] + back, left - back
    return _settled(beliefs, sizes, room, step, objective)


def _best_within(
    beliefs: Sequence[Belief],
    ranges: Mapping[str, tuple[int, int]],
    room: int,
    step: int,
    objective: Objective,
) -> dict[str, int]:
    """Return the best sizes that are whole steps above the least of each guest's range, or its most."""
    free = room - sum(ranges[belief.guest.name][0] for belief in beliefs)
    units = free // step
    grids, values = [], []
    for belief in beliefs:
        least, most = ranges[belief.guest.name]
        steps = min(units, -(-(most - least) // step))
        grids.append(np.minimum(least + float(step) * np.arange(steps + 1), most))
        values.append(belief.values(grids[-1], objective))
    # A tie-break far below any gain that counts: what changes nothing stays where it is.
    scale = 1e-6 * (max(float(np.ptp(own)) for own in values) + 1e-9) / max(free, step)
    for belief, sizes, own in zip(beliefs, grids, values, strict=True):
        own -= scale * np.abs(sizes - belief.guest.target_bytes)
    given = best_split(values, units)
    return {belief.guest.name: int(grid[count]) for belief, grid, count in zip(beliefs, grids, given, strict=True)}


def _settled(
    beliefs: Sequence[Belief], sizes: dict[str, int], room: int, step: int, objective: Objective
) -> dict[str, int]:
    """Undo what is only the grid's: changes below a step that are worth next to nothing, where there is room for it."""
    if not any(0 < abs(sizes[one.guest.name] - one.guest.target_bytes) < step for one in beliefs):
        return sizes
    gains = {}
    for belief in beliefs:
        now, then = belief.values([belief.guest.target_bytes, sizes[belief.guest.name]], objective)
        gains[belief.guest.name] = float(then - now)
    little = _NEXT_TO_NOTHING * max(0.0, sum(gains.values()))
    for belief in beliefs:
        guest = belief.guest
        if 0 < abs(sizes[guest.name] - guest.target_bytes) < step and gains[guest.name] <= little:
            kept = sizes | {guest.name: guest.target_bytes}
            if sum(kept.values()) <= room:
                sizes = kept
    return sizes


def take_slowly(beliefs: Sequence[Belief], wanted: Mapping[str, int], room: int) -> dict[str, int]:
    """Return the sizes after one step towards `wanted`: no guest loses more than the limit, receivers share the rest.

    The limit is that of `qmpalloc.rules.step`, applied here so that the growth fits what is really given up.
    """
    sizes, growth = {}, {}
    for belief in beliefs:
        guest = belief.guest
        size = min(guest.target_bytes, max(wanted[guest.name], lowest_bytes(guest)))
        sizes[guest.name] = -align_down(-size)
        growth[guest.name] = max(0, wanted[guest.name] - guest.target_bytes)
    left = max(0, room - sum(sizes.values()))
    needed = sum(growth.values())
    share = min(1.0, left / needed) if needed else 0.0
    return {name: align_down(size + int(growth[name] * share)) for name, size in sizes.items()}
