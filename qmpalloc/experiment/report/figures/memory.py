"""Each guest's memory over time, by arm."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.report.figures import style
from qmpalloc.units import MIB

FLOORS = 4
"""With more guests than this, their floors are not drawn."""

BUDGET_CAPS = 4.0
"""A budget of more than so many of the largest cap is not drawn: the guests would be lines at the bottom."""


def memory_figure(results: Results) -> Figure:
    """Draw actual sizes as steps and targets as thin lines; a panel for each arm, the first repeat in front.

    What holds between the ends of trials is not known, so a size holds until the next.
    """
    arms = results.arms_counted
    figure = style.new_figure(1.0 + 2.1 * len(arms))
    panels = figure.subplots(len(arms), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    unit_s, unit = style.time_unit(results)
    for arm, axes in zip(arms, panels, strict=True):
        for order, run in enumerate(results.counted(arm.name)):
            width, alpha = (0.8, 0.45) if order else (1.8, 1.0)
            for name, guest in run.guests.items():
                colour, dash = style.guest_line(results, name)
                rows = guest.trials.trials
                times, sizes = [row.end_s / unit_s for row in rows], [row.actual_bytes / MIB for row in rows]
                look = {"color": colour, "linestyle": dash, "linewidth": width, "alpha": alpha}
                axes.step(times, sizes, where="post", label="_" if order else name, **look)
                if not order:
                    targets = [row.target_bytes / MIB if row.target_bytes else float("nan") for row in rows]
                    axes.step(times, targets, where="post", color=colour, linewidth=0.8, linestyle=":")
        axes.plot([], color=style.REFERENCE, linewidth=0.8, linestyle=":", label="target")
        _limits(axes, results)
        axes.set(title=f"{arm.name}: memory (MiB)")
    panels[-1].set_ylim(bottom=0)
    panels[-1].set_xlim(left=0)
    panels[-1].set_xlabel(f"time since the loads began ({unit})")
    style.legend(figure)
    return figure


def _limits(axes: Axes, results: Results) -> None:
    guests, budget_bytes = results.specification.guests, results.specification.budget
    if budget_bytes <= BUDGET_CAPS * max(guest.cap for guest in guests):
        axes.axhline(budget_bytes / MIB, color="#000000", linewidth=1, linestyle="--", label="budget")
    floors = sorted({guest.floor for guest in guests}) if len(guests) <= FLOORS else []
    for number, floor_bytes in enumerate(floors):
        names = ", ".join(guest.name for guest in guests if guest.floor == floor_bytes)
        label = "floor" if len(floors) == 1 else f"floor of {names}"
        axes.axhline(floor_bytes / MIB, color=style.REFERENCE, linewidth=1, linestyle=(0, (1, 2 + number)), label=label)
