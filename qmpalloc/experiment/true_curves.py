"""The true curves of an experiment's loads: their very references through the guests' page replacement, at full rate.

Nobody can know them beforehand, so they are for the arm that shows what could be gained, the policy ``oracle``. They
are as right as the simulation of the page replacement is (``docs/results/curve-model.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qmpalloc.curves.simulation import POLICIES
from qmpalloc.experiment.schema import Guest, Phase
from qmpalloc.units import PAGE_BYTES

SUITE_LRU = {"trixie": "lru_gen", "bookworm": "two_list"}
"""Page replacement of the reference guests."""

POINTS = 20
"""Sizes of the cache that are simulated, besides both sides of where all that is read just fits."""

EDGE = 0.98

CHUNK = 65_536

References = Callable[[Phase], Sequence[int]]


def true_curves(guest: Guest, references: References) -> list[dict[str, Any]]:
    """Return a guest's curves over sizes of its cache, one for each phase, as settings of the policy ``oracle``.

    The first access to a page misses at any size and is left out: it is no matter of a split. A phase's curve holds
    until the guest has made the accesses of all phases up to it.

    Args:
        guest: As specified, scaled.
        references: Returns the page numbers of a phase.
    """
    curves, accesses = [], 0
    for phase in guest.phases:
        accesses += phase.total_reads
        sizes, ratios = phase_curve(references(phase), most_pages=guest.cap // PAGE_BYTES, lru=SUITE_LRU[guest.suite])
        curves.append(
            {
                "sizes": [f"{pages * PAGE_BYTES}B" for pages in sizes],
                "miss_ratio": [round(ratio, 5) for ratio in ratios],
                "sizes_of": "cache",
                "until_accesses": accesses,
            }
        )
    return curves


def phase_curve(numbers: Sequence[int], *, most_pages: int, lru: str) -> tuple[list[int], list[float]]:
    """Return sizes in pages and the miss ratio at each, first accesses left out.

    Args:
        numbers: Page numbers in order.
        most_pages: The largest cache of interest.
        lru: A name of `qmpalloc.curves.simulation.POLICIES`.
    """
    pages = np.asarray(numbers, dtype=np.int64)
    known, ids = np.unique(pages, return_inverse=True)  # what is never read needs no room in the simulation
    distinct = len(known)
    if distinct == 0:
        return [1], [1.0]
    again = max(1, len(pages) - distinct)
    sizes = sorted({*_grid(min(distinct, most_pages)), *(size for size in (int(EDGE * distinct), distinct) if size)})
    chunks = [ids[start : start + CHUNK].tolist() for start in range(0, len(ids), CHUNK)]
    ratios = []
    for size in sizes:
        if size >= distinct:
            ratios.append(0.0)
            continue
        cache = POLICIES[lru](size, distinct)
        misses = sum(cache.read(chunk) for chunk in chunks)
        ratios.append(min(1.0, (misses - distinct) / again))
    return sizes, np.minimum.accumulate(ratios).tolist()


def _grid(most: int) -> list[int]:
    return [max(1, round(most * step / POINTS)) for step in range(1, POINTS + 1)]
