"""A replay guest whose program maps its file: only faults, ages and refault distances show what it touches."""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from qmpalloc.curves.replacement import Lru
from qmpalloc.idle import IdleMemory, Touches, unused_bytes
from qmpalloc.model import GuestSnapshot
from qmpalloc.sample import AGE_BINS, Ages, AgesByKind, Memory
from qmpalloc.sim.replay import ReplayGuest
from qmpalloc.units import PAGE_BYTES

_FRAME_PAGES = 128
_AGES_S = 2.0 ** np.arange(AGE_BINS - 1)


class LruStates(Lru):
    """LRU, by which the kernel replaces mapped pages nearly: their accessed bits are looked at in turn."""

    def holds(self) -> NDArray[np.bool_]:
        """Return which pages are there, as `Replacement.holds`."""
        held = np.zeros(len(self._states), dtype=bool)
        held[np.fromiter(self._pages, dtype=np.int64, count=len(self._pages))] = True
        return held


class MappedGuest(ReplayGuest):
    """Touches pages of a mapped file; what misses is a fault. Its page replacement is LRU.

    Args:
        options: As of `ReplayGuest`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._touches, self._touched = Touches(), np.zeros(AGE_BINS, dtype=np.int64)
        super().__init__(*arguments, **{"ghosts": True} | options | {"observed": False})

    def drop_cache(self) -> None:
        """Begin with an empty cache, as after a boot."""
        super().drop_cache()
        pages = self.first_page + self._pages
        self.cache = LruStates(self._room_pages(self.size_bytes), pages, scale=self._scale)

    def advance(self, seconds: float) -> None:
        """Let the load run, and note how old the pages were that it touched again."""
        self.cache.grow(self.first_page + self._pages)
        touched_s, stayed = self._touched_s.copy(), self.cache.holds()
        super().advance(seconds)
        again = np.unique(self.pages_read)
        again = again[stayed[again] & self.cache.holds()[again]]
        ages = np.searchsorted(_AGES_S, self._time_s - seconds / 2 - touched_s[again], side="right")
        self._touched += np.bincount(ages, minlength=AGE_BINS) * self._scale
        none = (0,) * AGE_BINS
        told = AgesByKind(file=none, mapped=tuple((self._touched // _FRAME_PAGES).tolist()), anon=none, shmem=none)
        self._touches.observe(Ages(step_ms=1000, pages_each=_FRAME_PAGES, steps=0, idle=told, touched=told), seconds)

    def snapshot(self) -> GuestSnapshot:
        """Return what a policy sees: no reads."""
        seen, idle = super().snapshot(), self._idle()
        unused = unused_bytes(idle.seconds, idle.unread, self._touches)
        in_use = self.own_bytes + self.cached_pages * PAGE_BYTES - unused
        returns = seen.returns
        if returns is not None:
            returns = structs.replace(returns, reads_per_s=returns.faults_per_s, faults_per_s=returns.reads_per_s)
        return structs.replace(seen, hits=0, misses=0, faults=seen.misses, in_use_bytes=in_use, returns=returns)

    def _memory(self) -> Memory:
        memory = super()._memory()
        return structs.replace(memory, mapped=memory.inactive_file, tmpfs=0)

    def _idle(self) -> IdleMemory:
        idle = super()._idle()
        youngest = self.cached_pages - idle.read[0] // PAGE_BYTES
        again = self._touches.again_per_s(swap=False)
        return structs.replace(idle, read=idle.unread, unread=idle.read, hot_pages=youngest, again_per_s=again)
