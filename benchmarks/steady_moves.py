"""Does a policy rest while the loads stay as they are? An hour of the model, for every mix of loads.

    python benchmarks/steady_moves.py [--hours 1] [--lru two_list|lru_gen|both] [--policy curve] [MIX ...]

Guests are those of `split_mixes.py`. After 80 s of a static split and `--converge` seconds under the policy (5 minutes)
counting begins: decisions that changed a size, MiB moved by them, the largest move, and how far the sizes at the end
are from those at the beginning.
"""

from __future__ import annotations

import functools
import multiprocessing

import click
from split_mixes import INTERVAL_S, WARM

from qmpalloc.policy import load
from qmpalloc.sim.mixes import MIXES, Mix
from qmpalloc.sim.replay import ReplayHost
from qmpalloc.units import MIB


def study(task: tuple[Mix, str], *, policy: str, converge_s: float, seconds: float) -> str:
    """Run one mix and return its line of the table."""
    mix, lru = task
    guests = mix.guests(lru)
    host, chosen = ReplayHost(guests, budget_bytes=mix.budget_bytes, interval_s=INTERVAL_S), load(policy, {})
    for _ in range(WARM):
        host.step(None)
    for _ in range(round(converge_s / INTERVAL_S)):
        host.step(chosen)
    moves, moved, begin = host.moves, host.moved_bytes, [guest.size_bytes for guest in guests]
    largest = 0
    for _ in range(round(seconds / INTERVAL_S)):
        before = host.moved_bytes
        host.step(chosen)
        largest = max(largest, host.moved_bytes - before)
    sizes = "/".join(str(guest.size_bytes // MIB) for guest in guests)
    drift = max(abs(guest.size_bytes - size) for guest, size in zip(guests, begin, strict=True))
    return (
        f"| {lru} | {mix.name} ({mix.budget_bytes // MIB}) | {host.moves - moves} "
        f"| {(host.moved_bytes - moved) // MIB} | {largest // MIB} | {drift // MIB} | {sizes} |"
    )


@click.command()
@click.option("--hours", default=1.0, show_default=True, help="Of the model.")
@click.option("--converge", default=300.0, show_default=True, help="Seconds under the policy before counting.")
@click.option("--lru", type=click.Choice(["two_list", "lru_gen", "both"]), default="both", show_default=True)
@click.option("--policy", default="curve", show_default=True)
@click.option("--processes", default=2, show_default=True)
@click.argument("names", metavar="[MIX ...]", nargs=-1)
def main(hours: float, converge: float, lru: str, policy: str, processes: int, names: tuple[str, ...]) -> None:
    """Run and print a table, a line as soon as its mix is done."""
    chosen = [mix for mix in MIXES if not names or any(name in mix.name for name in names)]
    kinds = ["two_list", "lru_gen"] if lru == "both" else [lru]
    one = functools.partial(study, policy=policy, converge_s=converge, seconds=3600.0 * hours)
    click.echo("| page replacement | mix (MiB) | moves | MiB moved | largest | drift, MiB | sizes at the end |")
    click.echo("|---" * 7 + "|")
    with multiprocessing.Pool(processes) as pool:
        for line in pool.imap_unordered(one, [(mix, kind) for kind in kinds for mix in chosen]):
            click.echo(line)


if __name__ == "__main__":
    main()
