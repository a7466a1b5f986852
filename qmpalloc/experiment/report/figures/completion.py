"""When each phase began and ended, as bars."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.report.figures import style

HATCHES = ("", "//", "..", "xx", "--", "\\\\", "oo")


def completion_figure(results: Results) -> Figure:
    """Draw a bar for each phase, in a row for each arm, guest and repeat. A phase that did not end stays open."""
    guests = results.specification.guests
    rows = [
        (arm.name, guest.name, run) for arm in results.arms for guest in guests for run in results.counted(arm.name)
    ]
    figure = style.new_figure(1.6 + 0.2 * len(rows))
    axes = figure.subplots()
    unit_s, unit = style.time_unit(results)
    most = range(max(len(guest.phases) for guest in guests))
    looks = [(style.COLOURS[at % len(style.COLOURS)], HATCHES[at % len(HATCHES)]) for at in most]
    for position, (_, guest, run) in enumerate(rows):
        for phase, (colour, hatch) in zip(run.guests[guest].phases, looks, strict=False):
            if phase.start_s is None or phase.seconds is None:
                continue
            face, edge = (colour, "white") if phase.end_s is not None else ("white", colour)
            left, width = phase.start_s / unit_s, phase.seconds / unit_s
            axes.barh(position, width, left=left, height=0.8, hatch=hatch, facecolor=face, edgecolor=edge)
    labels = [f"{arm}, {guest}, repeat {run.repeat}" for arm, guest, run in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=f"time since the loads began ({unit})")
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    patches = []
    for number, (colour, hatch) in enumerate(looks):
        names = dict.fromkeys(guest.phases[number].name for guest in guests if number < len(guest.phases))
        patches.append(Patch(facecolor=colour, edgecolor="white", hatch=hatch, label=", ".join(names)))
    patches.append(Patch(facecolor="white", edgecolor="black", label="open: did not end"))
    figure.legend(handles=patches, loc="outside lower center", ncols=3)
    return figure
