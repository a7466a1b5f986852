"""``qmpalloc sweep``: a grid of runs, in the model and on real guests, on one machine or many."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmpalloc.cli import EXIT_FAILED, EXIT_INTERRUPTED
from qmpalloc.cli.signals import interruptible

if TYPE_CHECKING:
    from qmpalloc.sweep.engine import Cluster
    from qmpalloc.sweep.store import SweepDirectory

STATUS_EVERY_S = 30.0
"""Between lines of progress where there is no terminal to show a bar."""

SPEED_OVER_S = 3600.0
"""The pace of this last time gives the estimate: runs take very different times."""


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--scheduler", metavar="ADDRESS", default="", help="Of a Dask cluster that exists: tcp://HOST:8786.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default=True,
    help="Processes on this host, without --scheduler.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Directory for everything. [default: runs/NAME]")
@click.option("--dry-run", is_flag=True, help="Check the file and say how many runs there are.")
@click.option("--anyway", is_flag=True, help="Also go on where another qmpalloc began.")
def sweep(file: Path, scheduler: str, workers: int, out: Path | None, dry_run: bool, anyway: bool) -> None:
    """Run the grid that FILE describes, and report. Format of FILE: docs/sweeps.md.

    The same command goes on where it was interrupted: what is done is not done again, what failed is.
    """
    from qmpalloc.config import default_run_dir
    from qmpalloc.config.toml import read_text
    from qmpalloc.control.lock import hold_lock
    from qmpalloc.sweep.engine import open_cluster, require_packages
    from qmpalloc.sweep.report import write_report
    from qmpalloc.sweep.spec import ModelTask, parse
    from qmpalloc.sweep.store import SweepDirectory
    from qmpalloc.sweep.work import code_digest

    text = read_text(file, example="see {examples}/sweep.toml")
    found = parse(text, file=file.absolute())
    tasks = found.tasks
    models = sum(isinstance(task, ModelTask) for task in tasks.values())
    click.echo(f"{found.name}: {models} runs in the model, {len(tasks) - models} on real guests")
    if dry_run:
        return
    require_packages()
    place = out or Path("runs") / found.name
    with hold_lock(str(place), default_run_dir()), interruptible():
        directory = SweepDirectory(place, found, text, code=code_digest(), anyway=anyway)
        click.echo(f"{len(directory.left)} are left to do; everything goes to {place}")
        interrupted = False
        if directory.left:
            try:
                with open_cluster(found, scheduler=scheduler, workers=workers) as cluster:
                    _conduct(cluster, directory)
            except KeyboardInterrupt:
                click.echo("interrupted: what is done is kept; the same command goes on")
                interrupted = True
        for path in write_report(directory):
            click.echo(f"results: {path}")
    if interrupted:
        sys.exit(EXIT_INTERRUPTED)
    if directory.left:
        click.echo(f"{len(directory.left)} runs failed and do not count; the same command tries them again", err=True)
        sys.exit(EXIT_FAILED)


def _conduct(cluster: Cluster, directory: SweepDirectory) -> None:
    """Run what is left, and keep what becomes of it."""
    hosts = {worker.facts.host for worker in cluster.workers}
    click.echo(f"workers: {len(cluster.workers)}, on {', '.join(sorted(hosts))}")
    directory.note_hosts({worker.facts.host: worker.facts for worker in cluster.workers})
    tasks, left = directory.sweep.tasks, directory.left
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("done, left:"), TimeRemainingColumn())
    progress = Progress(*columns, console=console, speed_estimate_period=SPEED_OVER_S, transient=True)
    bar = progress.add_task("", total=len(left))
    said_s = time.monotonic()
    if console.is_terminal:
        progress.start()
    try:
        for number, done in enumerate(cluster.run({key: tasks[key] for key in left}, directory.disks), 1):
            directory.add(done)
            progress.advance(bar)
            if done.failed:
                where = f"{done.key} on host {done.host or 'not known'}"
                progress.console.print(f"{where} failed: {done.failed}", markup=False, highlight=False, soft_wrap=True)
            if not console.is_terminal and time.monotonic() - said_s >= STATUS_EVERY_S:
                said_s = time.monotonic()
                remaining_s = progress.tasks[bar].time_remaining
                about = "" if remaining_s is None else f"; about {max(1, round(remaining_s / 60))} min remain"
                click.echo(f"{number} of {len(left)} done{about}")
    finally:
        if console.is_terminal:
            progress.stop()
