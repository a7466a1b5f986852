"""The part of a report that says what programs, and reads in equal time, came to."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from qmpalloc.experiment.analysis.metrics import metric_verdicts
from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.analysis.trials import total
from qmpalloc.experiment.report import words
from qmpalloc.experiment.report.document import Block, Heading, Paragraph, Table
from qmpalloc.experiment.report.words import spread
from qmpalloc.experiment.spec.program import Metric


def metrics_tables(results: Results) -> Iterator[Block]:
    """Yield the metrics of all arms beside each other, what the disks had to do for them, and their course."""
    if not results.metrics:
        return
    reference, conditions = results.specification.reference, words.conditions(results)
    yield Heading("What the guests came to")
    rows = []
    for guest, phase, metric in results.metrics:
        cells = []
        for arm in results.arms:
            runs = results.counted(arm.name)
            said = spread([run.metric_values.get((guest, phase, metric.name)) for run in runs], words.figure)
            cells.append(said + _beside_reference(results, arm.name, guest, phase, metric))
        rows.append((f"{guest}: {phase}, {metric.name} ({metric.unit}, {metric.better} is better)", *cells))
    columns = ("Guest: phase, metric", *(arm.name for arm in results.arms))
    yield Table(f"Metrics, and their ratios to {reference} ({conditions})", columns, tuple(rows))
    yield from _page_ins(results, conditions)
    for guest, phase, metric in results.metrics:
        yield from _course(results, guest, phase, metric)


def metric_lines(results: Results) -> Iterator[str]:
    """Yield what came out by metrics, a line each, for the end of an experiment."""
    for guest, phase, metric in results.metrics:
        values = [
            f"{arm.name} {spread([run.metric_values.get((guest, phase, metric.name)) for run in runs], words.figure)}"
            for arm in results.arms_counted
            if (runs := results.counted(arm.name))
        ]
        if values:
            yield f"{guest}: {phase}, {metric.name} in {metric.unit}: {', '.join(values)}"
    if results.metrics:
        for arm in results.adaptive_arms:
            found = results.metric_comparisons(arm.name)
            of_all = results.gain_of_all(arm.name)
            yield from metric_verdicts(arm.name, results.specification.reference, found, of_all)


def _beside_reference(results: Results, arm: str, guest: str, phase: str, metric: Metric) -> str:
    if arm == results.specification.reference:
        return ""
    key = (guest, phase, metric.name)
    found = next(
        (each for each in results.metric_comparisons(arm) if (each.guest, each.phase, each.metric.name) == key), None
    )
    return f"; ratio {found.ratio}" if found is not None and found.ratio is not None else ""


def _page_ins(results: Results, conditions: str) -> Iterator[Block]:
    rows = []
    for arm in results.arms_counted:
        for guest in results.specification.guests:
            counts = total(run.guests[guest.name].counts for run in results.counted(arm.name))
            causes = counts.causes
            each = [
                words.NOTHING if count is None else words.whole(count)
                for count in (causes.reads, causes.faults, causes.swap_ins, causes.total)
            ]
            read = words.mebibytes(counts.disk_read_bytes)
            apart = words.NOTHING if counts.witness is None else words.signed_percent(counts.witness - 1)
            rows.append((f"{arm.name}, {guest.name}", *each, read, apart))
    pages = ("By reads", "By faults of mapped files", "From swap", "Page-ins")
    columns = ("Arm, guest", *pages, "Read from the disks", "More or less than counted")
    yield Table(f"What had to be read for that, all repeats ({conditions})", columns, tuple(rows))


def _course(results: Results, guest: str, phase: str, metric: Metric) -> Iterator[Block]:
    """Yield a metric by trial, a column for each arm; nothing where no arm has two values."""
    columns: list[dict[int, list[float]]] = []
    for arm in results.arms_counted:
        by_trial: dict[int, list[float]] = {}
        for run in results.counted(arm.name):
            found = run.metrics.get((guest, phase, metric.name))
            for trial, value in found.series.items() if found is not None else ():
                by_trial.setdefault(trial, []).append(value)
        columns.append(by_trial)
    if max((len(column) for column in columns), default=0) < 2:
        return
    trials = sorted(set().union(*columns))
    interval_s = results.specification.interval
    rows = tuple(
        (f"{trial} ({trial * interval_s:,.0f} s)", *(_median(column.get(trial)) for column in columns))
        for trial in trials
    )
    names = ("Trial (its end)", *(arm.name for arm in results.arms_counted))
    yield Paragraph(f"{guest}, {phase}: {metric.name} by trial, {metric.better} is better.")
    caption = f"{guest}, {phase}: {metric.name} in {metric.unit} by trial ({words.conditions(results)})"
    yield Table(caption, names, rows)


def _median(values: list[float] | None) -> str:
    return words.NOTHING if values is None else words.figure(statistics.median(values))
