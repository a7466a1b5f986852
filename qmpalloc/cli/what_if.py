"""``qmpalloc what-if``: what other policies would have missed in a recorded run."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmpalloc.cli.options import ParamType
from qmpalloc.cli.streams import print_json
from qmpalloc.errors import ConfigError

if TYPE_CHECKING:
    from qmpalloc.sim.what_if import Outcome

HEAD = ("policy", "misses", "of recorded", "misses by accesses", "moves", "sizes in the end")


class PolicyWords(ParamType[tuple[str, dict[str, Any]]]):
    """A policy with settings, separated by commas: ``paper,gate=dead-band``."""

    name = "policy"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, dict[str, Any]]:
        """Return the name and the settings."""
        if isinstance(value, tuple):
            return value
        name, *words = value.split(",")
        settings = {}
        for word in words:
            key, equals, text = word.partition("=")
            if not equals:
                self.fail(f"{word!r} is no setting; for example paper,gate=dead-band", param, ctx)
            try:
                settings[key] = tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError:
                settings[key] = text  # words need no quotes
        return name, settings


@click.command()
@click.argument("record", type=click.Path(path_type=Path))
@click.option("--policy", "policies", type=PolicyWords(), multiple=True, required=True,
              help="Such as paper,gate=dead-band; may be repeated.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The table as JSON: counts in pages, sizes in bytes.")
def what_if(record: Path, policies: tuple[tuple[str, dict[str, Any]], ...], as_json: bool) -> None:
    """Show what other policies would have missed in the run of RECORD (record.jsonl), had the guests read the same.

    The guests' recorded curves drive a model. The record's own policy comes first, also in the model: how far that is
    from what was counted tells what to think of the rest. See docs/sweeps.md.
    """
    from qmpalloc.events import Decided, Header
    from qmpalloc.policy import load
    from qmpalloc.record import read_record
    from qmpalloc.sim import what_if as model

    events = read_record(record)
    header = next(events)
    assert isinstance(header, Header)
    chosen = [(_words(name, settings), load(name, settings)) for name, settings in policies]
    snapshots = [event.snapshot for event in events if isinstance(event, Decided)]
    if not snapshots:
        hint = "'qmpalloc run' and experiments record decisions; 'qmpalloc watch' does not"
        raise ConfigError("holds no decisions", file=str(record), hint=hint)
    counted = model.recorded(snapshots)
    try:
        own = load(header.policy, header.config.get("policy_settings", {}), file=str(record))
    except ConfigError:  # its own module is not here
        told = f"the record's policy {header.policy} cannot be loaded here: how far off the model is, is not shown"
        click.echo(told, err=as_json)
    else:
        chosen.insert(0, (f"{header.policy} (its own)", own))
    rows = [("recorded", counted), *((name, model.what_if(snapshots, policy)) for name, policy in chosen)]
    if as_json:
        print_json([{"policy": name, "outcome": found} for name, found in rows])
        return
    click.echo(f"{len(snapshots)} decisions in {snapshots[-1].time_s:.0f} s, {counted.accesses:,.0f} accesses")
    for line in _table(rows, counted):
        click.echo(line)
    if counted.unknown > 0:
        click.echo(f"{counted.unknown:.1%} of the accesses are of guests without a curve: taken as recorded")
    if counted.endangered:
        told = f"a guest was in danger at {counted.endangered} of {len(snapshots)} decisions"
        click.echo(f"warning: {told}, and is taken to be then in the model, too: do not rely on what it says")


def _words(name: str, settings: dict[str, Any]) -> str:
    return ",".join([name, *(f"{key}={value}" for key, value in settings.items())])


def _table(rows: list[tuple[str, Outcome]], counted: Outcome) -> Iterator[str]:
    from qmpalloc.units import format_size

    cells = [HEAD]
    for name, found in rows:
        share = f"{found.misses / counted.misses:.2f}" if counted.misses else "-"
        sizes = ", ".join(f"{guest} {format_size(size)}" for guest, size in found.sizes_bytes.items())
        cells.append((name, f"{found.misses:,.0f}", share, f"{found.miss_ratio:.4f}", str(found.moves), sizes))
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
