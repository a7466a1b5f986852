"""What the kernel tells of another process's memory."""

import ctypes
import mmap
import os

import pytest

from qmpalloc.host.process import pinned_bytes, resident_bytes
from qmpalloc.units import MIB

STATUS = "Name:\tqemu\nVmPeak:\t 9000 kB\nVmLck:\t    2048 kB\nVmPin:\t    1024 kB\n"


@pytest.mark.parametrize(
    ("status", "expected"), [(STATUS, 3 * MIB), ("Name:\tkthreadd\n", 0), ("VmLck:\nVmPin: x kB\n", 0), ("", 0)]
)
def test_locked_and_pinned_count_together(tmp_path, status, expected):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text(status)
    assert pinned_bytes(7, tmp_path) == expected


def test_a_process_that_is_not_known_has_none(tmp_path):
    assert pinned_bytes(None) == 0
    assert pinned_bytes(7, tmp_path) == 0
    assert resident_bytes(None) is None
    assert resident_bytes(7, tmp_path) is None


@pytest.mark.parametrize(("sizes", "pages"), [("2250 125 80 1 0 300 0\n", 125), ("", None), ("2250 x\n", None)])
def test_what_the_host_has_behind_a_process(tmp_path, sizes, pages):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "statm").write_text(sizes)
    assert resident_bytes(7, tmp_path) == (pages and pages * mmap.PAGESIZE)


def test_what_the_host_has_behind_this_process():
    assert resident_bytes(os.getpid()) > MIB


def test_memory_of_this_process_that_is_locked():
    with mmap.mmap(-1, 32 * mmap.PAGESIZE) as memory:
        start = ctypes.c_char.from_buffer(memory)
        before = pinned_bytes(os.getpid())
        if ctypes.CDLL(None).mlock(ctypes.byref(start), ctypes.c_size_t(len(memory))):
            pytest.skip("this process may not lock memory")
        locked = pinned_bytes(os.getpid()) - before
        del start
    assert locked == 32 * mmap.PAGESIZE
