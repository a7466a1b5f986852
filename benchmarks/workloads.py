"""Draw and list what experiments with programs came to, by workload and guest: docs/results/workloads.md.

Usage: python benchmarks/workloads.py RUNS... --figure workloads.svg --csv workloads.csv
where RUNS are directories of experiments. The table goes to standard output.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from qmpalloc.experiment.analysis.results import Results, load_results
from qmpalloc.experiment.analysis.statistics import Ratio
from qmpalloc.experiment.report.figures.style import COLOURS, REFERENCE, style
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.files import write_whole
from qmpalloc.units import MIB

TICKS = (0.1, 0.2, 0.5, 0.8, 1, 1.5, 2, 3, 5, 10, 20, 50)
MARKERS = ("o", "s", "D")
ARMS = ("curve", "paper")
COLUMNS = (
    "workload", "repeat", "arm", "guest", "metric", "unit", "better", "value", "size_mib", "page_ins", "disk_reads",
)  # fmt: skip

Rows = list[tuple[str, str, dict[str, Ratio]]]
"""Workload, guest with its metric, and the gain of each arm over `static`: above 1 is better."""


def gains(experiments: list[Results]) -> Rows:
    """Return a row for each metric of each experiment."""
    rows: Rows = []
    for results in experiments:
        found = {arm.name: results.metric_comparisons(arm.name) for arm in results.adaptive_arms}
        for number, (guest, _, metric) in enumerate(results.metrics):
            ratios = {arm: gain for arm, each in found.items() if (gain := each[number].gain) is not None}
            rows.append((results.specification.name, f"{guest}: {metric.name}, {metric.unit}", ratios))
    return rows


def runs(experiments: list[Results]) -> Iterator[tuple[object, ...]]:
    """Yield a row of the CSV for each metric of each run; the size is that of the middle of its trials."""
    for results in experiments:
        for run in (run for arm in results.arms_counted for run in results.counted(arm.name)):
            for guest, phase, metric in results.metrics:
                value = run.metric_values.get((guest, phase, metric.name))
                own = run.guests[guest]
                sizes = sorted(row.actual_bytes for row in own.trials.trials)
                yield (
                    results.specification.name, run.run.repeat, run.run.arm, guest, metric.name, metric.unit,
                    metric.better, value, round(sizes[len(sizes) // 2] / MIB), own.counts.page_ins,
                    own.counts.disk_reads,
                )  # fmt: skip


def drawn(rows: Rows) -> str:
    """Return the figure as SVG."""
    with style():
        figure = Figure(figsize=(6.5, 0.7 + 0.36 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(1.0, color=REFERENCE, linewidth=1)
        for place, (_, _, ratios) in enumerate(rows):
            for number, arm in enumerate(arm for arm in ARMS if arm in ratios):
                gain, at = ratios[arm], place - 0.12 + 0.24 * number
                colour, marker = COLOURS[ARMS.index(arm)], MARKERS[ARMS.index(arm)]
                if gain.low is not None and gain.high is not None:
                    axes.plot([gain.low, gain.high], [at, at], color=colour, linewidth=1.6)
                face = "white" if gain.low is None else colour
                axes.plot(gain.value, at, marker, color=colour, markerfacecolor=face, markersize=5)
        for arm in ARMS:
            if any(arm in ratios for _, _, ratios in rows):
                axes.plot([], [], MARKERS[ARMS.index(arm)], color=COLOURS[ARMS.index(arm)], label=arm)
        axes.set_yticks(range(len(rows)), [f"{workload}, {guest}" for workload, guest, _ in rows])
        axes.invert_yaxis()
        axes.set_xscale("log")
        known = [
            end for *_, ratios in rows for gain in ratios.values() for end in (gain.low, gain.high, gain.value) if end
        ]
        axes.set_xlim(max(0.1, 0.9 * min([0.9, *known])), min(60.0, 1.1 * max([1.1, *known])))
        axes.set_xticks([tick for tick in TICKS if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]])
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("times as good as equal shares; hollow: one run")
        figure.legend(loc="outside lower right", ncols=2)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"[ \t]+\n", "\n", content.getvalue())


def listed(rows: Rows, experiments: list[Results]) -> Iterator[str]:
    """Yield the table of the page, in Markdown."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for name, _, arm, guest, metric, unit, _, value, *_ in runs(experiments):
        values.setdefault((str(name), f"{guest}: {metric}, {unit}", str(arm)), []).append(float(str(value)))
    arms = [arm for arm in reversed(ARMS) if any(arm in ratios for _, _, ratios in rows)]
    yield f"| workload | guest | static | {' | '.join(arms)} | {' | '.join(f'{arm}, ratio' for arm in arms)} |"
    yield "|" + "---|" * (3 + 2 * len(arms))
    for workload, guest, ratios in rows:
        cells = [shown(values.get((workload, guest, arm), [])) for arm in ("static", *arms)]
        cells += [told(ratios.get(arm)) for arm in arms]
        yield f"| {workload} | {guest} | {' | '.join(cells)} |"


def shown(values: list[float]) -> str:
    """Return the values of an arm's repeats."""
    return ", ".join(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values)


def told(gain: Ratio | None) -> str:
    """Return a ratio with its interval."""
    if gain is None:
        return ""
    return f"{gain.value:.2f}" + (f" ({gain.low:.2f} to {gain.high:.2f})" if gain.low and gain.high else "")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    experiments = [load_results(ExperimentDirectory.open_existing(directory)) for directory in arguments.directories]
    rows = gains(experiments)
    print("\n".join(listed(rows, experiments)))
    if arguments.figure:
        write_whole(arguments.figure, drawn(rows).encode())
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([COLUMNS, *runs(experiments)])


if __name__ == "__main__":
    main()
