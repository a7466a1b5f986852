"""When each phase began and ended, as bars."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.report.figures import style

HATCHES = ("", "//", "..", "xx", "--", "\\\\", "oo")
BAR_IN = 0.2
"""Height of a bar."""


def completion_figure(results: Results) -> Figure:
    """Draw a bar for each phase, in a row for each arm, guest and repeat. A phase that did not end stays open."""
    guests = results.specification.guests
    rows = [(arm.name, guest, run) for arm in results.arms for guest in guests for run in results.counted(arm.name)]
    figure = style.new_figure(1.6 + BAR_IN * (len(rows) + len(results.arms)))
    axes = figure.subplots()
    unit_s, unit = style.time_unit(results)
    position, labels, places = 0.0, [], []
    before = rows[0][0] if rows else ""
    for arm, guest, run in rows:
        if arm != before:
            position, before = position + 0.8, arm
        for number, phase in enumerate(run.guests[guest.name].phases):
            colour, hatch = style.COLOURS[number % len(style.COLOURS)], HATCHES[number % len(HATCHES)]
            if phase.start_s is None or phase.seconds is None:
                continue
            face, edge = (colour, "white") if phase.end_s is not None else ("white", colour)
            axes.barh(
                position,
                phase.seconds / unit_s,
                left=phase.start_s / unit_s,
                height=0.8,
                hatch=hatch,
                linewidth=0.8,
                facecolor=face,
                edgecolor=edge,
            )
        labels.append(f"{arm}, {guest.name}, repeat {run.run.repeat}")
        places.append(position)
        position += 1
    axes.set_yticks(places, labels, fontsize=7.5)
    axes.set_ylim(position - 0.4, -0.6)
    axes.set(xlabel=f"time since the loads began ({unit})")
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    most = max(len(guest.phases) for guest in guests)
    patches = []
    for number in range(most):
        names = dict.fromkeys(guest.phases[number].name for guest in guests if number < len(guest.phases))
        colour, hatch = style.COLOURS[number % len(style.COLOURS)], HATCHES[number % len(HATCHES)]
        patches.append(Patch(facecolor=colour, edgecolor="white", hatch=hatch, label=", ".join(names)))
    patches.append(Patch(facecolor="white", edgecolor="black", label="open: did not end"))
    figure.legend(handles=patches, loc="outside right upper", title="phase", alignment="left")
    return figure
