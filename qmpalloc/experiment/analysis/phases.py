"""When and how fast each phase of a load ended, and in which trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from msgspec import Struct

from qmpalloc.experiment.analysis import latency
from qmpalloc.experiment.analysis.metrics import MetricResult, metric_results
from qmpalloc.experiment.spec.schema import AnyPhase, Guest
from qmpalloc.experiment.store.records import LoadProgress, Reading, SeriesPoint


class PhaseResult(Struct, frozen=True, kw_only=True):
    """What came of one phase of one guest in one run.

    Attributes:
        name: Of the phase.
        trial: In which it ended, from 1; None when it did not, or that is not known.
        start_s: Host seconds from the beginning of the loads to its first read, to about one second, since it comes
            from the guest's clock; None if not known.
        end_s: The same to its end; None when it did not end, or that is not known.
        reads: Done.
        seconds: From its first read to its end, or to the last report; None when it did not begin.
        errors: Reads that failed or were short.
        mean_s: Mean latency of a read (with a rate: from the histogram); None when there was none.
        p50_s: Median latency.
        p99_s: 99th percentile.
        metrics: What it came to by its metrics.
        series: The values of its metrics with their times, of those that are series.
    """

    name: str
    trial: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    reads: int = 0
    seconds: float | None = None
    errors: int = 0
    mean_s: float | None = None
    p50_s: float | None = None
    p99_s: float | None = None
    metrics: tuple[MetricResult, ...] = ()
    series: tuple[SeriesPoint, ...] = ()


def phase_results(
    guest: Guest,
    readings: Iterable[Reading],
    final: LoadProgress | None,
    *,
    interval_s: float,
    series: Mapping[str, tuple[SeriesPoint, ...]] = MappingProxyType({}),
) -> tuple[PhaseResult, ...]:
    """Return what came of every phase of `guest`.

    Args:
        guest: As specified.
        readings: Of the run, all guests.
        final: What the load reported in the end, if it came so far.
        interval_s: Length of a trial.
        series: Phase to what was kept of its metrics' values.
    """
    known = sorted(readings, key=lambda reading: reading.trial)
    ends_s: dict[int, float] = {}
    for reading in known:
        ends_s[reading.trial] = max(reading.t, ends_s.get(reading.trial, 0.0))
    own = [reading for reading in known if reading.guest == guest.name]
    ahead_s = _clock_ahead_s(own)
    reports = [reading.load for reading in own if reading.load is not None] + ([final] if final is not None else [])
    by_trial = [(reading.trial, reading.load) for reading in own if reading.load is not None]
    open_loop = {phase.name for phase in guest.reads if phase.rate}
    latest = {phase.name: phase for report in reports for phase in report.phases}

    def result(phase: AnyPhase) -> PhaseResult:
        progress = latest.get(phase.name)
        if progress is None:
            return PhaseResult(name=phase.name)
        start_s = None if ahead_s is None else max(0.0, progress.started_s - ahead_s)
        end_s = start_s + progress.seconds if start_s is not None and progress.done else None
        mean_s, p50_s, p99_s = latency.read_times_s([progress], open_loop)
        return PhaseResult(
            name=phase.name,
            trial=_trial(phase.name, own, end_s, ends_s, interval_s) if end_s is not None else None,
            start_s=start_s,
            end_s=end_s,
            reads=progress.reads,
            seconds=progress.seconds,
            errors=progress.errors,
            mean_s=mean_s,
            p50_s=p50_s,
            p99_s=p99_s,
            metrics=metric_results(phase, by_trial, final),
            series=series.get(phase.name, ()),
        )

    return tuple(result(phase) for phase in guest.phases)


def _clock_ahead_s(own: Iterable[Reading]) -> float | None:
    """Return guest time minus host time since the loads began; None when there is no reading.

    Counters and progress are a little older than the reading that carries them (up to their writers' intervals), so
    every difference is too small, and the largest is the nearest.
    """
    seen = [reading.monotonic_ns / 1e9 - reading.t for reading in own]
    seen += [reading.load.monotonic_s - reading.t for reading in own if reading.load is not None]
    return max(seen, default=None)


def _trial(name: str, own: list[Reading], end_s: float, ends_s: Mapping[int, float], interval_s: float) -> int:
    """Return the trial in which a phase ended: the first whose reading shows it; time decides where readings lack.

    A phase that no reading shows as done ended in the trial after the last reading, at the latest.
    """
    first = max((reading.trial for reading in own if not _is_done(name, reading)), default=0) + 1
    done = min((reading.trial for reading in own if _is_done(name, reading)), default=max(ends_s, default=0) + 1)
    between = range(first, done)
    return next((number for number in between if ends_s.get(number, number * interval_s) >= end_s), max(first, done))


def _is_done(name: str, reading: Reading) -> bool:
    return reading.load is not None and any(phase.name == name and phase.done for phase in reading.load.phases)
