"""``qmpalloc set``, ``hold``, ``release``, ``pause``, ``resume``: ask something of a run that goes on elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmpalloc.cli.options import Bytes, Duration

if TYPE_CHECKING:
    from qmpalloc.events import Request

which_option = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    help="Configuration of the run. [default: the only run of yours]",
)
for_option = click.option("--for", "for_s", type=Duration(), help="End it by itself after this time, e.g. 10m.")


@click.command("set")
@click.argument("guest")
@click.argument("size", type=Bytes())
@for_option
@which_option
def set_size(guest: str, size: int, for_s: float | None, config: Path | None) -> None:
    """Give GUEST the SIZE, for example 1GiB, until it is released or the run ends.

    The others give step by step what it takes, down to their floors. It is refused beyond the guest's cap, below what
    the guest needs, and where the budget does not hold it. Danger and a host that is short of memory come first.
    """
    from qmpalloc.events import Request

    _ask(config, Request(verb="set", guest=guest, size_bytes=size, for_s=for_s))


@click.command()
@click.argument("guest")
@for_option
@which_option
def hold(guest: str, for_s: float | None, config: Path | None) -> None:
    """Keep GUEST at the size it is to have now, until it is released or the run ends."""
    from qmpalloc.events import Request

    _ask(config, Request(verb="hold", guest=guest, for_s=for_s))


@click.command()
@click.argument("guest")
@which_option
def release(guest: str, config: Path | None) -> None:
    """Leave GUEST to the policy again, after set or hold."""
    from qmpalloc.events import Request

    _ask(config, Request(verb="release", guest=guest))


@click.command()
@which_option
def pause(config: Path | None) -> None:
    """Pause control, as key p of the dashboard does: guests keep their sizes, danger is still answered."""
    from qmpalloc.events import Request

    _ask(config, Request(verb="pause"))


@click.command()
@which_option
def resume(config: Path | None) -> None:
    """Let control go on after a pause."""
    from qmpalloc.events import Request

    _ask(config, Request(verb="resume"))


def _ask(config: Path | None, request: Request) -> None:
    import trio

    from qmpalloc.config import default_run_dir
    from qmpalloc.status.client import ask
    from qmpalloc.status.place import REQUESTS, find

    answer = trio.run(ask, find(config, default_run_dir(), REQUESTS), request)
    click.echo(answer.message)
