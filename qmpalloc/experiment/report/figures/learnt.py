"""Curves learnt by a controller in each phase and what it believed, with the miss ratios of the trials over them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qmpalloc.experiment.analysis.learnt import LearntCurve, Measured, measured_points
from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.report.figures import style
from qmpalloc.units import MIB

TRUE_COLOUR = "#000000"
BAND_ALPHA = 0.15


def learnt_figure(results: Results, curves: Sequence[LearntCurve]) -> Figure:
    """Draw a row for each guest and a column for each of its phases."""
    guests = results.specification.guests
    columns = max(len(guest.phases) for guest in guests)
    figure = style.new_figure(1.4 + 2.6 * len(guests))
    grid = figure.add_gridspec(len(guests) + 1, columns, height_ratios=[1.0] * len(guests) + [0.16])
    first: Axes | None = None
    for row, guest in enumerate(guests):
        for column, phase in enumerate(guest.phases):
            axes = figure.add_subplot(grid[row, column], sharey=first)
            first = first or axes
            own = [each for each in curves if (each.guest, each.phase) == (guest.name, phase.name)]
            _panel(axes, results, own, measured_points(results, guest.name, phase.name))
            axes.set(title=f"{guest.name}: {phase.name}", xlabel="memory of the guest (MiB)")
            axes.set_xlim(guest.floor / MIB * 0.97, guest.cap / MIB * 1.03)
            axes.set_ylim(0, 100)
            if column == 0:
                axes.set_ylabel("misses by accesses (%)")
    shown = style.one_legend(figure.axes)
    below = figure.add_subplot(grid[-1, :])
    below.set_axis_off()
    if shown:
        below.legend(list(shown.values()), list(shown), loc="center", ncols=4)
    return figure


def _panel(axes: Axes, results: Results, curves: Sequence[LearntCurve], points: Sequence[Measured]) -> None:
    first = min((each.repeat for each in curves if each.true is not None), default=None)
    for each in curves:
        if each.true is not None and each.repeat == first:
            style.plot_curve(axes, *each.true, color=TRUE_COLOUR, linestyle=":", linewidth=1.2, label="true curve")
    _learnt(axes, results, curves)
    for arm in results.arms:
        for early in (True, False):
            _points(axes, results, arm.name, [each for each in points if each.arm == arm.name and each.early is early])


def _learnt(axes: Axes, results: Results, curves: Sequence[LearntCurve]) -> None:
    learners = [arm.name for arm in results.arms if arm.policy == "curve"]
    for each in (each for each in curves if each.arm in learners):
        colour = style.arm_colour(results, each.arm)
        if each.band is not None:
            style.fill_band(axes, each.band, color=colour, alpha=BAND_ALPHA, label=f"believed by {each.arm}")
        if each.curve is not None:
            weak = bool(each.curve.weak)
            style.plot_curve(
                axes,
                each.curve.sizes_bytes,
                each.curve.miss_ratio,
                color=colour,
                linestyle="--" if weak else "-",
                linewidth=1.5,
                label=f"learnt by {each.arm}{', weak' if weak else ''}",
            )


def _points(axes: Axes, results: Results, arm: str, points: Sequence[Measured]) -> None:
    """Draw points of one arm that are early, or not, all of them."""
    if not points:
        return
    colour, early = style.arm_colour(results, arm), points[0].early
    style.plot_curve(
        axes,
        [point.size_bytes for point in points],
        [point.miss_ratio for point in points],
        linestyle="",
        marker=style.arm_marker(results, arm),
        markersize=4,
        alpha=0.35 if early else 0.9,
        color=colour,
        markerfacecolor="none" if early else colour,
        label="_" if early else f"measured, {arm}",
    )
