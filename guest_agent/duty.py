"""The duty cycle: reads are counted in a part of the time only, and estimated for the rest.

What a cached read costs is mostly that a program is attached to it at all. So the one at the end of `filemap_read()` is
attached for a share of the time. All others stay: what is brought in, for whatever, is always counted.

Every few intervals have a window in which it is attached, at a random place so that no load keeps step with it. It
tells how many reads hit. More windows would cost more than they tell: to attach and to detach takes the kernel 15
million instructions. Accesses are sampled in *bursts* only, of whole intervals until each page may have been read a few
times: only a page whose last read was seen tells its reuse. The first burst is at the start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from guest_agent import bpf

BURST_MEMORIES = 8
"""Accesses of a burst, by pages of memory: with so many by pages of the load, curves are nearly as without pauses."""

BURST_LEAST, BURST_MOST = 10, 600
"""Intervals of a burst."""

WINDOW_EVERY = 5
"""Intervals of which one window tells how many reads hit."""

WINDOW_MS_LEAST = 50
"""A shorter window is not worth the switching."""


def unit_random() -> float:
    """Return a number from 0 to 1."""
    # The module ``random`` costs 1 MB of memory.
    return int.from_bytes(os.urandom(4), "little") / 2**32


class Schedule:
    """Chooses which intervals are counted whole.

    Args:
        share: Of the time.
        burst: Accesses of a burst; 0: there are none. Half of the share is for them.
        random: Returns numbers from 0 to 1.

    Attributes:
        whole: Whether the present interval is.
        window: Share of any other interval.
    """

    def __init__(self, share: float, *, burst: int, random: Callable[[], float] = unit_random) -> None:
        self._in_bursts, self._burst = share / 2 if burst else 0.0, burst
        self.window = (share - self._in_bursts) / (1.0 - self._in_bursts)
        self._random = random
        self.whole = burst > 0
        self._intervals = self._pause = self._seen = 0

    def advance(self, accesses: int) -> None:
        """Go on to the next interval, after one with so many accesses."""
        if not self._in_bursts:
            return
        self._intervals += 1
        self._seen += accesses
        if self.whole:
            enough = self._seen >= self._burst and self._intervals >= BURST_LEAST
            if enough or self._intervals >= BURST_MOST:
                # The mean is what the share asks for.
                self._pause = round(self._intervals * (1.0 / self._in_bursts - 1.0) * (0.5 + self._random()))
                self.whole, self._intervals = False, 0
        elif self._intervals >= self._pause:
            self.whole, self._intervals, self._seen = True, 0, 0


class Estimate:
    """Accesses since the start, of which only some were counted.

    What was brought in is known for all of the time; hits are taken to be as frequent from a window on to the next as
    within. How wrong that is by chance is told by how much windows that follow each other differ.
    """

    def __init__(self, accesses: int) -> None:
        """Begin with accesses that were counted."""
        self._told, self._exactly, self._variance = accesses, float(accesses), 0.0
        self._hits_per_ns, self._unseen_ns = 0.0, 0

    @property
    def accesses(self) -> int:
        """So many, never falling."""
        self._told = max(self._told, round(self._exactly))
        return self._told

    @property
    def variance(self) -> int:
        """Variance of what is estimated, pages squared."""
        return min(round(self._variance), 2**63 - 1)

    def count(self, accesses: int) -> None:
        """Add hits or misses that were counted: hits can be negative, when read-ahead was not used yet."""
        self._exactly += accesses

    def wait(self, for_ns: int) -> None:
        """Let time pass in which hits are not counted."""
        self._exactly += self._hits_per_ns * for_ns
        self._unseen_ns += for_ns

    def learn(self, hits: int, window_ns: int) -> None:
        """Take what a window told."""
        per_ns = hits / max(1, window_ns)
        self._variance += ((per_ns - self._hits_per_ns) * self._unseen_ns) ** 2 / 2
        self._hits_per_ns, self._unseen_ns = per_ns, 0


class Duty:
    """Attaches and detaches the program at the end of reads, and estimates what it did not count.

    Args:
        link: Its attachment, which is there.
        share: Of the time that it is to be.
        interval_ns: How often counts are published.
        burst: Accesses of a burst, in which they are sampled; 0: they are not.
        read: Returns accesses and misses as counted so far.
        clock: Returns nanoseconds.
        random: Returns numbers from 0 to 1.
    """

    def __init__(
        self,
        link: bpf.Link,
        share: float,
        *,
        interval_ns: int,
        burst: int,
        read: Callable[[], tuple[int, int]],
        clock: Callable[[], int] = time.monotonic_ns,
        random: Callable[[], float] = unit_random,
    ) -> None:
        self._link, self._share, self._read, self._clock, self._random = link, share, read, clock, random
        self._schedule = Schedule(share, burst=burst, random=random)
        self._window_ns = int(WINDOW_EVERY * interval_ns * self._schedule.window)
        self._gap_ns = WINDOW_EVERY * interval_ns - self._window_ns
        accesses, self._misses = read()
        self._estimate, self._attached = Estimate(accesses), True
        # Up to when what passed was taken, and the hits by then; those of the present window, and its length so far.
        self._at_ns, self._hits, self._window = clock(), accesses - self._misses, (0, 0)
        # When the next window opens, or this one closes.
        self._turns_ns = self._at_ns + self._window_ns
        self._attached_ns = self._sampled = 0

    @property
    def sampling(self) -> bool:
        """Whether accesses of the present interval are sampled."""
        return self._schedule.whole

    def part(self) -> dict[str, object]:
        """Return the part of the counters file."""
        return {"share": self._share, "attached_ms": self._attached_ns // 1_000_000, "sampled": self._sampled,
                "accesses_variance": self._estimate.variance}  # fmt: skip

    def end_interval(self, accesses: int, misses: int) -> int:
        """Take what was counted up to an interval's end, begin the next one, and return accesses as estimated.

        Raises:
            OSError: The program cannot be attached.
        """
        before, whole = self._estimate.accesses, self._schedule.whole
        self._take(accesses - misses)
        self._estimate.count(misses - self._misses)
        self._misses = misses
        if whole:
            self._learn()
        self._sampled += whole
        self._schedule.advance(self._estimate.accesses - before)
        if self._schedule.whole and not self._attached:
            self._attach()
        elif whole and not self._schedule.whole:
            self._detach()
        return self._estimate.accesses

    def steps(self, end_ns: int) -> Iterator[tuple[int, Callable[[], None]]]:
        """Yield when before that time to do what, each once the one before was done."""
        while not self._schedule.whole and self._turns_ns < end_ns:
            yield self._turns_ns, self._close if self._attached else self._open

    def _open(self) -> None:
        self._attach()
        # However late that was, or long it took: a window must not be next to nothing.
        self._turns_ns = self._clock() + self._window_ns

    def _close(self) -> None:
        self._take_now()
        self._learn()
        self._detach()

    def _attach(self) -> None:
        self._link.attach()
        self._take_now()
        self._attached = True

    def _detach(self) -> None:
        """Detach it until a time that depends on nothing, so that each window stands for as much as another."""
        self._link.detach()
        self._attached = False
        self._turns_ns = self._clock() + int(self._gap_ns * (0.5 + self._random()))

    def _take_now(self) -> None:
        accesses, misses = self._read()
        self._take(accesses - misses)

    def _take(self, hits: int) -> None:
        """Take what has passed since the last time."""
        now_ns = self._clock()
        counted, passed_ns = hits - self._hits, now_ns - self._at_ns
        self._at_ns, self._hits = now_ns, hits
        if not self._attached:
            self._estimate.wait(passed_ns)
            return
        self._estimate.count(counted)
        self._attached_ns += passed_ns
        self._window = self._window[0] + counted, self._window[1] + passed_ns

    def _learn(self) -> None:
        self._estimate.learn(*self._window)
        self._window = 0, 0
