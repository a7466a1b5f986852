"""How figures look, and how they are kept: the same bytes for the same results, so that they compare well in git.

Colours are those of M. Okabe and K. Ito (Color Universal Design, 2008), which people with any colour vision tell apart;
markers and dashes differ too, for print without colours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qmpalloc.experiment.analysis.results import Results
from qmpalloc.files import make_directory, write_whole
from qmpalloc.units import MIB

REFERENCE = "#555555"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")

ON_A_LINE = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
"""Behind words that a line may pass."""

SHORT_S = 240.0
"""Runs up to this long are drawn in seconds."""

WIDTH_IN = 6.0
"""Narrow, so that a phone shows letters of a readable size."""

DPI = 150

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "qmpalloc",  # else the identifiers in an SVG are random
    "svg.fonttype": "none",  # text stays text: small, searchable, and comparable
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "text.parse_math": False,  # a name is a name
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def style() -> Iterator[None]:
    """Apply the settings for as long as the context lasts, whatever the user's own are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        yield


def arm_line(results: Results, arm: str) -> tuple[str, str]:
    """Return the colour and the line style of an arm, the same in all figures."""
    names = [each.name for each in results.adaptive_arms]
    return _line(names.index(arm)) if arm in names else (REFERENCE, ":")


def arm_marker(results: Results, arm: str) -> str:
    """Return the marker of an arm: triangles for the reference, circles for the others, as in the paper."""
    return "^" if arm == results.specification.reference else "o"


def guest_line(results: Results, guest: str) -> tuple[str, str]:
    """Return the colour and the line style of a guest, the same in all figures."""
    return _line([each.name for each in results.specification.guests].index(guest))


def _line(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]


def new_figure(height_in: float) -> Figure:
    """Return an empty figure."""
    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def time_unit(results: Results) -> tuple[float, str]:
    """Return the seconds in the unit that suits the runs' lengths, and its name."""
    rows = [row for run in results.runs for guest in run.guests.values() for row in guest.trials.trials]
    return (60.0, "min") if max((row.end_s for row in rows), default=0.0) > SHORT_S else (1.0, "s")


def legend(figure: Figure, order: Sequence[str] = ()) -> None:
    """Put one legend for all panels under the figure, each label once; those in `order` come in that order."""
    shown: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    labels = sorted(shown, key=order.index) if order else list(shown)
    if labels:
        figure.legend([shown[label] for label in labels], labels, loc="outside lower center", ncols=min(3, len(labels)))


def plot_curve(axes: Axes, sizes_bytes: Sequence[int], miss_ratio: Sequence[float], **style: Any) -> None:
    """Draw miss ratios in per cent over sizes in MiB."""
    axes.plot([size / MIB for size in sizes_bytes], [ratio * 100 for ratio in miss_ratio], **style)


def save(figure: Figure, folder: Path, name: str, title: str) -> list[Path]:
    """Write a figure as SVG and as PNG with a title that is not drawn, and return the files.

    Raises:
        OSError: The folder cannot be made.
        HostError: They cannot be written.
    """
    make_directory(folder)
    text, picture = io.StringIO(), io.BytesIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "qmpalloc", "Title": title})
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    write_whole(svg, re.sub(r"[ \t]+$", "", text.getvalue(), flags=re.MULTILINE).encode())
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": "qmpalloc", "Title": title})
    write_whole(png, picture.getvalue())
    return [svg, png]
