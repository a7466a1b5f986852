"""Reads files and runs programs in a guest as an experiment wants. Shipped as text; imports nothing of qmpalloc.

::

    python3 generator.py read-through FILE...   read files once, in order, in large requests
    python3 generator.py service FILE           measure what a cached and an uncached read take, print JSON
    python3 generator.py prepare STEP PLAN.json run a step that the plan's programs need: setup, ready or warm_up
    python3 generator.py run PLAN.json          wait for the go file, then do what the plan says

Every read of a load is a buffered read of one page, so that each is one access of the guest's page cache.
"""

from __future__ import annotations

import argparse
import errno
import gc
import json
import math
import os
import pwd
import random
import re
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, NoReturn

PAGE_SHIFT = 12
PAGE_BYTES = 1 << PAGE_SHIFT

SEQUENTIAL_BYTES = 1 << 20
"""Request of ``read-through``."""

TIMED_ONE_OF = 8
"""Of a load that waits for its reads, one of so many is timed: two readings of the clock cost a tenth of a cached read
under emulation."""

CHUNK_READS = 512
"""Reads between two looks at whether any works; a multiple of `TIMED_ONE_OF`."""

BURST_S = 0.01
"""Reads of an open loop are due in bursts this far apart, so that it need not wake up for each."""

WORKERS = 16
"""Reads of an open loop that wait for the disk at the same time."""

PROGRESS_S = 0.5
GO_POLL_S = 0.02

SUB_BITS = 3
BUCKETS = 65 << SUB_BITS
"""More than the longest latency of 64 bits needs."""

OOM_SCORE_ADJ = 500
"""Above all else in the guest: if the kernel has to kill, then the load, which the agent, still alive, reports."""

HIT_PAGES = 64
HIT_S = 3.0
"""Long enough that measurements started in several guests at once overlap."""

MISS_SETTLE_S = 0.5
MISS_MAX_S = 3.0
MISS_MAX = 500
MISS_PAGES = 30_000
"""Pages to choose misses from; enough to settle on a disk that takes 20 µs. All of a large file's would cost memory."""

KEPT_BYTES = 64 * 1024
"""Of a program's output: so much of its beginning, and so much of its end."""

SAID_BYTES = 1024
"""Of the end of its output, to say why it failed."""

READ_BYTES = 64 * 1024
LINE_BYTES = 64 * 1024
"""Of a line that is looked at for metrics; what is beyond is not."""

PROGRAM_POLL_S = 0.1
STOP_S = 5.0
"""For a program to end when it is told to; then it is killed."""

STEP_S = 1500.0
READY_S = 120.0
READY_TRY_S = 10.0
READY_POLL_S = 0.5

LAST_CHUNKS = 256
"""Read at most from a pipe whose program has ended, for another program may hold it open and go on writing."""

JSON_BYTES = 16 * 1024 * 1024

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
}

Clock = Callable[[], int]
Read = Callable[[int], int]


class GaveUpError(Exception):
    """The load cannot go on; its text is for the host."""


class FailedError(GaveUpError):
    """A program did not do what it was run for."""


# --- latencies -------------------------------------------------------------------------------------------------------


def bucket(latency_ns: int) -> int:
    """Return the number of the bucket that counts a latency; as ``qmpalloc/experiment/analysis/latency.py``."""
    octave = latency_ns.bit_length() - SUB_BITS - 1
    return latency_ns if octave <= 0 else (octave << SUB_BITS) + (latency_ns >> octave)


class Tally:
    """What one thread has read.

    Attributes:
        reads: How many, failed ones included.
        errors: How many failed or were short.
        buckets: Timed reads by bucket.
        last_error: Why the last one failed.
    """

    def __init__(self) -> None:
        self.reads = 0
        self.errors = 0
        self.buckets = [0] * BUCKETS
        self.last_error = ""


# --- progress --------------------------------------------------------------------------------------------------------


class PhaseState:
    """How far a phase has come.

    Attributes:
        tallies: Of the threads that read.
        done: Whether all is read.
    """

    def __init__(self, name: str, started_s: float, tallies: Sequence[Tally]) -> None:
        self.tallies = tallies
        self.done = False
        self._name = name
        self._started_s = started_s
        self._seconds = 0.0

    def finish(self) -> None:
        """Note that all is read."""
        self._seconds = time.monotonic() - self._started_s
        self.done = True

    def values(self) -> dict[str, Any]:
        """Return what the host reads as ``PhaseProgress``."""
        # A thread may be counting meanwhile: a copy is taken whole.
        histograms = [list(tally.buckets) for tally in self.tallies]
        latency = {str(number): count for number, count in enumerate(map(sum, zip(*histograms, strict=True))) if count}
        return {
            "name": self._name,
            "reads": sum(tally.reads for tally in self.tallies),
            "seconds": self._seconds if self.done else time.monotonic() - self._started_s,
            "started_s": self._started_s,
            "done": self.done,
            "errors": sum(tally.errors for tally in self.tallies),
            "latency": latency,
        }


class ProgramState:
    """How far a program has come."""

    def __init__(self, name: str, started_s: float, gauges: Sequence[Gauge]) -> None:
        self.done = False
        self._name = name
        self._started_s = started_s
        self._gauges = gauges
        self._seconds = 0.0

    def finish(self) -> None:
        """Note that it has ended."""
        self._seconds = time.monotonic() - self._started_s
        self.done = True

    def values(self) -> dict[str, Any]:
        """Return what the host reads as ``PhaseProgress``."""
        return {
            "name": self._name,
            "reads": 0,
            "seconds": self._seconds if self.done else time.monotonic() - self._started_s,
            "started_s": self._started_s,
            "done": self.done,
            "metrics": {gauge.name: gauge.values() for gauge in self._gauges if gauge.count},
        }


class Progress:
    """The file that tells the host how far the load is; replaced by rename, so that it is never seen half written."""

    def __init__(self, path: str) -> None:
        self.phases: list[PhaseState | ProgramState] = []
        self._path = path
        self._sequence = 0
        self._writing = False

    def write(self, *, finished: bool = False, error: str = "") -> None:
        """Write the present state."""
        if self._writing:
            return  # interrupted by the timer's signal; what is being written is as new
        self._writing = True
        try:
            state = {
                "sequence": self._sequence,
                "monotonic_s": time.monotonic(),
                "phases": [phase.values() for phase in self.phases],
                "finished": finished,
                "error": error,
            }
            scratch = f"{self._path}.new"
            Path(scratch).write_text(json.dumps(state))
            os.replace(scratch, self._path)  # noqa: PTH105 - the atomic rename, by its name
            self._sequence += 1
        finally:
            self._writing = False

    def start_timer(self) -> None:
        """Write every `PROGRESS_S` from now on, by a signal: between two reads, with no thread to share Python with."""

        def on_alarm(_number: int, _frame: FrameType | None) -> None:
            self.write()

        signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, PROGRESS_S, PROGRESS_S)

    def stop_timer(self) -> None:
        """Write no more by itself."""
        signal.setitimer(signal.ITIMER_REAL, 0)


# --- the two loops ---------------------------------------------------------------------------------------------------


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
    """When the reads of an open loop are due.

    Args:
        rate: Reads per second.
        start_ns: When the first are.
    """

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
            _count(self.tallies[0], self._clock() - due_ns, str(error) or "failed")
        else:
            _count(self.tallies[0], self._clock() - due_ns, "" if size == PAGE_BYTES else "short")

    def _work(self, tally: Tally) -> None:
        while (job := self._waiting.get()) is not None:
            offset, due_ns = job
            try:
                failure = "" if self._read(offset) == PAGE_BYTES else "short"
            except OSError as error:
                failure = str(error) or "failed"
            _count(tally, self._clock() - due_ns, failure)

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


def _count(tally: Tally, latency_ns: int, failure: str) -> None:
    tally.buckets[bucket(latency_ns)] += 1
    tally.reads += 1
    if failure:
        tally.errors += 1
        tally.last_error = failure


# --- files -----------------------------------------------------------------------------------------------------------


class PageFile:
    """A file that is read by the page.

    Args:
        path: Of the file.
        readahead: Let the kernel read ahead. Otherwise it reads what is asked for and nothing else: without that
            advice it reads around random pages as well, whenever a few neighbours happen to be cached.
    """

    def __init__(self, path: str, *, readahead: bool = False) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.pages = os.fstat(self._fd).st_size >> PAGE_SHIFT
        self._threads = threading.local()
        if not readahead:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def reader(self, flags: int = 0) -> Read:
        """Return a function that reads the page at an offset. It has one buffer: it is for one thread.

        Args:
            flags: Of ``preadv2``.
        """
        buffers = [bytearray(PAGE_BYTES)]
        if flags:
            return lambda offset: os.preadv(self._fd, buffers, offset, flags)
        return partial(os.preadv, self._fd, buffers)

    def read(self, offset: int) -> int:
        """Read the page at an offset, from any thread."""
        if not hasattr(self._threads, "reader"):
            self._threads.reader = self.reader()
        size: int = self._threads.reader(offset)
        return size

    def now_reader(self) -> Read:
        """Return a function that reads a page, or raises ``BlockingIOError`` when it would have to wait."""
        read = self.reader(os.RWF_NOWAIT)

        def read_now(offset: int) -> int:
            try:
                return read(offset)
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:  # the file system cannot tell
                    raise BlockingIOError from error
                raise

        return read_now

    def fetch(self, pages: int) -> None:
        """Read the first pages with one request, so that even a slow disk has them at once."""
        os.pread(self._fd, pages << PAGE_SHIFT, 0)

    def drop(self) -> None:
        """Have the kernel drop what it has cached of the file."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)


# --- commands --------------------------------------------------------------------------------------------------------


def read_through(paths: Sequence[str]) -> None:
    """Read files once, in order, in large requests."""
    buffers = [bytearray(SEQUENTIAL_BYTES)]
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        offset = 0
        while size := os.preadv(fd, buffers, offset):
            offset += size
        os.close(fd)


def measure_service(path: str) -> dict[str, float]:
    """Return what a cached and an uncached read of one page take; nothing of the file is cached afterwards.

    A throttle of QEMU is a leaky bucket: after a pause it lets a tenth of a second's requests through at once. Reads
    one after the other, each taking l unthrottled, use that up in 0.1 s * r / (1 - r), where r = l * limit. So the
    reads of the first `MISS_SETTLE_S` are not counted. That is enough for r up to 0.83; above, the throttle is hardly
    slower than the disk anyway.
    """
    file = PageFile(path)
    pages = random.Random(1).sample(range(file.pages), min(file.pages, MISS_PAGES))
    offsets = [page << PAGE_SHIFT for page in pages]
    read, clock = file.reader(), time.perf_counter
    file.fetch(HIT_PAGES)
    hits, hit_s = _time_hits(read, range(0, min(file.pages, HIT_PAGES) << PAGE_SHIFT, PAGE_BYTES), clock)
    file.drop()
    misses, miss_s = _time_misses(read, offsets, clock)
    file.drop()
    return {"hit_s": hit_s, "miss_s": miss_s, "hits": hits, "misses": misses}


def _time_hits(read: Read, offsets: Sequence[int], clock: Callable[[], float]) -> tuple[int, float]:
    """Time rounds of cached reads; return how many reads, and the median of the rounds' means.

    The median, because a host that is busy with other things interrupts some rounds for long, and the throttle that
    follows should be that of the machine, not of the moment.
    """
    rounds = []
    before_s = started_s = clock()
    while before_s < started_s + HIT_S:
        for offset in offsets:
            read(offset)
        now_s = clock()
        rounds.append((now_s - before_s) / len(offsets))
        before_s = now_s
    return len(rounds) * len(offsets), statistics.median(rounds)


def _time_misses(read: Read, offsets: Sequence[int], clock: Callable[[], float]) -> tuple[int, float]:
    """Time reads of pages that are each read once; return how many were counted, and the mean.

    Where half of the pages are read before the disk has settled, it is so fast that they are enough.
    """
    begun_s = counted_s = clock()
    misses = 0
    for number, offset in enumerate(offsets):
        read(offset)
        now_s = clock()
        if now_s < begun_s + MISS_SETTLE_S and number < len(offsets) // 2:
            counted_s = now_s
            continue
        misses += 1
        if misses == MISS_MAX or now_s > counted_s + MISS_MAX_S:
            break
    return misses, (now_s - counted_s) / misses if misses else 0.0


class Phase:
    """A phase of the plan, with its references in memory."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.name: str = plan["name"]
        self.rate: float = plan["rate"]
        self.laps: int = plan["laps"]
        self.duration_s: float = plan["duration"]
        self.file = PageFile(plan["file"], readahead=plan["readahead"])
        self.pages = array("I", Path(plan["trace"]).read_bytes())
        if sys.byteorder == "big":
            self.pages.byteswap()
        Path(plan["trace"]).unlink()  # it was in memory twice

    def run(self, progress: Progress) -> None:
        """Do its reads."""
        started_s = time.monotonic()
        until_ns = time.perf_counter_ns() + self.duration_s * 1e9 if self.duration_s else math.inf
        if self.rate:
            loop = OpenLoop(self.file.read, self.file.now_reader())
            progress.phases.append(state := PhaseState(self.name, started_s, loop.tallies))
            loop.run(self.pages, self.rate, until_ns=until_ns)
        else:
            tally = Tally()
            progress.phases.append(state := PhaseState(self.name, started_s, [tally]))
            laps = 0
            while laps < self.laps or (self.duration_s and time.perf_counter_ns() < until_ns):
                closed_loop(self.file.reader(), self.pages, tally, until_ns=until_ns)
                laps += 1
        state.finish()


# --- programs --------------------------------------------------------------------------------------------------------


class Gauge:
    """What a program says of one metric.

    Attributes:
        name: Of the metric.
        count: Values so far; only the last counts unless it is a series.
    """

    def __init__(self, plan: dict[str, Any], key: str) -> None:
        self.name: str = plan["name"]
        self.count = 0
        self._key = key
        self._unit: str = plan["unit"]
        self._pattern = re.compile(plan["pattern"]) if plan["pattern"] else None
        self._json: dict[str, str] | None = plan["json"]
        self._total = self._last = 0.0

    def values(self) -> dict[str, float]:
        """Return what the host reads as ``MetricProgress``."""
        return {"count": self.count, "total": self._total, "last": self._last}

    def look(self, line: str) -> None:
        """Look for values in a line of output.

        Raises:
            GaveUpError: What matches is no number, or of another unit.
        """
        if self._pattern is None:
            return
        for match in self._pattern.finditer(line):
            named = match.groupdict()
            unit = named.get("unit")
            if unit is not None and unit != self._unit:
                raise GaveUpError(f"{self._key}.unit: the output is in {unit!r}, not {self._unit!r}: {line.strip()!r}")
            self._take(named["value"] if "value" in named else match.group(1), "pattern")

    def look_into_file(self, directory: str) -> None:
        """Read a value from the JSON file.

        Raises:
            GaveUpError: There is none.
        """
        if self._json is None:
            return
        try:
            with Path(directory, self._json["file"]).open("rb") as stream:
                value = json.loads(stream.read(JSON_BYTES))
            for word in self._json["path"].split("."):
                value = value[int(word)] if isinstance(value, list) else value[word]
        except OSError as error:
            raise GaveUpError(f"{self._key}.json.file: {error.strerror}: {self._json['file']}") from error
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            place, why = f"{self._json['path']} in {self._json['file']}", str(error) or type(error).__name__
            raise GaveUpError(f"{self._key}.json.path: there is no {place}: {why}") from error
        self._take(str(value) if not isinstance(value, bool) else "", "json.path")

    def require(self, output: Output) -> None:
        """Check that there was a value.

        Raises:
            GaveUpError: There was none.
        """
        if self.count:
            return
        why = f"matches nothing in {output.total_bytes} bytes of output, which end with: {output.said()}"
        hint = "the output is kept with the run; a program that buffers it needs for example stdbuf -oL"
        raise GaveUpError(f"{self._key}.pattern: {why} ({hint})")

    def _take(self, text: str | None, key: str) -> None:
        try:
            value = float((text or "").replace(",", ""))
        except ValueError:
            raise GaveUpError(f"{self._key}.{key}: {text!r} is no number") from None
        if not math.isfinite(value):
            raise GaveUpError(f"{self._key}.{key}: the value is {value}, which cannot be compared")
        self.count += 1
        self._last = value
        self._total += value


class Output:
    """What a program prints, of which the beginning and the end are kept.

    Args:
        path: Where to keep it; None: only what `said` tells is kept.
        gauges: Look at each line.

    Attributes:
        total_bytes: Printed so far.
    """

    def __init__(self, path: str | None, gauges: Sequence[Gauge] = ()) -> None:
        self.total_bytes = 0
        self._file = Path(path).open("wb", buffering=0) if path is not None else None  # noqa: SIM115 - closed by close()
        self._gauges = gauges
        self._end = bytearray()
        self._line = bytearray()

    def add(self, data: bytes) -> None:
        """Take what was printed.

        Raises:
            GaveUpError: A metric's value makes no sense.
        """
        room = max(0, KEPT_BYTES - self.total_bytes)
        self.total_bytes += len(data)
        if self._file is not None and room:
            self._file.write(data[:room])
        self._end += data
        if len(self._end) > 2 * KEPT_BYTES:
            del self._end[:-KEPT_BYTES]
        if self._gauges:
            *lines, rest = data.split(b"\n")
            for line in lines:
                self._look(line)
            self._line += rest[: LINE_BYTES - len(self._line)]

    def _look(self, rest: bytes) -> None:
        self._line += rest[: LINE_BYTES - len(self._line)]
        line = self._line.decode(errors="replace")
        self._line.clear()
        for gauge in self._gauges:
            gauge.look(line)

    def close(self) -> None:
        """Look at the last line, and keep the end of what was printed.

        Raises:
            GaveUpError: A metric's value makes no sense.
        """
        if self._file is not None:
            left = self.total_bytes - KEPT_BYTES
            if left > KEPT_BYTES:
                self._file.write(f"\n[{left - KEPT_BYTES} bytes are left out here]\n".encode())
            if left > 0:
                self._file.write(self._end[-min(left, KEPT_BYTES) :])
            self._file.close()
            self._file = None
        if self._line:
            self._look(b"")

    def said(self) -> str:
        """Return the last lines."""
        lines = self._end[-SAID_BYTES:].decode(errors="replace").strip().splitlines()[-3:]
        return " | ".join(lines) or "nothing"


class Program:
    """A phase that runs a program, with the steps before it."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.name: str = plan["name"]
        self._plan = plan
        self._key: str = plan["key"]

    def prepare(self, step: str) -> None:
        """Run ``setup``, ``ready`` or ``warm_up`` to its end.

        Raises:
            GaveUpError: It failed, or took too long.
        """
        argv, user = self._plan[step], "root" if step == "setup" else self._plan["user"]
        if argv and step == "ready":
            self._wait_until_ready(argv, user)
        elif argv:
            self._execute(argv, user, f"{self._key}.{step}", Output(None), limit_s=STEP_S)
        if step == "setup":  # which may have made the user
            directory, entry = Path(self._plan["directory"]), self._entry(self._plan["user"])
            for path in (directory, *directory.iterdir()):
                os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)

    def _wait_until_ready(self, argv: list[str], user: str) -> None:
        key, end_s = f"{self._key}.ready", time.monotonic() + READY_S
        failure: FailedError | None = None
        while time.monotonic() < end_s:
            try:
                self._execute(argv, user, key, Output(None), limit_s=READY_TRY_S)
            except FailedError as error:
                failure = error
                time.sleep(READY_POLL_S)
            else:
                return
        raise GaveUpError(f"never ready in {READY_S:.0f} s: {failure}")

    def run(self, progress: Progress) -> None:
        """Run it, and see what it says of its metrics.

        Raises:
            GaveUpError: It failed, did not end in time, or a metric is missing or makes no sense.
        """
        if progress.phases:  # else the host has warmed up, with a disk that is not throttled
            self.prepare("warm_up")
        metrics = self._plan["metrics"]
        gauges = [Gauge(metric, f"{self._key}.metric[{number}]") for number, metric in enumerate(metrics)]
        output = Output(self._plan["output"], gauges)
        progress.phases.append(state := ProgramState(self.name, time.monotonic(), gauges))
        timed_s, key = self._plan["duration"], f"{self._key}.command"
        self._execute(
            self._plan["command"],
            self._plan["user"],
            key,
            output,
            limit_s=timed_s or self._plan["timeout"],
            ends_by_itself=not timed_s,
        )
        for gauge in gauges:
            gauge.look_into_file(self._plan["directory"])
            gauge.require(output)
        state.finish()

    def _execute(
        self,
        argv: list[str],
        user: str,
        key: str,
        output: Output,
        *,
        limit_s: float,
        ends_by_itself: bool = True,
    ) -> None:
        """Run a program until it ends, or until its time is over.

        Raises:
            FailedError: It ended with something other than 0, or not in time although it should.
            GaveUpError: It cannot be run, or a metric makes no sense.
        """
        process = self._start(argv, user, key)
        try:
            in_time = _follow(process, output, time.monotonic() + limit_s)
            if not in_time:
                os.killpg(process.pid, signal.SIGTERM)
                _follow(process, output, time.monotonic() + STOP_S)
        finally:
            with suppress(ProcessLookupError):  # whatever it has started ends with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            output.close()
        if not in_time and ends_by_itself:
            raise FailedError(f"{key}: {argv[0]} has not ended after {limit_s:g} s; it said: {output.said()}")
        if in_time and process.returncode < 0:
            hint = " (the guest may have had no memory left)" if process.returncode == -signal.SIGKILL else ""
            number = -process.returncode
            raise FailedError(f"{key}: {argv[0]} was killed by signal {number}{hint}; it said: {output.said()}")
        if in_time and process.returncode:
            raise FailedError(f"{key}: {argv[0]} ended with {process.returncode}; it said: {output.said()}")

    def _entry(self, user: str) -> pwd.struct_passwd:
        try:
            return pwd.getpwnam(user)
        except KeyError:
            raise GaveUpError(f"{self._key}.user: nobody is called {user!r} in this guest") from None

    def _start(self, argv: list[str], user: str, key: str) -> subprocess.Popen[bytes]:
        entry = self._entry(user)
        environment = {**ENVIRONMENT, "HOME": entry.pw_dir, "USER": user, **self._plan["environment"]}
        other: dict[str, Any] = {}
        if entry.pw_uid != os.getuid():
            groups = os.getgrouplist(user, entry.pw_gid)
            other = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}
        try:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self._plan["directory"],
                env=environment,
                start_new_session=True,
                **other,
            )
        except FileNotFoundError as error:
            raise GaveUpError(f"{key}: {argv[0]} is not in this guest: install it in setup, or copy it") from error
        except OSError as error:
            raise GaveUpError(f"{key}: {argv[0]} cannot be run: {error.strerror}") from error


def _follow(process: subprocess.Popen[bytes], output: Output, end_s: float) -> bool:
    """Take what a program prints until it ends; return False when it has not at `end_s`.

    Raises:
        GaveUpError: A metric makes no sense.
    """
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    last_chunks, closed = 0, False
    while (left_s := end_s - time.monotonic()) > 0:
        ended = process.poll() is not None
        if closed:
            if ended:
                return True
            time.sleep(min(PROGRAM_POLL_S, left_s))
            continue
        readable, _, _ = select.select([pipe], [], [], 0.0 if ended else min(PROGRAM_POLL_S, left_s))
        data = os.read(pipe, READ_BYTES) if readable else b""
        output.add(data)
        closed = bool(readable) and not data
        last_chunks += ended
        if ended and (not data or last_chunks > LAST_CHUNKS):
            return True
    return process.poll() is not None


# --- the whole load --------------------------------------------------------------------------------------------------


def prepare(plan: dict[str, Any], step: str) -> None:
    """Run a step of all programs of a plan; the warm-up only of one that is the first phase.

    Raises:
        GaveUpError: One failed.
    """
    for number, described in enumerate(plan["phases"]):
        if "command" in described and (step != "warm_up" or number == 0):
            Program(described).prepare(step)


def run(plan: dict[str, Any]) -> int:
    """Run the load of a plan and return the exit code."""
    progress = Progress(plan["progress"])

    def on_term(number: int, _frame: FrameType | None) -> NoReturn:
        raise GaveUpError(f"stopped by signal {number}")

    signal.signal(signal.SIGTERM, on_term)
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
        phases = [Program(each) if "command" in each else Phase(each) for each in plan["phases"]]
        gc.freeze()
        gc.disable()  # nothing here makes cycles
        progress.write()
        while not Path(plan["go"]).exists():
            time.sleep(GO_POLL_S)
        progress.start_timer()
        for phase in phases:
            phase.run(progress)
            progress.write()
    except (GaveUpError, OSError, MemoryError, ValueError) as error:
        progress.stop_timer()
        reason = str(error) or type(error).__name__
        progress.write(error=reason)
        sys.stderr.write(f"{reason}\n")
        return 1
    progress.stop_timer()
    progress.write(finished=True)
    return 0


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("read-through").add_argument("files", nargs="+")
    commands.add_parser("service").add_argument("file")
    preparing = commands.add_parser("prepare")
    preparing.add_argument("step", choices=["setup", "ready", "warm_up"])
    preparing.add_argument("plan")
    commands.add_parser("run").add_argument("plan")
    arguments = parser.parse_args()
    if arguments.command == "run":
        return run(json.loads(Path(arguments.plan).read_text()))
    try:
        if arguments.command == "service":
            sys.stdout.write(json.dumps(measure_service(arguments.file)))
        elif arguments.command == "prepare":
            prepare(json.loads(Path(arguments.plan).read_text()), arguments.step)
        else:
            read_through(arguments.files)
    except (OSError, GaveUpError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
