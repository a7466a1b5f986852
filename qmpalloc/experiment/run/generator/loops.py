"""The two ways to read: each read when the one before is done, or when it is due."""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue

from .files import PAGE_BYTES, PAGE_SHIFT, Read
from .progress import GaveUpError
from .tally import Tally, bucket

TIMED_ONE_OF = 8
"""Of a load that waits for its reads, one of so many is timed: two readings of the clock cost a tenth of a cached read
under emulation."""
CHUNK_READS = 512
"""Reads between two looks at whether any works; a multiple of `TIMED_ONE_OF`."""
BURST_S = 0.01
"""Reads of an open loop are due in bursts this far apart, so that it need not wake up for each."""
WORKERS = 16
"""Reads of an open loop that wait for the disk at the same time."""
Clock = Callable[[], int]


def closed_loop(
    read: Read,
    pages: array[int],
    tally: Tally,
    *,
    until_ns: float = math.inf,
    clock: Clock = time.perf_counter_ns,
) -> None:
    """Read pages one after the other, each when the one before is done; one of `TIMED_ONE_OF` is timed.

    Args:
        read: Reads one page at an offset, returns how many bytes came.
        pages: Page numbers.
        tally: Counts.
        until_ns: When to stop, with what is left unread.
        clock: Nanoseconds.

    Raises:
        GaveUpError: None of the first reads works.
    """
    buckets = tally.buckets
    for start in range(0, len(pages), CHUNK_READS):
        offsets = [page << PAGE_SHIFT for page in pages[start : start + CHUNK_READS]]
        for first in range(0, len(offsets), TIMED_ONE_OF):
            timed, *others = offsets[first : first + TIMED_ONE_OF]
            errors = 0
            before = clock()
            if before >= until_ns:
                return
            try:
                errors += read(timed) != PAGE_BYTES
            except OSError as error:
                errors += 1
                tally.last_error = str(error)
            buckets[bucket(clock() - before)] += 1
            for offset in others:
                try:
                    if read(offset) != PAGE_BYTES:
                        errors += 1
                except OSError as error:
                    errors += 1
                    tally.last_error = str(error)
            tally.errors += errors
            tally.reads += 1 + len(others)
        if tally.errors == tally.reads:
            raise GaveUpError(f"no read works: {tally.last_error or 'the file is too short'}")


class Bursts:
    """When the reads of an open loop, so many per second, are due."""

    def __init__(self, rate: float, start_ns: int) -> None:
        self.reads = max(1, round(rate * BURST_S))
        self._interval_ns = self.reads / rate * 1e9
        self._start_ns = start_ns

    def due_ns(self, number: int) -> int:
        """Return when burst `number`, from 0, is due."""
        return self._start_ns + round(number * self._interval_ns)


class OpenLoop:
    """Reads that start when they are due, whether or not earlier ones are done.

    Reads of what is cached are done at once, in one thread, with a read that does not wait (``RWF_NOWAIT``); those
    that would wait for the disk go on in threads of their own. Latency counts from when a read was due: what waits
    for its turn because others took long has waited (no "coordinated omission"). Nothing is left out.

    Args:
        read: Reads one page at an offset.
        read_now: The same, but raises ``BlockingIOError`` rather than wait.
        clock: Nanoseconds.
        sleep: Seconds.
    """

    def __init__(
        self,
        read: Read,
        read_now: Read,
        *,
        clock: Clock = time.perf_counter_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.tallies = [Tally() for _ in range(1 + WORKERS)]
        self._read = read
        self._read_now = read_now
        self._clock = clock
        self._sleep = sleep
        self._waiting: SimpleQueue[tuple[int, int] | None] = SimpleQueue()

    def run(self, pages: array[int], rate: float, *, until_ns: float = math.inf) -> None:
        """Do all reads, or with a time to stop, read the pages over and over until then.

        Raises:
            GaveUpError: None of the first reads works.
        """
        workers = [threading.Thread(target=self._work, args=(tally,), daemon=True) for tally in self.tallies[1:]]
        for worker in workers:
            worker.start()
        bursts = Bursts(rate, self._clock())
        for number, burst in enumerate(_bursts(pages, bursts.reads, again=until_ns < math.inf)):
            due_ns = bursts.due_ns(number)
            if due_ns >= until_ns or self._clock() >= until_ns:
                break
            if (early_ns := due_ns - self._clock()) > 0:
                self._sleep(early_ns / 1e9)
            for page in burst:
                self._start_read(page << PAGE_SHIFT, due_ns)
            self._look_for_success()
        if until_ns < math.inf:
            with suppress(Empty):  # what waits for its turn when the time is over is not begun
                while True:
                    self._waiting.get_nowait()
        for _ in workers:
            self._waiting.put(None)
        for worker in workers:
            worker.join()

    def _start_read(self, offset: int, due_ns: int) -> None:
        try:
            size = self._read_now(offset)
        except BlockingIOError:
            self._waiting.put((offset, due_ns))
        except OSError as error:
            self.tallies[0].count(self._clock() - due_ns, str(error) or "failed")
        else:
            self.tallies[0].count(self._clock() - due_ns, "" if size == PAGE_BYTES else "short")

    def _work(self, tally: Tally) -> None:
        while (job := self._waiting.get()) is not None:
            offset, due_ns = job
            try:
                failure = "" if self._read(offset) == PAGE_BYTES else "short"
            except OSError as error:
                failure = str(error) or "failed"
            tally.count(self._clock() - due_ns, failure)

    def _look_for_success(self) -> None:
        reads = sum(tally.reads for tally in self.tallies)
        if reads >= CHUNK_READS and sum(tally.errors for tally in self.tallies) == reads:
            raise GaveUpError(f"no read works: {next(tally.last_error for tally in self.tallies if tally.last_error)}")


def _bursts(pages: array[int], size: int, *, again: bool) -> Iterator[array[int]]:
    while True:
        for start in range(0, len(pages), size):
            yield pages[start : start + size]
        if not again:
            return
