"""Loads whose page accesses, misses and insertions are known from how they are made. Runs inside a guest.

Every load works on a file of `PAGES` pages. What it must be counted as follows from the calls it makes, by arithmetic
that knows nothing of how the collector works; see docs/counters-file.md for what an access and an insertion are.
"""

from __future__ import annotations

import functools
import mmap
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

PAGE_BYTES = mmap.PAGESIZE
FILE_BYTES = 100 << 20
PAGES = FILE_BYTES // PAGE_BYTES
RANDOM_READS = 5000
SPAN_BYTES = 10_000
VECTOR_BYTES = (4096, 100, 8192, 3000)
READERS = 4
PIPE_BYTES = 16 * PAGE_BYTES

Expected = dict[str, int | None]


class Case(NamedTuple):
    """One known load.

    Attributes:
        name: What it does.
        expected: Pages by counter; those not named are 0, None is anything.
        act: The load. What it returns is expected as well: what only the load itself can know.
        cold: Whether the file is dropped from the cache before, uncounted.
        whole: Whether it leaves the file as it found it; if not, the file is written anew, uncounted.
    """

    name: str
    expected: Expected
    act: Callable[[Path], Expected | None]
    cold: bool = False
    whole: bool = True


def pages_of(offset: int, size: int) -> range:
    """Return the pages that a part of a file touches."""
    return range(offset // PAGE_BYTES, (offset + size - 1) // PAGE_BYTES + 1)


def read(
    path: Path, call_bytes: int, *, size: int = FILE_BYTES, flags: int = 0, advice: int = os.POSIX_FADV_NORMAL
) -> None:
    """Read the first `size` bytes of the file in calls of `call_bytes`."""
    buffer = mmap.mmap(-1, max(call_bytes, PAGE_BYTES))  # aligned, as O_DIRECT wants it
    fd = os.open(path, os.O_RDONLY | flags)
    os.posix_fadvise(fd, 0, 0, advice)
    offset = 0
    while offset < size and (count := os.preadv(fd, [memoryview(buffer)[:call_bytes]], offset)):
        offset += count
    os.close(fd)


def write(path: Path) -> None:
    """Write the whole file anew and bring it to the disk."""
    block = os.urandom(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(FILE_BYTES // len(block)):
            file.write(block)
        os.fsync(file)


def overwrite(path: Path) -> None:
    """Write over every page of the file, whole pages only."""
    block = os.urandom(1 << 20)
    fd = os.open(path, os.O_WRONLY)
    for offset in range(0, FILE_BYTES, len(block)):
        os.pwrite(fd, block, offset)
    os.fsync(fd)
    os.close(fd)


def write_then_read(path: Path) -> None:
    """Write the file anew and read it back."""
    write(path)
    read(path, 1 << 20)


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


def random_spans() -> list[int]:
    """Return the same random offsets every time, at no page's boundary, from which `SPAN_BYTES` are read."""
    generator = random.Random(2)
    return [generator.randrange(PAGES - 4) * PAGE_BYTES + generator.randrange(1, PAGE_BYTES) for _ in range(1000)]


def read_at(path: Path, offsets: list[int], size: int) -> None:
    """Read `size` bytes at each offset, without read-ahead."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for offset in offsets:
        os.pread(fd, size, offset)
    os.close(fd)


def read_vectors(path: Path) -> None:
    """Read the whole file from its position into four buffers at a time."""
    buffers = [bytearray(size) for size in VECTOR_BYTES]
    fd = os.open(path, os.O_RDONLY)
    while os.readv(fd, buffers):
        pass
    os.close(fd)


def send(path: Path) -> None:
    """Pass the file on without reading it into the process."""
    with path.open("rb") as source, Path("/dev/null").open("wb") as sink:
        offset = 0
        while count := os.sendfile(sink.fileno(), source.fileno(), offset, 1 << 20):
            offset += count


def splice(path: Path) -> None:
    """Move the file through a pipe, a pipe's capacity at a time."""
    out_fd, in_fd = os.pipe()
    with path.open("rb") as source, Path("/dev/null").open("wb") as sink:
        while count := os.splice(source.fileno(), in_fd, PIPE_BYTES):
            while count:
                count -= os.splice(out_fd, sink.fileno(), count)
    os.close(out_fd)
    os.close(in_fd)


def touch(path: Path, pages: list[int], advice: int) -> None:
    """Map the file and touch these pages."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), FILE_BYTES, prot=mmap.PROT_READ) as mapping:
        mapping.madvise(advice)
        for page in pages:
            mapping[page * PAGE_BYTES]


def will_need(path: Path) -> None:
    """Have the file read ahead, then read it."""
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
    path = Path("/dev/shm/known-loads")
    path.write_bytes(bytes(20 << 20))
    read(path, 1 << 20)
    path.unlink()


def in_children(count: int, act: Callable[[], None]) -> None:
    """Do something in several processes at the same time, and wait for all."""
    children = []
    for _ in range(count):
        child = os.fork()
        if child == 0:
            try:
                act()
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def read_until_truncated(path: Path) -> Expected:
    """Read page by page while another process cuts the file short. Only the reader knows how far it came."""
    child = os.fork()
    if child == 0:
        time.sleep(0.2)
        os.truncate(path, FILE_BYTES // 4 * 3)
        os._exit(0)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    pages = 0
    while os.read(fd, PAGE_BYTES):
        pages += 1
        time.sleep(0)
    os.waitpid(child, 0)
    os.close(fd)
    return {"accesses": pages, "inserts_read": pages}


def read_deleted(path: Path) -> None:
    """Read half of the file, delete it, and read the rest: its pages go when the last descriptor is closed."""
    fd = os.open(path, os.O_RDONLY)
    for offset in range(0, FILE_BYTES, 1 << 20):
        if offset == FILE_BYTES // 2:
            path.unlink()
        os.pread(fd, 1 << 20, offset)
    os.close(fd)


def read_around_drop(path: Path) -> None:
    """Read half of the file, drop all caches of the system, and read the whole file."""
    read(path, 1 << 20, size=FILE_BYTES // 2, advice=os.POSIX_FADV_RANDOM)  # nothing is read ahead of the half
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")
    read(path, 1 << 20)


def cases() -> Iterator[Case]:
    """Yield all cases, in an order in which each leaves the cache as the next one wants it."""
    cold_read: Expected = {"accesses": PAGES, "inserts_read": PAGES}
    warm_read: Expected = {"accesses": PAGES}
    pages, spans = random_pages(), random_spans()
    touched = {page for offset in spans for page in pages_of(offset, SPAN_BYTES)}
    span_accesses = sum(len(pages_of(offset, SPAN_BYTES)) for offset in spans)
    vector = sum(VECTOR_BYTES)
    vector_accesses = sum(len(pages_of(at, min(vector, FILE_BYTES - at))) for at in range(0, FILE_BYTES, vector))
    offsets = [page * PAGE_BYTES for page in pages]
    no_ahead = os.POSIX_FADV_RANDOM
    yield Case("write", {"inserts_write": PAGES}, write, cold=True)
    for title, size in (("1 MiB", 1 << 20), ("4 MiB", 4 << 20), ("4 KiB", 4096)):
        act = functools.partial(read, call_bytes=size)
        yield Case(f"cold read, {title} calls", cold_read, act, cold=True)
        yield Case(f"warm read, {title} calls", warm_read, act)
    yield Case(
        "warm read of 25 MiB, 512 B calls",
        {"accesses": FILE_BYTES // 4 // 512},
        lambda path: read(path, 512, size=FILE_BYTES // 4),
    )
    yield Case("cold read, no read-ahead", cold_read, lambda path: read(path, 4096, advice=no_ahead), cold=True)
    random_cold: Expected = {"accesses": RANDOM_READS, "inserts_read": len(set(pages))}
    yield Case("cold random 4 KiB (pread)", random_cold, lambda path: read_at(path, offsets, PAGE_BYTES), cold=True)
    yield Case("warm random 4 KiB (pread)", {"accesses": RANDOM_READS}, lambda path: read_at(path, offsets, PAGE_BYTES))
    span_cold: Expected = {"accesses": span_accesses, "inserts_read": len(touched)}
    yield Case("cold unaligned spans", span_cold, lambda path: read_at(path, spans, SPAN_BYTES), cold=True)
    yield Case("warm unaligned spans", {"accesses": span_accesses}, lambda path: read_at(path, spans, SPAN_BYTES))
    yield Case("cold readv", {"accesses": vector_accesses, "inserts_read": PAGES}, read_vectors, cold=True)
    yield Case("warm readv", {"accesses": vector_accesses}, read_vectors)
    yield Case("cold sendfile", cold_read, send, cold=True)
    yield Case("warm sendfile", warm_read, send)
    yield Case("cold splice", cold_read, splice, cold=True)
    yield Case("warm splice", warm_read, splice)
    in_order = list(range(PAGES))
    yield Case(
        "cold mmap", {"inserts_fault": PAGES}, lambda path: touch(path, in_order, mmap.MADV_SEQUENTIAL), cold=True
    )
    yield Case("warm mmap", {}, lambda path: touch(path, in_order, mmap.MADV_SEQUENTIAL))
    random_faults: Expected = {"inserts_fault": len(set(pages))}
    yield Case("cold random mmap", random_faults, lambda path: touch(path, pages, mmap.MADV_RANDOM), cold=True)
    yield Case("warm random mmap", {}, lambda path: touch(path, pages, mmap.MADV_RANDOM))
    yield Case("O_DIRECT", {}, lambda path: read(path, 1 << 20, flags=os.O_DIRECT), cold=True)
    yield Case("WILLNEED, then read", cold_read, will_need, cold=True)
    yield Case("drop this file", {"evictions": PAGES}, drop)
    yield Case("write, then read", {"inserts_write": PAGES, "accesses": PAGES}, write_then_read, cold=True)
    yield Case("overwrite cached pages", {}, overwrite)
    yield Case("write 100 B into 1,024 cold pages", {"inserts_write": 1024}, write_parts, cold=True)
    yield Case("tmpfs", {}, use_tmpfs)
    yield Case(
        f"{READERS} readers at once, cold",
        {"accesses": READERS * PAGES, "inserts_read": PAGES},
        lambda path: in_children(READERS, lambda: read(path, 1 << 16)),
        cold=True,
    )
    yield Case(
        f"{READERS} readers at once, warm",
        {"accesses": READERS * PAGES},
        lambda path: in_children(READERS, lambda: read(path, 1 << 16)),
    )
    yield Case("truncated while read", {"evictions": None}, read_until_truncated, cold=True, whole=False)
    yield Case("deleted while read", {**cold_read, "evictions": PAGES}, read_deleted, cold=True, whole=False)
    # The last one: programs and libraries go from the cache as well, and come back in whatever is done next.
    yield Case(
        "drop_caches between",
        {"accesses": PAGES * 3 // 2, "inserts_read": PAGES * 3 // 2, "evictions": None, "inserts_fault": None},
        read_around_drop,
        cold=True,
    )
