"""Random mixes of loads that change at random: is a guest's host ever worse off than with equal shares?

    python benchmarks/random_mixes.py [--seeds 1-20] [--csv FILE]

A seed draws two or three guests that read or map a file, under one of the page replacements, and up to six changes of
load. 80 s of equal shares come first, then 400 s under policy `curve`, with a decision every 5 s, which are counted.
Told are the hits in % of all accesses, mapped ones included, worst first.
"""

from __future__ import annotations

import csv
import multiprocessing
from pathlib import Path
from typing import Any

import click
import numpy as np
from msgspec import Struct, structs

from qmpalloc.experiment.spec.access import Access, HotCold, Normal, Sequential, Uniform, Zipf
from qmpalloc.policy import load
from qmpalloc.sim.mapped_guest import MappedGuest
from qmpalloc.sim.replay import ReplayGuest, ReplayHost
from qmpalloc.units import MIB

WARM_S, COUNTED_S, INTERVAL_S = 80.0, 400.0, 5.0
SHARE, FLOOR, SCALE = 600 * MIB, 224 * MIB, 8
LOADS: tuple[Access, ...] = (
    Uniform(), Normal(deviation=0.1), Normal(deviation=0.25), Zipf(exponent=0.99), HotCold(hot=0.1, hot_reads=0.9),
    Sequential(),
)  # fmt: skip


class Load(Struct, frozen=True, kw_only=True):
    """What a guest does from some time on."""

    access: Access
    file_bytes: int
    accesses_per_s: float


class Mix(Struct, frozen=True, kw_only=True):
    """What a seed draws: whether each guest maps its file, its first load, and changes: time, guest, load."""

    lru: str
    maps: tuple[bool, ...]
    first: tuple[Load, ...]
    changes: tuple[tuple[float, int, Load], ...]


def drawn(seed: int) -> Mix:
    """Return the mix of a seed."""
    generator = np.random.default_rng(seed)

    def some_load() -> Load:
        return Load(
            access=LOADS[generator.integers(len(LOADS))],
            file_bytes=int(generator.integers(64, 1500)) * MIB,
            accesses_per_s=float(np.exp(generator.uniform(np.log(20), np.log(20_000)))),
        )

    count = int(generator.integers(2, 4))
    times = np.sort(generator.uniform(WARM_S, WARM_S + COUNTED_S, int(generator.integers(0, 7))))
    return Mix(
        lru=("lru_gen", "two_list")[generator.integers(2)],
        maps=tuple(bool(generator.random() < 0.3) for _ in range(count)),
        first=tuple(some_load() for _ in range(count)),
        changes=tuple((float(time), int(generator.integers(count)), some_load()) for time in times),
    )


def hit_ratio(mix: Mix, seed: int, policy: str | None) -> tuple[float, int]:
    """Return the share of accesses that hit, and how often sizes were changed."""
    guests: list[ReplayGuest] = []
    for number, (maps, first) in enumerate(zip(mix.maps, mix.first, strict=True)):
        options: dict[str, Any] = {} if maps else {"lru": mix.lru, "observed": policy is not None}
        guests.append(
            (MappedGuest if maps else ReplayGuest)(
                f"g{number}", first.access, file_bytes=first.file_bytes, accesses_per_s=first.accesses_per_s,
                size_bytes=SHARE, floor_bytes=FLOOR, cap_bytes=SHARE * len(mix.maps), seed=seed + number, scale=SCALE,
                **options,
            )
        )  # fmt: skip
    host = ReplayHost(guests, budget_bytes=SHARE * len(guests), interval_s=INTERVAL_S)
    chosen, changes = None if policy is None else load(policy, {}), list(mix.changes)
    hits = accesses = 0.0
    while host.time_s < WARM_S + COUNTED_S:
        while changes and changes[0][0] <= host.time_s:
            _, number, now = changes.pop(0)
            guests[number].load(now.access, now.file_bytes)
            guests[number].accesses_per_s = now.accesses_per_s
        host.step(None if host.time_s < WARM_S else chosen)
        if host.time_s > WARM_S:
            hits += sum(guest.hits for guest in guests)
            accesses += sum(guest.hits + guest.misses for guest in guests)
    return hits / max(1.0, accesses), host.moves


class Outcome(Struct, frozen=True, kw_only=True):
    """Hits in % of all accesses; negative points are lost."""

    seed: int
    loads: str
    static_percent: float
    curve_percent: float
    points: float
    moves: int


def outcome(seed: int) -> Outcome:
    """Return what comes of a seed."""
    mix = drawn(seed)
    static, (curve, moves) = hit_ratio(mix, seed, None)[0], hit_ratio(mix, seed, "curve")
    kinds = [
        f"{type(first.access).__name__.lower()}{' mapped' * maps}"
        for maps, first in zip(mix.maps, mix.first, strict=True)
    ]
    return Outcome(
        seed=seed,
        loads=f"{' + '.join(kinds)}; {len(mix.changes)} changes; {mix.lru}",
        static_percent=round(100 * static, 2),
        curve_percent=round(100 * curve, 2),
        points=round(100 * (curve - static), 2),
        moves=moves,
    )


@click.command()
@click.option("--seeds", default="1-20", show_default=True, metavar="A-B")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write the rows to this file, too.")
@click.option("--processes", default=2, show_default=True)
def main(seeds: str, csv_file: Path | None, processes: int) -> None:
    """Run the mixes and print a table, worst first."""
    first, _, last = seeds.partition("-")
    numbers = range(int(first), int(last or first) + 1)
    with multiprocessing.Pool(processes) as pool, click.progressbar(length=len(numbers)) as bar:
        found = []
        for one in pool.imap_unordered(outcome, numbers):
            found.append(one)
            bar.update(1)
    found.sort(key=lambda one: one.points)
    head = Outcome.__struct_fields__
    click.echo(f"| {' | '.join(head)} |\n" + "|---" * len(head) + "|")
    for one in found:
        click.echo(f"| {' | '.join(map(str, structs.astuple(one)))} |")
    if csv_file is not None:
        with csv_file.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([head, *map(structs.astuple, found)])


if __name__ == "__main__":
    main()
