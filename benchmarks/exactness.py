"""How exact the collector counts: known reads and writes, and what it made of them. Run as root inside a guest.

::

    python3 exactness.py [DIRECTORY]

DIRECTORY lies on the file system to test and has room for 110 MiB. It needs nothing but Python and a running collector.
Prints one line for each case, counted beside expected, and ends with status 1 if any differs by more than 0.5 %. The
guest should be idle and have 200 MiB free, or what else runs in it is counted too.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

COUNTERS_FILE = Path("/run/qmpalloc/counters.json")
COUNTERS = ("accesses", "inserts_read", "inserts_fault", "inserts_write", "evictions")
PAGE_BYTES = mmap.PAGESIZE
FILE_BYTES = 100 << 20
PAGES = FILE_BYTES // PAGE_BYTES
RANDOM_READS = 5000
TOLERANCE = 0.005
NOISE_PAGES = 64  # what an idle system reads meanwhile


class Case(NamedTuple):
    """One known load.

    Attributes:
        name: What it does.
        cold: Whether the file is dropped from the cache before, uncounted.
        act: The load.
        expected: Pages by counter, those of `COUNTERS` that are not 0.
    """

    name: str
    cold: bool
    act: Callable[[Path], None]
    expected: dict[str, int]


def read(path: Path, call_bytes: int, *, flags: int = 0, advice: int = os.POSIX_FADV_NORMAL) -> None:
    """Read the whole file in calls of `call_bytes`."""
    buffer = mmap.mmap(-1, max(call_bytes, PAGE_BYTES))  # aligned, as O_DIRECT wants it
    fd = os.open(path, os.O_RDONLY | flags)
    os.posix_fadvise(fd, 0, 0, advice)
    offset = 0
    while count := os.preadv(fd, [memoryview(buffer)[:call_bytes]], offset):
        offset += count
    os.close(fd)


def write(path: Path) -> None:
    """Write the whole file anew."""
    block = os.urandom(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(FILE_BYTES // len(block)):
            file.write(block)
        os.fsync(file)


def drop(path: Path) -> None:
    """Drop the file from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def random_pages() -> list[int]:
    """Return the same random pages every time."""
    generator = random.Random(1)
    return [generator.randrange(PAGES) for _ in range(RANDOM_READS)]


def read_randomly(path: Path) -> None:
    """Read single pages without read-ahead."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for page in random_pages():
        os.pread(fd, PAGE_BYTES, page * PAGE_BYTES)
    os.close(fd)


def send(path: Path) -> None:
    """Pass the file on without reading it into the process."""
    with path.open("rb") as source, Path("/dev/null").open("wb") as sink:
        offset = 0
        while count := os.sendfile(sink.fileno(), source.fileno(), offset, 1 << 20):
            offset += count


def touch_mapping(path: Path) -> None:
    """Map the file and touch each page."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), FILE_BYTES, prot=mmap.PROT_READ) as mapping:
        for offset in range(0, FILE_BYTES, PAGE_BYTES):
            mapping[offset]


def will_need(path: Path) -> None:
    """Have the file read ahead, and wait until it is."""
    fd = os.open(path, os.O_RDONLY)
    for offset in range(0, FILE_BYTES, 1 << 20):
        os.posix_fadvise(fd, offset, 1 << 20, os.POSIX_FADV_WILLNEED)
    read(path, 1 << 20)
    os.close(fd)


def write_parts(path: Path) -> None:
    """Write a few bytes into each page of the first 4 MiB, which reads these pages first."""
    fd = os.open(path, os.O_WRONLY)
    for offset in range(0, 4 << 20, PAGE_BYTES):
        os.pwrite(fd, b"x" * 100, offset + 7)
    os.fsync(fd)
    os.close(fd)


def use_tmpfs(_: Path) -> None:
    """Write, read and delete 20 MiB in memory."""
    path = Path("/dev/shm/exactness")
    path.write_bytes(bytes(20 << 20))
    read(path, 1 << 20)
    path.unlink()


def cases() -> list[Case]:
    """Return all cases, in an order in which each leaves the cache as the next one wants it."""
    cold_read = {"accesses": PAGES, "inserts_read": PAGES}
    warm_read = {"accesses": PAGES}
    random_misses = len(set(random_pages()))
    return [
        Case("write", False, write, {"inserts_write": PAGES}),
        Case("cold read, 1 MiB calls", True, lambda path: read(path, 1 << 20), cold_read),
        Case("warm read, 1 MiB calls", False, lambda path: read(path, 1 << 20), warm_read),
        Case("cold read, 4 KiB calls", True, lambda path: read(path, 4096), cold_read),
        Case("warm read, 4 KiB calls", False, lambda path: read(path, 4096), warm_read),
        Case("warm read, 512 B calls", False, lambda path: read(path, 512), {"accesses": FILE_BYTES // 512}),
        Case("cold read, no read-ahead", True, lambda path: read(path, 4096, advice=os.POSIX_FADV_RANDOM), cold_read),
        Case("cold random reads", True, read_randomly, {"accesses": RANDOM_READS, "inserts_read": random_misses}),
        Case("warm random reads", False, read_randomly, {"accesses": RANDOM_READS}),
        Case("cold sendfile", True, send, cold_read),
        Case("warm sendfile", False, send, warm_read),
        Case("cold mmap", True, touch_mapping, {"inserts_fault": PAGES}),
        Case("warm mmap", False, touch_mapping, {}),
        Case("O_DIRECT", True, lambda path: read(path, 1 << 20, flags=os.O_DIRECT), {}),
        Case("WILLNEED, then read", True, will_need, cold_read),
        Case("drop", False, drop, {"evictions": PAGES}),
        Case("partial writes, cold", True, write_parts, {"inserts_write": (4 << 20) // PAGE_BYTES}),
        Case("tmpfs", False, use_tmpfs, {}),
    ]


def counters() -> dict[str, int]:
    """Return the counters of a file that was begun after this call."""
    earlier = json.loads(COUNTERS_FILE.read_text())["sequence"]
    while True:
        content = json.loads(COUNTERS_FILE.read_text())
        if content["sequence"] >= earlier + 2:
            return {name: content["counters"].get(name, 0) for name in (*COUNTERS, "events_lost")}
        time.sleep(0.1)


def run(case: Case, path: Path) -> bool:
    """Run one case, print its line and return whether the counts are as expected."""
    if case.cold:
        drop(path)
    before = counters()
    case.act(path)
    after = counters()
    cells, right = [], True
    for name in COUNTERS:
        counted, expected = after[name] - before[name], case.expected.get(name, 0)
        near = abs(counted - expected) <= max(TOLERANCE * expected, 0 if expected else NOISE_PAGES)
        right = right and near
        cells.append(f"{counted:>7}/{expected:<6}" + (" " if near else "!"))
    print(f"{case.name:<25}", *cells, f"lost {after['events_lost'] - before['events_lost']}", flush=True)
    return right


def main() -> int:
    """Run all cases; return 1 if one went wrong."""
    parser = argparse.ArgumentParser(description="Compare what the collector counts with known loads.")
    parser.add_argument("directory", type=Path, nargs="?", default=Path("/var/tmp"), help="where to put the test file")
    path = parser.parse_args().directory / "exactness.dat"
    if not COUNTERS_FILE.exists():
        sys.exit(f"{COUNTERS_FILE} is not there: start the collector first")
    print(f"{'counted/expected pages':<25}", *(f"{name:>14} " for name in COUNTERS))
    try:
        wrong = [case.name for case in cases() if not run(case, path)]
    finally:
        path.unlink(missing_ok=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
