"""What curves cost the host: CPU for many guests' samples, and the time of a decision.

    python benchmarks/curve_cost.py [GUESTS, default 16] [SAMPLED EVENTS PER SECOND, default 2000]

Every guest is given 30 s of samples, a batch a second, of a Zipf load whose file does not fit. A curve is made every
5 s. Then a whole decision of the policy ``curve`` is made again and again: every guest's curve and ghost hits, and the
best split of a budget of 512 steps over all of them. CPU time of this process. What is offered above the trackers' own
limit is thrown away, as in a run. At last the same samples go through observers, as in a run: they simulate no more
than fits into their share of a core on this machine.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from typing import Literal

import numpy as np

from qmpalloc.curves.cpu_budget import CpuBudget
from qmpalloc.curves.mapping import SizeMapping
from qmpalloc.curves.observer import CurveObserver
from qmpalloc.curves.samples import Batch, Keys, Window, pack
from qmpalloc.curves.split import best_split
from qmpalloc.curves.tracker import CurveTracker
from qmpalloc.experiment.spec.access import Zipf
from qmpalloc.experiment.spec.references import page_numbers
from qmpalloc.model import Curve, GuestSnapshot, GuestState, Snapshot
from qmpalloc.policy import load
from qmpalloc.sample import Counters, Delta, Memory, Sample
from qmpalloc.sim.replay import mixed
from qmpalloc.units import GIB, MIB

Lru = Literal["two_list", "lru_gen"]
SECONDS, DECISION_S = 30, 5
FLOOR, CAP, UNITS, STEP = 256 * MIB, 2 * GIB, 512, 8 * MIB  # so large that the split is refined


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
    kinds: tuple[Lru, ...] = ("two_list", "lru_gen")
    for lru in kinds:
        trackers = [CurveTracker(lru, 16_384.0, 2.0 * GIB / 4096) for _ in range(guests)]
        before = time.process_time()
        for second, keys in enumerate(batches, 1):
            for tracker in trackers:
                accesses = 64 * len(keys)
                tracker.observe(Window(keys=keys, accesses=accesses, lost=0, shift=6))
                tracker.measure(accesses, accesses // 5, 250_000.0, 1.0)
                if second % DECISION_S == 0:
                    tracker.curve(mapping, FLOOR, CAP)
        cpu_s = time.process_time() - before
        print(
            f"{lru}: {guests} guests at {events_per_s} sampled accesses/s: {cpu_s / SECONDS:.1%} of one core, "
            f"{1e6 * cpu_s / SECONDS / guests / events_per_s:.1f} us for each"
        )
        print(f"  bounded: {bounded(lru, guests, batches * 2)}")
        print(f"  a decision: {decision(trackers, mapping)}")


def bounded(lru: Lru, guests: int, batches: list[Keys]) -> str:
    """Return what the same samples cost when all guests share the tuned share of a core."""
    cpu_budget = CpuBudget()
    observers = [CurveObserver(cpu_budget) for _ in range(guests)]
    spent, half = [], len(batches) // 2
    for second, keys in enumerate(batches, 1):
        accesses = 64 * len(keys)
        sample = Sample(
            format="qmpalloc-counters", version=1, boot_id="0" * 36, start_id="0" * 16, sequence=second,
            monotonic_ns=second * 10**9, interval_ms=1000, kernel="6.12", page_size=4096, lru=lru, counters=Counters(),
            memory_bytes=Memory(free=16 * MIB, active_file=GIB // 2, inactive_file=GIB // 2),
        )  # fmt: skip
        delta = Delta(interval_s=1.0, accesses=accesses, misses=accesses // 5, evictions=accesses // 5)
        data = pack(
            Batch(boot_id=b"b" * 16, start_id=b"s" * 8, first=(second - 1) * len(keys), accesses=second * accesses,
                  lost=0, shift=6, events=keys << np.uint64(4))
        )  # fmt: skip
        before = time.process_time()
        for observer in observers:
            observer.take_sample(sample, delta, GIB + 160 * MIB, FLOOR, CAP)
            observer.take_batch(data, float(second))
        spent.append(time.process_time() - before)
    shifts = {observer.tracker.shift for observer in observers if observer.tracker is not None}
    return (
        f"{sum(spent) / len(spent):.1%} of one core, {sum(spent[half:]) / (len(spent) - half):.1%} in the second half, "
        f"then 1 page in {' or '.join(str(2**shift) for shift in sorted(shifts))}"
    )


def decision(trackers: list[CurveTracker], mapping: SizeMapping) -> str:
    """Return what a decision over all guests costs, and the parts of that."""
    policy = load("curve", {})
    parts: dict[str, list[float]] = {"curves": [], "decide": [], "of which the split": [], "in all": []}
    random = np.random.default_rng(1)
    values = [random.random(UNITS + 1).cumsum() for _ in trackers]
    for _ in range(20):
        began = time.process_time()
        seen = [(tracker.curve(mapping, FLOOR, CAP), tracker.ghosts()) for tracker in trackers]
        learnt = time.process_time()
        found = policy.decide(snapshot(seen))
        decided = time.process_time()
        best_split(values, UNITS)
        split = time.process_time()
        assert found.moves, "nothing was worth moving: not what is to be measured"
        for name, taken_s in zip(
            parts, (learnt - began, decided - learnt, split - decided, decided - began), strict=True
        ):
            parts[name].append(taken_s)
    return ", ".join(f"{name} {1e3 * statistics.median(times):.1f} ms" for name, times in parts.items())


def snapshot(seen: list[tuple[Curve, tuple[float, float] | None]]) -> Snapshot:
    """Return guests with these curves, of which each reads at another rate, and 512 steps to divide."""
    size = FLOOR + UNITS * STEP // len(seen)
    guests = [
        GuestSnapshot(
            name=f"g{number}", state=GuestState.FRESH, target_bytes=size, actual_bytes=size, charge_bytes=size,
            floor_bytes=FLOOR, cap_bytes=CAP, baseline_bytes=size, hits=8_000 * number, misses=2_000 * number,
            interval_s=5.0, curve=curve, ghost_gain=ghosts and ghosts[0], ghost_loss=ghosts and ghosts[1],
        )
        for number, (curve, ghosts) in enumerate(seen, 1)
    ]  # fmt: skip
    budget = size * len(guests)
    return Snapshot(cycle=1, time_s=1_000.0, budget_bytes=budget, interval_s=5.0, guests=tuple(guests), carry=None)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 16, int(sys.argv[2]) if len(sys.argv) > 2 else 2_000)
