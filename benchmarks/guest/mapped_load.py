"""Touches pages of a mapped file at a rate of its own, and tells how many. Runs inside a guest.

    python3 mapped_load.py FILE MIB KIND RATE [random]

KIND is ``normal`` (deviation 15 % of the file), ``zipf`` (.99, scattered) or ``mixed`` (of three touches two are
Zipf, one is a read(), which goes round a quarter of the file). `random` asks for no read-ahead, madvise(MADV_RANDOM):
then the kernel ignores that mapped pages are used. Prints how many touches were made and how many were due, every
second, for ever.
"""

from __future__ import annotations

import bisect
import itertools
import mmap
import os
import random
import sys
import time

PAGE_BYTES = mmap.PAGESIZE
DRAWN = 200_000
"""Touches that are drawn beforehand, and repeated: more than any cache here remembers."""

TICK_S = 0.02


def draw(kind: str, pages: int, rng: random.Random) -> list[int]:
    """Return the pages to touch; those to read are told as -1 - page."""
    if kind == "normal":
        return [min(pages - 1, max(0, int(rng.gauss(pages / 2, pages * 0.15)))) for _ in range(DRAWN)]
    order = list(range(pages))
    rng.shuffle(order)
    weights = list(itertools.accumulate((rank + 1) ** -0.99 for rank in range(pages)))
    drawn = [order[min(pages - 1, bisect.bisect(weights, rng.random() * weights[-1]))] for _ in range(DRAWN)]
    if kind == "mixed":
        drawn[::3] = [-1 - (pages * 3 // 4 + turn % (pages // 4)) for turn in range(len(drawn[::3]))]
    return drawn


def main(path: str, mib: str, kind: str, rate: str, advice: str = "") -> None:
    """Touch pages for ever."""
    size, per_s = int(mib) << 20, float(rate)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    mapped = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
    if advice == "random":
        mapped.madvise(mmap.MADV_RANDOM)
    drawn = draw(kind, size // PAGE_BYTES, random.Random(1))
    for page in range(size // PAGE_BYTES):
        mapped[page * PAGE_BYTES]
    began_s = time.monotonic()
    made = told_s = 0
    while True:
        seconds = time.monotonic() - began_s
        if seconds >= told_s:
            print(made, int(seconds * per_s), flush=True)
            told_s += 1
        for page in itertools.islice(drawn, made % DRAWN, made % DRAWN + max(0, int(seconds * per_s) - made)):
            if page >= 0:
                mapped[page * PAGE_BYTES]
            else:
                os.pread(fd, PAGE_BYTES, (-1 - page) * PAGE_BYTES)
            made += 1
        time.sleep(TICK_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
