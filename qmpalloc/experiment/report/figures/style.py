"""How figures look, and how they are kept: the same bytes for the same results, so that they compare well in git.

Colours are those of M. Okabe and K. Ito (Color Universal Design, 2008), which people with any colour vision tell apart;
markers and dashes differ too, for print without colours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.report import words
from qmpalloc.files import make_directory, write_whole
from qmpalloc.model import Band
from qmpalloc.units import MIB

REFERENCE = "#555555"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")

ON_A_LINE = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
"""Behind words that a line may pass."""

SHORT_S = 240.0
"""Runs up to this long are drawn in seconds."""

WIDTH_IN = 8.0
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


def arm_colour(results: Results, arm: str) -> str:
    """Return the colour of an arm, the same in all figures."""
    names = [each.name for each in results.adaptive_arms]
    return COLOURS[names.index(arm) % len(COLOURS)] if arm in names else REFERENCE


def arm_marker(results: Results, arm: str) -> str:
    """Return the marker of an arm: triangles for the reference, circles for the others, as in the paper."""
    return "^" if arm == results.specification.reference else "o"


def arm_dash(results: Results, arm: str) -> str:
    """Return the line style of an arm."""
    names = [each.name for each in results.adaptive_arms]
    return DASHES[names.index(arm) % len(DASHES)] if arm in names else ":"


def guest_line(results: Results, guest: str) -> tuple[str, str]:
    """Return the colour and the line style of a guest, the same in all figures."""
    names = [each.name for each in results.specification.guests]
    return COLOURS[names.index(guest) % len(COLOURS)], DASHES[names.index(guest) % len(DASHES)]


def new_figure(height_in: float, *, width_in: float = WIDTH_IN) -> Figure:
    """Return an empty figure."""
    return Figure(figsize=(width_in, height_in), layout="constrained")


def describe(figure: Figure, results: Results, title: str) -> None:
    """Add a title and the conditions under which the numbers were measured."""
    figure.suptitle(title, fontsize=11.5, fontweight="bold")
    figure.supxlabel(
        f"experiment {results.specification.name}: {words.conditions(results)}", fontsize=8.5, color="#444444"
    )


def time_unit(results: Results) -> tuple[float, str]:
    """Return the seconds in the unit that suits the runs' lengths, and its name."""
    rows = [row for run in results.runs for guest in run.guests.values() for row in guest.trials.trials]
    return (60.0, "min") if max((row.end_s for row in rows), default=0.0) > SHORT_S else (1.0, "s")


def legend_below(axes: Axes, columns: int = 4, *, below: float = 0.18) -> None:
    """Put the legend under the axes, where it hides nothing, each label once; `below` is a share of their height."""
    if shown := one_legend([axes]):
        axes.legend(list(shown.values()), list(shown), loc="upper center", bbox_to_anchor=(0.5, -below), ncols=columns)


def one_legend(panels: Iterable[Axes]) -> dict[str, Artist]:
    """Return what a legend of all panels together shows: each label once, with who is first to have it."""
    shown: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    return shown


def plot_curve(axes: Axes, sizes_bytes: Sequence[int], miss_ratio: Sequence[float], **style: Any) -> None:
    """Draw miss ratios in per cent over sizes in MiB."""
    axes.plot([size / MIB for size in sizes_bytes], [ratio * 100 for ratio in miss_ratio], **style)


def fill_band(axes: Axes, band: Band, **style: Any) -> None:
    """Shade what lies between the bounds of miss ratios, in per cent over sizes in MiB."""
    least, most = ([ratio * 100 for ratio in bound] for bound in (band.least, band.most))
    axes.fill_between([size / MIB for size in band.sizes_bytes], least, most, linewidth=0, **style)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as SVG and as PNG, and return the files.

    Raises:
        OSError: The folder cannot be made.
        HostError: They cannot be written.
    """
    make_directory(folder)
    text, picture = io.StringIO(), io.BytesIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "qmpalloc"})
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    write_whole(svg, re.sub(r"[ \t]+$", "", text.getvalue(), flags=re.MULTILINE).encode())
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": "qmpalloc"})
    write_whole(png, picture.getvalue())
    return [svg, png]
