"""``qmpalloc guest``: the collector brought into guests that run, and taken out of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from qmpalloc.cli import EXIT_FAILED, show_error
from qmpalloc.cli.options import WaysFile, wait_option
from qmpalloc.cli.signals import run_until_signal
from qmpalloc.errors import QmpallocError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qmpalloc.channel import Channel
    from qmpalloc.cli.ways import Ways
    from qmpalloc.qemu.channels import Way

    Work = Callable[[Channel, Way], Awaitable[None]]

guests_option = click.option(
    "--guest", "names", multiple=True, metavar="NAME", help="This one only; may be given several times."
)
config_argument = click.argument("ways", metavar="CONFIG", type=WaysFile())


@click.group()
def guest() -> None:
    """Bring the collector into guests that run, or take it out of them.

    Through what `channel` in a guest's table says: its agent, if that may execute programs, or a command of this host
    such as ssh.
    """


@guest.command(short_help="Install the collector, or update it.")
@config_argument
@guests_option
@wait_option
def install(ways: Ways, names: tuple[str, ...], wait_s: float) -> None:
    """Install the collector in the guests of CONFIG, or update it, and wait for the first sample.

    CONFIG may be an experiment, too: its guests with [guest.attach].

    Checks what it needs: bcc, headers and type information of the running kernel, Python 3.9; what is missing is named
    with its package. Started now and at every boot, by systemd, OpenRC or a script in /etc/init.d. What fails leaves a
    guest as it was, and the others go on.
    """
    from qmpalloc import installation

    async def work(channel: Channel, way: Way) -> None:
        _say(way.guest, "installing the collector")
        seconds, notes = await installation.install(channel, way.guest, way.counters_file)
        for note in notes:
            _say(way.guest, note)
        click.echo(f"{way.guest}: the first sample came {seconds:.1f} s after the installation began")

    sys.exit(run_until_signal(_each, ways, names, wait_s, work))


@guest.command(short_help="Take the collector out.")
@config_argument
@guests_option
@wait_option
def remove(ways: Ways, names: tuple[str, ...], wait_s: float) -> None:
    """Take the collector out of the guests of CONFIG: stop it, and remove all that was installed."""
    from qmpalloc import installation

    async def work(channel: Channel, way: Way) -> None:
        click.echo(f"{way.guest}: {await installation.remove(channel, way.guest)}")

    sys.exit(run_until_signal(_each, ways, names, wait_s, work))


async def _each(ways: Ways, names: tuple[str, ...], wait_s: float, work: Work) -> int:
    """Do something in one guest after the other; one that fails does not stop the others."""
    from qmpalloc.channel import open_channel

    chosen = [ways.into(name) for name in names] or ways.guests
    code = 0
    for way in chosen:
        try:
            opened = open_channel(
                way.channel, guest=way.guest, agent=way.agent, wait_s=wait_s, report=_report, directory=way.directory
            )
            async with opened as channel:
                await work(channel, way)
        except* QmpallocError as group:
            for error in _leaves(group):
                show_error(error)
            code = EXIT_FAILED
    return code


def _leaves(group: BaseExceptionGroup[QmpallocError]) -> list[QmpallocError]:
    found: list[QmpallocError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _say(name: str, line: str) -> None:
    _report(f"{name}: {line}")


def _report(line: str) -> None:
    click.echo(line, err=True)
