"""All policies on all loads of the model: the ten mixes, and loads that change.

    python benchmarks/rivals.py --csv docs/results/data/rivals.csv [--seeds 1,2,3] [--lru both] [--arms …] [MIX ...]
    python benchmarks/rivals.py --csv docs/results/data/rivals.csv --table

Guests replay seeded references through a model of their page replacement. For all arms 80 s of a static split come
first, then 600 s under the policy with a decision every 5 s, which are counted. The best, 100 %, is the best of all
arms of the run and, where loads do not change, of all fixed splits (in steps of 64 MiB for two guests, by measured
curves for more). What is in the file already is not run again. `--table` runs nothing and prints what is there.
"""

from __future__ import annotations

import csv
import math
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import changing_loads
import click
from changing_loads import COUNTED_S, WARM_S, Change, Part, Unseen, best_fixed, resting, run
from msgspec import Struct, structs

from qmpalloc.experiment.spec.access import HotCold, Normal, Uniform, Zipf
from qmpalloc.experiment.spec.references import page_numbers
from qmpalloc.sim.mixes import MIXES
from qmpalloc.sim.replay import ReplayGuest
from qmpalloc.units import GIB, MIB, PAGE_BYTES

ARMS = ("static", "proxmox", "mom", "qubes", "qemus", "idle-tax", "curve")
BEST = "best fixed split"
STEP, SCALE = 64 * MIB, 16
_BACKUP_BYTES = 2 * GIB


def bursts(every_s: float, for_s: float, rates: tuple[float, float]) -> Change:
    """Return that the first guest reads at the second rate for a while, again and again."""

    def change(guests: Sequence[ReplayGuest], time_s: float) -> None:
        guests[0].accesses_per_s = rates[time_s % every_s >= every_s - for_s]

    return change


def wakes(at_s: float, rate: float) -> Change:
    """Return that the first guest reads nothing until then."""

    def change(guests: Sequence[ReplayGuest], time_s: float) -> None:
        guests[0].accesses_per_s = rate if time_s >= at_s else 0.0

    return change


def swinging(period_s: float, sizes: tuple[int, ...]) -> Change:
    """Return that what the first guest reads of its file grows and shrinks."""

    def change(guests: Sequence[ReplayGuest], time_s: float) -> None:
        if time_s % period_s == 0:
            there_and_back = [*sizes, *sizes[-2:0:-1]]
            guests[0].load(Normal(deviation=0.15), there_and_back[int(time_s / period_s) % len(there_and_back)], file=1)

    return change


def diurnal(period_s: float, rate: float) -> Change:
    """Return that two guests are busy in turn, as by day and by night: rates go up and down by four fifths."""

    def change(guests: Sequence[ReplayGuest], time_s: float) -> None:
        for guest, sign in zip(guests, (1, -1), strict=True):
            guest.accesses_per_s = rate * (1.0 + sign * 0.8 * math.sin(2 * math.pi * time_s / period_s))

    return change


class _WithBackup:
    """References of a load, and while a backup runs as many to a file beside it, once from end to end."""

    def __init__(self, of_load: Iterator[int], first: int, last: int) -> None:
        self._of_load, self._backup = of_load, iter(range(first, last))
        self.runs = self._turn = False

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self._turn = not self._turn
        page = next(self._backup, None) if self.runs and self._turn else None
        return next(self._of_load) if page is None else page


def backup(start_s: float, end_s: float, rate: float) -> Change:
    """Return that in the first guest a backup reads beside its load, at the same rate, for that time."""

    def change(guests: Sequence[ReplayGuest], time_s: float) -> None:
        guest = guests[0]
        if time_s == 0:
            pages, own = (size // PAGE_BYTES // SCALE for size in (GIB + _BACKUP_BYTES, GIB))
            load = page_numbers(Normal(deviation=0.15), own, seed=1, guest=guest.name, phase="1")
            guest.references = _WithBackup(load, own, pages)
        assert isinstance(guest.references, _WithBackup)
        guest.references.runs = start_s <= time_s < end_s
        guest.accesses_per_s = rate * (1 + guest.references.runs)

    return change


_NORMAL, _ZIPF = Part(access=Normal(deviation=0.15)), Part(access=Zipf(exponent=0.99))
_KEPT = ("swap each 60 s", "swap each 120 s", "rests each 60 s", "six guests", "a program for 200 s", "another file")
DYNAMIC = {
    **{name: changing_loads.MIXES[name] for name in (*_KEPT, "idle + normal")},
    "bursts": Unseen(parts=(_ZIPF, _NORMAL), change=bursts(150, 30, (2_000.0, 48_000.0))),
    "swing": Unseen(parts=(_NORMAL, _NORMAL), change=swinging(60, (192 * MIB, 480 * MIB, 768 * MIB, GIB))),
    "a backup in a busy guest": Unseen(
        parts=(Part(access=Normal(deviation=0.15), file_bytes=GIB + _BACKUP_BYTES), _NORMAL),
        change=backup(250, 282, 16_000.0),
    ),
    "a program that comes and goes": Unseen(
        parts=(Part(access=Normal(deviation=0.2), accesses_per_s=8_000), _ZIPF),
        change=changing_loads.programs(120, 192 * MIB),
    ),
    "idle that wakes": Unseen(parts=(_NORMAL, _NORMAL), change=wakes(WARM_S + COUNTED_S / 2, 16_000.0)),
    "weights 4:1": Unseen(
        parts=(Part(access=Normal(deviation=0.2), weight=4.0), Part(access=Normal(deviation=0.2))),
    ),
    "twice the budget": Unseen(
        parts=(Part(access=Zipf(exponent=0.8), file_bytes=1200 * MIB), Part(access=Uniform(), file_bytes=1200 * MIB)),
    ),
    "diurnal": Unseen(parts=(_NORMAL, Part(access=HotCold(hot=0.3, hot_reads=0.9))), change=diurnal(300, 16_000.0)),
    "rests each 100 s": Unseen(parts=(_NORMAL, _ZIPF), change=resting(100, (24_000.0, 0.0))),
}
STEADY = {
    mix.name: Unseen(
        parts=tuple(
            Part(access=load.access, file_bytes=load.file_bytes, accesses_per_s=load.accesses_per_s)
            for load in mix.loads
        ),
        budget_bytes=mix.budget_bytes,
    )
    for mix in MIXES
}
ALL = {name: structs.replace(mix, scale=SCALE) for name, mix in (STEADY | DYNAMIC).items()}


class Row(Struct, frozen=True):
    """An arm on a mix; hits and accesses of each guest count by its weight."""

    mix: str
    lru: str
    seed: int
    arm: str
    hits: float
    accesses: float
    moves: int
    sizes: str

    @property
    def case(self) -> tuple[str, str, int]:
        """What all arms to be compared have in common."""
        return self.mix, self.lru, self.seed


HEAD = ("mix", "page replacement", "seed", "arm", "hits", "accesses", "moves", "sizes MiB")


def study(task: tuple[str, str, int, str]) -> Row:
    """Run an arm."""
    name, lru, seed, arm = task
    outcome = best_fixed(ALL[name], lru, seed, STEP) if arm == BEST else run(ALL[name], lru, seed, arm)
    return Row(name, lru, seed, arm, round(outcome.hits), round(outcome.accesses), outcome.moves, outcome.sizes)


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table: for each arm hits in % of the best, misses of static, and decisions that moved.

    Means of all seeds of which every arm is there; the mix on which ``curve`` comes least near to the best is first.
    """
    arms = [arm for arm in ARMS if any(row.arm == arm for row in rows)]
    cases: dict[tuple[str, str, int], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        cases[row.case][row.arm] = row
    seeds: dict[tuple[str, str], list[dict[str, tuple[float, float, int]]]] = defaultdict(list)
    for (mix, lru, _), found in cases.items():
        if all(arm in found for arm in arms):
            best = max(row.hits / row.accesses for row in found.values())
            missed = 1.0 - found["static"].hits / found["static"].accesses
            seeds[mix, lru].append({arm: _told(found[arm], best, missed) for arm in arms})
    lines = []
    for (mix, lru), each in seeds.items():
        means = {
            arm: [sum(values) / len(each) for values in zip(*(one[arm] for one in each), strict=True)] for arm in arms
        }
        cells = [f"{share:.1f}/{misses:.2f}/{moves:.0f}" for share, misses, moves in means.values()]
        mine = means["curve"][0] if "curve" in means else 0.0
        lines.append((mine, f"|{mix}|{lru}|{'|'.join(cells)}|"))
    head = f"|mix|page replacement|{'|'.join(arms)}|"
    return [head, "|---" * (len(arms) + 2) + "|", *(line for _, line in sorted(lines))]


def _told(row: Row, best: float, static_missed: float) -> tuple[float, float, int]:
    share = row.hits / row.accesses
    return 100.0 * share / best, (1.0 - share) / max(1e-9, static_missed), row.moves


def read(path: Path) -> list[Row]:
    """Return the rows that a file has."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Row(mix, lru, int(seed), arm, float(hits), float(accesses), int(moves), sizes)
            for mix, lru, seed, arm, hits, accesses, moves, sizes in list(csv.reader(file))[1:]
        ]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows, in the order of the mixes."""
    order = {name: number for number, name in enumerate(ALL)}
    arms = {arm: number for number, arm in enumerate((*ARMS, BEST))}
    rows = sorted(rows, key=lambda row: (order[row.mix], row.lru, row.seed, arms.get(row.arm, len(arms))))
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEAD)
        writer.writerows(
            [row.mix, row.lru, row.seed, row.arm, f"{row.hits:.0f}", f"{row.accesses:.0f}", row.moves, row.sizes]
            for row in rows
        )


@click.command()
@click.option("--csv", "path", type=click.Path(path_type=Path), required=True, help="What is in it is not run again.")
@click.option("--seeds", default="1,2,3", show_default=True)
@click.option("--lru", default="both", show_default=True, type=click.Choice(["two_list", "lru_gen", "both"]))
@click.option("--arms", default=",".join(ARMS), show_default=True)
@click.option(
    "--best/--no-best", default=True, show_default=True, help="Search the best fixed split, where loads do not change."
)
@click.option("--table", "only_table", is_flag=True, help="Run nothing; print the table of what is in the file.")
@click.option("--processes", default=2, show_default=True)
@click.argument("names", metavar="[MIX ...]", nargs=-1)
def main(
    path: Path, seeds: str, lru: str, arms: str, best: bool, only_table: bool, processes: int, names: tuple[str, ...]
) -> None:
    """Run what is missing, and print the table."""
    rows = read(path)
    done = {(*row.case, row.arm) for row in rows}
    kinds = ("lru_gen", "two_list") if lru == "both" else (lru,)
    chosen = [name for name in ALL if not names or any(part in name for part in names)]
    wanted = [
        (name, kind, int(seed), arm)
        for seed in seeds.split(",")
        for kind in kinds
        for name in chosen
        for arm in (*arms.split(","), *((BEST,) if best and ALL[name].change is None else ()))
    ]
    tasks = [] if only_table else [task for task in wanted if task not in done]
    with multiprocessing.Pool(processes) as pool:
        for number, row in enumerate(pool.imap_unordered(study, tasks), 1):
            rows.append(row)
            write(path, rows)
            click.echo(f"{number}/{len(tasks)} {', '.join(map(str, row.case))}, {row.arm}", err=True)
    click.echo("\n".join(table(rows)))


if __name__ == "__main__":
    main()
