"""The hit ratio of each guest over the trials."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qmpalloc.experiment.analysis.results import GuestRun, Results
from qmpalloc.experiment.report.figures import style
from qmpalloc.experiment.report.figures.hits import by_trial


def ratio_figure(results: Results) -> Figure:
    """Draw a panel for each guest and a line for each arm: median over the repeats, range as area."""
    guests = results.specification.guests
    figure = style.new_figure(1.2 + 2.1 * len(guests))
    panels = figure.subplots(len(guests), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for guest, axes in zip(guests, panels, strict=True):
        for arm in results.arms:
            runs = [ratios(run.guests[guest.name]) for run in results.counted(arm.name)]
            trials, medians, lows, highs = by_trial(runs)
            colour = style.arm_colour(results, arm.name)
            axes.fill_between(trials, lows, highs, color=colour, alpha=0.2, linewidth=0)
            axes.plot(
                trials,
                medians,
                color=colour,
                linestyle=style.arm_dash(results, arm.name),
                marker=style.arm_marker(results, arm.name),
                markersize=3,
                linewidth=1.2,
                label=arm.name,
            )
        axes.set(title=guest.name, ylabel="hits per access (%)")
    panels[-1].set_xlabel("trial")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    style.legend_below(panels[-1])
    return figure


def ratios(guest: GuestRun) -> list[float | None]:
    """Return a guest's hit ratio in per cent by trial, while its load had reads to do; None where it is not known."""
    rows = {row.trial: row for row in guest.trials.trials if row.covers == 1 and row.phase}
    found: list[float | None] = []
    for number in range(1, max(rows, default=0) + 1):
        ratio = rows[number].hit_ratio if number in rows else None
        found.append(None if ratio is None else ratio * 100)
    return found
