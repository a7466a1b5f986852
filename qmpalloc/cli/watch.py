"""``qmpalloc watch``: observe guests without ever resizing one."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmpalloc.cli.options import config_argument, duration_option, output_option

if TYPE_CHECKING:
    from qmpalloc.config import Config


@click.command()
@config_argument
@output_option
@duration_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="Directory for record.jsonl and summary.json. [default: no record]"
)
def watch(config: Config, output: str | None, duration: float | None, out: Path | None) -> None:
    """Show what the guests of CONFIG do with their memory; change nothing."""
    from qmpalloc.cli.conduct import Output, conduct

    sys.exit(
        conduct(
            config,
            "watch",
            output=Output(output or "dashboard"),
            duration_s=math.inf if duration is None else duration,
            directory=out,
        )
    )
