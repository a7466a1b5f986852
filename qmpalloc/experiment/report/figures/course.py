"""The course of a guest's metrics: every value that its programs printed, at its time."""

from __future__ import annotations

from matplotlib.figure import Figure

from qmpalloc.experiment.analysis.phases import PhaseResult
from qmpalloc.experiment.analysis.results import Results, RunResult
from qmpalloc.experiment.report.figures import style
from qmpalloc.experiment.spec.program import Metric

PANEL_IN = 2.3
LEAST_POINTS = 2
"""A single value has no course."""

Points = list[tuple[float, float]]
"""Seconds since the loads began, and values."""


def course_panels(results: Results, guest: str) -> list[tuple[str, Metric]]:
    """Return phase and metric of those that have a course in some run."""
    return [
        (phase, metric)
        for name, phase, metric in results.metrics
        if name == guest
        and any(
            len(course(results, run, guest, phase, metric)) >= LEAST_POINTS
            for arm in results.arms_counted
            for run in results.counted(arm.name)
        )
    ]


def course(results: Results, run: RunResult, guest: str, phase: str, metric: Metric) -> Points:
    """Return the values of a metric in a run: those that were printed, otherwise that of each trial, at its end."""
    found: PhaseResult = next(each for each in run.guests[guest].phases if each.name == phase)
    if found.start_s is not None and metric.series:
        return [(found.start_s + each.seconds, each.value) for each in found.series if each.metric == metric.name]
    by_trial = next((each.series for each in found.metrics if each.metric == metric), {})
    return [(trial * results.specification.interval, value) for trial, value in sorted(by_trial.items())]


def course_figure(results: Results, guest: str) -> Figure:
    """Draw a panel for each metric of a guest, with a line for each run; the first repeat of an arm is bold."""
    panels = course_panels(results, guest)
    figure = style.new_figure(1.2 + PANEL_IN * len(panels))
    unit_s, unit = style.time_unit(results)
    shown = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (phase, metric) in zip(shown, panels, strict=True):
        for arm in results.arms_counted:
            for number, run in enumerate(results.counted(arm.name)):
                points = course(results, run, guest, phase, metric)
                axes.plot(
                    [seconds / unit_s for seconds, _ in points],
                    [value for _, value in points],
                    color=style.arm_colour(results, arm.name),
                    linestyle=style.arm_dash(results, arm.name),
                    linewidth=0.7 if number else 1.4,
                    alpha=0.5 if number else 1.0,
                    label=arm.name if number == 0 else None,
                )
        axes.set_title(f"{phase}: {metric.name}, {metric.better} is better", loc="left")
        axes.set_ylabel(metric.unit)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    shown[-1].set(xlabel=f"time since the loads began ({unit})")
    shown[-1].set_xlim(left=0)
    legend = style.one_legend(shown)
    figure.legend(list(legend.values()), list(legend), loc="outside right upper", title="arm", alignment="left")
    return figure
