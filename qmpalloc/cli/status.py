"""``qmpalloc status``: the state of a run that goes on elsewhere, once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmpalloc.cli.streams import print_json, table_console

if TYPE_CHECKING:
    from qmpalloc.tui import Dashboard


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON: sizes in bytes, rates by the second.")
def status(config: Path | None, as_json: bool) -> None:
    """Print what a run of CONFIG does now; without CONFIG, the only run of yours."""
    import trio

    from qmpalloc.config import default_run_dir
    from qmpalloc.status.place import STATUS, find
    from qmpalloc.tui.status import status_of, status_text

    dashboard = trio.run(see, find(config, default_run_dir(), STATUS))
    if as_json:
        print_json(status_of(dashboard))
    else:
        table_console().print(status_text(dashboard))


async def see(path: Path) -> Dashboard:
    """Return what a run shows now.

    Raises:
        QmpallocError: It does not tell; see `qmpalloc.status.client`.
    """
    import trio

    from qmpalloc.errors import DeadlineError
    from qmpalloc.events import CaughtUp, Ended
    from qmpalloc.status.client import FIRST_S, attach
    from qmpalloc.tui import Dashboard

    dashboard = Dashboard()
    async with attach(path) as run:
        dashboard.apply(run.header)
        with trio.move_on_after(FIRST_S):
            while not isinstance(event := await run.next(), (CaughtUp, Ended)):
                dashboard.apply(event)
            dashboard.apply(event)
            return dashboard
    raise DeadlineError(f"{path}: the controller stopped telling", address=str(path), hint="is its process stopped?")
