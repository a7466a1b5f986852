"""How well each estimator predicts each page replacement from a sample of 1/64, in the model.

    python benchmarks/curve_estimators.py

A load reads a file of 1 GiB (N = 262,144 pages) for 8 N accesses; estimators see one page of every 64. Mean absolute
error over 16 sizes against full simulations, half of the accesses being warm-up. No anchoring, no forgetting.
"""

from __future__ import annotations

import itertools
from array import array

import numpy as np
from curve_drift import LOADS, PAGES, SCALE, exact
from reuse_times import ReuseTimes

from qmpalloc.curves.estimator import Estimator
from qmpalloc.curves.keys import KeyTable
from qmpalloc.curves.reuse import ReuseDistances
from qmpalloc.curves.simulation import Simulations
from qmpalloc.experiment.spec.access import Access, Loop, Mixture, Part, Zipf
from qmpalloc.experiment.spec.references import page_numbers
from qmpalloc.sim.replay import ReplayGuest
from qmpalloc.units import GIB, MIB

MORE: dict[str, Access] = {
    "70 % Zipf + 30 % loop over 3/8": Mixture(
        parts=(Part(weight=0.7, access=Zipf(exponent=0.99)), Part(weight=0.3, access=Loop(share=0.375, start=0.5)))
    ),
    "loop": Loop(share=1.0),
}


def main() -> None:
    """Measure and print."""
    sizes = np.linspace(PAGES // 8, PAGES * 15 // 16, 16)
    names = ("shards", "aet", "lru_gen", "two_list", "fifo")
    print(f"| page replacement, load | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for name, access in (LOADS | MORE).items():
        numbers = page_numbers(access, PAGES // SCALE, seed=3, guest="g", phase="1")
        reads = array("i", itertools.islice(numbers, 8 * PAGES // SCALE))
        guest = ReplayGuest("g", access, file_bytes=GIB, accesses_per_s=1.0, size_bytes=512 * MIB, scale=SCALE, seed=3)
        keys = guest.sampled(np.frombuffer(reads, dtype=np.int32).astype(np.int64))
        ids = KeyTable(2**20).number(keys)
        lru = ReuseDistances(PAGES // 64)
        estimators: dict[str, Estimator] = {"shards": lru, "aet": ReuseTimes()}
        grid = np.linspace(PAGES // 16, PAGES, 20) / 64
        for policy in names[2:]:
            estimators[policy] = Simulations(policy, grid, lru, scale=64)
        for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
            for estimator in estimators.values():
                estimator.forget(0.0)
                estimator.observe(half, 4.0 * PAGES / 64)
        for truth in ("two_list", "lru_gen"):
            curve = exact(truth, access, sizes.astype(int).tolist())
            errors = [np.abs(estimators[one].miss_ratios(sizes / 64) - curve).mean() for one in names]
            cells = [
                f"**{error:.4f}**" if one == truth else f"{error:.4f}" for one, error in zip(names, errors, strict=True)
            ]
            print(f"| {truth}, {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
