"""The references of a load: which pages it reads, in order. Seeded: the same in every arm, repeat and machine.

Only ``random()`` of Python's generator is used, whose sequence for a seed is promised across versions ("Notes on
Reproducibility" of the library reference); the methods built on it are not. Pages are pages of 4 KiB of the file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from itertools import accumulate, islice
from random import Random

from qmpalloc.experiment.spec.access import Access, HotCold, Loop, Mixture, Normal, Sequential, Uniform, Zipf
from qmpalloc.experiment.spec.schema import Guest, Phase, Specification


def phase_pages(specification: Specification, guest: Guest, phase: Phase) -> Iterator[int]:
    """Return the page numbers of all reads of a phase; every round goes on where the one before ended."""
    pages = page_numbers(phase.access, phase.pages, seed=specification.seed, guest=guest.name, phase=phase.name)
    return islice(pages, phase.total_reads)


def page_numbers(access: Access, pages: int, *, seed: int, guest: str, phase: str) -> Iterator[int]:
    """Return page numbers from 0 to `pages` - 1, without end, that depend on nothing but the arguments.

    Raises:
        ValueError: `pages` is below 1.
    """
    if pages < 1:
        raise ValueError(f"a file of {pages} pages cannot be read")
    return _stream(access, pages, seeded(seed, "references", guest, phase))


def seeded(seed: int, *purpose: str) -> Random:
    """Return a generator of its own for each purpose, so that one more guest or phase changes no other's draws."""
    digest = hashlib.sha256("\0".join((str(seed), *purpose)).encode()).digest()
    return Random(int.from_bytes(digest, "big"))


def _stream(access: Access, pages: int, random: Random) -> Iterator[int]:
    match access:
        case Normal(deviation=deviation):
            return _normal(pages, deviation, random)
        case Zipf(exponent=exponent):
            return _zipf(pages, exponent, random)
        case HotCold(hot=hot, hot_reads=hot_reads):
            return _hotcold(pages, hot, hot_reads, random)
        case Uniform():
            return _uniform(pages, random)
        case Sequential():
            return _scan(0, pages)
        case Loop(share=share, start=start):
            first = min(int(start * pages), pages - 1)
            return _scan(first, max(1, min(round(share * pages), pages - first)))
        case Mixture(parts=parts):
            streams = [_stream(part.access, pages, random) for part in parts]
            return _mixture(streams, [part.weight for part in parts], random)


def _normal(pages: int, deviation: float, random: Random) -> Iterator[int]:
    """Normal around the middle, truncated by drawing again; pairs of draws by the polar method (Marsaglia 1964)."""
    middle, spread, draw = pages / 2, deviation * pages, random.random
    while True:
        u, v = 2 * draw() - 1, 2 * draw() - 1
        square = u * u + v * v
        if not 0 < square < 1:
            continue
        factor = spread * math.sqrt(-2 * math.log(square) / square)
        for position in (middle + u * factor, middle + v * factor):
            if 0 <= position < pages:
                yield int(position)


def _zipf(pages: int, exponent: float, random: Random) -> Iterator[int]:
    """Exact in constant time and memory: rejection-inversion.

    W. Hörmann, G. Derflinger: Rejection-inversion to generate variates from monotone discrete distributions, ACM
    TOMACS 6(3), 1996. The area under x ** -exponent is inverted; what lies outside the histogram is drawn again.
    """
    power = 1 - exponent

    def area(x: float) -> float:
        log = math.log(x)
        return math.expm1(power * log) / power if abs(power * log) > 1e-12 else log

    def inverse(y: float) -> float:
        grown = max(power * y, -1 + 1e-15)
        return math.exp(math.log1p(grown) / power) if abs(grown) > 1e-12 else math.exp(y)

    lowest, highest = area(1.5) - 1, area(pages + 0.5)
    shortcut = 2 - inverse(area(2.5) - 2**-exponent)
    while True:
        y = highest + random.random() * (lowest - highest)
        x = inverse(y)
        rank = min(max(int(x + 0.5), 1), pages)
        if rank - x <= shortcut or y >= area(rank + 0.5) - rank**-exponent:
            yield rank - 1


def _hotcold(pages: int, hot: float, hot_reads: float, random: Random) -> Iterator[int]:
    hot_pages = min(max(1, round(hot * pages)), pages)
    cold_pages = pages - hot_pages
    draw = random.random
    while True:
        if draw() < hot_reads or not cold_pages:
            yield int(draw() * hot_pages)
        else:
            yield hot_pages + int(draw() * cold_pages)


def _uniform(pages: int, random: Random) -> Iterator[int]:
    while True:
        yield int(random.random() * pages)


def _scan(first: int, length: int) -> Iterator[int]:
    while True:
        yield from range(first, first + length)


def _mixture(streams: list[Iterator[int]], weights: list[float], random: Random) -> Iterator[int]:
    bounds = list(accumulate(weights))
    while True:
        point = random.random() * bounds[-1]
        chosen = next((index for index, bound in enumerate(bounds) if point < bound), len(bounds) - 1)
        yield next(streams[chosen])
