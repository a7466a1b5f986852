"""How arms compare by their metrics, at a glance: ratios to the reference with their intervals, above 1 is better."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.analysis.statistics import Ratio
from qmpalloc.experiment.report.figures import style

ROW_IN = 0.23
"""Height of an arm's line."""

MARGIN = 1.35
"""The axis goes so many times beyond the ratios; intervals that go further end in an arrow."""

MARKERS = ("o", "s", "D", "v", "P", "X", "*")

Rows = list[tuple[str, list[tuple[str, Ratio | None]]]]
"""What is compared, and each arm's ratio."""


def gain_rows(results: Results) -> Rows:
    """Return all guests together, then each metric, with the ratios of the arms; those alone that some arm has."""
    arms = [arm.name for arm in results.adaptive_arms]
    found = {arm: results.metric_comparisons(arm) for arm in arms}
    rows: Rows = [("all guests by weight", [(arm, results.gain_of_all(arm)) for arm in arms])]
    for number, (guest, phase, metric) in enumerate(results.metrics):
        better = "" if metric.better == "higher" else " (inverted: lower is better)"
        rows.append((f"{guest}: {phase}, {metric.name}{better}", [(arm, found[arm][number].gain) for arm in arms]))
    return [row for row in rows if any(gain is not None for _, gain in row[1])]


def gains_figure(results: Results) -> Figure:
    """Draw a group for each metric and one for all guests, with a line for each arm in it."""
    rows = gain_rows(results)
    arms = [arm.name for arm in results.adaptive_arms]
    figure = style.new_figure(1.5 + ROW_IN * (len(arms) + 1) * len(rows))
    axes = figure.subplots()
    known = [gain.value for _, gains in rows for _, gain in gains if gain is not None]
    low, high = min([1.0, *known]) / MARGIN, max([1.0, *known]) * MARGIN
    places, position = [], 0.0
    for label, gains in rows:
        begun = position
        for number, (arm, gain) in enumerate(gains):
            if gain is not None:
                _draw(axes, results, arm, gain, position, (low, high), MARKERS[number % len(MARKERS)])
            position += 1
        places.append(((begun + position - 1) / 2, label))
        position += 0.8
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(position - 0.8, -1)
    axes.axvline(1.0, color=style.REFERENCE, linewidth=1)
    axes.set_yticks([place for place, _ in places], [label for _, label in places], fontsize=8)
    axes.grid(visible=False, axis="y")
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20,
                               50, 100) if low <= tick <= high]  # fmt: skip
    if high / low < 20 and len(ticks) > 1:
        axes.set_xticks(ticks)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(xlabel=f"times as good as {results.specification.reference}")
    shown = style.one_legend([axes])
    figure.legend(list(shown.values()), list(shown), loc="outside right upper", title="arm", alignment="left")
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
        f"{gain.value:.2f}", (gain.value, position), textcoords="offset points", xytext=(0, 5), ha="center",
        fontsize=7, color=colour,
    )  # fmt: skip
