"""Curves learnt by a controller in each phase and what it believed, with the miss ratios of the trials over them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qmpalloc.experiment.analysis.learnt import LearntCurve, Measured, measured_points
from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.report.figures import style
from qmpalloc.units import MIB


def learnt_figure(results: Results, curves: Sequence[LearntCurve]) -> Figure:
    """Draw a row for each guest and a column for each of its phases."""
    guests = results.specification.guests
    figure = style.new_figure(1.0 + 2.2 * len(guests))
    most = max(len(guest.phases) for guest in guests)
    panels = figure.subplots(len(guests), most, sharey=True, squeeze=False)
    for guest, row in zip(guests, panels, strict=True):
        row[0].set_ylabel("misses by accesses (%)")
        for axes in row[len(guest.phases) :]:
            axes.set_axis_off()
        for phase, axes in zip(guest.phases, row, strict=False):
            own = [each for each in curves if (each.guest, each.phase) == (guest.name, phase.name)]
            _panel(axes, results, own, measured_points(results, guest.name, phase.name))
            axes.set(title=f"{guest.name}: {phase.name}", ylim=(0, 100))
            axes.set_xlim(guest.floor / MIB * 0.97, guest.cap / MIB * 1.03)
    figure.supxlabel("memory of the guest (MiB)", fontsize=9.5)
    style.legend(figure)
    return figure


def _panel(axes: Axes, results: Results, curves: Sequence[LearntCurve], points: Sequence[Measured]) -> None:
    true = next((each.true for each in sorted(curves, key=lambda each: each.repeat) if each.true is not None), None)
    if true is not None:
        style.plot_curve(axes, *true, color="#000000", linestyle=":", linewidth=1.2, label="true curve")
    learners = [arm.name for arm in results.arms if arm.policy == "curve"]
    for each in (each for each in curves if each.arm in learners):
        colour, _ = style.arm_line(results, each.arm)
        if (band := each.band) is not None:
            sizes = [size / MIB for size in band.sizes_bytes]
            least, most = ([ratio * 100 for ratio in bound] for bound in (band.least, band.most))
            label = f"believed by {each.arm}"
            axes.fill_between(sizes, least, most, linewidth=0, color=colour, alpha=0.15, label=label)
        if (curve := each.curve) is not None:
            dash, label = ("--", f"learnt by {each.arm}, weak") if curve.weak else ("-", f"learnt by {each.arm}")
            look = {"color": colour, "linestyle": dash, "linewidth": 1.5, "label": label}
            style.plot_curve(axes, curve.sizes_bytes, curve.miss_ratio, **look)
    for arm in results.arms:
        colour, _ = style.arm_line(results, arm.name)
        for early in (True, False):
            own = [point for point in points if point.arm == arm.name and point.early is early]
            sizes_bytes, ratios = [point.size_bytes for point in own], [point.miss_ratio for point in own]
            face, alpha, label = ("none", 0.35, "_") if early else (colour, 0.9, f"measured, {arm.name}")
            marker = style.arm_marker(results, arm.name)
            look = {"marker": marker, "markersize": 4, "alpha": alpha, "color": colour, "markerfacecolor": face}
            style.plot_curve(axes, sizes_bytes, ratios, linestyle="", label=label if own else "_", **look)
