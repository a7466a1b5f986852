"""Linux's classic page replacement: an inactive and an active list, with activation at refault. Simulated.

After ``mm/swap.c`` (``folio_mark_accessed``), ``mm/vmscan.c`` (``shrink_active_list``, ``inactive_is_low``) and
``mm/workingset.c`` of Linux 6.12, for clean pages of files read by ``read()`` in a guest without swap.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence

from qmpalloc.curves.replacement import Replacement
from qmpalloc.units import GIB, PAGE_BYTES

_ABSENT, _INACTIVE, _INACTIVE_READ, _ACTIVE, _ACTIVE_READ = range(5)


class TwoList(Replacement):
    """A page cache under the two lists.

    A new page enters the inactive list. Its second read since moves it to the active one. When the inactive list is
    too short, the oldest active pages go back to it; pages are evicted from its end. An evicted page leaves its age
    behind: if it comes back before as many evictions and activations as there are active pages, it is active at once.
    """

    def __init__(self, capacity: int, ids: int = 0, *, scale: float = 1.0) -> None:
        self._evicted_at = array("q")
        self._inactive: OrderedDict[int, None] = OrderedDict()
        self._active: deque[int] = deque()
        self._age = 0
        super().__init__(capacity, ids, scale=scale)

    def resize(self, capacity: int) -> None:
        """Set the capacity, and with it the ratio of the two lists, which the kernel has depend on the real size."""
        gib = int(max(1, capacity) * self.scale * PAGE_BYTES) // GIB
        self._ratio = math.isqrt(10 * gib) if gib else 1
        super().resize(capacity)

    def grow(self, ids: int) -> None:
        """Make room for more page numbers."""
        super().grow(ids)
        self._evicted_at.extend(array("q", [-1]) * (len(self._states) - len(self._evicted_at)))

    def read(self, pages: Sequence[int]) -> int:
        """Read pages, as `Replacement.read`."""
        state, evicted_at, inactive, active = self._states, self._evicted_at, self._inactive, self._active
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
                if self.resident >= capacity:
                    self._evict()
                self.resident += 1
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
        state, inactive, active = self._states, self._inactive, self._active
        while active and len(inactive) * self._ratio < len(active):
            page = active.popleft()
            inactive[page] = None
            # It keeps its reference, so that one more read makes it active again.
            state[page] = _INACTIVE_READ if state[page] == _ACTIVE_READ else _INACTIVE
        page = inactive.popitem(last=False)[0] if inactive else active.popleft()
        state[page] = _ABSENT
        self._evicted_at[page] = self._age
        self._age += 1
        self.resident -= 1

    def renumber(self, new: Sequence[int]) -> None:
        """Give pages new numbers, as `Replacement.renumber`."""
        super().renumber(new)
        evicted_at = array("q", [-1]) * len(self._states)
        for number, age in zip(new, self._evicted_at, strict=False):
            if number >= 0:
                evicted_at[number] = age
        self._inactive = OrderedDict((new[page], None) for page in self._inactive if new[page] >= 0)
        self._active = deque(new[page] for page in self._active if new[page] >= 0)
        self._evicted_at = evicted_at
        self.resident = len(self._inactive) + len(self._active)
