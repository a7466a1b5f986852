"""Linux's classic page replacement: an inactive and an active list, with activation at refault. Simulated.

After ``mm/swap.c`` (``folio_mark_accessed``), ``mm/vmscan.c`` (``shrink_active_list``, ``inactive_is_low``) and
``mm/workingset.c`` of Linux 6.12, for clean pages of files read by ``read()`` in a guest without swap.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence

from qmpalloc.units import GIB, PAGE_BYTES

_ABSENT, _INACTIVE, _INACTIVE_READ, _ACTIVE, _ACTIVE_READ = range(5)


class TwoList:
    """A page cache of a fixed number of pages under the two lists.

    A new page enters the inactive list. Its second read since moves it to the active one. When the inactive list is
    too short, the oldest active pages go back to it; pages are evicted from its end. An evicted page leaves its age
    behind: if it comes back before as many evictions and activations as there are active pages, it is active at once.

    Attributes:
        capacity: Pages it may hold; lower it with `resize`.
    """

    name = "two-list"

    def __init__(self, capacity: int, ids: int, *, scale: float = 1.0) -> None:
        """Make an empty cache.

        Args:
            capacity: Pages it may hold.
            ids: Pages are numbered from 0 to `ids` - 1; more with `grow`.
            scale: Real pages for each page here, when only a sample is simulated: the kernel's ratio of the two lists
                depends on the real size.
        """
        self._scale = scale
        self._state = bytearray(ids)
        self._evicted_at = array("q", [-1]) * ids
        self._inactive: OrderedDict[int, None] = OrderedDict()
        self._active: deque[int] = deque()
        self._age = 0
        self.capacity = 0
        self.resize(capacity)

    @property
    def resident(self) -> int:
        """Pages it holds now."""
        return len(self._inactive) + len(self._active)

    def resize(self, capacity: int) -> None:
        """Set the capacity; what does not fit is evicted."""
        self.capacity = max(1, capacity)
        gib = int(self.capacity * self._scale * PAGE_BYTES) // GIB
        self._ratio = math.isqrt(10 * gib) if gib else 1
        while self.resident > self.capacity:
            self._evict()

    def grow(self, ids: int) -> None:
        """Make room for more page numbers."""
        more = ids - len(self._state)
        if more > 0:
            self._state.extend(bytes(more))
            self._evicted_at.extend(array("q", [-1]) * more)

    def read(self, pages: Sequence[int]) -> int:
        """Read pages in order and return how many missed."""
        state, evicted_at, inactive, active = self._state, self._evicted_at, self._inactive, self._active
        capacity, misses = self.capacity, 0
        for page in pages:
            now = state[page]
            if now == _INACTIVE:
                state[page] = _INACTIVE_READ
            elif now == _ACTIVE:
                state[page] = _ACTIVE_READ
            elif now == _INACTIVE_READ:
                del inactive[page]
                active.append(page)
                state[page] = _ACTIVE
                self._age += 1
            elif now == _ABSENT:
                misses += 1
                if len(inactive) + len(active) >= capacity:
                    self._evict()
                then = evicted_at[page]
                if then >= 0 and self._age - then <= len(active):
                    active.append(page)
                    state[page] = _ACTIVE_READ
                    self._age += 1
                else:
                    inactive[page] = None
                    # The read that brought it in counts as the first of two.
                    state[page] = _INACTIVE_READ
        return misses

    def _evict(self) -> None:
        state, inactive, active = self._state, self._inactive, self._active
        while active and len(inactive) * self._ratio < len(active):
            page = active.popleft()
            inactive[page] = None
            # It keeps its reference, so that one more read makes it active again.
            state[page] = _INACTIVE_READ if state[page] == _ACTIVE_READ else _INACTIVE
        page = inactive.popitem(last=False)[0] if inactive else active.popleft()
        state[page] = _ABSENT
        self._evicted_at[page] = self._age
        self._age += 1

    def renumber(self, new: Sequence[int], ids: int) -> None:
        """Give pages new numbers.

        Args:
            new: The new number of each old one; negative for pages to be forgotten.
            ids: Count of new numbers.
        """
        state, evicted_at = bytearray(ids), array("q", [-1]) * ids
        for old, number in enumerate(new):
            if number >= 0:
                state[number], evicted_at[number] = self._state[old], self._evicted_at[old]
        self._inactive = OrderedDict((new[page], None) for page in self._inactive if new[page] >= 0)
        self._active = deque(new[page] for page in self._active if new[page] >= 0)
        self._state, self._evicted_at = state, evicted_at
