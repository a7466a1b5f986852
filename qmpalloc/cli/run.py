"""``qmpalloc run``: control guests that already run."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmpalloc.cli.options import HostAndPort, config_argument, duration_option, output_option

if TYPE_CHECKING:
    from qmpalloc.config import Config


@click.command()
@config_argument
@click.option("--dry-run", is_flag=True, help="Decide and show, but resize no guest.")
@output_option
@duration_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory for record.jsonl and summary.json. [default: runs/NAME-TIME]",
)
@click.option("--no-record", is_flag=True, help="Write no record.")
@click.option("--metrics", type=HostAndPort(), help="Serve metrics for Prometheus here, e.g. 127.0.0.1:9177.")
@click.option(
    "--metrics-file", type=click.Path(path_type=Path), help="Keep them in a file NAME.prom, for node_exporter."
)
def run(
    config: Config,
    dry_run: bool,
    output: str | None,
    duration: float | None,
    out: Path | None,
    no_record: bool,
    metrics: tuple[str, int] | None,
    metrics_file: Path | None,
) -> None:
    """Share memory among the guests of CONFIG by its policy, until quit.

    The guests' QEMUs must run already, yours or those of 'qmpalloc vm up'. At the end every guest is returned to its
    baseline, unless [control] says on_exit = "keep".
    """
    from qmpalloc.cli.conduct import Metrics, Output, conduct, default_directory

    directory = None if no_record else out or default_directory(config)
    exported = Metrics(address=metrics, file=metrics_file) if metrics or metrics_file else None
    settings: dict[str, Any] = {"output": Output(output or "dashboard"), "directory": directory, "metrics": exported}
    sys.exit(
        conduct(
            config, "dry-run" if dry_run else "run", duration_s=math.inf if duration is None else duration, **settings
        )
    )
