"""Simulated page caches: what all of them can do, and LRU and FIFO, as yardsticks for models of real ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence


class Replacement(ABC):
    """A page cache of a fixed number of pages.

    Attributes:
        name: For people.
        capacity: Pages it may hold; set it with `resize`.
        resident: Pages it holds now.
    """

    name: str

    def __init__(self, capacity: int, ids: int = 0, *, scale: float = 1.0) -> None:
        """Make an empty cache.

        Args:
            capacity: Pages it may hold.
            ids: Pages are numbered from 0 to `ids` - 1; more with `grow`.
            scale: Real pages for each page here, when only a sample is simulated.
        """
        self._scale = scale
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

    @abstractmethod
    def grow(self, ids: int) -> None:
        """Make room for more page numbers."""

    @abstractmethod
    def read(self, pages: Sequence[int]) -> int:
        """Read pages in order and return how many missed."""

    @abstractmethod
    def renumber(self, new: Sequence[int]) -> None:
        """Give every page its new number; negative for pages to be forgotten."""


class Lru(Replacement):
    """Evicts the page read longest ago."""

    name = "lru"
    _moves = True

    def __init__(self, capacity: int, ids: int = 0, *, scale: float = 1.0) -> None:
        self._pages: OrderedDict[int, None] = OrderedDict()
        super().__init__(capacity, ids, scale=scale)

    def grow(self, ids: int) -> None:
        """Nothing to do: any number is a page."""

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
        self._pages = OrderedDict((new[page], None) for page in self._pages if new[page] >= 0)
        self.resident = len(self._pages)


class Fifo(Lru):
    """Evicts the page that came longest ago."""

    name = "fifo"
    _moves = False
