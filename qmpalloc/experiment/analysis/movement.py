"""How memory moved in a run: how much of it, how soon it came to rest after each change of the loads, and if it stayed.

All is taken from the sizes at the ends of trials, so times are exact to a trial, and what went forth and back within
one is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

from msgspec import Struct

from qmpalloc.experiment.analysis.results import RunResult
from qmpalloc.experiment.analysis.trials import Trial
from qmpalloc.experiment.store.records import PhaseFootprint
from qmpalloc.units import MIB

NEAR_BYTES = 16 * MIB
NEAR_SHARE = 0.03
"""A size is where it comes to rest when it is this near: the larger of both."""

MOVE_BYTES = MIB
"""A target that changes by less has not moved."""

JUDGED_TRIALS = 4
"""A stretch between two changes of the loads is judged when it has so many trials at least."""

RESTED_TRIALS = 2
"""Trials at its end in which all sizes must be at rest, or they never came to it."""


class Settling(Struct, frozen=True, kw_only=True):
    """What happened between two changes of the loads: a phase of a guest that began or ended.

    Attributes:
        start_s: The first of them, seconds since the loads began.
        trials: Trials until all sizes were where they came to rest; 0 when they were from the start, None when they
            did not come to rest.
        seconds: The same in seconds.
        working_sets: The same for each guest in what it read meanwhile: accesses by the different pages that its phase
            reads in all. Trials in which a phase changes are left out. Empty if they did not come to rest.
        rested_s: How long they rested.
        moves: Trials of that time in which a target changed all the same.
    """

    start_s: float
    trials: int | None
    seconds: float | None
    working_sets: dict[str, float] = {}
    rested_s: float = 0.0
    moves: int = 0


class Movement(Struct, frozen=True, kw_only=True):
    """How memory moved in a run.

    Attributes:
        moved_bytes: Memory given to guests in all.
        settlings: Between the changes of the loads, those long enough to be judged.
    """

    moved_bytes: int
    settlings: tuple[Settling, ...]


class _Sizes(Struct, frozen=True):
    """All guests at the end of a trial, and what they read in it, in working sets."""

    end_s: float
    actual: dict[str, int]
    target: dict[str, int]
    working_sets: dict[str, float]


def movement(
    run: RunResult, baselines: Mapping[str, int], footprints: Mapping[str, Mapping[str, PhaseFootprint]]
) -> Movement:
    """Return how memory moved in `run`.

    Args:
        run: With its trials.
        baselines: Guest to its size at the start.
        footprints: Guest to phase to what that reads.
    """
    sizes = _sizes(run, baselines, footprints)
    changes = [0.0, *_ends(run)]
    found = []
    for start_s, end_s in zip(changes, [*changes[1:], math.inf], strict=True):
        within = [number for number, each in enumerate(sizes) if number and start_s < each.end_s <= end_s]
        found.append(_settling(start_s, sizes[within[0] - 1 : within[-1] + 1]) if within else None)
    return Movement(
        moved_bytes=sum(_grown(before, after) for before, after in pairwise(sizes)),
        settlings=tuple(settling for settling in found if settling is not None),
    )


def _sizes(
    run: RunResult, baselines: Mapping[str, int], footprints: Mapping[str, Mapping[str, PhaseFootprint]]
) -> list[_Sizes]:
    """Return the sizes at the start and at the end of each trial; a guest without a reading is where it was."""
    rows: dict[int, dict[str, Trial]] = {}
    for name, guest in run.guests.items():
        for row in guest.trials.trials:
            rows.setdefault(row.trial, {})[name] = row
    sizes = [_Sizes(0.0, dict(baselines), dict(baselines), {})]
    for number in sorted(rows):
        actual, target = dict(sizes[-1].actual), dict(sizes[-1].target)
        read = {}
        for name, row in rows[number].items():
            actual[name] = row.actual_bytes
            target[name] = row.target_bytes or row.actual_bytes
            phase = footprints.get(name, {}).get(row.phase)
            read[name] = row.accesses / max(1, phase.distinct_pages) if phase is not None else 0.0
        sizes.append(_Sizes(max(row.end_s for row in rows[number].values()), actual, target, read))
    return sizes


def _ends(run: RunResult) -> list[float]:
    """Return when phases ended, each a change of the loads; the last one ends the run."""
    ends = sorted({phase.end_s for guest in run.guests.values() for phase in guest.phases if phase.end_s is not None})
    return ends[:-1]


def _settling(start_s: float, stretch: list[_Sizes]) -> Settling | None:
    """Return what happened in a stretch: the sizes at its start and at the end of each of its trials."""
    trials = len(stretch) - 1
    if trials < JUDGED_TRIALS:
        return None
    last = stretch[-1].actual
    rested_from = 1 + max((number for number, each in enumerate(stretch) if not _near(each.actual, last)), default=-1)
    if trials - rested_from < RESTED_TRIALS:
        return Settling(start_s=start_s, trials=None, seconds=None)
    rest = stretch[rested_from:]
    began_s = rest[0].end_s if rested_from else start_s
    return Settling(
        start_s=start_s,
        trials=rested_from,
        seconds=began_s - start_s,
        working_sets={
            name: sum(each.working_sets.get(name, 0.0) for each in stretch[1 : rested_from + 1])
            for name in stretch[-1].actual
        },
        rested_s=rest[-1].end_s - began_s,
        moves=sum(_moved(before, after) for before, after in pairwise(rest)),
    )


def _near(actual: Mapping[str, int], last: Mapping[str, int]) -> bool:
    return all(abs(actual[name] - size) <= max(NEAR_BYTES, NEAR_SHARE * size) for name, size in last.items())


def _moved(before: _Sizes, after: _Sizes) -> bool:
    return any(abs(size - before.target.get(name, size)) >= MOVE_BYTES for name, size in after.target.items())


def _grown(before: _Sizes, after: _Sizes) -> int:
    return sum(max(0, size - before.actual.get(name, size)) for name, size in after.actual.items())
