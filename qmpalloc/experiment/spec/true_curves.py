"""The true curves of an experiment's loads: their very references through the guests' page replacement, at full rate.

Nobody can know them beforehand, so they are for the arm that shows what could be gained, the policy ``oracle``. They
are as right as the simulation of the page replacement is (``docs/results/curve-model.md``).

A guest's phases are simulated one after the other in the same cache. What a phase leaves behind matters: the
multi-generational LRU may keep the file of the phase before, which nobody reads any more, all through the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmpalloc.curves.simulation import POLICIES
from qmpalloc.experiment.spec.schema import Guest, Phase
from qmpalloc.units import PAGE_BYTES

POINTS = 20
"""Sizes of the cache that are simulated, besides both sides of where all that a phase reads just fits."""

EDGE = 0.98

CHUNK = 65_536

References = Callable[[Phase], ArrayLike]


def true_curves(guest: Guest, references: References) -> list[dict[str, Any]]:
    """Return a guest's curves over sizes of its cache, one for each phase, as settings of the policy ``oracle``.

    A phase's curve holds until the guest has made the accesses of all phases up to it, the last one to the end: a guest
    that is done has no accesses that a curve could multiply.

    Args:
        guest: As specified, scaled.
        references: Returns the page numbers of a phase.
    """
    first_page: dict[str, int] = {}
    numbers = []
    for phase in guest.reads:
        first = first_page.setdefault(phase.file_name, sum(guest.files[name] // PAGE_BYTES + 1 for name in first_page))
        numbers.append(np.asarray(references(phase), dtype=np.int64) + first)
    sizes, ratios = phase_curves(numbers, most_pages=guest.cap // PAGE_BYTES, lru=guest.lru_flavour)
    curves, accesses = [], 0
    for phase, read, own in zip(guest.reads, numbers, ratios, strict=True):
        accesses += phase.total_reads
        curves.append(
            {
                "sizes": [f"{pages * PAGE_BYTES}B" for pages in sizes],
                "miss_ratio": [round(ratio, 5) for ratio in own],
                "sizes_of": "cache",
                "until_accesses": accesses,
                "working_set": len(np.unique(read)),
            }
            | ({"accesses_per_s": phase.rate} if phase.rate else {})
        )
    del curves[-1]["until_accesses"]
    return curves


def phase_curves(
    phases: Sequence[NDArray[np.int64]], *, most_pages: int, lru: str
) -> tuple[list[int], list[list[float]]]:
    """Return sizes in pages and, for each phase, the miss ratio at each.

    Counted is the second half of a phase, when its cache has filled, without accesses that are the first to their page:
    these miss at any size.

    Args:
        phases: Page numbers of each phase in order; the same number is the same page in all of them.
        most_pages: The largest cache of interest.
        lru: A name of `qmpalloc.curves.simulation.POLICIES`.
    """
    known, ids = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *phases]), return_inverse=True)
    parts = np.split(ids, np.cumsum([len(pages) for pages in phases])[:-1])
    distinct = len(known)
    sizes = {max(1, round(min(distinct, most_pages) * step / POINTS)) for step in range(1, POINTS + 1)}
    for part in parts:
        working_set = len(np.unique(part))
        sizes |= {max(1, int(EDGE * working_set)), max(1, working_set)}
    seen = np.zeros(max(1, distinct), dtype=bool)
    halves, firsts = [], []
    for part in parts:
        for half in np.array_split(part, 2):
            fresh = np.unique(half)
            firsts.append(int((~seen[fresh]).sum()))
            seen[fresh] = True
            halves.append(half)
    chunks = [[half[start : start + CHUNK].tolist() for start in range(0, len(half), CHUNK)] for half in halves]
    ratios: list[list[float]] = [[] for _ in parts]
    for size in sorted(sizes):
        cache = POLICIES[lru](size, max(1, distinct))
        misses = [sum(cache.read(chunk) for chunk in half) for half in chunks]
        for number, own in enumerate(ratios):
            later = 2 * number + 1
            again = max(1, len(halves[later]) - firsts[later])
            own.append(min(1.0, max(0.0, (misses[later] - firsts[later]) / again)))
    return sorted(sizes), [np.minimum.accumulate(own).tolist() for own in ratios]
