"""Files that are read by the page, and files that are read through."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

PAGE_SHIFT = 12
PAGE_BYTES = 1 << PAGE_SHIFT
SEQUENTIAL_BYTES = 1 << 20
"""Request of ``read-through``."""
DROP_FILE = "/proc/sys/vm/drop_caches"
Read = Callable[[int], int]


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


def drop_caches() -> None:
    """Have the kernel drop all that it can of its page cache and its caches of inodes; what this runs of stays."""
    os.sync()
    Path(DROP_FILE).write_text("3")


def read_through(path: str) -> None:
    """Read a file once, in order, in large requests."""
    with Path(path).open("rb", buffering=0) as file:
        buffer = bytearray(SEQUENTIAL_BYTES)
        while file.readinto(buffer):
            pass
