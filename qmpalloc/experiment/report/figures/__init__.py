"""The figures of an experiment. Needs matplotlib: ``pip install 'qmpalloc[analysis]'``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from qmpalloc.experiment.analysis.learnt import LearntCurve
from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.report import words
from qmpalloc.experiment.report.figures import style
from qmpalloc.experiment.report.figures.completion import completion_figure
from qmpalloc.experiment.report.figures.course import course_figure, course_panels
from qmpalloc.experiment.report.figures.forest import forest_figure, forest_rows
from qmpalloc.experiment.report.figures.hits import hits_figure
from qmpalloc.experiment.report.figures.learnt import learnt_figure
from qmpalloc.experiment.report.figures.memory import memory_figure
from qmpalloc.experiment.report.markdown import picture


def draw_all(
    results: Results, curves: tuple[LearntCurve, ...], place: Path, folder: str
) -> tuple[tuple[str, ...], list[Path]]:
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
    about = f"experiment {results.specification.name}: {words.conditions(results)}"
    with style.style():
        for name, title, caption, figure in _figures(results, curves):
            files += style.save(figure, place / folder, name, f"{title}; {about}")
            pictures.append(picture(f"{folder}/{name}.svg", title, caption))
    return tuple(pictures), files


def _figures(results: Results, curves: tuple[LearntCurve, ...]) -> Iterator[tuple[str, str, str, Figure]]:
    """Yield the file name, the title, the caption and the drawing of each."""
    if not any(run.counted and run.hits for run in results.runs):
        return
    reference = results.specification.reference
    if forest_rows(results):
        caption = (
            "Geometric mean of the repeats and its 95 % confidence interval: one that holds 1 decides nothing. "
            "Hollow: one repeat, no interval. An arrow: the interval goes on."
        )
        yield "forest", f"The arms beside {reference}", caption, forest_figure(results)
    if course_panels(results):
        caption = (
            "Every value that the programs printed, at its time; of metrics that are no series, and of reads, that "
            "of each trial. A line for each run, the first repeat of an arm bold."
        )
        yield "metrics", "The metrics over time", caption, course_figure(results)
    caption = (
        "Median over the repeats that still run, area from the least to the greatest. What an arm is ahead is added "
        "up, a line for each repeat, to the end of the shorter run; where both run to their ends, they have had about "
        "the same hits. A guest's share is drawn while its load has reads to do."
    )
    yield "hits", "Hits by trial", caption, hits_figure(results)
    caption = (
        "What QEMU reported at the ends of trials, as steps, and what it was asked for, dotted; the first repeat is "
        "bold, the others are faint. The budget of all guests together and their floors, where there is room."
    )
    yield "memory", "Memory of each guest", caption, memory_figure(results)
    caption = "From the first read to the last of each phase, a row for each arm, guest and repeat."
    yield "phases", "Completion of the phases", caption, completion_figure(results)
    if any(each.curve is not None or each.true is not None for each in curves):
        caption = (
            "The curve a controller last had of each phase, dashed where it was weak, and the oracle's, dotted. "
            "Shaded: the bounds between which it believed the miss ratio to be. Points: trials of all arms at sizes "
            "that stood still; those of the first two thirds of a phase, in which caches may fill, are hollow."
        )
        yield "curves", "Miss-ratio curves and what was measured", caption, learnt_figure(results, curves)
