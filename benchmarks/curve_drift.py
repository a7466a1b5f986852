"""How fast a curve follows when a guest's load is replaced by one on another file, in the model.

    python benchmarks/curve_drift.py

A guest reads a file of 1 GiB (N pages) for 6 N accesses, then another one of the same size. For each load and number of
accesses since the change: mean absolute error, over 16 sizes, of the curve against what full simulations of these
sizes, with the same history, miss in the N accesses that follow. In brackets: the curve was marked weak, so no decision
would have rested on it. Not anchored.
"""

from __future__ import annotations

import itertools
from array import array

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.simulation import POLICIES
from qmpalloc.experiment.spec.access import Access, HotCold, Normal, Uniform, Zipf
from qmpalloc.experiment.spec.references import page_numbers
from qmpalloc.sim.replay import ReplayGuest
from qmpalloc.units import GIB, MIB, PAGE_BYTES

PAGES, SCALE = GIB // PAGE_BYTES, 8
AFTER = (1, 2, 3, 4, 6, 10)
LOADS: dict[str, Access] = {
    "Zipf .99": Zipf(exponent=0.99),
    "normal 15 %": Normal(deviation=0.15),
    "hot-cold 90/10": HotCold(hot=0.1, hot_reads=0.9),
    "uniform": Uniform(),
}
OTHER: dict[str, Access] = {"uniform": Zipf(exponent=0.99)}


def exact(lru: str, access: Access, cache_pages: list[int]) -> list[float]:
    """Return the miss ratios of full simulations at the sizes, after a warm-up of 6 N."""
    pages = PAGES // SCALE
    numbers = page_numbers(access, pages, seed=9, guest="exact", phase="1")
    warm, counted = array("i", itertools.islice(numbers, 6 * pages)), array("i", itertools.islice(numbers, 6 * pages))
    ratios = []
    for size in cache_pages:
        cache = POLICIES[lru](max(1, size // SCALE), pages, scale=SCALE)
        cache.read(warm)
        ratios.append(cache.read(counted) / len(counted))
    return ratios


def main() -> None:
    """Measure and print."""
    sizes = np.linspace(PAGES // 8, PAGES * 15 // 16, 16).astype(int).tolist()
    print("| page replacement, new load | " + " | ".join(f"{n} N" for n in AFTER) + " |")
    print("|---" * (len(AFTER) + 1) + "|")
    for lru in ("two_list", "lru_gen"):
        for name, access in LOADS.items():
            print(
                f"| {lru}, {name} | {' | '.join(follow(lru, OTHER.get(name, Uniform()), access, sizes))} |", flush=True
            )


def follow(lru: str, before: Access, after: Access, sizes: list[int]) -> list[str]:
    """Return the cells of one line: the errors of the curve at the times of `AFTER`."""
    guest = ReplayGuest(
        "g",
        before,
        file_bytes=GIB,
        accesses_per_s=PAGES / 4.0,
        size_bytes=700 * MIB,
        cap_bytes=1400 * MIB,
        lru=lru,
        scale=SCALE,
    )
    caches = [POLICIES[lru](max(1, size // SCALE), 0, scale=SCALE) for size in sizes]
    misses: list[list[int]] = []
    found: list[tuple[NDArray[np.float64], bool]] = []
    for quarter in range(24 + 4 * (AFTER[-1] + 1)):
        if quarter == 24:
            guest.load(after, GIB)
        first = guest.first_page
        reads = list(itertools.islice(guest.references, PAGES // 4 // SCALE))
        guest.references = itertools.chain(reads, guest.references)
        guest.advance(1.0)
        numbers = [first + page for page in reads]
        for cache in caches:
            cache.grow(first + PAGES // SCALE)
        misses.append([cache.read(numbers) for cache in caches])
        curve = guest.snapshot().curve
        assert curve is not None
        found.append((guest.tracker.miss_ratios(np.array(sizes, dtype=float)), bool(curve.weak)))
    cells = []
    for n in AFTER:
        now = 24 + 4 * n
        truth = np.array(misses[now : now + 4]).sum(axis=0) / (PAGES // SCALE)
        ratios, weak = found[now - 1]
        error = f"{np.abs(ratios - truth).mean():.3f}"
        cells.append(f"({error})" if weak else error)
    return cells


if __name__ == "__main__":
    main()
