"""What an experiment leaves on disk: one struct per kind of line or file. Sizes in bytes, times in seconds.

The layout of the directory is in `qmpalloc.experiment.store.directory`; a user's description in
``docs/experiments.md``. Everything in reports and figures is computed from these and from the controller's records.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

FORMAT = "qmpalloc-experiment"

# Bounds, because much of this comes from guests, which are not trusted.
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Finite = Annotated[float, Meta(gt=-1e300, lt=1e300)]
Taken = Annotated[float, Meta(ge=0, lt=1e7)]
"""Seconds that something took."""


class MetricProgress(Struct, frozen=True, kw_only=True):
    """What a program has said of a metric since it began.

    Attributes:
        count: Values, one at least.
        total: Their sum.
        last: The last.
    """

    count: Annotated[int, Meta(ge=1, lt=2**53)]
    total: Finite
    last: Finite


class PhaseProgress(Struct, frozen=True, kw_only=True):
    """How far a phase has come, as the generator in the guest says. Cumulative since the phase began.

    Attributes:
        name: Of the phase.
        reads: Done so far.
        seconds: Since its first read; until its end once `done`.
        started_s: Guest monotonic time of its first read.
        done: Whether all its reads are done.
        errors: Reads that failed or were short.
        latency: Bucket (see `qmpalloc.experiment.analysis.latency`) to reads: of every eighth read of a load that waits
            for its reads, of every read of one with a rate, where waiting for its turn counts.
        metrics: Name to what a program has said of it; only those of which it has.
    """

    name: str
    reads: Count
    seconds: Taken
    started_s: Annotated[float, Meta(ge=0)]
    done: bool
    errors: Count = 0
    latency: dict[Annotated[int, Meta(ge=0, lt=1024)], Count] = {}
    metrics: dict[str, MetricProgress] = {}


class SeriesPoint(Struct, frozen=True, kw_only=True):
    """A line of ``series-<guest>-<phase>.csv``: a value of a metric that is a series.

    Attributes:
        metric: Its name.
        seconds: Since the program began.
        value: That it printed; where there are very many, the mean of a few neighbours.
        matches: How many values that is.
    """

    metric: str
    seconds: Taken
    value: Finite
    matches: Annotated[int, Meta(ge=1, lt=2**53)] = 1

    @classmethod
    def parse(cls, line: str) -> SeriesPoint:
        """Return the point of a line.

        Raises:
            ValueError: It has not so many fields.
            msgspec.ValidationError: One of them makes no sense.
        """
        return msgspec.convert(dict(zip(cls.__struct_fields__, line.split(","), strict=True)), cls, strict=False)

    def __str__(self) -> str:
        return f"{self.metric},{self.seconds:.3f},{self.value:.12g},{self.matches}"


class LoadProgress(Struct, frozen=True, kw_only=True):
    """What the generator of a guest writes, replaced by rename; its last state is kept as ``load-<guest>.json``.

    Attributes:
        sequence: Grows with every writing.
        monotonic_s: Guest time of the writing.
        phases: Those that have begun, in order.
        finished: Whether all phases are over.
        error: Why the generator gave up; empty while it has not.
    """

    sequence: Count
    monotonic_s: Annotated[float, Meta(ge=0)]
    phases: tuple[PhaseProgress, ...] = ()
    finished: bool = False
    error: str = ""

    @property
    def reads(self) -> int:
        """Reads of all phases that are done."""
        return sum(phase.reads for phase in self.phases)

    @property
    def seconds(self) -> float:
        """Guest seconds from the first read of the first phase to the last of the last; NaN when none began."""
        if not self.phases:
            return math.nan
        return self.phases[-1].started_s + self.phases[-1].seconds - self.phases[0].started_s


class Service(Struct, frozen=True, kw_only=True):
    """Service times of reads of one page, measured in a guest with its disk as it is in the experiment.

    Attributes:
        hit_s: Of reads from the cache: the median of rounds of 64.
        miss_s: Mean of reads from the disk, one after the other.
        hits: How many of the first were measured.
        misses: How many of the second.
    """

    hit_s: Taken
    miss_s: Taken
    hits: Count
    misses: Count

    @property
    def ratio(self) -> float:
        """How many times as long a miss takes."""
        return self.miss_s / self.hit_s


class Counters(Struct, frozen=True, kw_only=True):
    """What is counted of a guest. Counts are of pages; None where they are not known.

    Attributes:
        accesses: Pages touched by reads, since the collector started.
        misses: Pages brought in for reads.
        refaults: Evicted pages that came back.
        evictions: Pages removed.
        events_lost: Events the collector did not count.
        disk_read_bytes: Read from its data disk, as QEMU counts (QMP ``query-blockstats``).
        disk_reads: Requests for that.
        disk_read_ns: Time they took, summed.
        faults: Pages brought in for faults of mapped files, since the collector started.
        swap_ins: Pages that came back from swap, since the guest's boot.
        swap_ins_zram: Of these, the ones from zram, since the collector started.
    """

    accesses: int = 0
    misses: int = 0
    refaults: int | None = None
    evictions: int | None = None
    events_lost: int | None = None
    disk_read_bytes: int = 0
    disk_reads: int = 0
    disk_read_ns: int = 0
    faults: int | None = None
    swap_ins: int | None = None
    swap_ins_zram: int | None = None


class Reading(Counters, frozen=True, kw_only=True):
    """A line of ``readings.jsonl``: one guest at the end of one trial. Counts are cumulative.

    Attributes:
        trial: 0 is the moment the loads began; n the end of trial n.
        t: Host seconds since the loads began.
        guest: Its name.
        monotonic_ns: Guest time of the counters.
        target_bytes: Size last asked of QEMU.
        actual_bytes: Size QEMU reports.
        load: What the generator had written last; None when nothing yet.
    """

    trial: int
    t: float
    guest: str
    monotonic_ns: int
    target_bytes: int
    actual_bytes: int
    load: LoadProgress | None


class ProgramPace(Struct, frozen=True, kw_only=True):
    """How a program went in a short run of its command, to see what a hit and a miss take.

    Attributes:
        seconds: It ran.
        metrics: Name to what it came to; those of which it said something.
        accesses: Pages touched by reads meanwhile.
        misses: Pages brought in for reads.
        faults: Pages brought in for faults of mapped files.
        disk_reads: Requests to its guest's disks.
    """

    seconds: Annotated[float, Meta(gt=0, lt=1e7)]
    metrics: dict[str, Finite] = {}
    accesses: int = 0
    misses: int = 0
    faults: int = 0
    disk_reads: int = 0


LEAST_ACCESSES, LEAST_REQUESTS = 1000, 50
"""Of a program; with fewer nothing is said of what its hits, or its misses, take."""


class ProgramService(Struct, frozen=True, kw_only=True):
    """What a hit and a miss take a program, its own work included, from runs of its command.

    Attributes:
        warm: With its files cached and no throttle.
        cold: With nothing cached and the experiment's disk; None before it ran.
    """

    warm: ProgramPace
    cold: ProgramPace | None = None

    @property
    def hit_s(self) -> float | None:
        """Time for each page that it accessed when warm; None when that is too few to tell, as of mapped files."""
        return self.warm.seconds / self.warm.accesses if self.warm.accesses >= LEAST_ACCESSES else None

    @property
    def miss_s(self) -> float | None:
        """Time for each request to the disk when cold: what is left when its hits are taken off; None if not known."""
        cold, hit_s = self.cold, self.hit_s
        if cold is None or hit_s is None or cold.disk_reads < LEAST_REQUESTS:
            return None
        left_s = cold.seconds - max(0, cold.accesses - cold.misses) * hit_s
        return left_s / cold.disk_reads if left_s > 0 else None

    @property
    def ratio(self) -> float | None:
        """How many times as long a miss takes; None if not known."""
        hit_s, miss_s = self.hit_s, self.miss_s
        return miss_s / hit_s if hit_s and miss_s else None


class Outcome(Struct, frozen=True, kw_only=True):
    """``outcome.json`` of a run of an arm; written last, so that a run without one was interrupted.

    Attributes:
        arm: Its name.
        repeat: From 1.
        started_wall: Unix time at which its guests were started.
        total_s: From then to the end, booting included.
        load_s: From the first read to the end of the last phase of all guests; None when one did not end.
        failed: Why the run does not count; empty when it does.
        disk_iops: Throttle in force on each data disk; 0 is none.
        service: Guest to service times measured in this run before the loads began; empty when it came not so far.
        controller_cpu_s: CPU time of this process (controller, recorder, readings) while the loads ran.
        controller_wall_s: That time.
    """

    arm: str
    repeat: int
    started_wall: float
    total_s: float
    load_s: float | None
    failed: str = ""
    disk_iops: int = 0
    service: dict[str, Service] = {}
    controller_cpu_s: float = 0.0
    controller_wall_s: float = 0.0


class PhaseFootprint(Struct, frozen=True, kw_only=True):
    """What the references of a phase touch: the same in every arm and repeat.

    Attributes:
        reads: References in all.
        file_pages: Pages of the file.
        distinct_pages: How many of them are read at least once.
        busiest_tenth: Share of the reads that go to the most-read tenth of the file's pages.
    """

    reads: int
    file_pages: int
    distinct_pages: int
    busiest_tenth: float


class Manifest(Struct, frozen=True, kw_only=True):
    """``manifest.json``: what was run where. Written before anything boots; only `changes` are added to later.

    Attributes:
        format: ``qmpalloc-experiment``.
        version: Of the format.
        name: Of the experiment.
        file: Where its file was, for policies beside it; the text itself is kept as ``experiment.toml``.
        scale: As a fraction, ``"1/4"``.
        arms: Names of those that are run, in the order of the file.
        repeats: How often each is run.
        command: As typed.
        created_wall: Unix time.
        accelerator: Guest to ``kvm`` or ``tcg``.
        images: Guest to kernel release and digest of the image.
        versions: Package or program to version.
        host: Processors, memory, kernel.
        footprints: Guest to phase to what it touches.
        policies: Names of the users' own policies that are kept beside ``experiment.toml``.
        changes: What was other when the experiment was resumed, a sentence each.
    """

    format: Literal["qmpalloc-experiment"] = "qmpalloc-experiment"
    version: Literal[1] = 1
    name: str
    file: str
    scale: Annotated[str, Meta(pattern=r"^[1-9][0-9]*(/[1-9][0-9]*)?$")]
    arms: tuple[str, ...]
    repeats: int
    command: str
    created_wall: float
    accelerator: dict[str, str]
    images: dict[str, str]
    versions: dict[str, str]
    host: dict[str, Any]
    footprints: dict[str, dict[str, PhaseFootprint]]
    policies: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


class DiskCalibration(Struct, frozen=True, kw_only=True):
    """``disk.json``: measured once per experiment, so that every arm has the same disk.

    Attributes:
        model: ``raw``, ``ssd``, ``hdd`` or ``iops`` (given explicitly).
        hit_s: Service time of a hit on this machine, over all guests at once: of a cached read, or `by` programs.
        iops: The throttle that follows; 0 is none.
        by: Whose hits these are.
        programs: Guest to phase to what was measured of its command; empty unless that was asked for.
    """

    model: str
    hit_s: float
    iops: int
    by: Literal["reads", "programs"] = "reads"
    programs: dict[str, dict[str, ProgramService]] = {}
