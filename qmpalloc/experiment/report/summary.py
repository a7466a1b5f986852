"""``summary.json``: the results in numbers, for other programs. Every key is described in ``docs/experiments.md``."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from qmpalloc.experiment.analysis.gain import OracleShare, oracle_share
from qmpalloc.experiment.analysis.metrics import MetricComparison
from qmpalloc.experiment.analysis.movement import Movement, Settling
from qmpalloc.experiment.analysis.results import Results, RunResult, total
from qmpalloc.experiment.analysis.statistics import Comparison, Ratio, verdict
from qmpalloc.experiment.report.curves import movements
from qmpalloc.experiment.spec.schema import Arm
from qmpalloc.experiment.store.records import PhaseFootprint


class DiskSummary(Struct, frozen=True, kw_only=True):
    """The disk model: what was asked."""

    model: str
    iops: int
    hit_s: float
    ratio_asked: float | None


class RepeatSummary(Struct, frozen=True, kw_only=True):
    """One run that counts. None is not known, or did not happen."""

    repeat: int
    seconds: float | None
    trials_to_finish: int | None
    hits_by_trial: tuple[int | None, ...]
    hits: int
    misses: int
    hit_ratio: float | None
    finished: dict[str, dict[str, int | None]]
    disk_ratio: float | None
    request_s: float | None
    events_lost: int | None
    controller_cpu_share: float | None
    moved_bytes: int
    settlings: tuple[Settling, ...]
    metrics: dict[str, dict[str, dict[str, float | None]]]
    notes: tuple[str, ...]


class ArmSummary(Struct, frozen=True, kw_only=True):
    """One arm.

    Attributes:
        arm: Its name.
        policy: Name of its policy.
        settings: Of that.
        repeats: The runs that count.
        witness: Guest to bytes the disk read per byte of misses counted, over all repeats.
        oracle_share: Of the oracle's gain over the reference; None without an oracle.
    """

    arm: str
    policy: str
    settings: dict[str, Any]
    repeats: tuple[RepeatSummary, ...]
    witness: dict[str, float | None]
    oracle_share: OracleShare | None


class ComparisonSummary(Struct, frozen=True, kw_only=True):
    """An arm beside the reference; the fields of `qmpalloc.experiment.analysis.statistics.Comparison`."""

    arm: str
    reference: str
    verdict: str
    time: Ratio | None
    trials: Ratio | None
    hits: Ratio | None
    misses: Ratio | None
    more_hits: tuple[tuple[int, int], ...]
    repeats: int
    finished: int
    metrics: tuple[MetricComparison, ...]


class FailedRun(Struct, frozen=True, kw_only=True):
    """A run that ended and does not count."""

    arm: str
    repeat: int
    cause: str


class MissingRun(Struct, frozen=True, kw_only=True):
    """A run that was planned and has not ended."""

    arm: str
    repeat: int


class Summary(Struct, frozen=True, kw_only=True):
    """The whole file."""

    format: Literal["qmpalloc-experiment-summary"] = "qmpalloc-experiment-summary"
    version: Literal[1] = 1
    name: str
    scale: str
    seed: int
    repeats: int
    interval_s: float
    budget_bytes: int
    reference: str
    complete: bool
    disk: DiskSummary | None
    arms: tuple[ArmSummary, ...]
    comparisons: tuple[ComparisonSummary, ...]
    footprints: dict[str, dict[str, PhaseFootprint]]
    failed: tuple[FailedRun, ...]
    missing: tuple[MissingRun, ...]


def summarise(results: Results) -> Summary:
    """Return the results in numbers."""
    spec, disk = results.specification, None
    if results.disk is not None:
        disk = DiskSummary(
            model=results.disk.model,
            iops=results.disk.iops,
            hit_s=results.disk.hit_s,
            ratio_asked=results.disk_ratio_asked,
        )
    return Summary(
        name=spec.name,
        scale=spec.scale,
        seed=spec.seed,
        repeats=spec.repeats,
        interval_s=spec.interval,
        budget_bytes=spec.budget,
        reference=spec.reference,
        complete=not results.missing and not results.failed,
        disk=disk,
        arms=tuple(_arm(results, arm) for arm in results.arms),
        comparisons=tuple(_comparison(results, comparison) for comparison in results.comparisons),
        footprints=results.manifest.footprints,
        failed=tuple(FailedRun(arm=r.run.arm, repeat=r.run.repeat, cause=r.result.failed) for r in results.failed),
        missing=tuple(MissingRun(arm=run.arm, repeat=run.repeat) for run in results.missing),
    )


def _arm(results: Results, arm: Arm) -> ArmSummary:
    runs = results.counted(arm.name)
    guests = [guest.name for guest in results.specification.guests]
    return ArmSummary(
        arm=arm.name,
        policy=arm.policy,
        settings=arm.settings,
        repeats=tuple(_repeat(run, moved) for run, moved in zip(runs, movements(results, arm), strict=True)),
        witness={name: total(run.guests[name].counts for run in runs).witness for name in guests},
        oracle_share=oracle_share(results, arm.name),
    )


def _repeat(run: RunResult, moved: Movement) -> RepeatSummary:
    counts = run.counts
    return RepeatSummary(
        repeat=run.run.repeat,
        seconds=run.result.seconds,
        trials_to_finish=run.result.trials_to_finish,
        hits_by_trial=run.result.hits,
        hits=counts.hits,
        misses=counts.misses,
        hit_ratio=counts.hit_ratio,
        finished={name: {phase.name: phase.trial for phase in guest.phases} for name, guest in run.guests.items()},
        disk_ratio=run.disk_ratio,
        request_s=counts.request_s,
        events_lost=counts.events_lost,
        controller_cpu_share=run.controller_cpu_share,
        moved_bytes=moved.moved_bytes,
        settlings=moved.settlings,
        metrics={
            name: {phase.name: {each.metric.name: each.value for each in phase.metrics} for phase in guest.phases}
            for name, guest in run.guests.items()
        },
        notes=run.notes,
    )


def _comparison(results: Results, comparison: Comparison) -> ComparisonSummary:
    return ComparisonSummary(
        arm=comparison.arm,
        reference=comparison.reference,
        verdict=verdict(comparison),
        time=comparison.time,
        trials=comparison.trials,
        hits=comparison.hits,
        misses=comparison.misses,
        more_hits=comparison.more_hits,
        repeats=comparison.repeats,
        finished=comparison.finished,
        metrics=results.metric_comparisons(comparison.arm),
    )
