"""The part of a report on policies that know curves: what memory moved, and how right the curves were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from qmpalloc.experiment.analysis.gain import LEAST_GAIN, oracle_arm, oracle_share
from qmpalloc.experiment.analysis.learnt import LearntCurve, curve_error, measured_points
from qmpalloc.experiment.analysis.movement import Movement, Settling, movement
from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.report import words
from qmpalloc.experiment.report.markdown import heading, paragraph, table
from qmpalloc.experiment.report.words import spread
from qmpalloc.experiment.spec.schema import Arm
from qmpalloc.units import format_size

WEAK_CHARS = 80


def movements(results: Results, arm: Arm) -> list[Movement]:
    """Return how memory moved in every run of an arm that counts."""
    baselines = {guest.name: arm.baseline(guest) for guest in results.specification.guests}
    return [movement(run, baselines, results.manifest.footprints) for run in results.counted(arm.name)]


def movement_table(results: Results) -> Iterator[str]:
    """Yield what the arms gained of what there was to gain, and what memory they moved for it."""
    arms = results.arms_counted
    if not arms:
        return
    moved = {arm.name: movements(results, arm) for arm in arms}
    settlings = {name: [each for one in found for each in one.settlings] for name, found in moved.items()}
    oracle = oracle_arm(results)
    rows = [*_gains(results, oracle)] if oracle is not None else []

    def settled(label: str, value: Callable[[Settling], float | None], show: Callable[[float], str]) -> tuple[str, ...]:
        return label, *(spread([value(one) for one in settlings[arm.name]], show) for arm in arms)

    rows += [
        settled("Time to come to rest", lambda one: one.seconds, words.seconds),
        settled("The same in trials", lambda one: one.trials, words.whole),
        *(
            settled(f"The same in working sets of {name}", partial(_working_sets, name), words.times)
            for name in (guest.name for guest in results.specification.guests)
        ),
        ("Memory moved", *(spread([one.moved_bytes for one in moved[arm.name]], format_size) for arm in arms)),
        ("Trials with a move at rest", *(_at_rest(settlings[arm.name]) for arm in arms)),
    ]
    yield heading("How memory moved")
    yield table("", ("", *(arm.name for arm in arms)), rows)
    said = (
        "At rest: all guests are within 16 MiB, or 3 %, of where they are at the next change of the loads, the start "
        "or end of a phase; changes that follow within 3 trials are not judged. Exact to a trial. In 2 of 3: so many "
        "of the changes came to rest before the next. Working sets: what a guest read meanwhile, by the different "
        "pages that its phase reads in all."
    )
    if oracle is not None:
        said += (
            f" Share of the gain: {results.specification.reference} has 0 %, {oracle} 100 %; only where {oracle} gains "
            f"at least {LEAST_GAIN * 100:g} %. Second half: of what each guest accesses, when a policy that learns may "
            "have learnt."
        )
    yield paragraph(said)


def _gains(results: Results, oracle: str) -> Iterator[tuple[str, ...]]:
    """Yield the rows that tell which share of the oracle's gain each arm reached."""
    shares = [oracle_share(results, arm.name) for arm in results.arms_counted]
    for label, field in (("time", "time"), ("misses", "misses"), ("misses, second half", "late_misses")):
        cells = (words.known(getattr(share, field, None), words.percent) for share in shares)
        yield f"Share of the gain of {oracle} in {label}", *cells


def curves_table(results: Results, curves: tuple[LearntCurve, ...]) -> Iterator[str]:
    """Yield how far the curves were off that the arms with the policy ``curve`` had learnt."""
    learners = [arm.name for arm in results.arms if arm.policy == "curve"]
    rows = []
    for each in curves:
        if each.curve is None or each.arm not in learners:
            continue
        points = measured_points(results, each.guest, each.phase)
        rows.append(
            (
                f"{each.guest}: {each.phase}, {each.arm}, repeat {each.repeat}",
                str(each.trial),
                "weak: " + "; ".join(each.curve.weak)[:WEAK_CHARS] if each.curve.weak else "good",
                words.known(curve_error(each.curve, points), lambda off: f"{off:.3f}"),
                str(sum(not point.early for point in points)),
            )
        )
    if not rows:
        return
    yield heading("How right the curves were")
    columns = ("Guest: phase, arm", "Trial", "Curve", "Mean error in miss ratio", "Trials compared")
    yield table("The curve last learnt of each phase, beside the trials of all arms", columns, rows, numbers=False)
    yield paragraph(
        "The error is the mean absolute difference of the curve to the miss ratios measured in all arms, at sizes that "
        "stood still, without the first two thirds of each phase, in which caches may fill. First reads of pages are "
        "in what is measured as well: they miss at any size."
    )


def _working_sets(guest: str, settling: Settling) -> float | None:
    return settling.working_sets.get(guest)


def _at_rest(settlings: list[Settling]) -> str:
    rested_s = sum(one.rested_s for one in settlings)
    if not rested_s:
        return words.NOTHING
    moves = sum(one.moves for one in settlings)
    return f"{moves} in {rested_s / 60:.0f} min" if rested_s >= 60 else f"{moves} in {rested_s:.0f} s"
