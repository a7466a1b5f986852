"""A replay guest whose program maps its file: only faults, ages and refault distances show what it touches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from msgspec import structs

from qmpalloc.curves.replacement import Lru
from qmpalloc.curves.samples import BLOCK_SHIFT
from qmpalloc.idle import IDLE_S, IdleMemory, Touches
from qmpalloc.model import GuestSnapshot
from qmpalloc.returns import EDGES, ReturnsTracker
from qmpalloc.sample import AGE_BINS, GHOST_BINS, Ages, AgesByKind, Delta, Memory, RefaultDistances
from qmpalloc.sim.replay import ReplayGuest, mixed
from qmpalloc.units import PAGE_BYTES

_FIRST_PAGES = 16 << BLOCK_SHIFT
"""End of the first bin of refault distances, as in ``guest_agent/ghosts.py``."""


_FRAME_PAGES = 128
_AGES_S = 2.0 ** np.arange(AGE_BINS - 1)


class GhostLru(Lru):
    """LRU, by which the kernel replaces mapped pages nearly: their accessed bits are looked at in turn.

    Attributes:
        distances: Of the pages that came back, how many others had been evicted meanwhile; emptied by who reads it.
    """

    def __init__(self, capacity: int, ids: int = 0, *, scale: float = 1.0) -> None:
        self._clock = 0
        self._left: dict[int, int] = {}
        self.distances: list[tuple[int, int]] = []
        super().__init__(capacity, ids, scale=scale)

    @property
    def cached(self) -> Iterable[int]:
        """The pages it holds."""
        return self._pages

    def read(self, pages: Sequence[int]) -> int:
        """Read pages, as `Replacement.read`."""
        misses = 0
        for page in pages:
            if page not in self._pages and page in self._left:
                self.distances.append((page, self._clock - self._left.pop(page)))
            misses += super().read((page,))
        return misses

    def _evict(self) -> None:
        page, _ = self._pages.popitem(last=False)
        self.resident -= 1
        self._clock += 1
        self._left[page] = self._clock


class MappedGuest(ReplayGuest):
    """Touches pages of a mapped file; what misses is a fault. Its page replacement is LRU.

    Args:
        distances: Whether its collector tells refault distances, and how often memory of each age is touched.
        options: As of `ReplayGuest`.
    """

    def __init__(self, *arguments: Any, distances: bool = True, **options: Any) -> None:
        self._returns = ReturnsTracker() if distances else None
        self._touches, self._touched = Touches(), np.zeros(AGE_BINS, dtype=np.int64)
        super().__init__(*arguments, **options | {"observed": False})

    def drop_cache(self) -> None:
        """Begin with an empty cache, as after a boot."""
        self.cache: GhostLru = GhostLru(self._room_pages(self.size_bytes), scale=self._scale)

    def advance(self, seconds: float) -> None:
        """Let the load run, and note how far pages had gone that came back, and how old those were that had stayed."""
        touched_s, stayed = self._touched_s.copy(), np.fromiter(self.cache.cached, dtype=np.int64)
        super().advance(seconds)
        came, self.cache.distances = self.cache.distances, []
        if self._returns is None:
            return
        again = np.setdiff1d(np.intersect1d(self.pages_read, stayed), [page for page, _ in came])
        ages = np.searchsorted(_AGES_S, self._time_s - seconds / 2 - touched_s[again], side="right")
        self._touched += np.bincount(ages, minlength=AGE_BINS) * self._scale // _FRAME_PAGES
        none = (0,) * AGE_BINS
        aged = AgesByKind(file=none, mapped=tuple(self._touched.tolist()), anon=none, shmem=none)
        self._touches.observe(Ages(step_ms=1000, pages_each=_FRAME_PAGES, steps=0, idle=aged, touched=aged), seconds)
        bins = [0] * GHOST_BINS
        slots = np.uint64(2**BLOCK_SHIFT // self._scale)
        for page, distance in came:
            if mixed(np.array([page], dtype=np.uint64) + self._salt)[0] % slots == 0:
                bins[int(np.searchsorted(EDGES, distance * self._scale / _FIRST_PAGES, side="right")) - 1] += 1
        told = RefaultDistances(
            pages_each=2**BLOCK_SHIFT, pages_first=_FIRST_PAGES, read=(0,) * GHOST_BINS, fault=tuple(bins)
        )
        interval = Delta(interval_s=seconds, inserts_fault=round(self.misses), refault_distances=told)
        self._returns.observe(interval, self.size_bytes, PAGE_BYTES)

    def snapshot(self) -> GuestSnapshot:
        """Return what a policy sees: no reads."""
        seen, idle = super().snapshot(), self._idle()
        in_use = self.own_bytes + self.cached_pages * PAGE_BYTES - idle.bytes_for(IDLE_S)
        returns = None if self._returns is None else self._returns.returns
        return structs.replace(seen, hits=0, misses=0, faults=seen.misses, in_use_bytes=in_use, returns=returns)

    def _memory(self) -> Memory:
        memory = super()._memory()
        return structs.replace(memory, mapped=memory.inactive_file, tmpfs=0)

    def _idle(self) -> IdleMemory:
        idle = super()._idle()
        youngest = self.cached_pages - idle.read[0] // PAGE_BYTES
        again = self._touches.again_per_s(swap=False)
        return structs.replace(idle, read=idle.unread, unread=idle.read, hot_pages=youngest, again_per_s=again)
