"""The results of an experiment as files: tables, a summary, a report as Markdown and as HTML, figures.

All are made from what the runs left (see `qmpalloc.experiment.store.directory`) and can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from qmpalloc.errors import HostError
from qmpalloc.experiment.analysis.learnt import LearntCurve, learnt_curves
from qmpalloc.experiment.analysis.results import Results, load_results, with_notes
from qmpalloc.experiment.report import arms, conditions, evidence, metrics, words
from qmpalloc.experiment.report.curves import curves_table, movement_table
from qmpalloc.experiment.report.html import html
from qmpalloc.experiment.report.markdown import CONTENTS, document, heading, paragraph
from qmpalloc.experiment.report.summary import summarise
from qmpalloc.experiment.report.trials_csv import trials_csv
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.files import write_json, write_whole

FIGURES = "figures"
NO_MATPLOTLIB = "matplotlib is not installed: pip install 'qmpalloc[analysis]'"


def write_report(directory: ExperimentDirectory, *, figures: bool = True) -> list[Path]:
    """Write all results of an experiment, complete or not, over what an earlier call wrote.

    Args:
        directory: Of the experiment.
        figures: Draw as well, which needs matplotlib; where that is missing, the report says so.

    Returns:
        The files written.

    Raises:
        ConfigError: The experiment's own files cannot be used.
        HostError: A file cannot be written.
    """
    results = load_results(directory)
    curves, unreadable = learnt_curves(directory, results)
    results = with_notes(results, unreadable)
    place = directory.path
    pictures: tuple[str, ...] = ()
    without = "They were not asked for."
    written: list[Path] = []
    if figures:
        try:
            from qmpalloc.experiment.report.figures import draw_all

            pictures, written = draw_all(results, curves, place, FIGURES)
        except OSError as error:
            raise HostError(f"{place / FIGURES} cannot be written: {error.strerror}") from error
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            without = f"They are not drawn, because {NO_MATPLOTLIB}"
        else:
            without = "There is nothing to draw yet."
    text = document(_blocks(results, curves, pictures, without))
    texts = {
        "trials.csv": trials_csv(results),
        "report.md": text,
        "report.html": html(text, title=_title(results), picture=lambda file: (place / file).read_bytes()),
    }
    for name, content in texts.items():
        write_whole(place / name, content.encode())
    write_json(place / "summary.json", summarise(results))
    return [*(place / name for name in (*texts, "summary.json")), *written]


def _title(results: Results) -> str:
    return f"Experiment {results.specification.name}"


def _blocks(results: Results, curves: tuple[LearntCurve, ...], pictures: Sequence[str], without: str) -> Iterable[str]:
    yield heading(_title(results), level=1)
    yield paragraph(words.conditions(results))
    yield from pictures[:1]
    yield from arms.verdicts(results)
    yield CONTENTS
    yield from arms.explanation(results)
    yield heading("Figures")
    yield from pictures[1:]
    if not pictures:
        yield paragraph(without)
    yield from arms.arms_table(results)
    yield from metrics.metrics_tables(results)
    yield from arms.phases_table(results)
    yield from movement_table(results)
    yield from curves_table(results, curves)
    yield from evidence.footprints(results)
    yield from evidence.disk(results)
    yield from evidence.witness(results)
    yield from conditions.troubles(results)
    yield from conditions.conditions(results)
