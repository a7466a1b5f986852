"""What pauses in the sampling cost curves: learnt in bursts, as with the collector's --duty, and without pauses.

    python benchmarks/curve_pauses.py [--load zipf ...] [--csv OUT.csv]

Loads of benchmarks/guest_curves.py, in the model, and as large: five bursts of 8 or 4 accesses by page of the
file. Between two bursts up to three such times pass of which nothing is seen. At the end of each burst the curve is
compared with miss ratios of the same page replacement at seven sizes, simulated whole. One seed.
"""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path

import click
import numpy as np
from guest_curves import LOADS
from numpy.typing import NDArray

from qmpalloc.curves.simulation import POLICIES
from qmpalloc.curves.tracker import CurveTracker
from qmpalloc.experiment.spec.access import Access
from qmpalloc.experiment.spec.references import page_numbers
from qmpalloc.sim.replay import ReplayGuest
from qmpalloc.units import MIB, PAGE_BYTES

OWN, LARGEST, SCALE, BURSTS, SEED = 32 * MIB, 256 * MIB, 8, 5, 1
SIZES = np.arange(32, 225, 32) * MIB
STEPS = 30
HEAD = ["load", "page replacement", "accesses by page", "sampling", "mean error", "worst error", "weak"]


def true_ratios(access: Access, lru: str, count: int) -> NDArray[np.float64]:
    """Return the miss ratios at all sizes of a load with so many pages of the model."""
    found = []
    for size in SIZES:
        pages = page_numbers(access, count, seed=9, guest="true", phase="1")
        cache = POLICIES[lru](int(size // PAGE_BYTES // SCALE), count, scale=SCALE)
        cache.read(list(islice(pages, 4 * count)))
        found.append(cache.read(list(islice(pages, 6 * count))) / (6 * count))
    return np.array(found)


class Guest(ReplayGuest):
    """A guest of whose load nothing is seen in a pause, and of which a curve is learnt anew after it."""

    next: CurveTracker | None = None

    def pause(self, steps: int) -> None:
        """Let the load run unseen."""
        self._observed = False
        for _ in range(steps):
            self.advance(1.0)
        self._observed = True
        room = self._room_pages
        self.next = CurveTracker(self._lru, room(self.floor_bytes) * SCALE, room(self.cap_bytes) * SCALE)

    def _observe(self, numbers: NDArray[np.int64], accesses: int, misses: int) -> None:
        if not self._observed or self.next is None:
            return super()._observe(numbers, accesses, misses)
        known, self.tracker = self.tracker, self.next  # as CurveObserver does
        super()._observe(numbers, accesses, misses)
        if self.tracker.warm:
            self.next = None
        else:
            self.tracker = known
        return None


def errors(name: str, lru: str, times: int, *, pauses: bool) -> tuple[NDArray[np.float64], int]:
    """Return how far curves are off, by burst and size, and how many are weak."""
    access, file_mib, _ = LOADS[name]
    count = file_mib * MIB // PAGE_BYTES // SCALE
    step, random, truth = times * count // STEPS, np.random.default_rng(5), true_ratios(access, lru, count)
    guest = Guest(
        "g", access, file_bytes=file_mib * MIB, accesses_per_s=step * SCALE, size_bytes=OWN + LARGEST // 2, lru=lru,
        own_bytes=OWN, floor_bytes=OWN + LARGEST // 16, cap_bytes=OWN + LARGEST, scale=SCALE, seed=SEED, aged=False,
    )  # fmt: skip
    guest.read_through()
    guest.pause(6 * count // step)
    found, weak = [], 0
    for burst in range(BURSTS):
        if burst and pauses:
            guest.pause(int(random.integers(count // 2, 3 * count)) // step)
        for _ in range(STEPS):
            guest.advance(1.0)
        curve = guest.tracker.curve(guest.mapping, guest.floor_bytes, guest.cap_bytes)
        found.append(np.abs(np.interp(OWN + SIZES, curve.sizes_bytes, curve.miss_ratio) - truth))
        weak += bool(curve.weak)
    return np.array(found), weak


@click.command(help=__doc__)
@click.option("--load", "loads", multiple=True, type=click.Choice(list(LOADS)), help="default: all")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path))
def main(loads: tuple[str, ...], csv_file: Path | None) -> None:
    """Measure each and print it as soon as it is done."""
    rows = []
    click.echo(f"| {' | '.join(HEAD)} |\n" + "|---" * len(HEAD) + "|")
    for name in loads or LOADS:
        for lru in ("two_list", "lru_gen"):
            for times, pauses in ((8, False), (8, True), (4, True)):
                off, weak = errors(name, lru, times, pauses=pauses)
                how = "bursts" if pauses else "no pauses"
                rows.append([name, lru, str(times), how, f"{off.mean():.4f}", f"{off.max():.4f}", f"{weak}/{BURSTS}"])
                click.echo(f"| {' | '.join(rows[-1])} |")
    if csv_file is not None:
        with csv_file.open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([HEAD, *rows])


if __name__ == "__main__":
    main()
