"""The samples file: which sampled pages a guest accessed. What the collector ships and the host takes apart.

The sample is spatial: of every aligned block of 64 pages of a file, one page is watched, its slot chosen by a hash, and
all accesses to it are shipped. (One page per block instead of hashing every page costs one hash per 64 pages and, where
popularity is smooth over the file, gives a quarter of the curve's error.) At a lower rate every other block is left
out, then every other of the rest: what was collected before stays a valid sample once the others are thrown away.

A batch is little-endian:

======  ====  =====================================================================================================
offset  size  field
======  ====  =====================================================================================================
0       8     ``QMPSAMP1``
8       16    boot id, binary
24      8     start id of the collector, binary
32      8     first: number of the first event of this batch. The first event since the collector's start has 0; events
              that are lost have numbers too, so that a gap shows every loss, of whatever cause
40      8     accesses: exact count of page accesses since the collector's start, at the end of the batch
48      8     lost: events since the collector's start that found no room in the ring, for people
56      1     shift: the rate is 2 ** -shift; 6 for one page of every block
57      2     burst: rises, modulo 65,536, with each pause in the sampling: what was accessed meanwhile is not known
59      1     zero
60      4     count of events
64      8n    events: key << 4 | fresh << 3 | kind
======  ====  =====================================================================================================

Events of a batch have consecutive numbers and one rate: a collector that lost some, or that changes its rate, begins a
batch with the next one. A batch may begin with events of the one before, so that a reader who comes late misses
nothing; they must be the same, and are used once.

*key*, 60 bits: the upper 50 are a hash of salt, device, inode, **inode generation** (so that an inode number used again
is another file) and block number; bit n of the low 10 tells which half of an aligned 2 ** (n + 1) blocks the block is
in, flipped or not by a hash of the same with those blocks' common number. A block is in the sample at shift s when the
low s - 6 bits of its key are zero: one of every aligned 2 ** (s - 6), at no fixed place. The slot, the page of the
block that is watched, comes from a hash of salt, inode number and block, and does not appear. *kind*: 0 read, 1 page
fault. *fresh*: an access to a page that had not been accessed since its insert, i.e. a
miss.
"""

from __future__ import annotations

import struct

import msgspec
import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from qmpalloc.errors import SampleError, SampleFault

MAGIC = b"QMPSAMP1"
BLOCK_SHIFT = 6
"""One page of every 2 ** 6; no higher rate exists."""

SHIFT_MAX = 16
EVENTS_MAX = 65_536
"""Events a batch may hold; the collector lowers its rate before it needs more."""

_HEADER = struct.Struct("<8s16s8sQQQBHxI")
FILE_MAX_BYTES = _HEADER.size + 8 * EVENTS_MAX

READ, FAULT = range(2)

Keys = NDArray[np.uint64]


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One batch of sampled events.

    Attributes:
        boot_id: Of the guest's kernel, 16 bytes; changes at every boot.
        start_id: Of the collector, 8 bytes; changes at every start.
        first: Number of the first event.
        accesses: Exact page accesses since the collector's start, at the end of the batch.
        lost: Events lost since the collector's start.
        shift: The sampling rate is 2 ** -shift.
        burst: Of which time without a pause it is.
        events: As they are in the file: key << 4 | fresh << 3 | kind.
    """

    boot_id: bytes
    start_id: bytes
    first: int
    accesses: int
    lost: int
    shift: int
    burst: int = 0
    events: Keys

    @property
    def next(self) -> int:
        """Number of the event after its last one."""
        return self.first + len(self.events)

    @property
    def kinds(self) -> NDArray[np.uint64]:
        """Kind of every event."""
        return self.events & np.uint64(7)

    def accessed(self) -> Keys:
        """Return the keys of the accesses, in order."""
        return self.events >> np.uint64(4)


def pack(batch: Batch) -> bytes:
    """Return the bytes of a batch, as the collector writes them."""
    header = _HEADER.pack(
        MAGIC, batch.boot_id, batch.start_id, batch.first, batch.accesses, batch.lost, batch.shift, batch.burst,
        len(batch.events),
    )  # fmt: skip
    return header + batch.events.astype("<u8").tobytes()


def unpack(data: bytes) -> Batch:
    """Return the batch that `data`, untrusted, holds.

    Raises:
        SampleError: VERSION, HUGE, TORN or MALFORMED.
    """
    if len(data) > FILE_MAX_BYTES:
        raise SampleError(SampleFault.HUGE, f"the samples file holds more than {EVENTS_MAX} events")
    if len(data) < _HEADER.size:
        raise SampleError(SampleFault.TORN, "the samples file is shorter than its header")
    magic, boot_id, start_id, first, accesses, lost, shift, burst, count = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise SampleError(
            SampleFault.VERSION,
            "the samples file does not begin with QMPSAMP1",
            hint="install the guest_agent directory that belongs to this qmpalloc in the guest",
        )
    if len(data) != _HEADER.size + 8 * count:
        raise SampleError(SampleFault.TORN, "the samples file does not have as many events as it says")
    if not BLOCK_SHIFT <= shift <= SHIFT_MAX or max(first, accesses, lost) >= 2**63:
        raise SampleError(SampleFault.MALFORMED, "a field of the samples file is out of range")
    events = np.frombuffer(data, dtype="<u8", offset=_HEADER.size).astype(np.uint64)
    batch = Batch(
        boot_id=boot_id, start_id=start_id, first=first, accesses=accesses, lost=lost, shift=shift, burst=burst,
        events=events,
    )  # fmt: skip
    if (batch.kinds > FAULT).any():
        raise SampleError(SampleFault.MALFORMED, "the samples file has events of an unknown kind")
    return batch


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch adds: accesses to sampled pages since the one before.

    Attributes:
        keys: Of the accesses, in order.
        accesses: Exact page accesses in that time, of all pages.
        lost: Events that did not arrive in that time: the ring was full, or a batch was never read.
        shift: The sampling rate was 2 ** -shift.
        paused: Accesses were not sampled for a while before: no page's last one is known.
        restarted: The machine was set back to a snapshot: what was known before is void.
    """

    keys: Keys
    accesses: int
    lost: int
    shift: int
    paused: bool = False
    restarted: bool = False

    @property
    def expected(self) -> float:
        """How many accesses a sample of this rate holds on average, for SHARDS's adjustment."""
        arrived = len(self.keys) / (len(self.keys) + self.lost) if self.lost else 1.0
        return self.accesses * 2.0**-self.shift * arrived


class SampleIntake:
    """Checks the order and the plausibility of the batches of one collector."""

    def __init__(self) -> None:
        self._last: Batch | None = None
        self._older: Batch | None = None

    def accept(self, batch: Batch) -> Window | None:
        """Return what `batch` adds, or None for the first of a series, whose exact count has no beginning.

        Raises:
            SampleError: REPEATED (seen already; the series goes on), BACKWARDS (older than what was seen; a second one
                that goes on from it begins a new series), ABSURD (more sampled accesses than accesses, a key that the
                rate excludes, or another past than before).
        """
        last = self._last
        excluded = np.uint64((1 << (batch.shift - BLOCK_SHIFT)) - 1)
        if (batch.accessed() & excluded).any():
            raise SampleError(SampleFault.ABSURD, "the samples file has pages that its rate leaves out")
        if last is None:
            window = None
        elif (batch.accesses, batch.next) == (last.accesses, last.next):
            raise SampleError(SampleFault.REPEATED, "the collector has not written new samples")
        elif _goes_on(last, batch):
            window = _added(last, batch)
        else:
            window = self._set_back(last, batch)
        self._last, self._older = batch, None
        return window

    def _set_back(self, last: Batch, batch: Batch) -> Window:
        """Return what begins a new series: not one that came late, but a machine that was set back (loadvm)."""
        older, self._older = self._older, batch
        if older is not None and _goes_on(older, batch) and batch.next > older.next:
            none = batch.events[:0]
            return Window(keys=none, accesses=0, lost=0, shift=batch.shift, restarted=True)
        if batch.first < last.first or batch.next < last.next:
            raise SampleError(SampleFault.BACKWARDS, "the samples are older than those before")
        raise SampleError(SampleFault.BACKWARDS, "a counter of the samples went back")


def _goes_on(before: Batch, after: Batch) -> bool:
    return (
        before.first <= after.first
        and before.next <= after.next
        and before.accesses <= after.accesses
        and before.lost <= after.lost
    )


def _added(last: Batch, batch: Batch) -> Window:
    """Return what a batch adds to the one before."""
    seen = max(0, last.next - batch.first)
    if seen and batch.shift != last.shift:
        raise SampleError(SampleFault.ABSURD, "samples that were read before have another rate now")
    if (batch.events[:seen] != last.events[len(last.events) - seen :]).any():
        raise SampleError(SampleFault.ABSURD, "samples that were read before are others now")
    new = structs.replace(batch, first=batch.first + seen, events=batch.events[seen:])
    keys, exact = new.accessed(), batch.accesses - last.accesses
    if len(keys) > exact:
        raise SampleError(SampleFault.ABSURD, "more sampled accesses than accesses")
    lost = new.first - last.next
    return Window(keys=keys, accesses=exact, lost=lost, shift=batch.shift, paused=batch.burst != last.burst)
