"""``qmpalloc top``: the dashboard of a run that goes on elsewhere. It changes nothing of the run."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmpalloc.cli import EXIT_INTERRUPTED
from qmpalloc.cli.options import output_option

if TYPE_CHECKING:
    from qmpalloc.events import AnyEvent

NICER = 10
"""Dashboards paint when control has nothing to do."""


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@output_option
def top(config: Path | None, output: str | None) -> None:
    """Show the run of CONFIG, which goes on elsewhere; without CONFIG, the only run of yours.

    Any number may look on. To quit leaves the run as it is; 'qmpalloc set', 'hold' and 'pause' change it.
    """
    os.nice(NICER)
    import trio

    from qmpalloc.cli.onlooker import look_on
    from qmpalloc.config import default_run_dir
    from qmpalloc.events import Ended, encode
    from qmpalloc.status.client import attach
    from qmpalloc.status.place import STATUS, find
    from qmpalloc.tui import PlainLog, is_interactive

    path = find(config, default_run_dir(), STATUS)

    async def events() -> AsyncGenerator[AnyEvent]:
        async with attach(path) as run:
            event: AnyEvent = run.header
            while True:
                yield event
                if isinstance(event, Ended):
                    return
                event = await run.next()

    def as_json(event: AnyEvent) -> str:
        return encode(event).decode()

    line: Callable[[AnyEvent], str | None] | None = PlainLog().line
    if output == "json":
        line = as_json
    elif output is None and is_interactive():
        line = None
    if trio.run(look_on, events, line):
        sys.exit(EXIT_INTERRUPTED)
