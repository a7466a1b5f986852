"""The figures of an experiment. Needs matplotlib: ``pip install 'qmpalloc[analysis]'``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from qmpalloc.experiment.analysis.learnt import LearntCurve
from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.report import words
from qmpalloc.experiment.report.document import Picture
from qmpalloc.experiment.report.figures import style
from qmpalloc.experiment.report.figures.completion import completion_figure
from qmpalloc.experiment.report.figures.course import course_figure, course_panels
from qmpalloc.experiment.report.figures.gains import gain_rows, gains_figure
from qmpalloc.experiment.report.figures.hits import difference_figure, hits_figure
from qmpalloc.experiment.report.figures.learnt import learnt_figure
from qmpalloc.experiment.report.figures.memory import memory_figure
from qmpalloc.experiment.report.figures.ratio import ratio_figure

GAINS = "gains"
"""The figure that stands beside the verdict."""


def draw_all(
    results: Results, curves: tuple[LearntCurve, ...], place: Path, folder: str
) -> tuple[tuple[Picture, ...], list[Path]]:
    """Draw every figure there is something for.

    Args:
        results: Of the experiment.
        curves: That were learnt.
        place: Its directory.
        folder: Name of the directory in `place` that the files go into.

    Returns:
        The pictures for the report, and the files: SVG and PNG of each.

    Raises:
        OSError: Their directory cannot be made.
        HostError: A file cannot be written.
    """
    pictures, files = [], []
    with style.style():
        for name, title, caption, figure in _figures(results, curves):
            style.describe(figure, results, title)
            files += style.save(figure, place / folder, name)
            said = f"{caption} ({words.conditions(results)})"
            pictures.append(Picture(f"{folder}/{name}.svg", title, said, first=name == GAINS))
    return tuple(pictures), files


def _figures(results: Results, curves: tuple[LearntCurve, ...]) -> Iterator[tuple[str, str, str, Figure]]:
    """Yield the file name, the title, the caption and the drawing of each."""
    if not any(run.counted and run.result.hits for run in results.runs):
        return
    reference = results.specification.reference
    yield from _metric_figures(results)
    for arm in results.adaptive_arms:
        if results.counted(arm.name):
            caption = (
                f"Hits of all guests together in each trial, {arm.name} as circles and {reference} as triangles. "
                "Median over the repeats that still run, lines from the least to the greatest; above, the ends "
                "of phases."
            )
            title = f"Page-cache hits per trial: {arm.name} and {reference}"
            yield f"hits-{arm.name}", title, caption, hits_figure(results, arm.name)
    if any(comparison.repeats for comparison in results.comparisons):
        caption = (
            "Hits gained since the start, a line for each repeat, up to the end of the shorter run. Rising: more hits "
            f"per trial than {reference}. Where both run to their ends, they have had about the same number of hits."
        )
        yield "hits-gained", f"Hits gained over {reference}, added up", caption, difference_figure(results)
    caption = (
        "What QEMU reported at the ends of trials, as steps, and what it was asked for, dotted; the first repeat is "
        "bold, the others are faint. The budget of all guests together and their floors, where there is room."
    )
    yield "memory", "Memory of each guest", caption, memory_figure(results)
    caption = (
        "Share of the accesses that were hits, while the guest's load had reads to do. Median over the repeats that "
        "still run, area from the least to the greatest."
    )
    yield "hit-ratio", "Hit ratio of each guest", caption, ratio_figure(results)
    caption = "From the first read to the last of each phase, a row for each arm, guest and repeat."
    yield "phases", "Completion of the phases", caption, completion_figure(results)
    if any(each.curve is not None or each.true is not None for each in curves):
        caption = (
            "The curve a controller last had of each phase, dashed where it was weak, and the oracle's, dotted. "
            "Shaded: the bounds between which it believed the miss ratio to be. "
            "Points: trials of all arms at sizes that stood still; those of the first two thirds of a phase, in "
            "which caches may fill, are faint and hollow."
        )
        yield "curves", "Miss-ratio curves and what was measured", caption, learnt_figure(results, curves)


def _metric_figures(results: Results) -> Iterator[tuple[str, str, str, Figure]]:
    """Yield what there is to draw where arms are compared by metrics."""
    reference = results.specification.reference
    if gain_rows(results):
        caption = (
            f"How many times as good as {reference} each arm was, geometric mean of the repeats with its confidence "
            "interval: right of 1 is better, an interval that holds 1 decides nothing. Hollow: one repeat, no "
            "interval. An arrow: the interval goes on."
        )
        yield GAINS, f"Each metric beside {reference}", caption, gains_figure(results)
    for guest in results.specification.guests:
        if course_panels(results, guest.name):
            caption = (
                "Every value that the programs printed, at its time; of metrics that are no series, and of reads, that "
                "of each trial. A line for each run, the first repeat of an arm bold."
            )
            title = f"The metrics of {guest.name} over time"
            yield f"metrics-{guest.name}", title, caption, course_figure(results, guest.name)
