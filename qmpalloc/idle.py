"""How much of a guest's memory nothing has touched, for how long; and what it costs at most to take that. Pure.

If n pages were not touched for T seconds, taking them costs at most about n / T page-ins a second for as long as the
load stays what it was. Summed over a ladder of ages this bounds what any kind of memory is worth: cache of files that
are read, mapped files, and anonymous memory where there is swap. A second bound is how often pages of at least that age
were touched again of late: never, where a program goes round more than fits. Neither says anything of a load that wakes
up: that is what promises are for (`qmpalloc.rules.promises`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qmpalloc.sample import AGE_BINS, Ages, Memory, Sample
from qmpalloc.units import MIB, PAGE_BYTES

IDLE_S = 64.0
"""Memory that nothing has touched for this long is not in use: a program that needs it again reads it in once."""

SELDOM_S = 256.0
"""Nor is memory that is touched again less often than once in this time: a program goes round more than fits."""

SWAP_STEP_BYTES = 16 * MIB
"""So much anonymous memory may be asked for beyond what is free. A kernel that has to swap out more at once stops its
programs meanwhile; what it has swapped out counts no more, and the next part follows."""

_ZRAM_KEEPS, _ZRAM_KNOWN_BYTES = 0.5, 16 * MIB

_UNREAD = ("mapped", "anon", "shmem")
_TOUCHES_HALF_LIFE_S = 2 * SELDOM_S
"""What is touched as seldom must not be forgotten before it is touched again."""


class IdleMemory(Struct, frozen=True, kw_only=True):
    """Memory that reclaim could take, by how long nothing has touched it. One entry for each age.

    Attributes:
        seconds: Ages, rising.
        read: Bytes of cache of files that no program maps, not touched for that long; never rising.
        unread: The same of memory whose use no read shows: mapped files, and anonymous and shared memory as far as
            swap has room for it.
        hot_pages: Pages of the second kind that were touched within the last step.
        again_per_s: Pages of the second kind that are touched again by the second when they have at least that age, at
            most; without the oldest ages as long as these are not known.
        reads_touch: Whether a read counts as a touch. If not, `read` tells since when pages are cached, not used.
    """

    seconds: tuple[float, ...]
    read: tuple[int, ...]
    unread: tuple[int, ...]
    hot_pages: int = 0
    again_per_s: tuple[float, ...] = ()
    reads_touch: bool = True

    def bytes_for(self, seconds: float) -> int:
        """Return the bytes that nothing has touched for so long, of both kinds."""
        both = zip(self.seconds, self.read, self.unread, strict=True)
        return max((read + unread for age, read, unread in both if age >= seconds), default=0)

    def read_per_s(self, taken_bytes: NDArray[np.float64], watched_s: float = math.inf) -> NDArray[np.float64]:
        """Return how many page-ins per second of cache it costs, at most, to take so much, oldest first.

        Infinite where reads are no touch: then ages do not tell.

        Args:
            taken_bytes: How much is taken.
            watched_s: How long the present load has been watched: of the one before, ages tell nothing.
        """
        if not self.reads_touch:
            return np.where(taken_bytes > 0, math.inf, 0.0)
        return self._per_s(self.read, taken_bytes, watched_s, math.inf)

    @property
    def read_bends(self) -> NDArray[np.float64]:
        """Bytes taken at which that cost bends, or jumps."""
        if not self.reads_touch:
            return np.array([0.0, 1.0])
        return np.add(self.read, self.unread, dtype=float)

    def unread_per_s(self, taken_bytes: NDArray[np.float64], watched_s: float = math.inf) -> NDArray[np.float64]:
        """Return the same of memory whose use no read shows."""
        by_age = self._per_s(self.unread, taken_bytes, watched_s, float(self.hot_pages))
        if not self.again_per_s:
            return by_age
        # What is taken is at least as old as the youngest of it. Nothing is known of what is younger than all ages, nor
        # of ages for twice of which the present load has not been watched.
        older = np.add(self.read, self.unread)[::-1]
        known = [rate for age, rate in zip(self.seconds, self.again_per_s, strict=False) if 2 * age <= watched_s]
        unknown = [math.inf] * (len(self.seconds) - len(known))
        again = np.array([*unknown, *known[::-1], math.inf])[np.searchsorted(older, taken_bytes)]
        return np.asarray(np.where(taken_bytes > 0, np.minimum(by_age, again), 0.0))

    def _per_s(
        self, of: tuple[int, ...], taken_bytes: NDArray[np.float64], watched_s: float, hot_pages: float
    ) -> NDArray[np.float64]:
        """Return what taking costs that part; both parts are taken alike, by age."""
        both = _by_class(np.add(self.read, self.unread))
        taken = np.concatenate([[0.0], np.cumsum(both[::-1])])
        costs = _by_class(np.array(of)) / PAGE_BYTES / np.minimum(self.seconds, max(watched_s, self.seconds[0]))
        cost = np.concatenate([[0.0], np.cumsum(costs[::-1])])
        # What is younger than all ages is touched at least so often.
        beyond = np.minimum(hot_pages, np.maximum(0.0, taken_bytes - taken[-1]) / PAGE_BYTES) / self.seconds[0]
        return np.asarray(np.interp(taken_bytes, taken, cost) + beyond)


def _by_class(at_least: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the bytes of each age and below the next, from those of at least each age."""
    return np.asarray(at_least - np.append(at_least[1:], 0.0), dtype=float)


class Touches:
    """How often memory of each age was touched again, of late.

    Attributes:
        seen_s: For how long this was watched without a gap, seconds.
    """

    def __init__(self) -> None:
        self._last: Ages | None = None
        self._forget()

    def _forget(self) -> None:
        self.seen_s = self._weighted_s = 0.0
        self._mapped, self._swappable = np.zeros(AGE_BINS), np.zeros(AGE_BINS)

    def observe(self, ages: Ages | None, interval_s: float | None) -> None:
        """Take what a sample tells, and how long it is after the one before; None: it begins a new series."""
        before, self._last = self._last, ages
        if (
            before is None
            or ages is None
            or interval_s is None
            or (before.step_ms, before.pages_each) != (ages.step_ms, ages.pages_each)
        ):
            self._forget()
            return
        more = {kind: np.subtract(getattr(ages.touched, kind), getattr(before.touched, kind)) for kind in _UNREAD}
        if min(int(counts.min()) for counts in more.values()) < 0:
            self._forget()
            return
        kept = 0.5 ** (interval_s / _TOUCHES_HALF_LIFE_S)
        self.seen_s, self._weighted_s = self.seen_s + interval_s, self._weighted_s * kept + interval_s
        self._mapped = self._mapped * kept + more["mapped"]
        self._swappable = self._swappable * kept + more["anon"] + more["shmem"]

    def again_per_s(self, *, swap: bool) -> tuple[float, ...]:
        """Return the pages touched again by the second at each age or more, at most.

        A standard deviation more than was seen, and a frame. An age is known once memory was watched for twice as long.

        Args:
            swap: Whether memory of programs can be taken, so that it counts.
        """
        if self._last is None or self._weighted_s <= 0:
            return ()
        counts = (self._mapped + self._swappable if swap else self._mapped)[::-1].cumsum()[::-1][1:]
        most = (counts + np.sqrt(counts) + 1.0) * (self._last.pages_each / self._weighted_s)
        known = sum(self.seen_s * 1000 >= 2 * self._last.step_ms * 2**power for power in range(AGE_BINS - 1))
        return tuple(round(float(rate), 1) for rate in most[:known])


def idle_memory(sample: Sample | None, touches: Touches | None = None) -> IdleMemory | None:
    """Return what a sample tells of memory that nothing touches; None where it tells no ages.

    A kind is never more than the kernel counts of it, so that a guest cannot claim to have more than it has; and it is
    counted for a standard deviation less than the sample of frames says.

    With the multi-generational LRU `folio_mark_accessed()` leaves the mark alone by which DAMON sees reads (mm/swap.c
    of Linux 6.12; none of 16 recorded guests had more than one such touch in up to four million reads).
    """
    ages = None if sample is None else sample.ages
    if sample is None or ages is None:
        return None
    memory = sample.memory_bytes
    seconds, file, mapped, swappable = _by_age(sample)
    hot = ages.idle.mapped[0] + (ages.idle.anon[0] + ages.idle.shmem[0] if memory.swap_free else 0)
    return IdleMemory(
        seconds=tuple(seconds),
        read=tuple(file),
        unread=tuple(one + _freed(memory, other) for one, other in zip(mapped, swappable, strict=True)),
        hot_pages=min(hot * ages.pages_each, (memory.total or 0) // PAGE_BYTES),
        again_per_s=() if touches is None else touches.again_per_s(swap=bool(memory.swap_free)),
        reads_touch=sample.lru != "lru_gen",
    )


def _freed(memory: Memory, idle_bytes: int) -> int:
    """Return how much memory is free once idle anonymous memory is swapped out, as far as swap has room.

    zram keeps it, compressed: how well that works it shows by what it has; until it has some, half is taken.
    """
    swapped_out = (memory.swap_total or 0) - (memory.swap_free or 0)
    kept = 0.0
    if memory.zram is not None:
        kept = memory.zram / swapped_out if swapped_out >= _ZRAM_KNOWN_BYTES else _ZRAM_KEEPS
    return int(min(idle_bytes, memory.swap_free or 0) * max(0.0, 1.0 - kept))


def idle_anonymous_bytes(sample: Sample) -> int:
    """Return the bytes of memory of programs that nothing has touched for `IDLE_S`, and that can be swapped out."""
    seconds, _, _, swappable = _by_age(sample)
    idle = (size for age, size in zip(seconds, swappable, strict=True) if age >= IDLE_S)
    return _freed(sample.memory_bytes, max(idle, default=0))


def unused_mapped_bytes(sample: Sample, touches: Touches) -> int:
    """Return the bytes of mapped files that are not in use, as `unused_bytes`."""
    seconds, _, mapped, _ = _by_age(sample)
    return unused_bytes(seconds, mapped, touches)


def unused_bytes(seconds: Sequence[float], mapped: Sequence[int], touches: Touches) -> int:
    """Return how much of mapped files is not in use: not touched for long, or seldom touched again.

    Args:
        seconds: Ages, rising.
        mapped: Bytes not touched for that long.
        touches: How often they were touched again. What is seldom must have been watched for as long.
    """
    again = touches.again_per_s(swap=False) if touches.seen_s >= SELDOM_S else ()
    seldom = [per_s <= size / PAGE_BYTES / SELDOM_S for size, per_s in zip(mapped, again, strict=False)]
    seldom += [False] * (len(mapped) - len(seldom))
    ages = zip(seconds, mapped, seldom, strict=True)
    return max((size for age, size, rare in ages if rare or age >= IDLE_S), default=0)


def _by_age(sample: Sample) -> tuple[list[float], list[int], list[int], list[int]]:
    """Return ages in seconds, rising; the bytes of at least each of files only read, of mapped ones, and for swap."""
    ages, memory = sample.ages, sample.memory_bytes
    if ages is None:
        return [], [], [], []
    each, mapped = ages.pages_each * PAGE_BYTES, memory.mapped_file_bytes or 0

    def at_least(frames: Sequence[int], most_bytes: int) -> list[int]:
        counts = (sum(frames[index:]) for index in range(1, AGE_BINS))
        return [min(int((count - math.sqrt(count)) * each), max(0, most_bytes)) for count in counts]

    anon, shmem = at_least(ages.idle.anon, memory.anon or 0), at_least(ages.idle.shmem, memory.shmem or 0)
    return (
        [ages.step_ms / 1000 * 2**power for power in range(AGE_BINS - 1)],
        at_least(ages.idle.file, (memory.file_bytes or 0) - mapped),
        at_least(ages.idle.mapped, mapped),
        [sum(both) for both in zip(anon, shmem, strict=True)],
    )
