"""The curves that a controller had learnt of each phase, and what was then measured at the sizes the guests had."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from msgspec import Struct

from qmpalloc.errors import QmpallocError
from qmpalloc.events import AnyEvent, Decided, Header
from qmpalloc.experiment.analysis.results import Results, RunResult
from qmpalloc.experiment.analysis.trials import Trial
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.model import Band, Curve
from qmpalloc.record import read_record
from qmpalloc.units import parse_size

STEADY_SHARE = 0.02
"""A trial tells of a size when that changed by no more than this in it."""

EARLY_SHARE = 2 / 3
"""Trials of this first part of a phase may still fill the cache; they are drawn, but do not count."""

LEAST_ACCESSES = 500


class LearntCurve(Struct, frozen=True, kw_only=True):
    """A curve as a controller last had it in a phase.

    Attributes:
        guest: Whose.
        phase: In which.
        arm: Of the controller.
        repeat: Of the run.
        trial: The decision it was taken from.
        curve: The last one of the phase, good or weak; None when there was none.
        band: What was believed then, or in the last decision of the phase that told; None when none did.
        true: The oracle's curve of the phase as far as it is known: sizes in bytes, and miss ratios.
    """

    guest: str
    phase: str
    arm: str
    repeat: int
    trial: int
    curve: Curve | None = None
    band: Band | None = None
    true: tuple[tuple[int, ...], tuple[float, ...]] | None = None


class Measured(Struct, frozen=True, kw_only=True):
    """The miss ratio of a guest in one trial, at one size.

    Attributes:
        arm: Of the run.
        size_bytes: The guest's.
        miss_ratio: Misses by accesses.
        early: The cache may still have been filling.
    """

    arm: str
    size_bytes: int
    miss_ratio: float
    early: bool


def learnt_curves(
    directory: ExperimentDirectory, results: Results
) -> tuple[tuple[LearntCurve, ...], dict[ArmRun, str]]:
    """Return the last curve of each guest and phase in every run that counts of an arm that knows curves.

    Those are the arms of the policies ``curve`` and ``oracle``. A record that cannot be read gives none; of which runs
    that is so, and why, is returned as well.
    """
    found: list[LearntCurve] = []
    unreadable: dict[ArmRun, str] = {}
    for arm in results.arms:
        if arm.policy in {"curve", "oracle"}:
            for run in results.counted(arm.name):
                try:
                    found += _of_run(run, read_record(directory.run(run.run).record))
                except QmpallocError as error:
                    unreadable[run.run] = f"no curves are told, for its record cannot be used: {error.message}"
    return tuple(found), unreadable


def measured_points(results: Results, guest: str, phase: str) -> tuple[Measured, ...]:
    """Return what was measured of a guest in a phase, in all runs that count, at sizes that stood still."""
    points = []
    for arm in results.arms:
        for run in results.counted(arm.name):
            rows = [row for row in run.guests[guest].trials.trials if row.phase == phase]
            for number, row in enumerate(rows):
                before = rows[number - 1] if number else None
                if row.covers == 1 and row.accesses >= LEAST_ACCESSES and _stood_still(before, row):
                    points.append(
                        Measured(
                            arm=arm.name,
                            size_bytes=row.actual_bytes,
                            miss_ratio=min(1.0, max(0.0, row.misses / row.accesses)),
                            early=number < EARLY_SHARE * len(rows),
                        )
                    )
    return tuple(points)


def curve_error(curve: Curve, points: Iterable[Measured]) -> float | None:
    """Return the mean absolute difference of a curve to what was measured, early trials aside; None without any."""
    late = [point for point in points if not point.early]
    if not late:
        return None
    predicted = np.interp([point.size_bytes for point in late], curve.sizes_bytes, curve.miss_ratio)
    return float(np.abs(predicted - [point.miss_ratio for point in late]).mean())


def _stood_still(before: Trial | None, row: Trial) -> bool:
    return before is not None and abs(row.actual_bytes - before.actual_bytes) <= STEADY_SHARE * before.actual_bytes


def _of_run(run: RunResult, record: Iterable[AnyEvent]) -> list[LearntCurve]:
    """Return the last curve of each phase of a run. An earlier one may still be that of the phase before."""
    phases = {name: {row.trial: row.phase for row in guest.trials.trials} for name, guest in run.guests.items()}
    names = {name: tuple(phase.name for phase in guest.phases) for name, guest in run.guests.items()}
    settings: Mapping[str, Any] = {}
    last: dict[tuple[str, str], LearntCurve] = {}
    for event in record:
        if isinstance(event, Header):
            settings = event.policy_settings if event.policy == "oracle" else {}
        if not isinstance(event, Decided):
            continue
        bands = {verdict.name: verdict.band for verdict in event.decision.guests}
        for guest in event.snapshot.guests:
            phase = phases.get(guest.name, {}).get(event.snapshot.cycle, "")
            known, own = last.get((guest.name, phase)), names.get(guest.name, ())
            if phase not in own or (guest.curve is None and known is not None):
                continue
            last[guest.name, phase] = LearntCurve(
                guest=guest.name,
                phase=phase,
                arm=run.arm,
                repeat=run.repeat,
                trial=event.snapshot.cycle,
                curve=guest.curve,
                band=bands.get(guest.name) or (known.band if known else None),
                true=_true(settings, guest.name, own.index(phase), len(own), event.decision.carry),
            )
    return list(last.values())


def _true(
    settings: Mapping[str, Any], name: str, number: int, phases: int, carry: Any
) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    """Return the curve of a phase, of so many, that a computed oracle was given, over sizes of the guest."""
    try:
        curves = settings["curves"][name]
        if len(curves) != phases:
            return None  # given by a person, who need not have thought of phases
        curve = curves[number]
        overhead = carry["overhead"][name] if curve.get("sizes_of") == "cache" else 0
        sizes = [size if isinstance(size, int) else parse_size(size) for size in curve["sizes"]]
        return tuple(size + overhead for size in sizes), tuple(curve["miss_ratio"])
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
