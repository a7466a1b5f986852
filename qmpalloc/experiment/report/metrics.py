"""The part of a report that says what programs, and reads in equal time, came to."""

from __future__ import annotations

from collections.abc import Iterator

from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.analysis.trials import total
from qmpalloc.experiment.report import words
from qmpalloc.experiment.report.markdown import heading, table
from qmpalloc.experiment.report.words import spread
from qmpalloc.experiment.spec.program import Metric
from qmpalloc.units import format_size


def metrics_tables(results: Results) -> Iterator[str]:
    """Yield the metrics of all arms beside each other, and what the disks had to do for them."""
    if not results.metrics:
        return
    found = {arm.name: results.metric_comparisons(arm.name) for arm in results.adaptive_arms}
    rows = []
    for number, (guest, phase, metric) in enumerate(results.metrics):
        cells = []
        for arm in results.arms:
            ratio = found[arm.name][number].ratio if arm.name in found else None
            said = _spread(results, arm.name, guest, phase, metric)
            cells.append(said if ratio is None else f"{said}; ratio {ratio}")
        rows.append((f"{guest}: {phase}, {metric.name} ({metric.unit}, {metric.better} is better)", *cells))
    yield heading("What the guests came to")
    yield table("", ("Guest: phase, metric", *(arm.name for arm in results.arms)), rows)
    yield from _page_ins(results)


def metric_lines(results: Results) -> Iterator[str]:
    """Yield what came out by metrics, a line each, for the end of an experiment."""
    for guest, phase, metric in results.metrics:
        values = [f"{arm.name} {_spread(results, arm.name, guest, phase, metric)}" for arm in results.arms_counted]
        if values:
            yield f"{guest}: {phase}, {metric.name} in {metric.unit}: {', '.join(values)}"
    if results.specification.has_unequal_work:
        for comparison in results.comparisons:
            yield from results.verdicts(comparison)


def _spread(results: Results, arm: str, guest: str, phase: str, metric: Metric) -> str:
    """Return what a metric came to in the runs of an arm."""
    key = (guest, phase, metric.name)
    return spread([run.metric_values.get(key) for run in results.counted(arm)], words.figure)


def _page_ins(results: Results) -> Iterator[str]:
    rows = []
    for arm in results.arms_counted:
        for guest in results.specification.guests:
            runs = [run.guests[guest.name].counts for run in results.counted(arm.name)]
            by_run = [(counts.misses, counts.faults, counts.swap_ins, counts.causes.total) for counts in runs]
            pages = (spread(each, words.whole) for each in zip(*by_run, strict=True))
            read = spread([counts.disk_read_bytes for counts in runs], format_size)
            apart = words.known(total(runs).witness, words.off_one)
            rows.append((f"{arm.name}, {guest.name}", *pages, read, apart))
    columns = ("By reads", "By faults of mapped files", "From swap", "Page-ins", "Read from the disks")
    yield table("What had to be read for that", ("Arm, guest", *columns, "More or less than counted"), rows)
