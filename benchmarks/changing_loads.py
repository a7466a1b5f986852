"""Policies on loads that change: guests that swap their loads, rest, start programs, or hardly read.

    python benchmarks/changing_loads.py [--lru lru_gen] [--seed 1] [--arms static,curve] [MIX ...]

Guests replay seeded references through a model of their page replacement. For all arms 80 s of a static split come
first, then 600 s under the policy with a decision every 5 s, which are counted. "best": the best of all fixed splits in
steps of 32 MiB (two guests; more guests: by the curves measured with the same references).
"""

from __future__ import annotations

import csv
import itertools
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
from msgspec import Struct

from qmpalloc.curves.simulation import POLICIES
from qmpalloc.curves.split import best_split
from qmpalloc.experiment.spec.access import Access, HotCold, Normal, Uniform, Zipf
from qmpalloc.policy import load
from qmpalloc.rules.promises import KeepsPromises
from qmpalloc.sim.replay import ReplayGuest, ReplayHost
from qmpalloc.units import GIB, MIB, PAGE_BYTES

WARM_S, COUNTED_S, INTERVAL_S = 80.0, 600.0, 5.0
FLOOR, OWN, SCALE = 224 * MIB, 160 * MIB, 8
STEP = 32 * MIB

Change = Callable[[Sequence[ReplayGuest], float], None]


class Part(Struct, frozen=True, kw_only=True):
    """What a guest reads at first."""

    access: Access
    file_bytes: int = GIB
    accesses_per_s: float = 16_000.0
    weight: float = 1.0


class Unseen(Struct, frozen=True, kw_only=True):
    """A mix, and what changes at a time (seconds since the start); a page of the model stands for `scale` pages."""

    parts: tuple[Part, ...]
    budget_bytes: int = 1200 * MIB
    change: Change | None = None
    scale: int = SCALE

    def guests(self, lru: str, seed: int, *, observed: bool = True) -> list[ReplayGuest]:
        """Return the guests, each with an equal share."""
        share = self.budget_bytes // len(self.parts) // MIB * MIB
        return [
            ReplayGuest(
                f"g{index}", part.access, file_bytes=part.file_bytes, accesses_per_s=part.accesses_per_s,
                size_bytes=share, cap_bytes=self.budget_bytes, floor_bytes=FLOOR, lru=lru, seed=seed, observed=observed,
                weight=part.weight, scale=self.scale,
            )
            for index, part in enumerate(self.parts, 1)
        ]  # fmt: skip


def swapping(period_s: float) -> Change:
    """Return that two guests swap a small load and a large one."""

    def change(guests: Sequence[ReplayGuest], time_s: float) -> None:
        turn = time_s / period_s
        if turn >= 1 and turn.is_integer():
            small = int(turn) % 2
            for number, guest in enumerate(guests):
                size = 256 * MIB if number == small else GIB
                guest.load(Normal(deviation=0.15), size, file=None if turn == 1 else 2 - int(turn) % 2)

    return change


def resting(period_s: float, rates: tuple[float, float]) -> Change:
    """Return that the first guest reads at two rates in turn."""

    def change(guests: Sequence[ReplayGuest], time_s: float) -> None:
        guests[0].accesses_per_s = rates[int(time_s / period_s) % 2]

    return change


def program(start_s: float, end_s: float, size_bytes: int) -> Change:
    """Return that a program of that size starts and ends in the first guest."""
    return lambda guests, time_s: _hold(guests[0], size_bytes * (start_s <= time_s < end_s))


def programs(period_s: float, size_bytes: int) -> Change:
    """Return that a program of that size runs in the first guest every second period."""
    return lambda guests, time_s: _hold(guests[0], size_bytes * (int(time_s / period_s) % 2))


def _hold(guest: ReplayGuest, size_bytes: int) -> None:
    """Let programs hold so much of a guest's memory."""
    if guest.own_bytes != OWN + size_bytes:
        guest.own_bytes = OWN + size_bytes
        guest.resize(guest.size_bytes)


def other_file(at_s: float) -> Change:
    """Return that the first guest reads another file of the same size from then on."""

    def change(guests: Sequence[ReplayGuest], time_s: float) -> None:
        if time_s == at_s:
            guests[0].load(Uniform(), 640 * MIB)

    return change


_NORMAL = Part(access=Normal(deviation=0.15))
MIXES = {
    "swap each 30 s": Unseen(
        parts=(Part(access=Normal(deviation=0.15), file_bytes=256 * MIB), _NORMAL), change=swapping(30)
    ),
    "swap each 60 s": Unseen(
        parts=(Part(access=Normal(deviation=0.15), file_bytes=256 * MIB), _NORMAL), change=swapping(60)
    ),
    "swap each 120 s": Unseen(
        parts=(Part(access=Normal(deviation=0.15), file_bytes=256 * MIB), _NORMAL), change=swapping(120)
    ),
    "rests each 60 s": Unseen(
        parts=(Part(access=Zipf(exponent=0.99), accesses_per_s=32_000), Part(access=Normal(deviation=0.2))),
        change=resting(60, (32_000.0, 8.0)),
    ),
    "six guests": Unseen(
        parts=(
            Part(access=Zipf(exponent=0.99)),
            Part(access=Normal(deviation=0.1), accesses_per_s=8_000),
            Part(access=Normal(deviation=0.25)),
            Part(access=HotCold(hot=0.1, hot_reads=0.9), accesses_per_s=4_000),
            Part(access=Uniform(), file_bytes=512 * MIB, accesses_per_s=2_000),
            Part(access=Zipf(exponent=1.2), accesses_per_s=8_000),
        ),
        budget_bytes=2400 * MIB,
    ),
    "a program for 200 s": Unseen(
        parts=(Part(access=Normal(deviation=0.2), accesses_per_s=8_000), Part(access=Zipf(exponent=0.9))),
        change=program(250, 450, 192 * MIB),
    ),
    "another file": Unseen(
        parts=(
            Part(access=Uniform(), file_bytes=640 * MIB, accesses_per_s=4_000),
            Part(access=Normal(deviation=0.15), file_bytes=480 * MIB),
        ),
        change=other_file(250),
    ),
    "nearly idle + slow": Unseen(
        parts=(
            Part(access=Uniform(), file_bytes=64 * MIB, accesses_per_s=14),
            Part(access=Normal(deviation=0.15), accesses_per_s=600),
        ),
    ),
    "idle + normal": Unseen(parts=(Part(access=Uniform(), file_bytes=64 * MIB, accesses_per_s=0), _NORMAL)),
}


class Outcome(Struct):
    """What came out of an arm; hits and accesses of each guest count by its weight."""

    hits: float = 0.0
    accesses: float = 0.0
    moves: int = 0
    sizes: str = ""


def run(mix: Unseen, lru: str, seed: int, policy: str | None, sizes: Sequence[int] | None = None) -> Outcome:
    """Run one arm."""
    chosen = None if policy is None else load(policy, {})
    guests = mix.guests(lru, seed, observed=isinstance(chosen, KeepsPromises))  # as those do that learn what is read
    if sizes is not None:
        for guest, size in zip(guests, sizes, strict=True):
            guest.resize(size)
    host = ReplayHost(guests, budget_bytes=mix.budget_bytes, interval_s=INTERVAL_S)
    outcome = Outcome()
    while host.time_s < WARM_S + COUNTED_S:
        if mix.change is not None:
            mix.change(guests, host.time_s)
        host.step(chosen if host.time_s >= WARM_S else None)
        if host.time_s > WARM_S:
            outcome.hits += sum(guest.weight * guest.hits for guest in guests)
            outcome.accesses += sum(guest.weight * (guest.hits + guest.misses) for guest in guests)
    outcome.moves, outcome.sizes = host.moves, "/".join(str(guest.size_bytes // MIB) for guest in guests)
    return outcome


def best_fixed(mix: Unseen, lru: str, seed: int, step: int = STEP) -> Outcome:
    """Return the best outcome of a fixed split, in steps of so many bytes."""
    if len(mix.parts) == 2:
        splits: list[tuple[int, ...]] = [
            (first, mix.budget_bytes - first) for first in range(FLOOR, mix.budget_bytes - FLOOR + 1, step)
        ]
    else:
        most = mix.budget_bytes - FLOOR * (len(mix.parts) - 1)
        grid = np.arange(FLOOR, most + 1, step)
        values = []
        for guest, part in zip(mix.guests(lru, seed, observed=False), mix.parts, strict=True):
            count = int((WARM_S + COUNTED_S) * part.accesses_per_s / mix.scale)
            numbers, pages = list(itertools.islice(guest.references, count)), guest.file_pages // mix.scale
            ratios = []
            for size in grid:
                room = max(1, int(size - OWN) // PAGE_BYTES // mix.scale)
                cache = POLICIES[lru](room, pages, scale=mix.scale)
                warm = len(numbers) // 8
                cache.read(numbers[:warm])
                ratios.append(cache.read(numbers[warm:]) / (len(numbers) - warm))
            values.append(part.weight * part.accesses_per_s * (1.0 - np.minimum.accumulate(ratios)))
        units = (mix.budget_bytes - FLOOR * len(mix.parts)) // step
        splits = [tuple(int(grid[count]) for count in best_split(values, units))]
    return max((run(mix, lru, seed, None, sizes) for sizes in splits), key=lambda outcome: outcome.hits)


def study(task: tuple[str, str, int, tuple[str, ...], bool]) -> list[list[str]]:
    """Run all arms on a mix and return a row for each."""
    name, lru, seed, arms, best = task
    mix = MIXES[name]
    outcomes = {arm: run(mix, lru, seed, arm) for arm in arms}
    if best:
        outcomes["best fixed split"] = best_fixed(mix, lru, seed)
    static, top = outcomes.get("static"), outcomes.get("best fixed split")
    rows = []
    for arm, one in outcomes.items():
        misses = one.accesses - one.hits
        less = f"{misses / max(1.0, static.accesses - static.hits):.3f}" if static is not None else ""
        share = f"{100 * one.hits / max(1.0, top.hits):.1f}" if top is not None else ""
        hits = f"{100 * one.hits / one.accesses:.2f}"
        rows.append([name, lru, str(seed), arm, hits, share, f"{misses / 1e6:.2f}", less, str(one.moves), one.sizes])
    return rows


HEAD = ("mix", "page replacement", "seed", "arm", "hits %", "of best %", "M misses", "of static", "moves", "sizes MiB")


@click.command()
@click.option("--lru", default="lru_gen", show_default=True, type=click.Choice(["two_list", "lru_gen"]))
@click.option("--seed", default=1, show_default=True)
@click.option("--arms", default="static,curve", show_default=True)
@click.option("--best/--no-best", default=True, show_default=True, help="Search the best fixed split: takes long.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write the rows to this file, too.")
@click.option("--processes", default=2, show_default=True)
@click.argument("names", metavar="[MIX ...]", nargs=-1)
def main(
    lru: str, seed: int, arms: str, best: bool, csv_file: Path | None, processes: int, names: tuple[str, ...]
) -> None:
    """Run and print each mix as soon as it is done."""
    chosen = [name for name in MIXES if not names or any(part in name for part in names)]
    found = []
    click.echo(f"| {' | '.join(HEAD)} |\n" + "|---" * len(HEAD) + "|")
    with multiprocessing.Pool(processes) as pool:
        for rows in pool.imap(study, [(name, lru, seed, tuple(arms.split(",")), best) for name in chosen]):
            found += rows
            for row in rows:
                click.echo(f"| {' | '.join(row)} |")
    if csv_file is not None:
        with csv_file.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([HEAD, *found])


if __name__ == "__main__":
    main()
