"""Draw and list what experiments with programs came to, by workload and guest: docs/results/workloads.md.

Usage: python benchmarks/workloads.py workloads.csv [RUNS...] [--more] [--figure workloads.svg]
where RUNS are directories of experiments: their rows take the place of those of their workloads in the CSV, or with
--more are further repeats. The table goes to standard output.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from qmpalloc.experiment.analysis.results import Results, load_results
from qmpalloc.experiment.analysis.statistics import Ratio, ratio
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

Table = list[dict[str, str]]
"""The CSV: a row for each metric of each run, by `COLUMNS`."""

Rows = list[tuple[str, str, dict[str, Ratio]]]
"""Workload, guest with its metric, and the gain of each arm over `static`: above 1 is better."""


def measured(results: Results) -> Iterator[dict[str, str]]:
    """Yield a row of the CSV for each metric of each run; the size is that of the middle of its trials."""
    for run in (run for arm in results.arms_counted for run in results.counted(arm.name)):
        for guest, phase, metric in results.metrics:
            own = run.guests[guest]
            sizes = sorted(row.actual_bytes for row in own.trials.trials)
            row = (
                results.specification.name, run.run.repeat, run.run.arm, guest, metric.name, metric.unit, metric.better,
                run.metric_values.get((guest, phase, metric.name)), round(sizes[len(sizes) // 2] / MIB),
                own.counts.page_ins, own.counts.disk_reads,
            )  # fmt: skip
            yield dict(zip(COLUMNS, map(str, row), strict=True))


def merged(table: Table, found: Table, *, more: bool) -> Table:
    """Return a table with what was found now instead of, or with `more` after, the rows of the same workloads."""
    for name in {row["workload"] for row in found}:
        last = max((int(row["repeat"]) for row in table if row["workload"] == name), default=0) if more else 0
        own = [row | {"repeat": str(int(row["repeat"]) + last)} for row in found if row["workload"] == name]
        places = [place for place, row in enumerate(table) if row["workload"] == name] or [len(table)]
        before = [row for row in table[: places[-1] + 1] if more or row["workload"] != name]
        table = [*before, *own, *table[places[-1] + 1 :]]
    return table


def values_of(table: Table) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Return the values by workload, guest with its metric; arm; and repeat. Less is better where that is negative."""
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for row in table:
        arms = found.setdefault((row["workload"], f"{row['guest']}: {row['metric']}, {row['unit']}"), {})
        sign = 1.0 if row["better"] == "higher" else -1.0
        arms.setdefault(row["arm"], {})[row["repeat"]] = sign * float(row["value"])
    return found


def gains(table: Table) -> Rows:
    """Return a row for each metric of each workload."""
    rows: Rows = []
    for (workload, guest), arms in values_of(table).items():
        ratios = {}
        for arm in ARMS:
            theirs = arms["static"]
            both = [(ours, theirs[repeat]) for repeat, ours in arms.get(arm, {}).items() if repeat in theirs]
            pairs = [(ours, other) if ours > 0 else (-other, -ours) for ours, other in both]
            if pairs and all(min(pair) > 0 for pair in pairs):  # of nothing there is no ratio
                ratios[arm] = ratio(pairs)
        rows.append((workload, guest, ratios))
    return rows


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


def listed(table: Table) -> Iterator[str]:
    """Yield the table of the page, in Markdown."""
    rows, values = gains(table), values_of(table)
    arms = [arm for arm in reversed(ARMS) if any(arm in ratios for _, _, ratios in rows)]
    yield f"| workload | guest | static | {' | '.join(arms)} | {' | '.join(f'{arm}, ratio' for arm in arms)} |"
    yield "|" + "---|" * (3 + 2 * len(arms))
    for workload, guest, ratios in rows:
        cells = [shown([*values[workload, guest].get(arm, {}).values()]) for arm in ("static", *arms)]
        cells += [told(ratios.get(arm)) for arm in arms]
        yield f"| {workload} | {guest} | {' | '.join(cells)} |"


def shown(values: Sequence[float]) -> str:
    """Return the values of an arm's repeats."""
    return ", ".join(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in map(abs, values))


def told(gain: Ratio | None) -> str:
    """Return a ratio with its interval."""
    if gain is None:
        return ""
    return f"{gain.value:.2f}" + (f" ({gain.low:.2f} to {gain.high:.2f})" if gain.low and gain.high else "")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path)
    parser.add_argument("directories", nargs="*", type=Path)
    parser.add_argument("--more", action="store_true")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    table: Table = []
    if arguments.csv.exists():
        with arguments.csv.open(newline="") as file:
            table = [*csv.DictReader(file)]
    for directory in arguments.directories:
        results = load_results(ExperimentDirectory.open_existing(directory))
        table = merged(table, [*measured(results)], more=arguments.more)
    with arguments.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    print("\n".join(listed(table)))
    if arguments.figure:
        write_whole(arguments.figure, drawn(gains(table)).encode())


if __name__ == "__main__":
    main()
