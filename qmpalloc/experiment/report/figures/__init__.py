"""The figures of an experiment. Needs matplotlib: ``pip install 'qmpalloc[analysis]'``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from qmpalloc.experiment.report import words
from qmpalloc.experiment.report.document import Picture
from qmpalloc.experiment.report.figures import style
from qmpalloc.experiment.report.figures.completion import completion_figure
from qmpalloc.experiment.report.figures.hits import difference_figure, hits_figure
from qmpalloc.experiment.report.figures.memory import memory_figure
from qmpalloc.experiment.report.figures.ratio import ratio_figure
from qmpalloc.experiment.results import Results


def draw_all(results: Results, place: Path, folder: str) -> tuple[tuple[Picture, ...], list[Path]]:
    """Draw every figure there is something for.

    Args:
        results: Of the experiment.
        place: Its directory.
        folder: Name of the directory in `place` that the files go into.

    Returns:
        The pictures for the report, and the files: SVG and PNG of each.

    Raises:
        OSError: A file cannot be written.
    """
    pictures, files = [], []
    with style.style():
        for name, caption, figure in _figures(results):
            files += style.save(figure, place / folder, name)
            pictures.append(Picture(f"{folder}/{name}.svg", f"{caption} ({words.conditions(results)})"))
    return tuple(pictures), files


def _figures(results: Results) -> Iterator[tuple[str, str, Figure]]:
    """Yield the file name, the caption and the drawing of each."""
    if not any(run.counted and run.result.hits for run in results.runs):
        return
    reference = results.specification.reference
    for arm in results.adaptive_arms:
        if results.counted(arm.name):
            caption = (
                f"Hits of all guests together in each trial: {arm.name} (circles) and {reference} (triangles). "
                "Median over the repeats, lines from the least to the greatest; above, where each guest ended a phase."
            )
            yield f"hits-{arm.name}", caption, hits_figure(results, arm.name)
    if results.adaptive_arms:
        caption = (
            f"Hits gained over {reference} since the start, a line for each repeat (its number at the end), up to the "
            f"end of the shorter run. Rising: more hits per trial than {reference}."
        )
        yield "hits-gained", caption, difference_figure(results)
    caption = (
        "Memory of each guest in each arm: what QEMU reported at the ends of trials (steps; bold is the first repeat) "
        "and what it was asked for (dotted)."
    )
    yield "memory", caption, memory_figure(results)
    caption = (
        "Share of the accesses that were hits, for each guest while its load had reads to do; median and range over "
        "the repeats."
    )
    yield "hit-ratio", caption, ratio_figure(results)
    caption = "From the first read to the last of each phase, a row for each arm, guest and repeat."
    yield "phases", caption, completion_figure(results)
