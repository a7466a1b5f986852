"""LRU and FIFO: the classic replacement policies, as yardsticks for models of real ones. Simulated."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class Lru:
    """A page cache of a fixed number of pages that evicts the page read longest ago.

    Attributes:
        capacity: Pages it may hold; lower it with `resize`.
    """

    name = "lru"
    _moves = True

    def __init__(self, capacity: int, ids: int = 0, *, scale: float = 1.0) -> None:
        """Make an empty cache of `capacity` pages; `ids` and `scale` are of no consequence."""
        del ids, scale
        self._pages: OrderedDict[int, None] = OrderedDict()
        self.capacity = max(1, capacity)

    @property
    def resident(self) -> int:
        """Pages it holds now."""
        return len(self._pages)

    def resize(self, capacity: int) -> None:
        """Set the capacity; what does not fit is evicted."""
        self.capacity = max(1, capacity)
        while len(self._pages) > self.capacity:
            self._pages.popitem(last=False)

    def grow(self, ids: int) -> None:
        """Nothing to do: any number is a page."""

    def read(self, pages: Sequence[int]) -> int:
        """Read pages in order and return how many missed."""
        cached, misses, moves = self._pages, 0, self._moves
        for page in pages:
            if page in cached:
                if moves:
                    cached.move_to_end(page)
            else:
                misses += 1
                if len(cached) >= self.capacity:
                    cached.popitem(last=False)
                cached[page] = None
        return misses

    def renumber(self, new: Sequence[int], ids: int) -> None:
        """Give pages new numbers; negative for pages to be forgotten."""
        del ids
        self._pages = OrderedDict((new[page], None) for page in self._pages if new[page] >= 0)


class Fifo(Lru):
    """A page cache of a fixed number of pages that evicts the page that came longest ago."""

    name = "fifo"
    _moves = False
