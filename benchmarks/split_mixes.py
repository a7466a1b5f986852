"""How near each policy comes to the best split, in the model: ten mixes of loads, two kinds of page replacement.

    python benchmarks/split_mixes.py [two_list|lru_gen|both] [MIX ...]

Guests replay seeded references through a model of their page replacement (`qmpalloc.sim.ReplayGuest`). For all arms
80 s of a static split come first, then 220 s under the policy with a decision every 5 s; counted are the hits of the
last 80 s. The oracle: every guest's miss ratio is measured at many sizes with the same references, dynamic programming
finds the best split, and it is run from the start. "steady": decisions that changed a size in the last 80 s.
"""

from __future__ import annotations

import itertools
import multiprocessing
import sys
from array import array

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qmpalloc.curves.simulation import POLICIES
from qmpalloc.curves.split import best_split
from qmpalloc.model import Curve, Policy
from qmpalloc.policy import load
from qmpalloc.rules.promises import KeepsPromises
from qmpalloc.sim.mixes import MIXES, Mix
from qmpalloc.sim.replay import ReplayGuest, ReplayHost
from qmpalloc.units import MIB, PAGE_BYTES

WARM, CONTROLLED, COUNTED = 16, 44, 16  # intervals of 5 s
INTERVAL_S = 5.0
OWN, FLOOR, SCALE = 160 * MIB, 224 * MIB, 8
GRID = 4 * MIB

ARMS: dict[str, tuple[str, dict[str, object]]] = {
    "static": ("static", {}),
    "paper, literal gate": ("paper", {}),
    "paper, dead band": ("paper", {"gate": "dead-band"}),
    "hill": ("hill", {}),
    "curve": ("curve", {}),
}


class Outcome(Struct):
    """What came out of one arm."""

    hits: float
    steady_moves: int = 0
    moved_bytes: int = 0


def cached_references(mix: Mix) -> list[array[int]]:
    """Return what the guests of a mix read in a run, so that all arms read the same and it is made once."""
    seconds = INTERVAL_S * (WARM + CONTROLLED)
    return [
        array("i", itertools.islice(guest.references, int(seconds * guest.accesses_per_s / SCALE) + 10))
        for guest in mix.guests("lru", observed=False)
    ]


def run(
    mix: Mix, lru: str, references: list[array[int]], policy: Policy | None, sizes: list[int] | None
) -> tuple[Outcome, list[ReplayGuest]]:
    """Run one arm and return its share of hits in the counted time, and its guests."""
    observed = isinstance(policy, KeepsPromises)  # as those do that learn what the guests read
    guests = mix.guests(lru, observed=observed)
    for index, (guest, numbers) in enumerate(zip(guests, references, strict=True)):
        guest.references = iter(numbers)
        if sizes is not None:
            guest.resize(sizes[index])
    host = ReplayHost(guests, budget_bytes=mix.budget_bytes, interval_s=INTERVAL_S)
    hits = accesses = 0.0
    outcome = Outcome(hits=0.0)
    for step in range(WARM + CONTROLLED):
        moves = host.moves
        host.step(policy if step >= WARM else None)
        if step >= WARM + CONTROLLED - COUNTED:
            hits += host.last_hits
            accesses += host.last_accesses
            outcome.steady_moves += host.moves - moves
    outcome.hits, outcome.moved_bytes = hits / accesses, host.moved_bytes
    return outcome, guests


def measured_curve(lru: str, numbers: array[int], sizes: list[int]) -> list[float]:
    """Return the miss ratio at each size, of the last quarter of the references after the others."""
    warm = len(numbers) * (WARM + CONTROLLED - COUNTED) // (WARM + CONTROLLED)
    ratios = []
    for size in sizes:
        cache = POLICIES[lru](max(1, (size - OWN) // PAGE_BYTES // SCALE), max(numbers) + 1, scale=SCALE)
        cache.read(numbers[:warm])
        ratios.append(cache.read(numbers[warm:]) / (len(numbers) - warm))
    return ratios


def oracle_sizes(mix: Mix) -> list[int]:
    """Return the sizes at which curves are measured: even steps, and both sides of where a file just fits."""
    most = mix.budget_bytes - FLOOR * (len(mix.loads) - 1)
    sizes = set(np.linspace(FLOOR, most, 16).astype(int).tolist())
    for part in mix.loads:
        sizes |= {OWN + part.file_bytes - 4 * MIB, OWN + part.file_bytes + MIB}
    return sorted(size for size in sizes if FLOOR <= size <= most)


def mean_error(found: Curve, sizes: NDArray[np.float64], exact: NDArray[np.float64]) -> float:
    """Return the mean absolute error of a curve over even sizes."""
    return float(np.abs(np.interp(sizes, found.sizes_bytes, found.miss_ratio) - exact).mean())


def study(task: tuple[Mix, str]) -> str:
    """Run all arms on a mix; return a line of the table, sortable by the share of the oracle that ``curve`` reaches."""
    mix, lru = task
    references = cached_references(mix)
    sizes = oracle_sizes(mix)
    curves = [np.minimum.accumulate(measured_curve(lru, numbers, sizes)) for numbers in references]
    grid = np.arange(FLOOR, sizes[-1] + 1, GRID)
    values = [
        part.accesses_per_s * (1.0 - np.interp(grid, sizes, curve))
        for part, curve in zip(mix.loads, curves, strict=True)
    ]
    units = (mix.budget_bytes - FLOOR * len(mix.loads)) // GRID
    best = [int(grid[count]) for count in best_split(values, units)]
    oracle, _ = run(mix, lru, references, None, best)
    outcomes, errors, sizes_found = {}, [], ""
    for name, (policy, settings) in ARMS.items():
        outcomes[name], guests = run(mix, lru, references, load(policy, settings), None)
        if name == "curve":
            sizes_found = "/".join(str(guest.size_bytes // MIB) for guest in guests)
            even = np.linspace(sizes[0], sizes[-1], 64)
            for guest, curve in zip(guests, curves, strict=True):
                found = guest.snapshot().curve
                assert found is not None
                errors.append(mean_error(found, even, np.interp(even, sizes, curve)))
    top = max([oracle.hits, *(outcome.hits for outcome in outcomes.values())])
    ours = outcomes["curve"]
    share = ours.hits / oracle.hits if oracle.hits else 1.0
    cells = [f"{100 * outcome.hits:.1f}" for outcome in outcomes.values()]
    return (
        f"{share:.4f}| {mix.name} ({mix.budget_bytes // MIB}) | {' | '.join(cells)} | {100 * oracle.hits:.1f} "
        f"| **{100 * share:.1f}** | {100 * (ours.hits - outcomes['static'].hits):+.1f} | {ours.steady_moves} "
        f"| {outcomes['paper, literal gate'].steady_moves} | {ours.moved_bytes // MIB} | {max(errors):.4f} "
        f"| {sizes_found} | {'/'.join(str(size // MIB) for size in best)} |"
        + (f" (best arm {100 * top:.1f})" if top > oracle.hits + 0.002 else "")
    )


def main(kinds: list[str], names: list[str]) -> None:
    """Run and print a table for each kind of page replacement, worst mix first."""
    chosen = [mix for mix in MIXES if not names or any(name in mix.name for name in names)]
    with multiprocessing.Pool(2) as pool:
        for lru in kinds:
            lines = sorted(pool.map(study, [(mix, lru) for mix in chosen], chunksize=1))
            print(f"\n{lru}: hits in % of all accesses\n")
            head = ["mix (MiB)", *ARMS, "oracle", "**curve, % of oracle**", "curve less static", "steady moves"]
            head += ["of paper", "MiB moved", "worst curve error", "sizes", "oracle's"]
            print(f"| {' | '.join(head)} |")
            print("|---" * len(head) + "|")
            for line in lines:
                print("|" + line.split("|", 1)[1])


if __name__ == "__main__":
    kind = sys.argv[1] if len(sys.argv) > 1 else "both"
    main(["two_list", "lru_gen"] if kind == "both" else [kind], sys.argv[2:])
