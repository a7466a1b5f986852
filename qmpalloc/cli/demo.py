"""``qmpalloc demo``: two guests with loads, under control, from nothing to a closing table."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmpalloc import config
from qmpalloc.cli import EXIT_INTERRUPTED
from qmpalloc.cli.options import Duration, headless_option
from qmpalloc.cli.signals import StopSignals, interruptible
from qmpalloc.cli.streams import table_console

if TYPE_CHECKING:
    from qmpalloc.config import Config
    from qmpalloc.qemu.launcher import Prepared


@click.command()
@click.option("--equal", "equal_s", type=Duration(), default="60s", show_default=True, help="Equal shares first.")
@click.option("--duration", type=Duration(), default="120s", show_default=True, help="Time of control after that.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="Instead of examples/demo.toml.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True)
@click.option("--policy", default="", metavar="NAME", help="Instead of that of the configuration, for example paper.")
@headless_option
def demo(equal_s: float, duration: float, file: Path | None, out: Path, policy: str, headless: bool) -> None:
    """Boot the guests of a configuration with their loads, run the controller, show it, and clean up.

    First the guests keep their baselines for a while; at the end a table says what the policy made of that. Leaves
    record.jsonl and summary.json; an earlier run in the same place is kept under another name.
    """
    import trio
    from msgspec import structs

    from qmpalloc.cli.conduct import PLACE_HINT
    from qmpalloc.files import check_place
    from qmpalloc.policy import load as load_policy
    from qmpalloc.qemu.launcher import prepare
    from qmpalloc.qemu.resources import demo_configuration

    loaded = config.load(file or demo_configuration())
    if policy:
        loaded = structs.replace(loaded, policy=policy, policy_settings={})
    load_policy(loaded.policy, loaded.policy_settings, file=loaded.file)  # before minutes are spent on guests
    check_place(out, hint=PLACE_HINT)  # not only after the guests have booted
    with interruptible():
        prepared = prepare(loaded, report=_say)
    sys.exit(trio.run(_demo, loaded, prepared, equal_s, duration, out, headless))


def _say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


async def _demo(loaded: Config, prepared: Prepared, equal_s: float, duration: float, out: Path, headless: bool) -> int:
    """Boot, load, control; the guests are stopped whatever happens in between."""
    import trio

    from qmpalloc.cli.conduct import Output, conduct_run, set_aside
    from qmpalloc.qemu.launcher import open_guests, start_load

    booting = trio.CancelScope()

    async def until_signal() -> None:
        await anext(signals.received)
        booting.cancel()
        _say("stopping")

    result = EXIT_INTERRUPTED
    with StopSignals() as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_signal)
            with booting:
                async with open_guests(loaded, prepared=prepared, report=_say) as guests:
                    for guest in guests:
                        if await start_load(guest) is not None:
                            _say(f"{guest.name}: its load runs")
                    set_aside(out)
                    length_s = equal_s + duration
                    output = Output.LINES if headless else Output.DASHBOARD
                    result = await conduct_run(loaded, "run", output, length_s, out, equal_s=equal_s)
                    _compare(out / "record.jsonl")
            nursery.cancel_scope.cancel()
    return result


def _compare(record: Path) -> None:
    """Print what the policy made of equal shares, if the run came so far."""
    from qmpalloc.errors import QmpallocError
    from qmpalloc.record import read_record
    from qmpalloc.tui.comparison import comparison_table

    with contextlib.suppress(
        QmpallocError, OSError, SystemExit
    ):  # no record was written; rich exits where nobody reads
        if (table := comparison_table(read_record(record))) is not None:
            table_console().print(table)
