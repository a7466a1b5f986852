"""Simulated page caches: what all of them can do, and LRU and FIFO, as yardsticks for models of real ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Replacement(ABC):
    """A page cache of a fixed number of pages.

    Attributes:
        capacity: Pages it may hold; set it with `resize`.
        scale: Real pages for each page here, when only a sample is simulated; to be set before `resize`.
        resident: Pages it holds now.
    """

    def __init__(self, capacity: int, ids: int = 0, *, scale: float = 1.0) -> None:
        """Make an empty cache.

        Args:
            capacity: Pages it may hold.
            ids: Pages are numbered from 0 to `ids` - 1; more with `grow`.
            scale: Real pages for each page here.
        """
        self.scale = scale
        self._states = bytearray()  # of the pages, by number; 0: absent
        self.resident = 0
        self.resize(capacity)
        self.grow(ids)

    def resize(self, capacity: int) -> None:
        """Set the capacity; what does not fit is evicted."""
        self.capacity = max(1, capacity)
        while self.resident > self.capacity:
            self._evict()

    @abstractmethod
    def _evict(self) -> None:
        """Evict one page."""

    def grow(self, ids: int) -> None:
        """Make room for more page numbers."""
        self._states.extend(bytes(max(0, ids - len(self._states))))

    def holds(self) -> NDArray[np.bool_]:
        """Return, for each page number, whether the page is there."""
        return np.asarray(np.frombuffer(self._states, dtype=np.uint8) != 0)

    @abstractmethod
    def read(self, pages: Sequence[int]) -> int:
        """Read pages in order and return how many missed."""

    def renumber(self, new: Sequence[int]) -> None:
        """Give every page its new number; negative for pages to be forgotten."""
        states = bytearray(max(new, default=-1) + 1)
        for number, state in zip(new, self._states, strict=False):  # it need not have seen the last pages
            if number >= 0:
                states[number] = state
        self._states = states


class Lru(Replacement):
    """Evicts the page read longest ago."""

    _moves = True

    def __init__(self, capacity: int, ids: int = 0, *, scale: float = 1.0) -> None:
        self._pages: OrderedDict[int, None] = OrderedDict()
        super().__init__(capacity, ids, scale=scale)

    def read(self, pages: Sequence[int]) -> int:
        """Read pages, as `Replacement.read`."""
        cached, misses, moves = self._pages, 0, self._moves
        for page in pages:
            if page in cached:
                if moves:
                    cached.move_to_end(page)
            else:
                misses += 1
                if self.resident >= self.capacity:
                    self._evict()
                cached[page] = None
                self.resident += 1
        return misses

    def _evict(self) -> None:
        self._pages.popitem(last=False)
        self.resident -= 1

    def renumber(self, new: Sequence[int]) -> None:
        """Give pages new numbers, as `Replacement.renumber`."""
        super().renumber(new)
        self._pages = OrderedDict((new[page], None) for page in self._pages if new[page] >= 0)
        self.resident = len(self._pages)


class Fifo(Lru):
    """Evicts the page that came longest ago."""

    _moves = False
