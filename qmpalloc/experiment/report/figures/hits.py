"""Hits by trial: those of an arm beside the reference, as in the paper's Figure 2, and the difference that adds up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import accumulate, zip_longest

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from qmpalloc.experiment.analysis.results import Results, RunResult
from qmpalloc.experiment.report.figures import style
from qmpalloc.units import format_count

STRIP_GUESTS = 8
"""With more guests than this, the ends of phases are not marked beside the hits."""

Points = tuple[list[int], list[float], list[float], list[float]]


def hits_figure(results: Results, arm: str) -> Figure:
    """Draw the hits of all guests together by trial, of `arm` and of the reference."""
    reference = results.specification.reference
    guests = [guest.name for guest in results.specification.guests]
    strip = 2 * len(guests) if len(guests) <= STRIP_GUESTS else 0
    figure = style.new_figure(4.4 + 0.22 * strip)
    if strip:
        ends, axes = figure.subplots(2, 1, sharex=True, height_ratios=(0.24 * strip, 4.0))
        _mark_ends(ends, results, (arm, reference), guests)
    else:
        axes = figure.subplots()
    for name in (reference, arm):
        colour, marker = style.arm_colour(results, name), style.arm_marker(results, name)
        trials, medians, lows, highs = by_trial([run.result.hits for run in results.counted(name)])
        axes.vlines(trials, lows, highs, color=colour, linewidth=1, alpha=0.7)
        face = "white" if name == reference else colour
        axes.plot(
            trials, medians, color=colour, marker=marker, markersize=5, linewidth=0.8, label=name, markerfacecolor=face
        )
    axes.set(xlabel="trial", ylabel="hits of all guests in the trial (pages of 4 KiB)")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    longest = max(len(run.result.hits) for name in (arm, reference) for run in results.counted(name))
    axes.set_xlim(0, 1.1 * longest + 1)  # room for the names of phases
    style.legend_below(axes)
    return figure


def difference_figure(results: Results) -> Figure:
    """Draw by how many hits each repeat of each arm is ahead of the reference, added up over the trials."""
    reference = results.specification.reference
    figure = style.new_figure(4.2)
    axes = figure.subplots()
    axes.axhline(0, color=style.REFERENCE, linewidth=1, label=reference)
    theirs = {run.run.repeat: run for run in results.counted(reference)}
    for arm in results.adaptive_arms:
        label = arm.name
        for run in results.counted(arm.name):
            other = theirs.get(run.run.repeat)
            if other is None:
                continue
            gained = gained_hits(run, other)
            colour, dash = style.arm_colour(results, arm.name), style.arm_dash(results, arm.name)
            axes.plot(range(len(gained)), gained, color=colour, linestyle=dash, linewidth=1.4, label=label)
            label = "_"  # the legend names an arm once
    axes.set(xlabel="trial", ylabel="hits more since the start (pages)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.legend_below(axes)
    return figure


def gained_hits(ours: RunResult, theirs: RunResult) -> list[int]:
    """Return from trial 0 on by how many hits one run is ahead of another, up to the first gap or the shorter's end."""
    gained: list[int] = []
    for mine, other in zip(ours.result.hits, theirs.result.hits, strict=False):
        if mine is None or other is None:
            break
        gained.append(mine - other)
    return [0, *accumulate(gained)]


def by_trial(runs: Sequence[Sequence[float | None]]) -> Points:
    """Return trials, medians, least and greatest over runs of any length; NaN, a gap, where no run knows its value."""
    rows = []
    for values in zip_longest(*runs):
        known = [float(value) for value in values if value is not None] or [math.nan]
        rows.append((statistics.median(known), min(known), max(known)))
    medians, lows, highs = ([row[column] for row in rows] for column in range(3))
    return list(range(1, len(rows) + 1)), medians, lows, highs


def _mark_ends(axes: Axes, results: Results, arms: tuple[str, str], guests: list[str]) -> None:
    """Mark in a row for each arm and guest the trial in which each phase ended, the median of the repeats."""
    rows = [(arm, guest) for arm in arms for guest in guests]
    for row, (arm, guest) in enumerate(rows):
        runs = results.counted(arm)
        phases = next(each.phases for each in results.specification.guests if each.name == guest)
        for number, phase in enumerate(phases):
            ends = [run.guests[guest].phases[number].trial for run in runs]
            known = [end for end in ends if end is not None]
            if not known:
                continue
            trial, colour = statistics.median(known), style.arm_colour(results, arm)
            face = "white" if arm == arms[1] else colour
            axes.hlines(row, min(known), max(known), color=colour, linewidth=1)
            axes.plot(
                trial, row, marker=style.arm_marker(results, arm), color=colour, markersize=5, markerfacecolor=face
            )
            left = number % 2 == 0  # the ends of two phases may lie close together
            axes.annotate(f"{phase.name} {trial:g}", (trial, row), xytext=(-6 if left else 6, 0),
                          textcoords="offset points", ha="right" if left else "left", va="center",
                          fontsize=7.5, zorder=4, bbox=style.ON_A_LINE)  # fmt: skip
    axes.set_yticks(range(len(rows)), [f"{arm}, {guest}" for arm, guest in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title("trial in which each phase ended", fontsize=9, loc="left")
    axes.tick_params(bottom=False, labelbottom=False)
