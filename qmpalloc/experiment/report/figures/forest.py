"""How the arms compare, at a glance: their ratios to the reference with intervals, the best arm first."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.analysis.statistics import Ratio
from qmpalloc.experiment.report.figures import style

TICKS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 10)
WIDE = 20.0
"""An axis that spans more has a tick for each decade."""

MARGIN = 1.35
"""The axis goes so many times beyond the ratios; intervals that go further end in an arrow."""

Rows = list[tuple[str, list[tuple[str, Ratio | None]]]]
"""What is compared, and each arm's ratio."""


def forest_rows(results: Results) -> Rows:
    """Return what the arms are compared by, with their ratios; what no arm has a ratio of is left out.

    That is the time to finish. Where arms do unequal work, it is all guests together, then each metric, in which
    above 1 is better.
    """
    arms = [comparison.arm for comparison in results.comparisons]
    if not results.specification.has_unequal_work:
        rows: Rows = [("", [(comparison.arm, comparison.time) for comparison in results.comparisons])]
    else:
        rows = [("All guests by weight", [(arm, results.gain_of_all(arm)) for arm in arms])]
        found = {arm: results.metric_comparisons(arm) for arm in arms}
        for number, (guest, phase, metric) in enumerate(results.metrics):
            better = "" if metric.better == "higher" else " (inverted: lower is better)"
            rows.append((f"{guest}: {phase}, {metric.name}{better}", [(arm, found[arm][number].gain) for arm in arms]))
    return [row for row in rows if any(ratio is not None for _, ratio in row[1])]


def forest_figure(results: Results) -> Figure:
    """Draw a line for each arm, in a group for each metric where there are any."""
    rows, reference = forest_rows(results), results.specification.reference
    named = sum(bool(label) for label, _ in rows)
    figure = style.new_figure(0.9 + 0.28 * (named + sum(len(ratios) for _, ratios in rows)))
    axes = figure.subplots()
    known = [ratio.value for _, ratios in rows for _, ratio in ratios if ratio is not None]
    low, high = min([1.0, *known]) / MARGIN, max([1.0, *known]) * MARGIN
    axes.axvline(1.0, color=style.REFERENCE, linewidth=1)
    aside = axes.get_yaxis_transform()
    labels: list[str] = []
    for label, ratios in rows:
        if label:
            axes.text(0.0, len(labels), label, transform=aside, va="center", bbox=style.ON_A_LINE, zorder=4)
            labels.append("")
        for arm, ratio in ratios:
            if ratio is not None:
                _draw(axes, style.arm_line(results, arm)[0], ratio, len(labels), (low, high))
                axes.text(1.02, len(labels), str(ratio), transform=aside, va="center")
            labels.append(arm)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    if high / low < WIDE:
        axes.set_xticks([tick for tick in TICKS if low <= tick <= high])
        axes.minorticks_off()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    what = f"times as good as {reference}: right is better"
    axes.set(
        xlabel=what
        if results.specification.has_unequal_work
        else f"time to finish, by that of {reference}: left is better"
    )
    return figure


def _draw(axes: Axes, colour: str, ratio: Ratio, position: float, limits: tuple[float, float]) -> None:
    """Draw a ratio and its interval; hollow without one. What lies beyond the axis ends in an arrow."""
    if ratio.low is not None and ratio.high is not None:
        low, high = max(ratio.low, limits[0]), min(ratio.high, limits[1])
        axes.plot([low, high], [position, position], color=colour, linewidth=1.6, solid_capstyle="butt")
        for end, cut, arrow in ((low, low > ratio.low, "<"), (high, high < ratio.high, ">")):
            axes.plot([end], [position], color=colour, marker=arrow if cut else "|", markersize=6, clip_on=False)
    face = colour if ratio.low is not None else "white"
    axes.plot([ratio.value], [position], color=colour, marker="o", markerfacecolor=face, markersize=7, zorder=3)
