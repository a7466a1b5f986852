"""What a cached and an uncached read take."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

from .files import PAGE_BYTES, PAGE_SHIFT, PageFile, Read

HIT_PAGES = 64
HIT_S = 3.0
"""Long enough that measurements started in several guests at once overlap."""
MISS_SETTLE_S = 0.5
MISS_MAX_S = 3.0
MISS_MAX = 500
MISS_PAGES = 30_000
"""Pages to choose misses from; enough to settle on a disk that takes 20 µs. All of a large file's would cost memory."""


def measure_service(path: str) -> dict[str, float]:
    """Return what a cached and an uncached read of one page take; nothing of the file is cached afterwards.

    A throttle of QEMU is a leaky bucket: after a pause it lets a tenth of a second's requests through at once. Reads
    one after the other, each taking l unthrottled, use that up in 0.1 s * r / (1 - r), where r = l * limit. So the
    reads of the first `MISS_SETTLE_S` are not counted. That is enough for r up to 0.83; above, the throttle is hardly
    slower than the disk anyway.
    """
    file = PageFile(path)
    pages = random.Random(1).sample(range(file.pages), min(file.pages, MISS_PAGES))
    offsets = [page << PAGE_SHIFT for page in pages]
    read, clock = file.reader(), time.perf_counter
    file.fetch(HIT_PAGES)
    hits, hit_s = _time_hits(read, range(0, min(file.pages, HIT_PAGES) << PAGE_SHIFT, PAGE_BYTES), clock)
    file.drop()
    misses, miss_s = _time_misses(read, offsets, clock)
    file.drop()
    return {"hit_s": hit_s, "miss_s": miss_s, "hits": hits, "misses": misses}


def _time_hits(read: Read, offsets: Sequence[int], clock: Callable[[], float]) -> tuple[int, float]:
    """Time rounds of cached reads; return how many reads, and the median of the rounds' means.

    The median, because a host that is busy with other things interrupts some rounds for long, and the throttle that
    follows should be that of the machine, not of the moment.
    """
    rounds = []
    before_s = started_s = clock()
    while before_s < started_s + HIT_S:
        for offset in offsets:
            read(offset)
        now_s = clock()
        rounds.append((now_s - before_s) / len(offsets))
        before_s = now_s
    return len(rounds) * len(offsets), statistics.median(rounds)


def _time_misses(read: Read, offsets: Sequence[int], clock: Callable[[], float]) -> tuple[int, float]:
    """Time reads of pages that are each read once; return how many were counted, and the mean.

    Where half of the pages are read before the disk has settled, it is so fast that they are enough.
    """
    begun_s = counted_s = clock()
    misses = 0
    for number, offset in enumerate(offsets):
        read(offset)
        now_s = clock()
        if now_s < begun_s + MISS_SETTLE_S and number < len(offsets) // 2:
            counted_s = now_s
            continue
        misses += 1
        if misses == MISS_MAX or now_s > counted_s + MISS_MAX_S:
            break
    return misses, (now_s - counted_s) / misses if misses else 0.0
