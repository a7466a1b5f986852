"""How arms compare by their metrics, at a glance: ratios to the reference with their intervals, above 1 is better."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.analysis.statistics import Ratio
from qmpalloc.experiment.report.figures import style

WIDTH_IN = 6.5
"""Narrower than the others: it is read first, also on a phone."""

ROW_IN = 0.24
"""Height of an arm's line."""

TICKS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 10)
WIDE = 20.0
"""An axis that spans more has a tick for each decade."""

MARGIN = 1.35
"""The axis goes so many times beyond the ratios; intervals that go further end in an arrow."""

MARKERS = ("o", "s", "D", "v", "P", "X", "*")

Rows = list[tuple[str, list[tuple[str, Ratio | None]]]]
"""What is compared, and each arm's ratio."""


def gain_rows(results: Results) -> Rows:
    """Return all guests together, then each metric, with the ratios of the arms; those alone that some arm has."""
    arms = [arm.name for arm in results.adaptive_arms]
    found = {arm: results.metric_comparisons(arm) for arm in arms}
    rows: Rows = [("All guests by weight", [(arm, results.gain_of_all(arm)) for arm in arms])]
    for number, (guest, phase, metric) in enumerate(results.metrics):
        better = "" if metric.better == "higher" else " (inverted: lower is better)"
        rows.append((f"{guest}: {phase}, {metric.name}{better}", [(arm, found[arm][number].gain) for arm in arms]))
    return [row for row in rows if any(gain is not None for _, gain in row[1])]


def gains_figure(results: Results) -> Figure:
    """Draw a group for each metric and one for all guests, with a line for each arm in it, under the group's name."""
    rows = gain_rows(results)
    arms = [arm.name for arm in results.adaptive_arms]
    lines = (len(arms) + 1.3) * len(rows)
    figure = style.new_figure(1.6 + ROW_IN * (lines + len(arms) / 2), width_in=WIDTH_IN)
    axes = figure.subplots()
    known = [gain.value for _, gains in rows for _, gain in gains if gain is not None]
    low, high = min([1.0, *known]) / MARGIN, max([1.0, *known]) * MARGIN
    axes.axvline(1.0, color=style.REFERENCE, linewidth=1)
    position = 0.0
    for label, gains in rows:
        place = axes.get_yaxis_transform()
        axes.text(0.0, position, label, transform=place, va="center", fontsize=10, bbox=style.ON_A_LINE, zorder=4)
        for number, (arm, gain) in enumerate(gains):
            position += 1
            if gain is not None:
                _draw(axes, results, arm, gain, position, (low, high), MARKERS[number % len(MARKERS)])
        position += 1.3
    axes.set_ylim(position - 0.6, -0.7)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    if high / low < WIDE:
        axes.set_xticks(ticks)
        axes.minorticks_off()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(xlabel=f"times as good as {results.specification.reference}")
    style.legend_below(axes, columns=2, below=0.9 / figure.get_figheight())
    return figure


def _draw(
    axes: Axes, results: Results, arm: str, gain: Ratio, position: float, limits: tuple[float, float], marker: str
) -> None:
    """Draw a ratio and its interval; hollow without one. What lies beyond the axis ends in an arrow."""
    colour = style.arm_colour(results, arm)
    if gain.low is not None and gain.high is not None:
        low, high = max(gain.low, limits[0]), min(gain.high, limits[1])
        axes.plot([low, high], [position, position], color=colour, linewidth=1.6, solid_capstyle="butt")
        for end, cut, arrow in ((low, low > gain.low, "<"), (high, high < gain.high, ">")):
            axes.plot([end], [position], color=colour, marker=arrow if cut else "|", markersize=6, clip_on=False)
    face = colour if gain.low is not None else "white"
    axes.plot(
        [gain.value], [position], color=colour, marker=marker, markerfacecolor=face, markersize=6, linestyle="none",
        label=arm, zorder=3,
    )  # fmt: skip
    axes.annotate(
        f"{gain.value:.2f}", (gain.value, position), textcoords="offset points", xytext=(0, 4), ha="center",
        fontsize=9, color=colour,
    )  # fmt: skip
