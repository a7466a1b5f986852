"""Hits by trial: of all guests together, what an arm is ahead of the reference, and each guest's share of hits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import accumulate, zip_longest

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from qmpalloc.experiment.analysis.results import GuestRun, Results, RunResult
from qmpalloc.experiment.report.figures import style
from qmpalloc.units import format_count


def hits_figure(results: Results) -> Figure:
    """Draw the panels over the trials, a line for each arm: median over the repeats, range as area."""
    guests = [guest.name for guest in results.specification.guests]
    figure = style.new_figure(1.0 + 1.9 * (2 + len(guests)))
    panels = figure.subplots(2 + len(guests), 1, sharex=True)
    together, ahead, *own = panels
    theirs = {run.repeat: run for run in results.counted(results.specification.reference)}
    for arm in results.arms_counted:
        runs = results.counted(arm.name)
        _draw(together, results, arm.name, [run.hits for run in runs])
        for run in (run for run in runs if run.repeat in theirs):
            colour, dash = style.arm_line(results, arm.name)
            ahead.plot(gained_hits(run, theirs[run.repeat]), color=colour, linestyle=dash, linewidth=1.4)
        for guest, axes in zip(guests, own, strict=True):
            _draw(axes, results, arm.name, [ratios(run.guests[guest]) for run in runs])
            axes.set(title=f"{guest}: hits per access (%)")
    together.set(title="hits of all guests in the trial (pages)")
    ahead.set(title=f"hits more than {results.specification.reference} since the start (pages)")
    for axes in (together, ahead):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    panels[-1].set_xlabel("trial")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    style.legend(figure)
    return figure


def _draw(axes: Axes, results: Results, arm: str, runs: Sequence[Sequence[float | None]]) -> None:
    """Draw values by trial over runs of any length; a gap where no run knows its value."""
    rows = []
    for values in zip_longest(*runs):
        known = [float(value) for value in values if value is not None] or [math.nan]
        rows.append((statistics.median(known), min(known), max(known)))
    medians, lows, highs = ([row[column] for row in rows] for column in range(3))
    trials, (colour, dash) = range(1, len(rows) + 1), style.arm_line(results, arm)
    axes.fill_between(trials, lows, highs, color=colour, alpha=0.2, linewidth=0)
    marker = style.arm_marker(results, arm)
    axes.plot(trials, medians, color=colour, linestyle=dash, marker=marker, markersize=3, linewidth=1.2, label=arm)


def gained_hits(ours: RunResult, theirs: RunResult) -> list[int]:
    """Return from trial 0 on by how many hits one run is ahead of another, up to the first gap or the shorter's end."""
    gained: list[int] = []
    for mine, other in zip(ours.hits, theirs.hits, strict=False):
        if mine is None or other is None:
            break
        gained.append(mine - other)
    return [0, *accumulate(gained)]


def ratios(guest: GuestRun) -> list[float | None]:
    """Return a guest's hit ratio in per cent by trial, while its load had reads to do; None where it is not known."""
    rows = {row.trial: row.hit_ratio for row in guest.trials.trials if row.covers == 1 and row.phase}
    found = [rows.get(number) for number in range(1, max(rows, default=0) + 1)]
    return [None if ratio is None else ratio * 100 for ratio in found]
