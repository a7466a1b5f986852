"""What the phases of a run came to by their metrics, and how arms compare by them.

Where arms do unequal work in equal time, the time to finish says nothing: what counts is what the guests' programs say
of themselves, and for built-in reads how many a second were done, or how long one took if they come at a rate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from msgspec import Struct

from qmpalloc.experiment.analysis import latency
from qmpalloc.experiment.analysis.statistics import Ratio, ratio
from qmpalloc.experiment.spec.program import LATENCY, Metric
from qmpalloc.experiment.spec.schema import AnyPhase, Phase
from qmpalloc.experiment.store.records import LoadProgress, PhaseProgress


class MetricResult(Struct, frozen=True, kw_only=True):
    """What a phase came to by one of its metrics in one run.

    Attributes:
        metric: Which.
        value: Over the phase; None when it said nothing of it.
        series: Trial to the value in it, of trials in which it said something.
    """

    metric: Metric
    value: float | None
    series: dict[int, float]


def metric_results(
    phase: AnyPhase, reports: Sequence[tuple[int, LoadProgress]], final: LoadProgress | None
) -> tuple[MetricResult, ...]:
    """Return what a phase came to by each of its metrics.

    Args:
        phase: As specified.
        reports: Trial and what the load had written last at its end, in order.
        final: What it reported in the end, if it came so far.
    """
    nothing = PhaseProgress(name=phase.name, reads=0, seconds=0.0, started_s=0.0, done=False)
    states = [(trial, _state(report, phase.name) or nothing) for trial, report in reports]
    last = (_state(final, phase.name) if final is not None else None) or (states[-1][1] if states else nothing)
    results = []
    for metric in phase.metrics:
        series = {}
        for (_, before), (trial, after) in pairwise([(0, nothing), *states]):
            value = _value(phase, metric, before, after)
            if value is not None:
                series[trial] = value
        results.append(MetricResult(metric=metric, value=_value(phase, metric, nothing, last), series=series))
    return tuple(results)


def _state(report: LoadProgress, name: str) -> PhaseProgress | None:
    return next((phase for phase in report.phases if phase.name == name), None)


def _value(phase: AnyPhase, metric: Metric, before: PhaseProgress, after: PhaseProgress) -> float | None:
    """Return what a metric came to between two reports; None when nothing was said of it."""
    if isinstance(phase, Phase):
        if metric == LATENCY:
            mean_s = latency.mean_s(latency.difference(after.latency, before.latency))
            return None if mean_s is None else 1000 * mean_s
        seconds = after.seconds - before.seconds
        return (after.reads - before.reads) / seconds if seconds > 0 else None
    now, then = after.metrics.get(metric.name), before.metrics.get(metric.name)
    count = (now.count if now is not None else 0) - (then.count if then is not None else 0)
    if now is None or count <= 0:
        return None
    return (now.total - (then.total if then is not None else 0.0)) / count if metric.series else now.last


class MetricComparison(Struct, frozen=True, kw_only=True):
    """A metric of one phase in an arm, beside the reference.

    Attributes:
        guest: Whose.
        phase: Which phase of it.
        metric: Which metric of that.
        ratio: To the reference; None when no repeat has both, or one is not above 0. What is equal, as no errors in
            both, has the ratio 1.
        gain: The same so that above 1 is better.
    """

    guest: str
    phase: str
    metric: Metric
    ratio: Ratio | None
    gain: Ratio | None


MetricValues = dict[tuple[str, str, str], float]
"""Guest, phase and name of the metric to its value in a run."""


def compare_metrics(
    metrics: Iterable[tuple[str, str, Metric]], pairs: Sequence[tuple[MetricValues, MetricValues]]
) -> tuple[MetricComparison, ...]:
    """Return an arm beside the reference by every metric.

    Args:
        metrics: Guest, phase and metric.
        pairs: Values of the arm and of the reference, for each repeat that has both.
    """
    found = []
    for guest, phase, metric in metrics:
        key = (guest, phase, metric.name)
        both = [_pair(ours[key], theirs[key]) for ours, theirs in pairs if key in ours and key in theirs]
        if not both or any(not value > 0 for pair in both for value in pair):
            found.append(MetricComparison(guest=guest, phase=phase, metric=metric, ratio=None, gain=None))
            continue
        gains = [_gain(metric, ours, theirs) for ours, theirs in both]
        found.append(MetricComparison(guest=guest, phase=phase, metric=metric, ratio=ratio(both), gain=ratio(gains)))
    return tuple(found)


def _pair(ours: float, theirs: float) -> tuple[float, float]:
    """Return two values of which the ratio is taken: equal ones, which may be 0, have the ratio 1."""
    return (1.0, 1.0) if ours == theirs else (ours, theirs)


def _gain(metric: Metric, ours: float, theirs: float) -> tuple[float, float]:
    """Return a pair of values in the order in which a ratio above 1 is better."""
    return (ours, theirs) if metric.better == "higher" else (theirs, ours)


def worst(comparisons: Iterable[MetricComparison]) -> MetricComparison | None:
    """Return the metric that gained least, or lost most; None when one cannot be compared, which may be that."""
    known = [(each.gain.value if each.gain is not None else -math.inf, each) for each in comparisons]
    least, found = min(known, key=lambda pair: pair[0], default=(-math.inf, None))
    return found if least > 0 else None


def gain_of_all(
    comparisons: Iterable[MetricComparison],
    pairs: Iterable[tuple[MetricValues, MetricValues]],
    weights: Mapping[str, float],
) -> Ratio | None:
    """Return the gain of all guests together: the weighted geometric mean of theirs, each that of its metrics.

    So a guest with many metrics counts no more than one with few.

    Args:
        comparisons: Of the arm.
        pairs: As for `compare_metrics`. Repeats that lack a metric are left out.
        weights: Of the guests.

    Returns:
        None when a metric cannot be compared: without it, an arm that lets a guest do nothing could be the best.
    """
    metrics = list(comparisons)
    if any(each.gain is None for each in metrics):
        return None
    keys = [(each.guest, each.phase, each.metric.name) for each in metrics]
    count = Counter(each.guest for each in metrics)
    total = math.fsum(weights[guest] for guest in count)
    gains = []
    for ours, theirs in pairs:
        if not keys or not (ours.keys() >= set(keys) and theirs.keys() >= set(keys)):
            continue
        logs = []
        for each, key in zip(metrics, keys, strict=True):
            better, worse = _gain(each.metric, *_pair(ours[key], theirs[key]))
            logs.append(weights[each.guest] / total / count[each.guest] * math.log(better / worse))
        gains.append((math.exp(math.fsum(logs)), 1.0))
    return ratio(gains) if gains else None


def metric_verdicts(
    arm: str, reference: str, comparisons: Sequence[MetricComparison], of_all: Ratio | None
) -> Iterator[str]:
    """Yield a sentence for each metric of an arm, and at last one for all guests together."""
    for each in comparisons:
        what = f"{each.metric.name} of {each.guest} ({each.phase})"
        if each.ratio is None or each.gain is None:
            yield (
                f"{arm} cannot be compared by {what}: no repeat has a value of both {arm} and {reference}, or one is "
                "not above 0."
            )
            continue
        said = f"{arm} had {each.ratio} of the {reference} {what}, {each.metric.better} is better"
        yield f"{said}: {each.gain.decided('worse', 'better')}."
    least = worst(comparisons)
    if of_all is None or least is None or least.gain is None:
        why = "not by every metric" if comparisons else "no phase has a metric"
        yield f"{arm} cannot be compared over all guests: {why}."
    else:
        yield (
            f"{arm} over all guests by weight: {of_all} times as good as {reference} (geometric mean): "
            f"{of_all.decided('worse', 'better')}. Worst: {least.gain.value:.2f} times, {least.metric.name} of "
            f"{least.guest} ({least.phase})."
        )
