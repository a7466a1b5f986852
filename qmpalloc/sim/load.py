"""A simple model of a load that reads a file, and of the page cache that serves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qmpalloc.units import MIB, PAGE_BYTES

HitRatio = Callable[[int], float]


def uniform(file_pages: int) -> HitRatio:
    """Return the hit ratio of uniformly random reads of a file: the cached part of it."""
    return lambda cache_pages: min(1.0, cache_pages / file_pages) if file_pages else 1.0


@dataclass(kw_only=True)
class Load:
    """What a guest reads. All attributes can be changed while it runs.

    Attributes:
        file_pages: Size of what is read; no more than that is ever cached.
        accesses_per_s: Pages read per second when all of them are cached.
        hit_ratio: Part of the accesses that hit, 0 to 1, for a number of cached pages; `uniform` when None.
        miss_cost: Time of a miss in times of a hit, less one: 0 reads at a constant rate whatever it misses, 9 reads
            at a tenth of the rate when everything misses, as a load that waits for the disk does.
    """

    file_pages: int
    accesses_per_s: float
    hit_ratio: HitRatio | None = None
    miss_cost: float = 0.0

    def miss_ratio(self, cache_pages: int) -> float:
        """Return the part of the accesses that miss with that many cached pages."""
        hit_ratio = self.hit_ratio or uniform(self.file_pages)
        return 1.0 - min(1.0, max(0.0, hit_ratio(min(cache_pages, self.file_pages))))


@dataclass
class CacheModel:
    """Cumulative counts of a guest under a load, in pages.

    Attributes:
        load: What is read.
        own_bytes: Memory of the kernel and the programs, which is no cache.
        accesses: Pages touched by reads.
        misses: Pages brought in for them.
        evictions: Pages thrown out.
        cached_pages: Pages of the file in memory now.
    """

    load: Load
    own_bytes: int = 96 * MIB
    accesses: float = 0.0
    misses: float = 0.0
    evictions: float = 0.0
    cached_pages: int = 0

    @property
    def file_pages(self) -> int:
        """Size of what is read."""
        return self.load.file_pages

    def room_pages(self, actual_bytes: int) -> int:
        """Return how many pages of the file a guest of that size can hold."""
        return min(self.load.file_pages, max(0, actual_bytes - self.own_bytes) // PAGE_BYTES)

    def warm(self, actual_bytes: int) -> None:
        """Fill the cache of a guest of that size, as if the load had run for long."""
        self.cached_pages = self.room_pages(actual_bytes)

    def advance(self, seconds: float, actual_bytes: int) -> None:
        """Let the load run for a time in a guest of that size; the cache fills with what misses bring in."""
        before = min(self.cached_pages, self.room_pages(actual_bytes))
        miss_ratio = self.load.miss_ratio(before)
        accesses = self.load.accesses_per_s * seconds / (1.0 + self.load.miss_cost * miss_ratio)
        misses = accesses * miss_ratio
        after = min(self.room_pages(actual_bytes), before + int(misses))
        self.accesses += accesses
        self.misses += misses
        # What was there, or came in, and is not there any more, was thrown out.
        self.evictions += max(0.0, self.cached_pages + misses - after)
        self.cached_pages = after


@dataclass
class MappedFile:
    """A file that a program maps and touches at random; no read shows that.

    Attributes:
        file_pages: Its size.
        touches_per_s: Pages touched per second.
        faults: Pages that page faults brought in so far.
        resident_pages: Pages of it in memory now.
    """

    file_pages: int
    touches_per_s: float
    faults: float = 0.0
    resident_pages: int = 0

    def advance(self, seconds: float, room_pages: int) -> None:
        """Let the program run for a time with room for so many pages of the file."""
        held = min(self.resident_pages, max(0, room_pages))
        faults = self.touches_per_s * seconds * (1.0 - held / self.file_pages)
        self.faults += faults
        self.resident_pages = min(self.file_pages, max(0, room_pages), held + int(faults))
