"""Curves predicted at one size, and the miss ratios then measured at others."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qmpalloc.experiment.report.figures import style
from qmpalloc.units import MIB
from sizes.measurement import SizesResult
from sizes.predictions import MIDPOINT, Prediction, error

LINES = {
    "two_list": (style.COLOURS[0], "-"),
    "lru_gen": (style.COLOURS[1], "-"),
    "fifo": (style.COLOURS[2], "--"),
    "shards": (style.COLOURS[3], "-."),
}
"""Colour and dash of each estimator that is drawn; the midpoint lies between two of them."""


def predictions_figure(sweeps: Sequence[tuple[SizesResult, Sequence[Prediction]]]) -> Figure:
    """Draw a row for each workload and a column for each page replacement.

    Lines are the anchored curves of all estimators, that of the guest's own page replacement in front. Points are what
    was measured, hollow where the guest was not steady; the vertical line is the size at which the curves were learnt.

    Args:
        sweeps: With what was predicted in each.
    """
    rows = list(dict.fromkeys(result.case.workload for result, _ in sweeps))
    columns = list(dict.fromkeys(_kind(result) for result, _ in sweeps))
    figure = style.new_figure(1.0 + 2.5 * len(rows))
    panels = figure.subplots(len(rows), len(columns), sharey="row", squeeze=False)
    found = {(result.case.workload, _kind(result)): (result, made) for result, made in sweeps}
    for row, workload in enumerate(rows):
        for column, kind in enumerate(columns):
            axes = panels[row][column]
            if (workload, kind) not in found:
                axes.set_axis_off()
                continue
            _panel(axes, *found[workload, kind])
            if column == 0:
                axes.set_ylabel("misses by accesses (%)")
            if row == len(rows) - 1:
                axes.set_xlabel("memory of the guest (MiB)")
    style.legend(figure, order=[*LINES, "measured", "not steady", "learnt here"])
    return figure


def _panel(axes: Axes, result: SizesResult, made: Sequence[Prediction]) -> None:
    case = result.case
    for prediction in made:
        if prediction.estimator != MIDPOINT:
            colour, dash = LINES[prediction.estimator]
            width, order = (2.0, 3) if prediction.estimator == case.lru else (1.0, 2)
            style.plot_curve(
                axes,
                prediction.sizes_bytes,
                prediction.miss_ratio,
                color=colour,
                linestyle=dash,
                linewidth=width,
                zorder=order,
                label=prediction.estimator,
            )
    axes.axvline(case.learn / MIB, color=style.REFERENCE, linewidth=1, linestyle=(0, (1, 2)), label="learnt here")
    for steady, label, face in ((True, "measured", "#000000"), (False, "not steady", "white")):
        points = [point for point in result.points if point.steady is steady]
        if points:
            style.plot_curve(
                axes,
                [point.actual_bytes for point in points],
                [point.miss_ratio for point in points],
                linestyle="",
                marker="o",
                markersize=5,
                color="#000000",
                markerfacecolor=face,
                zorder=4,
                label=label,
            )
    own_error = next((error(result, each).at_sizes for each in made if each.estimator == case.lru), None)
    said = "" if own_error is None else f": {case.lru} off by {own_error:.3f}"
    axes.set_title(f"{case.workload}, {_kind(result)}{said}", fontsize=9)
    axes.set_ylim(bottom=0)


def _kind(result: SizesResult) -> str:
    """Return what a column is for: the page replacement, and what is not as usual."""
    case = result.case
    unusual = [case.suite] * (case.suite != "trixie") + ["fresh"] * case.fresh
    return f"{case.lru} ({', '.join(unusual)})" if unusual else case.lru
