"""How the controller's cost and punctuality grow with the number of guests, and what one guest that hangs changes.

    python benchmarks/controller_growth.py [--output FILE] [--seconds 30] [--repeats 3] [COUNT ...]

Runs ``benchmarks/controller.py`` for every number of guests, without and with one that hangs, in turn; takes all
repeats together; prints a table and draws a figure: CPU, and 99th percentiles of the time from tick to decision and of
the age of the other guests' samples. Needs matplotlib (the extra ``analysis``).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import click
import matplotlib as mpl
from controller import Measured, measure, percentile
from matplotlib import pyplot as plt

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "qmpalloc"

TITLES = ("CPU, % of one core", "tick to decision, p99, ms", "age of samples, p99, ms")


def figures_of(runs: Sequence[Measured]) -> tuple[float, float, float]:
    """Return what is drawn of the repeats of a run, all their cycles together: a run alone has few for a percentile."""
    cpu = 100 * sum(run.cpu_s for run in runs) / sum(run.wall_s for run in runs)
    cycles_ms = [value for run in runs for value in run.watch.cycles_ms]
    ages_ms = [value for run in runs for value in run.watch.ages_ms]
    return cpu, percentile(cycles_ms, 99), percentile(ages_ms, 99)


@click.command()
@click.argument("counts", nargs=-1, type=int)
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/results/controller.svg"))
@click.option("--seconds", default=30.0, show_default=True)
@click.option("--repeats", default=3, show_default=True)
def main(counts: tuple[int, ...], output: Path, seconds: float, repeats: int) -> None:
    """Measure, print and draw."""
    counts = counts or (10, 50, 100, 200)
    figures: dict[int, list[tuple[float, ...]]] = {0: [], 1: []}
    for count in counts:
        runs: dict[int, list[Measured]] = {0: [], 1: []}
        for _ in range(repeats):
            for hung in (0, 1):
                runs[hung].append(measure(count, seconds, hung))
        for hung, results in runs.items():
            figures[hung].append(figures_of(results))
            shown = "  ".join(f"{title} {value:.1f}" for title, value in zip(TITLES, figures[hung][-1], strict=True))
            click.echo(f"{count} guests, {hung} hung: {shown}")
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    for index, (axis, title) in enumerate(zip(axes, TITLES, strict=True)):
        for hung, marker, label in ((0, "o", "none hangs"), (1, "^", "one hangs")):
            axis.plot(counts, [values[index] for values in figures[hung]], marker=marker, label=label)
        axis.set(title=title, xlabel="guests", ylim=(0, None))
    axes[0].legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
