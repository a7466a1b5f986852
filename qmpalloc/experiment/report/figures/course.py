"""The course of the metrics: every value that programs printed, at its time."""

from __future__ import annotations

from matplotlib.figure import Figure

from qmpalloc.experiment.analysis.phases import PhaseResult
from qmpalloc.experiment.analysis.results import Results, RunResult
from qmpalloc.experiment.report.figures import style
from qmpalloc.experiment.spec.program import Metric

LEAST_POINTS = 2
"""A single value has no course."""

Points = list[tuple[float, float]]
"""Seconds since the loads began, and values."""


def course_panels(results: Results) -> list[tuple[str, str, Metric]]:
    """Return guest, phase and metric of those that have a course in some run."""
    runs = [run for arm in results.arms_counted for run in results.counted(arm.name)]
    return [each for each in results.metrics if any(len(course(results, run, *each)) >= LEAST_POINTS for run in runs)]


def course(results: Results, run: RunResult, guest: str, phase: str, metric: Metric) -> Points:
    """Return the values of a metric in a run: those that were printed, otherwise that of each trial, at its end."""
    found: PhaseResult = next(each for each in run.guests[guest].phases if each.name == phase)
    if found.start_s is not None and metric.series:
        return [(found.start_s + each.seconds, each.value) for each in found.series if each.metric == metric.name]
    by_trial = next((each.series for each in found.metrics if each.metric == metric), {})
    return [(trial * results.specification.interval, value) for trial, value in sorted(by_trial.items())]


def course_figure(results: Results) -> Figure:
    """Draw a panel for each metric, with a line for each run; the first repeat of an arm is bold."""
    panels = course_panels(results)
    figure = style.new_figure(1.0 + 2.1 * len(panels))
    shown = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    unit_s, unit = style.time_unit(results)
    for axes, (guest, phase, metric) in zip(shown, panels, strict=True):
        for arm in results.arms_counted:
            colour, dash = style.arm_line(results, arm.name)
            for number, run in enumerate(results.counted(arm.name)):
                points = course(results, run, guest, phase, metric)
                times, values = [seconds / unit_s for seconds, _ in points], [value for _, value in points]
                width, alpha, label = (0.7, 0.5, "_") if number else (1.4, 1.0, arm.name)
                axes.plot(times, values, color=colour, linestyle=dash, linewidth=width, alpha=alpha, label=label)
        axes.set_title(f"{guest}, {phase}: {metric.name} ({metric.unit}), {metric.better} is better", loc="left")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    shown[-1].set(xlabel=f"time since the loads began ({unit})")
    shown[-1].set_xlim(left=0)
    style.legend(figure)
    return figure
