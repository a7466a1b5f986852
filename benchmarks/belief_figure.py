"""Draw what policy ``curve`` believes of four made-up guests: the figure of docs/curves.md.

Usage: python benchmarks/belief_figure.py docs/belief.svg
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qmpalloc.experiment.report.figures.style import style
from qmpalloc.files import write_whole
from qmpalloc.model import Curve, GuestSnapshot, GuestState
from qmpalloc.policy.curve.belief import Belief, Tuning, believe
from qmpalloc.policy.curve.measured import Point
from qmpalloc.policy.curve.memory import Pace
from qmpalloc.units import MIB

FLOOR_MIB, PRESENT_MIB, CAP_MIB = 256, 512, 1024
WEAK = ("the load has changed",)

PAPER, INK, GRID, BLUE, ORANGE = "#ffffff", "#1f2328", "#d8dee4", "#0072b2", "#d55e00"
DARK = {PAPER: "#0d1117", INK: "#e6edf3", GRID: "#30363d", BLUE: "#56b4e9", ORANGE: "#f0883e"}
"""Colours on a dark page; the paper is drawn, so that the figure can be read on any."""


def curve(measured: float, *, turned_over: bool = False, weak: tuple[str, ...] = ()) -> Curve:
    """Return a curve through a miss ratio at the present size: steep, then flat from 832 MiB on."""
    sizes = np.linspace(FLOOR_MIB, CAP_MIB, 25)
    ratios = 0.06 + (measured - 0.06) * np.maximum(0.0, (832 - sizes) / (832 - PRESENT_MIB)) ** 1.3
    return Curve(
        sizes_bytes=tuple(int(size) * MIB for size in sizes),
        miss_ratio=tuple(np.clip(ratios, 0.0, 1.0).tolist()),
        measured=measured,
        steady_accesses=1_000_000,
        turned_over=turned_over,
        weak=weak,
        deviation=tuple(np.sqrt(np.maximum(0.0, ratios)) * 0.01),
    )


def belief(rate: int, misses: int, known: Curve | None, *, refaults: int = 0, points: tuple[Point, ...] = ()) -> Belief:
    """Return what is believed of a guest that makes so many accesses a second."""
    guest = GuestSnapshot(
        name="made-up",
        state=GuestState.FRESH,
        target_bytes=PRESENT_MIB * MIB,
        actual_bytes=PRESENT_MIB * MIB,
        charge_bytes=PRESENT_MIB * MIB,
        floor_bytes=FLOOR_MIB * MIB,
        cap_bytes=CAP_MIB * MIB,
        baseline_bytes=PRESENT_MIB * MIB,
        hits=rate - misses,
        misses=misses,
        refaults=refaults,
        interval_s=1.0,
        curve=known,
    )
    return believe(
        guest, points, Pace(planned_per_s=rate, promised_s=120.0), held="",
        margin_bytes=16 * MIB, tuning=Tuning(),
    )  # fmt: skip


def draw(axes: Axes, title: str, shown: Belief, points: tuple[Point, ...] = ()) -> None:
    """Draw the bounds of a belief, and what is planned with, in misses a second over sizes."""
    sizes = np.unique([FLOOR_MIB, CAP_MIB, *(shown.sizes / MIB)])
    sizes = sizes[(sizes >= FLOOR_MIB) & (sizes <= CAP_MIB)]
    rate = shown.load.accesses_per_s
    least, most = (rate * np.interp(sizes * MIB, shown.sizes, bound) for bound in (shown.least, shown.most))
    axes.fill_between(sizes, least, most, color=BLUE, alpha=0.25, linewidth=0, label="may miss")
    axes.plot(sizes, rate * shown.planned(sizes * MIB), color=BLUE, linewidth=1.8, label="planned with")
    axes.axvline(PRESENT_MIB, color=INK, linewidth=1, linestyle="--", label="present size")
    axes.plot(
        [point.size_bytes / MIB for point in points], [rate * point.miss_ratio for point in points],
        linestyle="none", marker="o", color=ORANGE, label="was measured",
    )  # fmt: skip
    axes.set_title(title, loc="left", color=INK)
    axes.set_xlim(FLOOR_MIB, CAP_MIB)
    axes.set_ylim(-40, 1_600)
    axes.set_xticks([256, 512, 768, 1024])
    axes.set_yticks([0, 500, 1_000, 1_500])


def figure() -> Figure:
    """Return the figure."""
    points = tuple(
        Point(size_mib * MIB, ratio, 500_000, 0) for size_mib, ratio in ((384, 0.62), (512, 0.45), (896, 0.2))
    )
    drawn = Figure(figsize=(7.2, 4.9), layout="constrained", facecolor=PAPER)
    (one, two), (three, four) = drawn.subplots(2, 2, sharex=True, sharey=True)
    draw(one, "Idle: 10 reads/s, no curve", belief(10, 0, None))
    draw(two, "A scan that fits nowhere, no good curve", belief(1_500, 1_485, curve(0.99, turned_over=True, weak=WEAK)))
    weak = belief(1_500, 675, curve(0.45, weak=WEAK), refaults=400, points=points)
    draw(three, "Weak curve, 400 refaults/s", weak, points)
    draw(four, "Good curve", belief(1_500, 675, curve(0.45)))
    for left, below in ((one, three), (three, four)):
        left.set_ylabel("misses/s", color=INK)
        below.set_xlabel("size of the guest, MiB", color=INK)
    handles, labels = three.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, labelcolor=INK)
    for axes in (one, two, three, four):
        axes.set_facecolor(PAPER)
        axes.tick_params(colors=INK)
        axes.grid(color=GRID)
        for spine in axes.spines.values():
            spine.set_color(INK)
    return drawn


def as_svg(drawn: Figure) -> str:
    """Return a figure as a small SVG that follows the reader's light or dark mode."""
    text = io.StringIO()
    drawn.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = re.sub(r"font-family: [^;\"]*", "font-family: sans-serif", text.getvalue())
    svg = re.sub(r"(\d+\.\d)\d+", r"\1", re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE))
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    return svg.replace("</style>", f"@media (prefers-color-scheme:dark){{{rules}}}</style>", 1)


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("svg", type=Path, help="file to write")
    with style():
        write_whole(parser.parse_args().svg, as_svg(figure()).encode())


if __name__ == "__main__":
    main()
