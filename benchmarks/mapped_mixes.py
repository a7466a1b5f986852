"""Guests that map their files beside guests that read theirs, in the model: what knowing refault distances is worth.

    python benchmarks/mapped_mixes.py [--seed 1] [--lru lru_gen] [MIX ...]

80 s of equal shares, then 400 s under each arm with a decision every 5 s. Told are page-ins of the last 200 s, of both
guests, by those of equal shares: of `curve` without and with refault distances, and of the best fixed split in steps of
32 MiB.
"""

from __future__ import annotations

import click

from qmpalloc.experiment.spec.access import Access, HotCold, Normal, Sequential, Uniform, Zipf
from qmpalloc.policy import load
from qmpalloc.sim.mapped_guest import MappedGuest
from qmpalloc.sim.replay import ReplayGuest, ReplayHost
from qmpalloc.units import MIB

BUDGET, FLOOR, STEP = 1200 * MIB, 224 * MIB, 32 * MIB
WARM_S, RUN_S, COUNTED_S, INTERVAL_S = 80.0, 400.0, 200.0, 5.0

Loads = tuple[tuple[Access, int, float], tuple[Access, int, float]]
MIXES: dict[str, Loads] = {
    "lacks, beside one that lacks less": ((Normal(deviation=0.15), 1024, 8_000), (Normal(deviation=0.15), 700, 2_000)),
    "lacks less than the reader": ((Normal(deviation=0.15), 700, 2_000), (Normal(deviation=0.15), 1024, 8_000)),
    "Zipf, beside Zipf": ((Zipf(exponent=0.99), 1024, 8_000), (Zipf(exponent=0.99), 1024, 8_000)),
    "uniform that would fit": ((Uniform(), 640, 4_000), (HotCold(hot=0.1, hot_reads=0.9), 1024, 8_000)),
    "goes round more than fits": ((Sequential(), 2048, 4_000), (Normal(deviation=0.15), 1024, 8_000)),
    "goes round what would fit": ((Sequential(), 640, 4_000), (Normal(deviation=0.3), 1024, 4_000)),
    "fits, beside one that lacks": ((Uniform(), 300, 4_000), (Normal(deviation=0.15), 1024, 8_000)),
    "slow, beside a fast one": ((Uniform(), 700, 50), (Normal(deviation=0.15), 1024, 8_000)),
}
"""Of the guest that maps and of the one that reads: access, MiB of the file, touches or reads a second."""


def guests(mix: str, lru: str, seed: int, *, distances: bool = True, observed: bool = True) -> list[ReplayGuest]:
    """Return both guests, each with an equal share."""
    made: list[ReplayGuest] = []
    for kind, name, (access, mib, rate) in zip((MappedGuest, ReplayGuest), ("maps", "reads"), MIXES[mix], strict=True):
        more = {"ghosts": distances} if kind is MappedGuest else {"observed": observed, "lru": lru}
        made.append(
            kind(name, access, file_bytes=mib * MIB, accesses_per_s=rate, size_bytes=BUDGET // 2, floor_bytes=FLOOR,
                 cap_bytes=BUDGET, seed=seed, **more)
        )  # fmt: skip
    return made


def page_ins(made: list[ReplayGuest], policy: str | None, sizes: tuple[int, int] | None = None) -> tuple[float, int]:
    """Return the page-ins that are counted, and how often sizes were changed."""
    host = ReplayHost(made, budget_bytes=BUDGET, interval_s=INTERVAL_S)
    chosen, counted = None if policy is None else load(policy, {}), 0.0
    while host.time_s < WARM_S + RUN_S:
        warm = host.time_s < WARM_S
        if sizes is not None and host.time_s == WARM_S:
            for guest, size in zip(made, sizes, strict=True):
                guest.resize(size)
        host.step(None if warm else chosen)
        if host.time_s > WARM_S + RUN_S - COUNTED_S:
            counted += sum(guest.misses for guest in made)
    return counted, host.moves


@click.command()
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--lru", type=click.Choice(["lru_gen", "two_list"]), default="lru_gen", show_default=True, help="Reader's."
)
@click.option("--best/--no-best", default=True, help="Also every fixed split.")
@click.argument("names", metavar="[MIX ...]", nargs=-1, type=click.Choice(list(MIXES)))
def main(seed: int, lru: str, best: bool, names: tuple[str, ...]) -> None:
    """Print a table."""
    click.echo("| maps | static, page-ins | curve without distances | curve | moves | best fixed split |")
    click.echo("|---" * 6 + "|")
    for name in names or MIXES:
        static, _ = page_ins(guests(name, lru, seed, observed=False), None)
        without, _ = page_ins(guests(name, lru, seed, distances=False), "curve")
        known, moves = page_ins(guests(name, lru, seed), "curve")
        fixed = ""
        if best:
            splits = [(size, BUDGET - size) for size in range(FLOOR, BUDGET - FLOOR + 1, STEP)]
            least = min(page_ins(guests(name, lru, seed, observed=False), None, split)[0] for split in splits)
            fixed = f"{least / static:.2f}"
        click.echo(f"| {name} | {static:,.0f} | {without / static:.2f} | {known / static:.2f} | {moves} | {fixed} |")


if __name__ == "__main__":
    main()
