"""Curves learnt by a controller in each phase, with the miss ratios of the trials over them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qmpalloc.experiment.analysis.learnt import LearntCurve, Measured, measured_points
from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.report.figures import style
from qmpalloc.units import MIB

TRUE_COLOUR = "#000000"


def learnt_figure(results: Results, curves: Sequence[LearntCurve]) -> Figure:
    """Draw a row for each guest and a column for each of its phases."""
    guests = results.specification.guests
    columns = max(len(guest.phases) for guest in guests)
    figure = style.new_figure(1.4 + 2.6 * len(guests))
    grid = figure.add_gridspec(len(guests) + 1, columns, height_ratios=[1.0] * len(guests) + [0.16])
    handles: dict[str, Artist] = {}
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
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
    below = figure.add_subplot(grid[-1, :])
    below.set_axis_off()
    if handles:
        below.legend(list(handles.values()), list(handles), loc="center", ncols=4)
    return figure


def _panel(axes: Axes, results: Results, curves: Sequence[LearntCurve], points: Sequence[Measured]) -> None:
    for each in curves:
        if each.true is not None and each.repeat == min(other.repeat for other in curves if other.true is not None):
            sizes, ratios = each.true
            axes.plot(
                _mib(sizes), _percent(ratios), color=TRUE_COLOUR, linestyle=":", linewidth=1.2, label="true curve"
            )
    policies = {arm.name: arm.policy for arm in results.arms}
    for each in curves:
        if each.curve is None or policies.get(each.arm) != "curve":
            continue
        colour, weak = style.arm_colour(results, each.arm), bool(each.curve.weak)
        axes.plot(
            _mib(each.curve.sizes_bytes),
            _percent(each.curve.miss_ratio),
            color=colour,
            linestyle="--" if weak else "-",
            linewidth=1.5,
            label=f"learnt by {each.arm}{', weak' if weak else ''}",
        )
    for arm in results.arms:
        for early in (True, False):
            own = [point for point in points if point.arm == arm.name and point.early is early]
            if own:
                colour = style.arm_colour(results, arm.name)
                axes.plot(
                    _mib([point.size_bytes for point in own]),
                    _percent([point.miss_ratio for point in own]),
                    linestyle="",
                    marker=style.arm_marker(results, arm.name),
                    markersize=4,
                    alpha=0.35 if early else 0.9,
                    color=colour,
                    markerfacecolor="none" if early else colour,
                    label="_" if early else f"measured, {arm.name}",
                )


def _mib(sizes_bytes: Sequence[int]) -> list[float]:
    return [size / MIB for size in sizes_bytes]


def _percent(ratios: Sequence[float]) -> list[float]:
    return [ratio * 100 for ratio in ratios]
