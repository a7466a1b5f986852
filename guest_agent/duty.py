"""The duty cycle: reads are counted in a part of the time only, and estimated for the rest.

What a cached read costs is mostly that a program is attached to it at all. So the two programs at the end of reads
are attached for a share of the time. All others stay: what is brought in, for whatever, is always counted.

Every interval has a window in which they are attached, at a random place so that no load keeps step with it. It tells
how many reads hit. Accesses are sampled in *bursts* only, of whole intervals until each page may have been read a few
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

WINDOW_MS_LEAST = 10
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
    """Accesses since the start, of which only those in windows were counted.

    What was brought in is known for all of the time; hits are taken to be as frequent outside of a window as
    within. How wrong that is by chance is told by how much windows that follow each other differ.

    Attributes:
        accesses: So many, never falling.
    """

    def __init__(self, accesses: int) -> None:
        """Begin with accesses that were counted."""
        self.accesses, self._exactly, self._variance = accesses, float(accesses), 0.0
        self._hits_per_ns: float | None = None

    @property
    def variance(self) -> int:
        """Variance of what is estimated, pages squared."""
        return min(round(self._variance), 2**63 - 1)

    def add(self, misses: int, interval_ns: int, hits: int, window_ns: int) -> None:
        """Add an interval.

        Args:
            misses: In all of it.
            interval_ns: Its length.
            hits: In its window; negative when read-ahead was not used yet.
            window_ns: Length of the window.
        """
        per_ns = hits / max(1, window_ns)
        self._exactly += misses + per_ns * interval_ns
        if self._hits_per_ns is not None:
            self._variance += (per_ns - self._hits_per_ns) ** 2 / 2 * (interval_ns - window_ns) ** 2
        self._hits_per_ns = per_ns
        self.accesses = max(self.accesses, round(self._exactly))


class Duty:
    """Attaches and detaches the programs at the end of reads, and estimates what they did not count.

    Args:
        links: Their attachments, which are there.
        share: Of the time that they are to be.
        burst: Accesses of a burst, in which they are sampled; 0: they are not.
        read: Returns accesses and misses as counted so far.
        clock: Returns nanoseconds.
        random: Returns numbers from 0 to 1.
    """

    def __init__(
        self,
        links: list[bpf.Link],
        share: float,
        *,
        burst: int,
        read: Callable[[], tuple[int, int]],
        clock: Callable[[], int] = time.monotonic_ns,
        random: Callable[[], float] = unit_random,
    ) -> None:
        self._links, self._share, self._read, self._clock, self._random = links, share, read, clock, random
        self._schedule = Schedule(share, burst=burst, random=random)
        self._estimate: Estimate | None = None
        self._attached = True
        self._began = self._misses = 0
        self._opened: tuple[int, int] | None = None
        self._hits = self._window_ns = self._attached_ns = self._sampled = 0

    @property
    def sampling(self) -> bool:
        """Whether accesses of the present interval are sampled."""
        return self._schedule.whole

    def part(self) -> dict[str, object]:
        """Return the part of the counters file."""
        variance = self._estimate.variance if self._estimate else 0
        return {"share": self._share, "attached_ms": self._attached_ns // 1_000_000, "sampled": self._sampled,
                "accesses_variance": variance}  # fmt: skip

    def end_interval(self, accesses: int, misses: int) -> int:
        """Take what was counted up to an interval's end, begin the next one, and return accesses as estimated.

        Raises:
            OSError: The programs cannot be attached.
        """
        now_ns = self._clock()
        self._close_window(now_ns, accesses - misses)
        if self._estimate is None:
            self._estimate = Estimate(accesses)
        else:
            before = self._estimate.accesses
            self._estimate.add(misses - self._misses, now_ns - self._began, self._hits, self._window_ns)
            self._attached_ns += self._window_ns
            self._sampled += self._schedule.whole
            self._schedule.advance(self._estimate.accesses - before)
        self._began, self._misses = now_ns, misses
        self._hits = self._window_ns = 0
        if not self._schedule.whole:
            self.detach()
        elif self._attached:
            self._opened = now_ns, accesses - misses
        else:
            self.attach()
        return self._estimate.accesses

    def steps(self, end_ns: int, interval_ns: int) -> Iterator[tuple[int, Callable[[], None]]]:
        """Yield when in the interval that ends then to do what, each once the one before was done."""
        if self._schedule.whole:
            return
        now_ns, window_ns = self._clock(), int(interval_ns * self._schedule.window)
        yield now_ns + int(max(0, end_ns - now_ns - window_ns) * self._random()), self.attach
        # Not earlier if that was late, or took its time: a window must not be next to nothing.
        opened_ns = self._opened[0] if self._opened else now_ns
        yield opened_ns + window_ns, self.detach

    def attach(self) -> None:
        """Attach the programs.

        Raises:
            OSError: They cannot be.
        """
        for link in self._links:
            link.attach()
        self._attached = True
        accesses, misses = self._read()
        self._opened = self._clock(), accesses - misses

    def detach(self) -> None:
        """Detach the programs, if they are attached."""
        if not self._attached:
            return
        if self._opened is not None:
            accesses, misses = self._read()
            self._close_window(self._clock(), accesses - misses)
        for link in self._links:
            link.detach()
        self._attached = False

    def _close_window(self, now_ns: int, hits: int) -> None:
        if self._opened is not None:
            opened_ns, before = self._opened
            self._hits, self._window_ns, self._opened = hits - before, now_ns - opened_ns, None
