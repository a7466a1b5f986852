"""The counters file: what the collector in a guest writes and the host reads. Parsing, validation, differences.

Format and units are in ``docs/counters-file.md``. The file comes from the guest and is hostile until proven otherwise:
`parse` bounds its size, types and ranges, `SampleTracker` its order and rates. What is absent stays None; it never
becomes 0.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, structs

from qmpalloc.errors import SampleError, SampleFault
from qmpalloc.text import printable
from qmpalloc.units import PAGE_BYTES, format_size

FORMAT = "qmpalloc-counters"
VERSION = 1
FILE_MAX_BYTES = 4096
"""The collector keeps below this; a larger file is refused unread, so one ``guest-file-read`` always suffices."""

STARTING = "starting:"
"""How the collector's `error` begins while it compiles its programs, before it counts."""

MAX_PAGES_PER_S = 100_000_000
"""A page rate no machine reaches: 400 GB/s in 4 KiB pages. More than this in a delta is a lie or a defect."""

CLOCK_SLACK_S = 5.0
"""How much more guest time than host time may pass between two samples (scheduling, a late read)."""

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Bytes = Annotated[int, Meta(ge=0, lt=2**50)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Printable = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\x20-\x7e]*\Z")]


class Counters(Struct, frozen=True, kw_only=True):
    """Cumulative counts since the collector started, in pages (events for the last)."""

    accesses: Count | None = None
    """Pages touched by buffered reads, every read call counting its pages once (``filemap_read``)."""
    inserts_read: Count | None = None
    """Pages brought in for a read, read-ahead included: the misses."""
    inserts_fault: Count | None = None
    """Pages brought in for a page fault of a mapped file."""
    faults_major: Count | None = None
    """Page faults of mapped files that did not find their page in memory; each brings in one page or more."""
    inserts_write: Count | None = None
    """Pages created by buffered writes."""
    inserts_other: Count | None = None
    """All other pages added: metadata, directories, writes of file systems with their own write path. Never tmpfs."""
    evictions: Count | None = None
    """Pages removed, by reclaim, truncation or dropping; tmpfs excepted."""
    refaults: Count | None = None
    """Evicted pages of files that came back (``workingset_refault_file``), since the guest's boot."""
    refaults_anon: Count | None = None
    """Evicted pages of programs and of tmpfs that came back (``workingset_refault_anon``), since the guest's boot."""
    events_lost: Count | None = None
    """Events the collector knows it did not count."""


class Memory(Struct, frozen=True, kw_only=True):
    """What ``/proc/meminfo`` and the mounted tmpfs of the guest tell, in bytes."""

    total: Bytes | None = None
    free: Bytes | None = None
    cpu_free: Bytes | None = None
    """Free pages that its CPUs keep at hand, beside `free`."""
    kept_free: Bytes | None = None
    """What its kernel keeps free: about its high watermarks, as they were set."""
    available: Bytes | None = None
    active_file: Bytes | None = None
    inactive_file: Bytes | None = None
    mapped: Bytes | None = None
    """Pages of files that some process maps: they are cache, and used without any read. Mapped `shmem` included."""
    anon: Bytes | None = None
    shmem: Bytes | None = None
    tmpfs: Bytes | None = None
    """Used on mounted tmpfs: a part of `shmem`."""
    swap_total: Bytes | None = None
    """Room on all swap devices; 0 without any."""
    swap_free: Bytes | None = None
    slab_unreclaimable: Bytes | None = None
    kernel_stack: Bytes | None = None
    page_tables: Bytes | None = None
    kernel_reclaimable: Bytes | None = None
    """What the kernel itself can give up, such as cached names of files."""
    balloon: Bytes | None = None
    """What the balloon has of `total`; 0 where `total` falls with the guest's size."""
    zram: Bytes | None = None
    """Memory in which zram keeps what was swapped out to it; None where none is swap."""

    @property
    def file_bytes(self) -> int | None:
        """Bytes of droppable page cache: active plus inactive file pages (``Cached`` would include tmpfs)."""
        if self.active_file is None or self.inactive_file is None:
            return None
        return self.active_file + self.inactive_file

    @property
    def unreclaimable_bytes(self) -> int | None:
        """Bytes the guest cannot give up: anonymous, shared and unreclaimable kernel memory; None if any is unknown.

        What zram keeps is among it, where it is told.
        """
        parts = (self.anon, self.shmem, self.slab_unreclaimable, self.kernel_stack, self.page_tables)
        known = [part for part in parts if part is not None]
        return sum(known) + (self.zram or 0) if len(known) == len(parts) else None

    @property
    def held_bytes(self) -> int | None:
        """All bytes that are neither free, nor cache of files, nor reclaimable by the kernel; None if not known.

        So it has what is on no list: huge pages, files locked into memory, what zswap keeps. But also caches that no
        count tells, as that of ZFS, and what is free and not in its place for a moment.
        """
        if self.total is None or self.free is None or self.file_bytes is None:
            return None
        free = self.free + (self.cpu_free or 0)
        return max(0, self.total - (self.balloon or 0) - free - self.file_bytes - (self.kernel_reclaimable or 0))

    @property
    def mapped_file_bytes(self) -> int | None:
        """Bytes of files that programs map; None if that is not known.

        `mapped` holds shared memory, too. What of that lies on no tmpfs is taken to be mapped, for which it is made; of
        what lies on one nobody knows, and it counts here: too much keeps a guest's memory, too little robs it.
        """
        if self.mapped is None or self.shmem is None:
            return None
        shared = 0 if self.tmpfs is None else max(0, self.shmem - self.tmpfs)
        mapped = max(0, self.mapped - shared)
        return mapped if self.file_bytes is None else min(mapped, self.file_bytes)  # the others are locked into memory

    @property
    def in_use_bytes(self) -> int | None:
        """Bytes the guest cannot give up, or of files that its programs map; None if that is not known."""
        unreclaimable, mapped = self.unreclaimable_bytes, self.mapped_file_bytes
        return None if unreclaimable is None or mapped is None else unreclaimable + mapped


AGE_BINS = 10
"""Not touched for less than a step; for 1, 2, 4, … 128 steps and less than twice that; for 256 and more."""

ByAge = Annotated[tuple[Count, ...], Meta(min_length=AGE_BINS, max_length=AGE_BINS)]


class AgesByKind(Struct, frozen=True, kw_only=True):
    """Page frames by what they are used for and by age: of files read only, mapped, anonymous, shared (tmpfs)."""

    file: ByAge
    mapped: ByAge
    anon: ByAge
    shmem: ByAge


class Ages(Struct, frozen=True, kw_only=True):
    """How long memory has not been touched, by a random sample of page frames.

    Attributes:
        step_ms: Time between two looks at each frame, ms.
        pages_each: Pages that a frame stands for.
        steps: Looks since the start: no age can be told that is longer.
        idle: Frames by age, at the last look.
        touched: Touches by the age that they ended, since the start.
    """

    step_ms: Annotated[int, Meta(ge=10, le=3_600_000)]
    pages_each: Annotated[int, Meta(ge=1, le=2**30)]
    steps: Count
    idle: AgesByKind
    touched: AgesByKind


GHOST_BINS = 40
"""Refault distances of less than `pages_first`; than 1.25, 1.5, 1.75, 2, 2.5, … 768 times that; and of more."""

ByDistance = Annotated[tuple[Count, ...], Meta(min_length=GHOST_BINS, max_length=GHOST_BINS)]


class RefaultDistances(Struct, frozen=True, kw_only=True):
    """How many pages of files were evicted between the eviction of a page and its return, by a sample of pages.

    Attributes:
        pages_each: Pages that a watched one stands for.
        pages_first: Upper end of the first bin of distances, pages.
        read: Watched pages that reads brought back, by distance, since the start.
        fault: Watched pages that page faults asked for and had to bring back, the same.
    """

    pages_each: Annotated[int, Meta(ge=1, le=2**30)]
    pages_first: Annotated[int, Meta(ge=1, le=2**30)]
    read: ByDistance
    fault: ByDistance


class SwapPages(Struct, frozen=True, kw_only=True, rename={"in_": "in"}):
    """Cumulative pages swapped in and out (``/proc/vmstat``), of all swap devices together."""

    in_: Count | None = None
    out: Count | None = None
    in_zram: Count | None = None
    """Of `in_`, those from zram, which touches no disk; since the collector's start."""
    read_ahead: Count | None = None
    """Of `in_`, those that nobody had asked for yet."""


class Psi(Struct, frozen=True, kw_only=True):
    """``/proc/pressure/memory``: stall time in microseconds since boot, and 10 s averages in per cent."""

    some_total_us: Count | None = None
    full_total_us: Count | None = None
    some_avg10: Percent | None = None
    full_avg10: Percent | None = None


class CollectorUse(Struct, frozen=True, kw_only=True):
    """What the collector itself costs and misses, since it started: resident bytes, CPU nanoseconds, intervals."""

    rss_bytes: Bytes | None = None
    cpu_ns: Count | None = None
    intervals_missed: Count | None = None
    """Intervals for which it wrote no file. Counters are cumulative, so only times are lost with them."""


class Duty(Struct, frozen=True, kw_only=True):
    """That cached reads are counted in a part of the time only, so that `Counters.accesses` is an estimate.

    Attributes:
        share: Of the time, as the collector was told.
        attached_ms: Time in which they were counted, since the start.
        sampled: Intervals whose accesses were sampled, since the start.
        accesses_variance: Of the estimate, pages squared.
    """

    share: Annotated[float, Meta(gt=0, lt=1)]
    attached_ms: Count
    sampled: Count
    accesses_variance: Count


class Sample(Struct, frozen=True, kw_only=True):
    """One reading of a guest's counters file. Field by field: ``docs/counters-file.md``."""

    format: Literal["qmpalloc-counters"]
    version: Literal[1]
    boot_id: Annotated[str, Meta(pattern=r"^[0-9a-f-]{36}\Z")]
    start_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    sequence: Count
    monotonic_ns: Count
    interval_ms: Annotated[int, Meta(ge=10, le=3_600_000)]
    kernel: Printable
    page_size: Literal[4096]
    lru: Literal["lru_gen", "two_list"] | None = None
    counters: Counters = Counters()
    memory_bytes: Memory = Memory()
    swap_pages: SwapPages = SwapPages()
    psi_memory: Psi = Psi()
    oom_kills: Count | None = None
    allocation_stalls: Count | None = None
    collector: CollectorUse = CollectorUse()
    ages: Ages | None = None
    refault_distances: RefaultDistances | None = None
    duty: Duty | None = None
    missing_hooks: Annotated[tuple[Printable, ...], Meta(max_length=32)] = ()
    error: Annotated[str, Meta(max_length=400, pattern=r"^[\x20-\x7e]*\Z")] | None = None


class PageIns(Struct, frozen=True, kw_only=True):
    """Pages that a guest brought in, by cause: what having no more memory costs it. None is unknown.

    This is the one definition of page-ins. The causes exclude each other: read-ahead belongs to what it was done for.

    Attributes:
        reads: By reads, the misses.
        faults: By page faults of mapped files.
        swap_ins: From swap, zram included.
        swap_ins_zram: Of `swap_ins`, those from zram: they cost time, but no disk is read for them.
    """

    reads: int | None = None
    faults: int | None = None
    swap_ins: int | None = None
    swap_ins_zram: int | None = None

    @property
    def total(self) -> int | None:
        """Pages of all causes, as far as known; None when none is. No cause takes any away."""
        return _sum(self.reads, self.faults, self.swap_ins)

    @property
    def beside_reads(self) -> int:
        """Pages of all causes but reads, as far as known."""
        return _sum(self.faults, self.swap_ins) or 0

    @property
    def from_disks(self) -> int | None:
        """Pages for which a disk must have been read, as far as known; None when none is.

        What comes from swap is left out where the guest does not tell how much of it is zram's.
        """
        return _sum(self.reads, self.faults, self.swap_ins_disk)

    @property
    def swap_ins_disk(self) -> int | None:
        """Pages from swap that is on a disk; None if not known."""
        if self.swap_ins is None or self.swap_ins_zram is None:
            return None
        return max(0, self.swap_ins - self.swap_ins_zram)


def _sum(*counts: int | None) -> int | None:
    known = [max(0, count) for count in counts if count is not None]
    return sum(known) if known else None


class Delta(Struct, frozen=True, kw_only=True):
    """The difference of two samples of one collector: what happened in between. Counts in pages; None is unknown.

    Attributes:
        interval_s: Guest time between the samples, seconds.
        accesses: Pages touched by buffered reads.
        accesses_error: Standard deviation of `accesses`; None where they were counted, not estimated.
        sampled: Whether accesses were sampled, if they are at all.
        misses: Pages the kernel had to bring in for reads, read-ahead included.
        inserts_fault: Pages brought in for page faults of mapped files.
        faults_major: Page faults of mapped files that did not find their page in memory.
        refaults: Evicted pages of files that came back.
        refaults_anon: Evicted pages of programs and of tmpfs that came back.
        refault_distances: How far a sample of those of files had gone.
        swap_ins: Pages read back from swap.
        swap_ins_zram: Of these, the ones from zram.
        swap_outs: Pages written to swap.
        hits: `accesses` minus `misses`. It can be slightly negative in one interval, when read-ahead has brought in
            pages that are only accessed in the next; sums over time are exact, which clamping to 0 would spoil.
    """

    interval_s: float
    accesses: int | None = None
    accesses_error: float | None = None
    sampled: bool = True
    misses: int | None = None
    inserts_fault: int | None = None
    faults_major: int | None = None
    inserts_write: int | None = None
    evictions: int | None = None
    refaults: int | None = None
    refaults_anon: int | None = None
    refault_distances: RefaultDistances | None = None
    swap_ins: int | None = None
    swap_ins_zram: int | None = None
    swap_outs: int | None = None
    events_lost: int | None = None

    @property
    def page_ins(self) -> PageIns:
        """What was brought in, by cause."""
        return PageIns(
            reads=self.misses, faults=self.inserts_fault, swap_ins=self.swap_ins, swap_ins_zram=self.swap_ins_zram
        )

    @property
    def hits(self) -> int | None:
        """Accesses that needed no disk read."""
        return None if self.accesses is None or self.misses is None else self.accesses - self.misses


class Accepted(Struct, frozen=True, kw_only=True):
    """A sample that passed all checks, and the difference to the one before (None for the first of a series)."""

    sample: Sample
    delta: Delta | None


_NOT_IN_MEMORY = ("kept_free", "tmpfs", "swap_total", "swap_free")
"""Sizes that are wanted, or are, or may be, swap's; all others are in memory."""

_decoder = msgspec.json.Decoder(Sample)


class _Envelope(Struct):
    format: str | None = None
    version: Annotated[int, Meta(ge=0, lt=10**6)] | None = None  # what it says is shown: no number without end
    page_size: Annotated[int, Meta(ge=1, lt=2**30)] | None = None


_envelope_decoder = msgspec.json.Decoder(_Envelope)


def parse(data: bytes) -> Sample:
    """Return the sample that the bytes of a counters file hold.

    Args:
        data: The file's content, untrusted.

    Raises:
        SampleError: With the fault HUGE, TORN, VERSION, MALFORMED, or COLLECTOR (the collector reports that it cannot
            count; the message is its own).
    """
    if len(data) > FILE_MAX_BYTES:
        raise SampleError(SampleFault.HUGE, f"the counters file is larger than {FILE_MAX_BYTES} bytes")
    try:
        sample = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _explain(data, error) from error
    sizes = [getattr(sample.memory_bytes, field) for field in Memory.__struct_fields__ if field not in _NOT_IN_MEMORY]
    total = sample.memory_bytes.total
    if total is not None and any(size is not None and size > total for size in sizes):
        raise SampleError(SampleFault.MALFORMED, "the counters file claims a part of memory larger than all of it")
    if sample.error is not None:  # also while it compiles its programs: see `STARTING`
        raise SampleError(SampleFault.COLLECTOR, f"the collector reports: {sample.error}")
    return sample


def _explain(data: bytes, error: Exception) -> SampleError:
    """Return why `data` is not a sample. Nothing of `data` itself is quoted: it may hold terminal escapes."""
    try:
        envelope = _envelope_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        envelope = None
    if envelope is not None and envelope.format == FORMAT and envelope.version not in (None, VERSION):
        return SampleError(
            SampleFault.VERSION,
            f"the counters file has format version {envelope.version}, this qmpalloc reads {VERSION}",
            hint="install the guest_agent directory that belongs to this qmpalloc in the guest",
        )
    if envelope is not None and envelope.page_size not in (None, PAGE_BYTES):
        return SampleError(
            SampleFault.MALFORMED,
            f"the guest has pages of {format_size(envelope.page_size)}: only guests with pages of 4K can be counted",
            hint="boot the guest with a kernel that has pages of 4 KiB",
        )
    if isinstance(error, msgspec.ValidationError):
        return SampleError(SampleFault.MALFORMED, f"the counters file is not of the format: {printable(str(error))}")
    return SampleError(SampleFault.TORN, "the counters file is not complete JSON")


class SampleTracker:
    """Checks the order and the plausibility of one guest's samples and yields their differences.

    A sample of another boot or collector, or one whose counters went back, starts a new series: it is remembered, but
    no difference is taken across the break.
    """

    def __init__(self) -> None:
        self._last: Sample | None = None
        self._last_received_s = 0.0

    @property
    def last(self) -> Sample | None:
        """The last sample of the current series."""
        return self._last

    def forget(self) -> None:
        """Start a new series, because the guest was reset or the connection lost."""
        self._last = None

    def accept(self, sample: Sample, received_s: float) -> Accepted:
        """Return `sample` with its difference to the one before.

        Args:
            sample: A parsed sample.
            received_s: Host monotonic time of its arrival, seconds.

        Raises:
            SampleError: REPEATED (nothing new; the series goes on), RESET, BACKWARDS or ABSURD (the series starts
                anew with this sample).
        """
        last, last_received_s = self._last, self._last_received_s
        if last is not None and _same_series(last, sample) and sample.sequence == last.sequence:
            raise SampleError(SampleFault.REPEATED, "the collector has not written since the last reading")
        self._last, self._last_received_s = sample, received_s
        if last is None:
            return Accepted(sample=sample, delta=None)
        if not _same_series(last, sample):
            what = "guest rebooted" if last.boot_id != sample.boot_id else "collector restarted"
            raise SampleError(SampleFault.RESET, f"the {what}: counters began anew")
        delta = difference(last, sample)
        if delta.interval_s > (received_s - last_received_s) + CLOCK_SLACK_S:
            raise SampleError(SampleFault.ABSURD, "more guest time than host time passed between two samples")
        return Accepted(sample=sample, delta=delta)


def _same_series(one: Sample, other: Sample) -> bool:
    return (one.boot_id, one.start_id) == (other.boot_id, other.start_id)


def difference(earlier: Sample, later: Sample) -> Delta:
    """Return what happened between two samples of one series.

    Raises:
        SampleError: BACKWARDS or ABSURD.
    """
    if later.sequence <= earlier.sequence or later.monotonic_ns <= earlier.monotonic_ns:
        raise SampleError(SampleFault.BACKWARDS, "the sequence or the clock of the counters file went back")
    interval_s = (later.monotonic_ns - earlier.monotonic_ns) / 1e9

    def change(field: str, before: int | None = None, after: int | None = None) -> int | None:
        if before is None and after is None:
            before, after = getattr(earlier.counters, field, None), getattr(later.counters, field, None)
        if before is None or after is None:
            return None
        if after < before:
            raise SampleError(SampleFault.BACKWARDS, f"the counter {field} went back")
        if after - before > MAX_PAGES_PER_S * interval_s:
            raise SampleError(SampleFault.ABSURD, f"the counter {field} rose faster than any machine can")
        return int(after - before)

    return Delta(
        interval_s=interval_s,
        accesses=change("accesses"),
        accesses_error=_error(earlier.duty, later.duty),
        sampled=earlier.duty is None or later.duty is None or later.duty.sampled > earlier.duty.sampled,
        misses=change("inserts_read"),
        inserts_fault=change("inserts_fault"),
        faults_major=change("faults_major"),
        inserts_write=change("inserts_write"),
        evictions=change("evictions"),
        refaults=change("refaults"),
        refaults_anon=change("refaults_anon"),
        refault_distances=_distances(earlier.refault_distances, later.refault_distances),
        swap_ins=change("swap in", earlier.swap_pages.in_, later.swap_pages.in_),
        swap_ins_zram=change("swap in_zram", earlier.swap_pages.in_zram, later.swap_pages.in_zram),
        swap_outs=change("swap out", earlier.swap_pages.out, later.swap_pages.out),
        events_lost=change("events_lost"),
    )


def _error(earlier: Duty | None, later: Duty | None) -> float | None:
    """Return the standard deviation of what was estimated between two samples of one series; None for counts.

    Raises:
        SampleError: BACKWARDS.
    """
    if earlier is None or later is None:
        return None
    variance = later.accesses_variance - earlier.accesses_variance
    if variance < 0:
        raise SampleError(SampleFault.BACKWARDS, "the variance of the accesses went back")
    return round(math.sqrt(variance), 1)


def _distances(earlier: RefaultDistances | None, later: RefaultDistances | None) -> RefaultDistances | None:
    """Return what was added between two samples of one series; None where either does not tell.

    Raises:
        SampleError: BACKWARDS.
    """
    if earlier is None or later is None:
        return None
    read, fault = (
        tuple(after - before for before, after in zip(getattr(earlier, kind), getattr(later, kind), strict=True))
        for kind in ("read", "fault")
    )
    if min(*read, *fault) < 0:
        raise SampleError(SampleFault.BACKWARDS, "the refault distances went back")
    return structs.replace(later, read=read, fault=fault)
