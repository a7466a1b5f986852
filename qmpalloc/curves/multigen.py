"""Linux's multi-generational LRU as buffered reads see it. Simulated.

After ``mm/vmscan.c`` of Linux 6.12 (``lru_gen_add_folio``, ``sort_folio``, ``should_run_aging``), for clean pages of
files read by ``read()`` in a guest without swap. ``folio_mark_accessed`` only counts there: a read moves nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from qmpalloc.curves.replacement import Replacement

_PROTECTED_READS = 5
"""Reads after which a page is always spared once: PG_referenced, PG_workingset and three steps in LRU_REFS_WIDTH."""

_UNREAD = _PROTECTED_READS + 1
"""State of a page that was spared and not read since; else its reads."""

_LEAST_GENERATIONS = 2  # MIN_NR_GENS


class MultiGenerational(Replacement):
    """A page cache under the multi-generational LRU.

    A new page enters the young end of the oldest generation (of the second oldest, when there are four). Eviction goes
    through the oldest generation from its old end. A page with five reads since it came goes on to the next generation
    instead, its reads forgotten, to that generation's old end; that is all that reads gain it. When less than a quarter
    of all pages is left in the oldest of three generations, a new one is made.

    An evicted page with four reads that comes back while the oldest generation is still the same counts as read five
    times at once.

    The kernel also protects pages with two or more reads while their refault rate is over twice that of pages with one
    read. That feedback is left out: it depends on history from before the simulation, and without it the model is
    nearer to real guests (``docs/results/curve-model.md``).
    """

    def __init__(self, capacity: int, ids: int = 0, *, scale: float = 1.0) -> None:
        self._restorable: set[int] = set()  # evicted from the oldest generation when one read short of being spared
        self._generations: deque[deque[int]] = deque(deque() for _ in range(_LEAST_GENERATIONS + 1))
        super().__init__(capacity, ids, scale=scale)

    def read(self, pages: Sequence[int]) -> int:
        """Read pages, as `Replacement.read`."""
        reads, misses = self._states, 0
        for page in pages:
            count = reads[page]
            if count == 0:
                misses += 1
                if self.resident >= self.capacity:
                    self._evict()
                self._insert(page)
            elif count < _PROTECTED_READS:
                reads[page] = count + 1
            elif count == _UNREAD:
                reads[page] = 1
        return misses

    def _insert(self, page: int) -> None:
        generations, restorable = self._generations, self._restorable
        generations[0 if len(generations) <= _LEAST_GENERATIONS + 1 else 1].append(page)
        self.resident += 1
        if page in restorable:
            restorable.discard(page)
            self._states[page] = _PROTECTED_READS
        else:
            self._states[page] = 1

    def _evict(self) -> None:
        reads = self._states
        while True:
            generations = self._generations
            while len(generations) > _LEAST_GENERATIONS and not generations[0]:
                generations.popleft()
                self._restorable.clear()
            few = len(generations) == _LEAST_GENERATIONS
            if few or (len(generations) == _LEAST_GENERATIONS + 1 and len(generations[0]) * 4 < self.resident):
                generations.append(deque())
            oldest, next_oldest = generations[0], generations[1]
            while oldest:
                page = oldest.popleft()
                if reads[page] == _PROTECTED_READS:
                    reads[page] = _UNREAD
                    next_oldest.appendleft(page)
                else:
                    if reads[page] == _PROTECTED_READS - 1:
                        self._restorable.add(page)
                    reads[page] = 0
                    self.resident -= 1
                    return

    def renumber(self, new: Sequence[int]) -> None:
        """Give pages new numbers, as `Replacement.renumber`."""
        super().renumber(new)
        self._generations = deque(
            deque(new[page] for page in generation if new[page] >= 0) for generation in self._generations
        )
        self.resident = sum(map(len, self._generations))
        self._restorable = {new[page] for page in self._restorable if new[page] >= 0}
