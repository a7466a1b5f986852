"""A simulated guest whose page cache is really simulated, with the sampled accesses that a collector would ship."""

from __future__ import annotations

import numpy as np

from qmpalloc.curves.mapping import SYSTEM_PAGES
from qmpalloc.curves.samples import BLOCK_SHIFT, Batch
from qmpalloc.sim.replay import ReplayGuest
from qmpalloc.units import PAGE_BYTES


class ReplayCache:
    """Cumulative counts of a `ReplayGuest`, in pages, as `CacheModel` gives them; and the samples of each interval.

    Attributes:
        guest: The guest; its load may be changed.
        accesses: Pages touched by reads.
        misses: Pages brought in for them.
        evictions: Pages thrown out.
    """

    def __init__(self, guest: ReplayGuest) -> None:
        self.guest = guest
        self.accesses = self.misses = self.evictions = 0.0
        self._keys = np.empty(0, dtype=np.uint64)
        self._first = 0
        self._ahead_s = 0.0

    @property
    def own_bytes(self) -> int:
        """Memory of the kernel and the programs, which is no cache."""
        return self.guest.own_bytes - SYSTEM_PAGES * PAGE_BYTES

    @own_bytes.setter
    def own_bytes(self, own_bytes: int) -> None:
        self.guest.own_bytes = own_bytes + SYSTEM_PAGES * PAGE_BYTES

    @property
    def cached_pages(self) -> int:
        """File pages in memory now, those of the system itself included."""
        return self.guest.cached_pages + SYSTEM_PAGES

    @property
    def file_pages(self) -> int:
        """Size of what is read."""
        return self.guest.file_pages

    def advance(self, seconds: float, actual_bytes: int) -> None:
        """Let the load run for a time in a guest of that size."""
        guest = self.guest
        before = guest.cached_pages
        guest.resize(actual_bytes)
        # A load that waits for its misses ends its last reads later than asked; it rests for as long next time.
        guest.advance(max(0.0, seconds - self._ahead_s))
        self._ahead_s += guest.interval_s - seconds
        self.accesses += guest.hits + guest.misses
        self.misses += guest.misses
        self.evictions += max(0.0, before + guest.misses - guest.cached_pages)
        self._first += len(self._keys)
        self._keys = guest.sampled(guest.pages_read)

    def batch(self, boot_id: bytes, start_id: bytes) -> Batch:
        """Return what the collector would ship of the last interval."""
        return Batch(
            boot_id=boot_id,
            start_id=start_id,
            first=self._first,
            accesses=int(self.accesses),
            lost=0,
            shift=BLOCK_SHIFT,
            events=self._keys << np.uint64(4),
        )
