"""``qmpalloc vm``: start, list and stop the guests of a configuration."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from qmpalloc.cli import EXIT_FAILED, EXIT_INTERRUPTED
from qmpalloc.cli.options import ConfigFile, config_argument
from qmpalloc.cli.signals import StopSignals, interruptible
from qmpalloc.cli.streams import print_json
from qmpalloc.cli.vm_exec import cp, exec_
from qmpalloc.config import Config, default_run_dir
from qmpalloc.errors import ConfigError
from qmpalloc.units import format_size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trio

    from qmpalloc.qemu.launcher import Prepared
    from qmpalloc.qemu.machine import RunningGuest
    from qmpalloc.qemu.rundir import GuestRecord

optional_config = click.argument("config", type=ConfigFile(), required=False)


@click.group()
def vm() -> None:
    """Start, list and stop the guests of a configuration: those with a [guest.vm] table. Run programs in any guest."""


vm.add_command(exec_)
vm.add_command(cp)


@vm.command(short_help="Start guests and keep them until Ctrl-C.")
@config_argument
@click.option("--dry-run", is_flag=True, help="Print the command lines, each option with its reason; start nothing.")
@click.option("--detach", is_flag=True, help="Return when the guests are observed, and leave them running.")
@click.option("--no-load", is_flag=True, help="Do not start the configured loads.")
def up(config: Config, dry_run: bool, detach: bool, no_load: bool) -> None:
    """Start the guests of CONFIG and keep them until Ctrl-C.

    A guest counts as started when its agent answers and its collector counts. Build times are spent once: images and
    data disks are cached.
    """
    import trio

    from qmpalloc.qemu import launcher

    if dry_run:
        lines = launcher.command_lines(config, launcher.plan(config), detach=detach)
        click.echo("\n".join(line.shell() for line in lines), nl=False)
        return
    with interruptible():
        prepared = launcher.prepare(config, report=_report)
    sys.exit(trio.run(_up, config, prepared, detach, not no_load))


async def _up(config: Config, prepared: Prepared, detach: bool, loads: bool) -> int:
    import trio

    from qmpalloc.qemu import launcher

    code = EXIT_INTERRUPTED
    with StopSignals() as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_signal, signals.received, nursery.cancel_scope)
            async with launcher.open_guests(config, prepared=prepared, detach=detach, report=_report) as guests:
                if loads:
                    for guest in guests:
                        if await launcher.start_load(guest) is not None:
                            _report(f"{guest.name}: its load runs")
                for guest in guests:
                    _show_guest(guest)
                if detach:
                    code = 0
                else:
                    _report("Ctrl-C stops the guests")
                    ended = await launcher.wait_for_end(guests)
                    _report(f"{ended.name}: its QEMU has ended; stopping the others")
                    code = EXIT_FAILED
            nursery.cancel_scope.cancel()
    return code


async def _cancel_at_signal(received: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in received:
        _report("stopping")
        scope.cancel()


@vm.command("ls", short_help="List the guests that qmpalloc started.")
@optional_config
@click.option("--json", "as_json", is_flag=True, help="All that is known of each guest as JSON.")
def list_(config: Config | None, as_json: bool) -> None:
    """List the guests that qmpalloc started, those of CONFIG's run directory or of the default one."""
    records = _records(config)
    if as_json:
        rows = [msgspec.to_builtins(record) | {"alive": record.alive} for record in records]
        print_json(rows)
        return
    for record in records:
        state = "running" if record.alive else "gone"
        age_min = (time.time() - record.started_at_s) / 60
        facts = f"{format_size(record.memory_bytes):>6} {record.accelerator}  {age_min:6.1f} min  pid {record.pid}"
        click.echo(f"{record.name:<16} {state:<8} {facts}  {record.monitor}")
    if not records:
        click.echo(f"no guest in {_run_dir(config)}", err=True)


@vm.command(short_help="Stop guests that qmpalloc started.")
@optional_config
@click.option("--guest", "names", multiple=True, metavar="NAME", help="This one only; may be given several times.")
def down(config: Config | None, names: tuple[str, ...]) -> None:
    """Stop guests that qmpalloc started: all of CONFIG's run directory, or of the default one."""
    from qmpalloc.qemu import rundir

    records = _records(config)
    unknown = sorted(set(names) - {record.name for record in records})
    if unknown:
        raise ConfigError(f"no guest {unknown[0]} in {_run_dir(config)}", key="--guest", hint="see qmpalloc vm ls")
    for record in records:
        if not names or record.name in names:
            word = "stopped" if record.alive else "was gone already"
            rundir.stop(record)
            rundir.clear(Path(_run_dir(config)) / record.name)
            click.echo(f"{record.name}: {word}")
    if not records:
        click.echo(f"no guest in {_run_dir(config)}", err=True)


def _run_dir(config: Config | None) -> Path:
    return default_run_dir() if config is None else Path(config.host.run_dir)


def _records(config: Config | None) -> list[GuestRecord]:
    from qmpalloc.qemu import rundir

    return rundir.list_records(_run_dir(config))


def _show_guest(guest: RunningGuest) -> None:
    sockets = guest.sockets
    click.echo(f"{guest.name}: pid {guest.pid}, {guest.accelerator.name}, image {guest.image.directory.name}")
    click.echo(f"  monitor  {sockets.monitor}\n  agent    {sockets.agent}")
    click.echo(
        f"  people   qmp-shell {sockets.people}\n  console  socat -,raw,echo=0,escape=0x1d unix:{sockets.console}"
    )


def _report(line: str) -> None:
    click.echo(line, err=True)
