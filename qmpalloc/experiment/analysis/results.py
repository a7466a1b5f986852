"""All that came out of an experiment, computed from what its directory holds; nothing here is kept on disk itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from msgspec import Struct, structs

from qmpalloc.errors import ConfigError
from qmpalloc.experiment.analysis.metrics import (
    MetricComparison,
    MetricResult,
    MetricValues,
    compare_metrics,
    gain_of_all,
    metric_verdicts,
)
from qmpalloc.experiment.analysis.phases import PhaseResult, phase_results
from qmpalloc.experiment.analysis.statistics import ArmResult, Comparison, Ratio, compare, verdict
from qmpalloc.experiment.analysis.trials import Counts, GuestTrials, guest_trials, total, total_hits_by_trial
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.spec.program import Metric
from qmpalloc.experiment.spec.schema import DISK_RATIOS, Arm, Guest, Specification
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.experiment.store.records import DiskCalibration, Manifest, Outcome, Reading, Service


class GuestRun(Struct, frozen=True, kw_only=True):
    """One guest in one run.

    Attributes:
        trials: Its rows.
        phases: What came of each of its phases, in order.
        counts: Sums over its rows.
    """

    trials: GuestTrials
    phases: tuple[PhaseResult, ...]
    counts: Counts


class RunResult(ArmResult, frozen=True, kw_only=True):
    """One run that was begun.

    Attributes:
        outcome: How it ended; None when it was interrupted, or goes on.
        guests: By name.
        notes: What is missing in it, a sentence each.
    """

    outcome: Outcome | None
    guests: dict[str, GuestRun]
    notes: tuple[str, ...] = ()

    @property
    def run(self) -> ArmRun:
        """Which run."""
        return ArmRun(self.repeat, self.arm)

    @property
    def counted(self) -> bool:
        """Whether it counts: it ended and did not fail."""
        return not self.failed

    @property
    def whole(self) -> bool:
        """Whether its counts hold all from the start of the loads to their end."""
        return all(guest.trials.whole for guest in self.guests.values())

    @property
    def counts(self) -> Counts:
        """Sums over all its guests, as far as known."""
        return total(guest.counts for guest in self.guests.values())

    @property
    def metrics(self) -> dict[tuple[str, str, str], MetricResult]:
        """Guest, phase and name of a metric to what it came to."""
        return {
            (name, phase.name, result.metric.name): result
            for name, guest in self.guests.items()
            for phase in guest.phases
            for result in phase.metrics
        }

    @property
    def metric_values(self) -> MetricValues:
        """The metrics of which something was said."""
        return {key: result.value for key, result in self.metrics.items() if result.value is not None}

    @property
    def controller_cpu_share(self) -> float | None:
        """CPU time of the controller per second while the loads ran; None if not known."""
        if self.outcome is None or not self.outcome.controller_wall_s:
            return None
        return self.outcome.controller_cpu_s / self.outcome.controller_wall_s

    @property
    def services(self) -> tuple[Service, ...]:
        """Service times of its guests, measured before the loads."""
        return () if self.outcome is None else tuple(self.outcome.service.values())

    @property
    def disk_ratio(self) -> float | None:
        """Service time of a miss over that of a hit, measured before the loads: geometric mean of the guests."""
        ratios = [service.ratio for service in self.services if service.hit_s > 0]
        return math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) if ratios and min(ratios) > 0 else None


class Results(Struct, frozen=True, kw_only=True):
    """What came out so far.

    Attributes:
        specification: Scaled, with the repeats asked for.
        manifest: What is run where.
        disk: The throttle; None before it was measured.
        runs: Those begun, in the order planned.
        missing: Those planned of which there is no outcome.
    """

    specification: Specification
    manifest: Manifest
    disk: DiskCalibration | None
    runs: tuple[RunResult, ...]
    missing: tuple[ArmRun, ...]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that are run, in the order of the file."""
        return tuple(arm for arm in self.specification.arms if arm.name in (self.manifest.arms or {arm.name}))

    @property
    def arms_counted(self) -> tuple[Arm, ...]:
        """Those of which a run counts."""
        return tuple(arm for arm in self.arms if self.counted(arm.name))

    @property
    def adaptive_arms(self) -> tuple[Arm, ...]:
        """All of them but the reference."""
        return tuple(arm for arm in self.arms if arm.name != self.specification.reference)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every arm beside the reference: the best first, those that cannot be compared last."""
        reference = self.specification.reference
        found = [compare(self.runs, arm.name, reference=reference) for arm in self.adaptive_arms]
        return tuple(sorted(found, key=self._rank))

    def _rank(self, comparison: Comparison) -> float:
        if self.specification.has_unequal_work:
            gain = self.gain_of_all(comparison.arm)
            return math.inf if gain is None else 1 / gain.value
        return math.inf if comparison.time is None else comparison.time.value

    @property
    def metrics(self) -> tuple[tuple[str, str, Metric], ...]:
        """Guest, phase and metric of everything that arms are compared by, where they may do unequal work."""
        if not self.specification.has_unequal_work:
            return ()
        guests = self.specification.guests
        return tuple(
            (guest.name, phase.name, metric) for guest in guests for phase in guest.phases for metric in phase.metrics
        )

    def metric_comparisons(self, arm: str) -> tuple[MetricComparison, ...]:
        """Return an arm beside the reference by each metric."""
        return compare_metrics(self.metrics, self._metric_pairs(arm))

    def gain_of_all(self, arm: str) -> Ratio | None:
        """Return how much better than the reference an arm is over all guests by weight; None when not known."""
        weights = {guest.name: guest.weight for guest in self.specification.guests}
        return gain_of_all(self.metric_comparisons(arm), self._metric_pairs(arm), weights)

    def verdicts(self, comparison: Comparison) -> list[str]:
        """Return what came out of an arm in sentences: the last is of all, those before it are of single metrics."""
        if not self.specification.has_unequal_work:
            return [verdict(comparison)]
        arm, found = comparison.arm, self.metric_comparisons(comparison.arm)
        return list(metric_verdicts(arm, comparison.reference, found, self.gain_of_all(arm)))

    def _metric_pairs(self, arm: str) -> list[tuple[MetricValues, MetricValues]]:
        ours = {run.repeat: run.metric_values for run in self.counted(arm)}
        theirs = {run.repeat: run.metric_values for run in self.counted(self.specification.reference)}
        return [(ours[repeat], theirs[repeat]) for repeat in sorted(ours.keys() & theirs.keys())]

    def counted(self, arm: str) -> list[RunResult]:
        """Return the runs of an arm that count, by repeat."""
        return sorted((run for run in self.runs if run.arm == arm and run.counted), key=lambda each: each.run)

    @property
    def failed(self) -> list[RunResult]:
        """The runs that ended and do not count."""
        return [run for run in self.runs if run.outcome is not None and not run.counted]

    @property
    def disk_ratio_asked(self) -> float | None:
        """Service time of a miss over that of a hit that the disk was set for; None when it is not throttled."""
        if self.disk is None or not self.disk.iops:
            return None
        return DISK_RATIOS.get(self.disk.model) or 1 / (self.disk.iops * self.disk.hit_s)


def load_results(directory: ExperimentDirectory) -> Results:
    """Return what came out so far, from the files of an experiment; it need not be complete.

    A run of which a file cannot be read counts as failed.
    """
    specification, manifest = directory.specification, directory.manifest
    runs = [found for run in directory.planned if (found := _run(directory, run)) is not None]
    ended = {result.run for result in runs if result.outcome is not None}
    missing = tuple(run for run in directory.planned if run not in ended)
    return Results(
        specification=specification,
        manifest=manifest,
        disk=directory.disk(),
        runs=tuple(runs),
        missing=missing,
    )


def with_notes(results: Results, notes: Mapping[ArmRun, str]) -> Results:
    """Return results that tell of runs what was found out elsewhere."""
    runs = (
        structs.replace(run, notes=(*run.notes, notes[run.run])) if run.run in notes else run for run in results.runs
    )
    return structs.replace(results, runs=tuple(runs))


def _run(directory: ExperimentDirectory, run: ArmRun) -> RunResult | None:
    """Return what came of a run; None when it was not begun."""
    place = directory.run(run)
    if not place.path.is_dir():
        return None
    try:
        left = place.left(directory.specification.guests)
    except ConfigError as error:
        failed = f"its files cannot be used: {error.message}"
        lost = Outcome(arm=run.arm, repeat=run.repeat, started_wall=0, total_s=0, load_s=None, failed=failed)
        return RunResult(
            arm=run.arm, repeat=run.repeat, hits=(), finished={}, seconds=None, failed=failed, outcome=lost, guests={}
        )
    interval_s, outcome = directory.specification.interval, left.outcome
    guests = {}
    for guest in directory.specification.guests:
        load, series = left.loads[guest.name], left.series[guest.name]
        phases = phase_results(guest, left.readings, load, interval_s=interval_s, series=series)
        guests[guest.name] = _guest_run(guest, left.readings, phases)
    notes = [note for guest in guests.values() for note in guest.trials.notes]
    notes += [note for name, guest in guests.items() for note in _unfinished(name, guest.phases)]
    notes += [f"the load of {name} gave up: {load.error}" for name, load in left.loads.items() if load and load.error]
    trials = [guest.trials for guest in guests.values()]
    counts = total(guest.counts for guest in guests.values()) if all(each.whole for each in trials) else None
    finished = {name: tuple(phase.trial for phase in guest.phases) for name, guest in guests.items()}
    ended = all(trial is not None for ends in finished.values() for trial in ends)
    return RunResult(
        arm=run.arm,
        repeat=run.repeat,
        hits=total_hits_by_trial(trials),
        finished=finished,
        seconds=outcome.load_s if outcome is not None and ended else None,
        failed="it did not end" if outcome is None else outcome.failed,
        total_hits=counts.hits if counts is not None else None,
        total_misses=counts.misses if counts is not None else None,
        outcome=outcome,
        guests=guests,
        notes=tuple(notes),
    )


def _guest_run(guest: Guest, readings: list[Reading], phases: tuple[PhaseResult, ...]) -> GuestRun:
    rated = [phase.name for phase in guest.reads if phase.rate]
    programs = [phase.name for phase in guest.programs]
    trials = guest_trials(readings, guest.name, open_loop=rated, programs=programs)
    return GuestRun(trials=trials, phases=phases, counts=total(trials.trials))


def _unfinished(guest: str, phases: tuple[PhaseResult, ...]) -> Iterator[str]:
    for phase in phases:
        if phase.seconds is None:
            yield f"phase {phase.name} of {guest} did not begin"
        elif phase.end_s is None:
            yield f"phase {phase.name} of {guest} did not end"
        if phase.errors:
            yield f"{phase.errors:,} reads of phase {phase.name} of {guest} failed or were short"
