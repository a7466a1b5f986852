"""What curves cost the host: CPU for many guests' samples, and the time of a decision.

    python benchmarks/curve_cost.py [GUESTS, default 16] [SAMPLED EVENTS PER SECOND, default 2000]

Every guest is given 30 s of samples, a batch a second, of a Zipf load whose file does not fit. A curve is made every
5 s, and the split of all guests over 512 sizes each is computed. CPU time of this process. What is offered above the
trackers' own limit is thrown away, as in a run.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time

import numpy as np

from qmpalloc.curves.mapping import SizeMapping
from qmpalloc.curves.samples import Window
from qmpalloc.curves.split import best_split
from qmpalloc.curves.tracker import CurveTracker
from qmpalloc.experiment.access import Zipf
from qmpalloc.experiment.offsets import page_numbers
from qmpalloc.sample import Memory
from qmpalloc.testing.replay import mixed
from qmpalloc.units import GIB, MIB

SECONDS, DECISION_S = 30, 5


def main(guests: int, events_per_s: int) -> None:
    """Measure and print."""
    sampled = 16_384  # of a file of 4 GiB
    numbers = page_numbers(Zipf(exponent=0.9), sampled, seed=1, guest="g", phase="p")
    batches = [
        mixed(np.fromiter(itertools.islice(numbers, events_per_s), np.uint64, events_per_s)) >> np.uint64(4)
        for _ in range(SECONDS)
    ]
    mapping = SizeMapping()
    memory = Memory(free=16 * MIB, active_file=GIB // 2, inactive_file=GIB // 2)
    mapping.observe(GIB + 160 * MIB, memory, evicting=True)
    for lru in ("two_list", "lru_gen"):
        trackers = [CurveTracker(lru, 16_384.0, 2.0 * GIB / 4096) for _ in range(guests)]
        before = time.process_time()
        for second, keys in enumerate(batches, 1):
            for tracker in trackers:
                accesses = 64 * len(keys)
                tracker.observe(Window(keys=keys, accesses=accesses, events=len(keys), lost=0, shift=6))
                tracker.measure(accesses, accesses // 5, 250_000.0, 1.0)
                if second % DECISION_S == 0:
                    tracker.curve(mapping, 256 * MIB, 2 * GIB)
        cpu_s = time.process_time() - before
        print(
            f"{lru}: {guests} guests at {events_per_s} sampled accesses/s: {cpu_s / SECONDS:.1%} of one core, "
            f"{1e6 * cpu_s / SECONDS / guests / events_per_s:.1f} us for each"
        )
    random = np.random.default_rng(1)
    values = [random.random(512).cumsum() for _ in range(guests)]
    times = []
    for _ in range(20):
        before = time.process_time()
        best_split(values, 512)
        times.append(time.process_time() - before)
    print(f"split of {guests} guests over 512 sizes: median {1e3 * statistics.median(times):.1f} ms CPU")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 16, int(sys.argv[2]) if len(sys.argv) > 2 else 2_000)
