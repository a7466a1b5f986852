"""Run chaos from the command line."""

from __future__ import annotations

import sys

import click

from tests.chaos.run import run_chaos
from tests.chaos.witness import ViolationError


@click.command()
@click.option("--seed", default=1, show_default=True)
@click.option("--guests", default=10, show_default=True)
@click.option("--cycles", default=1000, show_default=True, help="Decisions of the loop.")
def main(seed: int, guests: int, cycles: int) -> None:
    """Run chaos and tell what was seen; exit code 1 when something did not hold."""
    try:
        chaos = run_chaos(seed=seed, guests=guests, cycles=cycles)
    except ViolationError as error:
        click.echo(f"seed {seed}, {guests} guests: VIOLATION: {error}", err=True)
        sys.exit(1)
    witness = chaos.witness
    click.echo(
        f"seed {seed}: {guests} guests, {witness.decisions} decisions, {chaos.restarts} controllers, "
        f"{chaos.reloads} reloads; violations: 0"
    )
    click.echo(
        f"guest-cycles with a fault: {witness.guest_cycles}, without: {chaos.sound_guest_cycles}; "
        f"faults shown: {witness.shown.total()}"
    )
    click.echo(f"spoilt samples told: {witness.dropped}")
    click.echo(f"use: {chaos.use}")
    for name, count in sorted(witness.shown.items()):
        click.echo(f"  {count:6} {name}")


if __name__ == "__main__":
    main()
