"""How well the models of page replacement predict real guests: miss ratios measured in guests beside simulated ones.

    python benchmarks/curve_models.py

The measurements: Debian 13, Linux 6.12, one vCPU, no swap, transparent huge pages ``never``, ballooned to the size
given; buffered random 4 KiB reads without read-ahead by one process; caches dropped, 85 s of warm-up, 30 s measured.
Cache of a model = active and inactive file pages of the guest, less 7,000 that belong to the rest of the system.

How many reads 85 s were is not known. Each row states the count at which LRU and FIFO come nearest to what they gave
for the very references of the measurement; 30 s are taken as 30/85 of it. The references here have the same
distributions, not the same seeds.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice

from qmpalloc.curves.multigen import MultiGenerational
from qmpalloc.curves.replacement import Fifo, Lru
from qmpalloc.curves.two_list import TwoList
from qmpalloc.experiment.spec.access import Normal, Sequential, Zipf
from qmpalloc.experiment.spec.references import page_numbers, seeded

FILE_PAGES = 262_144
SYSTEM_PAGES = 7_000

# load, balloon in MiB, file pages, thousands of reads in the warm-up, measured miss ratio
MULTI_GENERATIONAL = (
    ("normal", 704, 147_685, 675, 0.2978),
    ("normal", 512, 98_449, 450, 0.5336),
    ("zipf", 704, 147_726, 900, 0.0801),
    ("zipf", 512, 97_476, 800, 0.1338),
    ("zipf", 400, 68_733, 900, 0.1746),
    ("zipf + loop (cliff)", 704, 147_874, 900, 0.1246),
    ("zipf + loop", 512, 98_676, 400, 0.4305),
    ("zipf + loop", 400, 69_586, 400, 0.4491),
)
TWO_LIST = (
    ("normal", 704, 148_196, 675, 0.2828),
    ("normal", 512, 98_924, 450, 0.4884),
    ("zipf", 512, 96_685, 800, 0.1132),
    ("zipf", 400, 68_052, 900, 0.1527),
    ("zipf + loop (cliff)", 704, 145_294, 400, 0.3882),
    ("zipf + loop", 512, 97_801, 400, 0.4047),
    ("zipf + loop", 400, 69_380, 400, 0.4199),
)


def references(load: str) -> Iterator[int]:
    """Return the page numbers of a load, without end."""
    match load.split(" (")[0]:
        case "normal":
            return page_numbers(Normal(deviation=0.2), FILE_PAGES, seed=1, guest="a", phase="p")
        case "zipf":
            return page_numbers(Zipf(exponent=0.99), FILE_PAGES, seed=1, guest="a", phase="p")
        case _:
            return _zipf_and_loop()


def _zipf_and_loop() -> Iterator[int]:
    draw = seeded(1, "mixture").random
    zipf = page_numbers(Zipf(exponent=0.99), 131_072, seed=1, guest="a", phase="zipf")
    loop = page_numbers(Sequential(), 98_304, seed=1, guest="a", phase="loop")
    while True:
        yield next(zipf) if draw() < 0.7 else 131_072 + next(loop)


def miss_ratio(model: Lru | TwoList | MultiGenerational, reads: Sequence[int], warm: int) -> float:
    """Return the miss ratio after the first `warm` reads."""
    model.read(reads[:warm])
    return model.read(reads[warm:]) / (len(reads) - warm)


def table(
    title: str, rows: tuple[tuple[str, int, int, int, float], ...], kind: type[TwoList | MultiGenerational]
) -> None:
    """Simulate and print one table."""
    print(f"\n{title}\n")
    print(
        "| load | MiB | thousand reads | **measured** | model | LRU | FIFO | midpoint | error of model | of midpoint |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    worst = [0.0, 0.0]
    for load, mib, file_pages, thousands, measured in rows:
        capacity, warm = file_pages - SYSTEM_PAGES, thousands * 1000
        reads = array("i", islice(references(load), warm + warm * 30 // 85))
        models = (kind(capacity, FILE_PAGES), Lru(capacity), Fifo(capacity))
        ours, lru, fifo = (miss_ratio(model, reads, warm) for model in models)
        middle = (lru + fifo) / 2
        errors = ours - measured, middle - measured
        if "cliff" not in load:
            worst = [max(old, abs(new)) for old, new in zip(worst, errors, strict=True)]
        print(
            f"| {load} | {mib} | {thousands} | **{measured:.4f}** | {ours:.4f} | {lru:.4f} | {fifo:.4f} | {middle:.4f} "
            f"| {errors[0]:+.4f} | {errors[1]:+.4f} |"
        )
    print(f"\nWorst off the cliff: model {worst[0]:.4f}, midpoint of LRU and FIFO {worst[1]:.4f}.")


if __name__ == "__main__":
    table("Multi-generational LRU", MULTI_GENERATIONAL, MultiGenerational)
    table("Two lists", TWO_LIST, TwoList)
