"""``qmpalloc doctor``: check the host and every guest, and say what to do about what is missing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from qmpalloc.cli import EXIT_FAILED
from qmpalloc.cli.options import ConfigFile
from qmpalloc.cli.streams import print_json

if TYPE_CHECKING:
    from qmpalloc.config import Config
    from qmpalloc.doctor import Check

MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


@click.command()
@click.argument("config", type=ConfigFile(), required=False)
@click.option("--json", "as_json", is_flag=True, help="All checks as JSON.")
def doctor(config: Config | None, as_json: bool) -> None:
    """Check this host and, with CONFIG, every guest. Exits with 1 if a check failed."""
    from qmpalloc.cli.signals import run_until_signal
    from qmpalloc.doctor import Verdict

    checks = run_until_signal(_all_checks, config, not as_json)
    if as_json:
        print_json(checks)
    else:
        counts = {verdict: sum(check.verdict is verdict for check in checks) for verdict in Verdict}
        click.echo(f"{counts[Verdict.OK]} ok, {counts[Verdict.WARN]} warnings, {counts[Verdict.FAIL]} failed")
    sys.exit(EXIT_FAILED if any(check.verdict is Verdict.FAIL for check in checks) else 0)


async def _all_checks(config: Config | None, show: bool) -> list[Check]:
    from qmpalloc.doctor import check_guest, check_host

    checks = []
    for check in check_host(config):
        checks.append(check)
        if show:
            _print(check)
    for guest in config.guests if config is not None else ():
        assert config is not None
        async for check in check_guest(guest, config.control):
            checks.append(check)
            if show:
                _print(check)
    return checks


def _print(check: Check) -> None:
    mark, colour = MARKS[check.verdict]
    line = f"{click.style(mark, fg=colour)} {check.subject:<10} {check.name}: {check.detail}"
    click.echo(f"{line}\n{'':13}→ {check.todo}" if check.todo else line)
