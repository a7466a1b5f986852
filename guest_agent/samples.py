"""Sampled accesses: taken out of the kernel's ring, written to a file, at a rate that keeps their number small.

The format is documented in ``docs/samples-file.md``.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections import Counter

from guest_agent import bpf

NAME = "samples.bin"
MAGIC = b"QMPSAMP1"
SHIFT_MIN, SHIFT_MAX = 6, 16
EVENTS_MAX = 65_536
"""Events a file may hold."""

KEPT_INTERVALS, KEPT_MOST, KEPT_EVENTS = 3, 30, 2_048
"""Intervals whose events a file holds at least, so that a host that comes late or misses some loses nothing; and at
most, as long as they have no more events than that."""

PER_S_MAX = 2_000
"""Events per second above which the rate is lowered. It rises again once twice as many would be well below."""

DOMINANT_TIMES, DOMINANT_PAGES = 32, 64
"""A page is dominant with so many times the events that half of the pages have. So many are counted apart at most."""

_CALM_INTERVALS = 30
_HEADER = struct.Struct("<8s16s8sQQQBHxI")
_RING_BYTES = 128 * mmap.PAGESIZE  # as in program.c
_RECORD_BYTES = 16
_BUSY = 0x80  # BPF_RINGBUF_BUSY_BIT, in the last byte of a record's length


class Ring:
    """The consumer's end of a BPF ring buffer whose records are 64-bit numbers.

    Each is preceded by a header of 8 bytes, so that none is cut by the ring's end (include/uapi/linux/bpf.h,
    ``BPF_RINGBUF_HDR_SZ``). The kernel counts bytes, without end, in two positions.

    Args:
        consumer: A page that begins with the position up to which records were taken; writable.
        producer: A page that begins with the position up to which records were reserved, and the data, twice over.
    """

    def __init__(self, consumer: memoryview, producer: memoryview) -> None:
        self._consumer = consumer[:8].cast("Q")
        self._producer = producer[:8].cast("Q")
        self._data = producer[mmap.PAGESIZE :]
        self._size = len(self._data) // 2

    @classmethod
    def of_map(cls, map_fd: int) -> Ring:
        """Return the ring of program.c.

        Raises:
            OSError: It cannot be mapped.
        """
        consumer = mmap.mmap(map_fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        bytes_mapped = mmap.PAGESIZE + 2 * _RING_BYTES
        producer = mmap.mmap(map_fd, bytes_mapped, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE)
        return cls(memoryview(consumer), memoryview(producer))

    @property
    def is_empty(self) -> bool:
        """Whether all records were taken."""
        return self._consumer[0] == self._producer[0]

    def take(self) -> array[int]:
        """Return the numbers of all complete records, oldest first, and make room for new ones."""
        position = self._consumer[0]
        start = position % self._size
        records = self._data[start : start + self._producer[0] - position]
        lengths = bytes(records[3::_RECORD_BYTES])
        if max(lengths, default=0) >= _BUSY:  # another CPU is about to write it
            complete = next(index for index, length in enumerate(lengths) if length >= _BUSY)
            records = records[: complete * _RECORD_BYTES]
        numbers = array("Q", records.cast("Q")[1::2].tobytes())
        self._consumer[0] = position + len(records)
        return numbers


class Dominant:
    """Pages with far more accesses than others, which are no part of the sample.

    A page that is read all the time hits at any size, and says nothing of the other pages. Its accesses are among those
    counted exactly, as are those of such pages that are not watched; in the sample it would drown the others.

    Args:
        apart: Where the kernel counts events by their numbers instead of shipping them.
    """

    def __init__(self, apart: bpf.Table) -> None:
        self._apart = apart
        self._counts: dict[int, int] = {}

    def leave_out(self, events: array[int]) -> array[int]:
        """Return the events of an interval without those of dominant pages.

        Raises:
            OSError: The kernel cannot be told which they are.
        """
        lately = {event: self._apart.read(event) for event in self._counts}
        numbers = Counter(events)
        for event, count in lately.items():
            numbers[event] += count - self._counts[event]
        self._counts = lately
        usual = sorted(numbers.values())[len(numbers) // 2] if numbers else 0
        bound = DOMINANT_TIMES * max(1, usual)
        for event in [event for event in lately if numbers[event] <= bound / 2]:
            self._apart.remove(event)
            del self._counts[event]
        new = {event for event, count in numbers.items() if count > bound and event not in lately}
        for event in sorted(new, key=numbers.__getitem__, reverse=True)[: DOMINANT_PAGES - len(self._counts)]:
            self._apart.put(event)
            self._counts[event] = 0
        out = new.union(lately)
        return array("Q", [event for event in events if event not in out]) if out else events


class Rate:
    """Chooses the sampling rate, 2 ** -shift.

    Attributes:
        shift: The present one.
    """

    def __init__(self) -> None:
        self.shift = SHIFT_MIN
        self._calm = 0

    def adapt(self, events_per_s: float) -> bool:
        """Take note of how many events came; return whether `shift` has changed."""
        before = self.shift
        while events_per_s > PER_S_MAX and self.shift < SHIFT_MAX:
            self.shift += 1
            events_per_s /= 2
        self._calm = self._calm + 1 if self.shift == before and events_per_s < PER_S_MAX / 3 else 0
        if self._calm >= _CALM_INTERVALS and self.shift > SHIFT_MIN:
            self.shift -= 1
            self._calm = 0
        return self.shift != before


def excluded(shift: int) -> int:
    """Return which of a key's low bits must be 0 at this rate."""
    return (1 << (shift - SHIFT_MIN)) - 1


class Batches:
    """What the files of one collector hold, and the numbers of their events.

    Args:
        boot_id: Of the guest's kernel, 32 hexadecimal digits, dashes among them or not.
        start_id: Of the collector, 16 hexadecimal digits.
    """

    def __init__(self, boot_id: str, start_id: str) -> None:
        self._ids = bytes.fromhex(boot_id.replace("-", "")), bytes.fromhex(start_id)
        self._kept: list[array[int]] = []
        self._first = self._lost = 0
        self._shift, self._burst = SHIFT_MIN, 0

    def add(self, events: array[int], accesses: int, lost: int, shift: int, burst: int = 0) -> bytes:
        """Return the content of the next file.

        Args:
            events: Those of the interval, oldest first. What the rate leaves out is left out: a task may have looked up
                the rate before it changed.
            accesses: Since the collector's start.
            lost: Events since the collector's start that found no room in the ring.
            shift: The rate at which all of them were taken.
            burst: Number of the time in which accesses are sampled without a pause.
        """
        burst %= 2**16
        mask = excluded(shift) << 4
        if mask:
            events = array("Q", [event for event in events if not event & mask])
        if (shift, lost, burst) != (self._shift, self._lost, self._burst):
            # A file has one rate, and no gaps within.
            self._first += sum(map(len, self._kept)) + lost - self._lost
            self._kept.clear()
        self._shift, self._lost, self._burst = shift, lost, burst
        self._kept.append(events)
        count = sum(map(len, self._kept))
        while count > EVENTS_MAX or len(self._kept) > (KEPT_MOST if count <= KEPT_EVENTS else KEPT_INTERVALS):
            self._first += len(self._kept[0])
            count -= len(self._kept.pop(0))
        header = _HEADER.pack(MAGIC, *self._ids, self._first, accesses, lost, shift, burst, count)
        return header + b"".join(map(bytes, self._kept))
