"""From a guest's memory size to the page cache it leaves, learnt for each guest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.tuning import TUNING
from qmpalloc.sample import Delta, Memory
from qmpalloc.units import MIB, PAGE_BYTES

SYSTEM_PAGES = 2_500
"""File pages of a small Linux system itself (programs, libraries) that stay in the cache while a load needs it: no room
for the load. Chosen by what was measured in the reference guest (docs/results/guest-curves.md), where some 3,700 are
cached without such need; a guest with more of them is corrected by anchoring (`qmpalloc.curves.measurement`)."""

FREE_BYTES = 32 * MIB
"""Memory that a small guest keeps free: its kernel's high watermark, and what comes and goes above it."""

_KEPT_FREE_MOST_BYTES, _KEPT_FREE_MOST_SHARE = 128 * MIB, 1 / 64
"""Together more than a kernel keeps free, unless told to keep more (``vm.min_free_kbytes``). Its high watermark is
at 100 MiB with transparent huge pages (khugepaged's 22 MiB for each of three zones, and half as much again), and near
.2 % of large memory."""

_BOOSTED = 1.5
"""Times its high watermark is what a kernel keeps free while it sorts its memory (``vm.watermark_boost_factor``)."""


def is_full(memory: Memory, size_bytes: int) -> bool:
    """Return whether so little is free in a guest of that size that its kernel evicts pages to keep it free.

    Pages also leave the cache when files are deleted, or within the limit of a control group, whatever is free.
    """
    most_bytes = _KEPT_FREE_MOST_BYTES + _KEPT_FREE_MOST_SHARE * size_bytes
    most_bytes = max(most_bytes, _BOOSTED * (memory.kept_free or 0))
    return memory.free is not None and memory.free <= most_bytes


def unused_bytes(memory: Memory, kept_bytes: int = FREE_BYTES) -> int:
    """Return the free memory beyond what the guest's kernel keeps free: to take it costs nothing.

    It keeps so much, or its high watermarks if they are higher, as with transparent huge pages.
    """
    return max(0, (memory.free or 0) - max(kept_bytes, memory.kept_free or 0))


def system_bytes(memory: Memory, least_bytes: int = SYSTEM_PAGES * PAGE_BYTES) -> int:
    """Return the bytes of a guest's file pages that are no room for what its load reads.

    Those of a small system, or what its programs map if that is more: a database's programs and libraries are several
    times as large.
    """
    # Shared memory that is mapped is no file page. How much of it is, is not told: all of it is left out.
    return max(least_bytes, (memory.mapped or 0) - (memory.shmem or 0))


class CacheLimit:
    """Whether something else than a guest's size limits its cache: the control group of a container, as a rule.

    Such a cache does not grow while memory is free and pages come back that the kernel had to evict. A cache that only
    fills grows by what it misses; who deletes files, or drops them from the cache, brings none back.

    Attributes:
        pages: Of the load, that it was limited to when that was last seen; infinity when it is not.
    """

    def __init__(self) -> None:
        self.pages = math.inf
        self._load, self._seen_s = 0, 0.0
        self._file_bytes: int | None = None
        self._forget()

    def _forget(self) -> None:
        self._missed = self._returned = self._grown = 0.0

    def observe(self, delta: Delta, memory: Memory, size_bytes: int, cached_pages: float, load: int) -> None:
        """Learn from an interval.

        Args:
            delta: What happened in it.
            memory: The guest's memory facts at its end.
            size_bytes: Its size.
            cached_pages: Pages of the load in the cache.
            load: Number of the load: of another one nothing is known.
        """
        tuning, file_bytes = TUNING.tracking, memory.file_bytes
        before, self._file_bytes = self._file_bytes, file_bytes
        self._seen_s += delta.interval_s
        grows = cached_pages > tuning.limit_grown * self.pages
        if grows or load != self._load or self._seen_s > tuning.limit_known_s:
            self.pages, self._load = math.inf, load
        if file_bytes is None or before is None or memory.free is None or is_full(memory, size_bytes):
            self._forget()
            return
        kept = 0.5 ** (delta.interval_s / tuning.limit_half_life_s)
        misses = max(0, delta.misses or 0)
        self._missed = self._missed * kept + misses
        self._returned = self._returned * kept + min(misses, delta.refaults or 0)
        self._grown = self._grown * kept + min(misses, max(0.0, (file_bytes - before) / PAGE_BYTES))
        part = tuning.limit_part * self._missed
        if self._missed >= tuning.limit_pages_least and self._returned >= part > self._grown:
            self.pages, self._seen_s = cached_pages, 0.0


class SizeMapping:
    """How much page cache a guest of a given size has: its size, less what is not cache.

    What is not cache is learnt while the guest evicts pages for want of memory: then its free memory is what the kernel
    keeps free. Before, `unused_bytes` are counted as cache to come.

    Attributes:
        overhead_bytes: Memory that is not cache; None before anything was seen.
    """

    def __init__(self, *, system_pages: int = SYSTEM_PAGES, kept_bytes: int = FREE_BYTES) -> None:
        """Make a mapping.

        Args:
            system_pages: File pages, at least, that belong to the guest's system rather than to its load.
            kept_bytes: Memory the guest keeps free, at least, until that is seen.
        """
        self._least_system_bytes = self._system_bytes = system_pages * PAGE_BYTES
        self.overhead_bytes: int | None = None
        self._kept_bytes = kept_bytes
        self._free_bytes: float | None = None

    def observe(self, actual_bytes: int, memory: Memory, *, evicting: bool) -> None:
        """Learn from a sample.

        Args:
            actual_bytes: The guest's size.
            memory: Its memory facts of about the same time.
            evicting: Whether pages are being evicted for want of memory, so that the cache is as large as it can be.
        """
        file_bytes, free = memory.file_bytes, memory.free
        if file_bytes is None or free is None:
            return
        keep = TUNING.tracking.mapping_keep
        if evicting:
            self._free_bytes = free if self._free_bytes is None else keep * self._free_bytes + (1 - keep) * free
        if self._free_bytes is None:
            spare = unused_bytes(memory, self._kept_bytes)
        else:
            spare = max(0, free - int(self._free_bytes))
        seen = max(0, actual_bytes - file_bytes - spare)
        system = system_bytes(memory, self._least_system_bytes)
        if self.overhead_bytes is None:
            self.overhead_bytes, self._system_bytes = seen, system
        else:
            self.overhead_bytes = round(keep * self.overhead_bytes + (1 - keep) * seen)
            self._system_bytes = round(keep * self._system_bytes + (1 - keep) * system)

    def cache_pages(self, size_bytes: float) -> float:
        """Return the pages of cache for the load that a guest of `size_bytes` has; 0 before anything was seen."""
        return float(self.caches_pages(np.array([size_bytes]))[0])

    def caches_pages(self, sizes_bytes: NDArray[Any]) -> NDArray[np.float64]:
        """Return the same for many sizes."""
        if self.overhead_bytes is None:
            return np.zeros(len(sizes_bytes))
        return np.maximum(0.0, sizes_bytes - float(self.overhead_bytes + self._system_bytes)) / PAGE_BYTES

    def cached_pages(self, memory: Memory) -> float | None:
        """Return the pages of the load that are cached now, which may be fewer than would fit."""
        if memory.file_bytes is None:
            return None
        return max(0.0, memory.file_bytes - self._system_bytes) / PAGE_BYTES
