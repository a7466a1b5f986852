"""An experiment: guests, loads, arms and disk. Sizes in bytes, durations in seconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Struct

from qmpalloc.config import DISK_OVERHEAD_BYTES, DataSource, Duration, ImageConfig, Size
from qmpalloc.config.keys import Found, Name, NameOrNone, Weight, bounds, file_name_mistakes, size_mistakes
from qmpalloc.config.schema import DISK_OVERHEAD_FACTOR, IOPS_MAX
from qmpalloc.experiment.spec.access import Access, Loop, Sequential
from qmpalloc.experiment.spec.attached import Attach, Start, not_reset
from qmpalloc.experiment.spec.program import LATENCY, READ_RATE, Metric, ProgramPhase
from qmpalloc.units import GIB, KIB, MIB, PAGE_BYTES, format_size

SMALLEST_BYTES = 128 * MIB
"""The reference guest was seen to boot, and its collector to start, with so much memory."""

LEAST_RATE = 0.1
"""A load that reads more rarely could not be told from one that hangs."""

REPEATS_MAX = 1000

LEAST_INTERVAL_S = 1.0
"""Collectors write once a second."""

DISK_RATIOS = {"ssd": 50.0, "hdd": 5000.0}
"""Service time of a miss over that of a hit: about 80 µs (SATA SSD) or 8 ms (7200 rpm) over about 1.6 µs."""


def default_file_name(size_bytes: int) -> str:
    """Return ``file-512M.dat``: guests that read files of the same sizes have the same data disk, in whatever order."""
    for unit, unit_bytes in (("G", GIB), ("M", MIB), ("K", KIB)):
        if size_bytes % unit_bytes == 0:
            return f"file-{size_bytes // unit_bytes}{unit}.dat"
    return f"file-{size_bytes}.dat"


class Disk(Struct, frozen=True, kw_only=True):
    """``[disk]``: the service of every guest's data disk, so that a miss costs what it would on hardware.

    Attributes:
        model: ``raw``: not throttled. ``ssd``, ``hdd``: throttled so that a miss takes `DISK_RATIOS` times a hit.
        iops: Explicit operations per second instead of a model; 0 is none given.
        size: Of each guest's data disk; 0 is as large as its files need.
        by: Whose hits the ratio is of: built-in reads', or those of the guests' programs with all that they do.
    """

    model: Literal["raw", "ssd", "hdd"] = "ssd"
    iops: Annotated[int, bounds('for no limit write model = "raw"', ge=0, le=IOPS_MAX)] = 0
    size: Size = Size(0)
    by: Literal["reads", "programs"] = "reads"

    def throttle_iops(self, hit_s: float) -> int:
        """Return the limit in operations per second on a machine where a cached read takes `hit_s`; 0 is no limit."""
        if self.iops or self.model == "raw":
            return self.iops
        return max(1, round(1 / (DISK_RATIOS[self.model] * hit_s)))


class Phase(Struct, frozen=True, kw_only=True):
    """``[[guest.phase]]``: a guest's load for a number of rounds.

    Attributes:
        name: Unique in its guest; by default ``phase1``, ``phase2``, …
        file: Size of the file it reads.
        file_name: Phases of a guest with one name read one file; by default one for each size.
        reads: Reads of one page per round.
        rounds: How many rounds.
        duration: How long the first round is read over and over, instead of a number of rounds; 0: not by time.
        rate: Reads per second started whether or not earlier ones are done (open loop); 0 is as fast as it goes.
        readahead: Whether the guest's kernel may read ahead; None: see `Phase.reads_ahead`.
        access: Which pages are read.
    """

    name: NameOrNone = ""
    file: Size
    file_name: str = ""
    reads: Annotated[int, bounds("a phase that reads nothing is over before it begins", ge=1)]
    rounds: int = 0
    duration: Duration = Duration(0.0)
    rate: float = 0.0
    readahead: bool | None = None
    access: Access

    def mistakes(self) -> Found:
        """Yield what cannot be read, or how long."""
        if self.file < PAGE_BYTES:
            yield "file", "must be at least a page", 'for example "2GiB"'
        if self.file_name:
            yield from file_name_mistakes("file_name", self.file_name)
        if self.is_timed and self.rounds:
            yield "duration", "beside rounds", "a phase of reads ends after its rounds or after its duration"
        elif self.duration < 0:
            yield "duration", "must be above 0", 'for example "60s"'
        elif not self.is_timed and self.rounds < 1:
            yield "rounds", "must be at least 1", "a phase that reads nothing is over before it begins"
        if self.rate and self.rate < LEAST_RATE:
            yield "rate", f"must be at least {LEAST_RATE:g} per second", "leave it out for no limit"

    @property
    def files(self) -> dict[str, int]:
        """Name to bytes of the one file that it reads; empty before that has a name."""
        return {self.file_name: self.file} if self.file_name else {}

    @property
    def size_key(self) -> str:
        """Its key that says how large its files are."""
        return "file"

    @property
    def pages(self) -> int:
        """Pages of the file."""
        return self.file // PAGE_BYTES

    @property
    def reads_ahead(self) -> bool:
        """Whether the guest's kernel may read ahead: as written, otherwise for scans only.

        A program that reads at random and does not say so gets pages it did not ask for, as many as there happen to be
        neighbours in the cache, so that the same reads cost another number of misses in each arm.
        """
        return self.readahead if self.readahead is not None else isinstance(self.access, Sequential | Loop)

    @property
    def total_reads(self) -> int:
        """Reads of the whole phase; of one with a duration, those that it repeats."""
        return self.reads * (1 if self.is_timed else self.rounds)

    @property
    def is_timed(self) -> bool:
        """Whether it takes the same time in every arm, instead of the same reads."""
        return self.duration > 0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What it is judged by."""
        return (LATENCY if self.rate else READ_RATE,)


AnyPhase = ProgramPhase | Phase
"""A part of a guest's load; one with a command is a program's."""

UNNAMED_FILE, UNNAMED_BYTES = "file-16M.dat", 16 * MIB
"""On the data disk of a guest whose programs name no file, for measuring what a read takes."""

DATA_DIRECTORY = "/data"
"""Where the data disk of a reference guest is mounted."""

Lru = Literal["two-list", "multi-gen"]
"""Page replacements, as an experiment names them."""

LRU_FLAVOURS: dict[Lru, Literal["two_list", "lru_gen"]] = {"two-list": "two_list", "multi-gen": "lru_gen"}
"""The same to their names in counters files, which are also those of the simulations."""

SUITE_LRU: dict[str, Lru] = {"trixie": "multi-gen", "bookworm": "two-list"}
"""What the kernels of the reference guests choose themselves."""


class Guest(Struct, frozen=True, kw_only=True, rename={"phases": "phase"}):
    """``[[guest]]``: one guest with its load.

    Attributes:
        name: Letters, digits, ``-``, ``_`` and ``.``.
        memory: RAM of the guest; the cap cannot exceed it.
        floor: The least it may be set to.
        cap: The most.
        baseline: Its size at the start of an arm, and all through one with the policy ``static``.
        suite: Debian suite of the reference image.
        lru: The page replacement it is switched to; None: its kernel's own choice.
        weight: Relative importance, for policies that know it and for what is said of all guests together.
        image: Instead of the experiment's ``[image]``.
        data: What its data disk holds besides the files of its phases.
        attach: Where it is, if it is none of ours.
        start: How the user starts it, for a guest with `attach`.
        phases: Run one after the other.
    """

    name: Name
    memory: Size
    floor: Size
    cap: Size
    baseline: Size
    suite: Literal["trixie", "bookworm"] = "trixie"
    lru: Lru | None = None
    weight: Weight = 1.0
    image: ImageConfig | None = None
    data: DataSource | None = None
    attach: Attach | None = None
    start: Start | None = None
    phases: tuple[AnyPhase, ...]

    def mistakes(self) -> Found:
        """Yield what cannot be of its sizes, and of files that several phases read."""
        if 0 < self.floor < SMALLEST_BYTES:
            message = f"{format_size(self.floor)} is less than the reference guest needs"
            yield "floor", message, f"at least {format_size(SMALLEST_BYTES)}; mind the scale"
        yield from size_mistakes(self.floor, self.baseline, self.cap, self.memory, "memory")
        if self.start is not None and self.attach is None:
            hint = "add [guest.attach] with monitor, second_monitor and agent"
            yield "start", "without attach, which says where its sockets are", hint
        sizes: dict[str, int] = {}
        for index, phase in enumerate(self.phases):
            for name, size_bytes in phase.files.items():
                if sizes.setdefault(name, size_bytes) != size_bytes:
                    message = f"{name} has two sizes, {format_size(sizes[name])} and {format_size(size_bytes)}"
                    yield f"phase[{index}].{phase.size_key}", message, "give one of the files another name"

    @property
    def reads(self) -> tuple[Phase, ...]:
        """Its phases of built-in reads."""
        return tuple(phase for phase in self.phases if isinstance(phase, Phase))

    @property
    def programs(self) -> tuple[ProgramPhase, ...]:
        """Its phases that run programs."""
        return tuple(phase for phase in self.phases if isinstance(phase, ProgramPhase))

    @property
    def files(self) -> dict[str, int]:
        """Name to bytes of every file on its data disk; there is one at least."""
        files: dict[str, int] = {}
        for phase in self.phases:
            files |= phase.files
        return files or {UNNAMED_FILE: UNNAMED_BYTES}

    def path(self, file_name: str) -> str:
        """Return where one of its files is, in the guest."""
        return f"{self.attach.data if self.attach is not None else DATA_DIRECTORY}/{file_name}"

    @property
    def lru_flavour(self) -> Literal["two_list", "lru_gen"]:
        """The page replacement that it runs, by its name in counters files."""
        return LRU_FLAVOURS[self.lru or SUITE_LRU[self.suite]]

    @property
    def disk_bytes(self) -> int:
        """What its files need on the data disk, with the file system's own."""
        return round(sum(self.files.values()) * DISK_OVERHEAD_FACTOR) + DISK_OVERHEAD_BYTES


class Arm(Struct, frozen=True, kw_only=True):
    """``[[arm]]``: one of the things compared.

    Attributes:
        name: Letters, digits, ``-``, ``_`` and ``.``.
        policy: Name of a policy, or ``module:attribute``.
        settings: Of the policy, as written.
        baselines: Guest to size, where this arm's differ from the guests' own: another split.
    """

    name: Name
    policy: str
    settings: dict[str, Any] = {}
    baselines: dict[str, Size] = {}

    @property
    def is_oracle(self) -> bool:
        """Whether it is the policy ``oracle``, with curves that are known from the first second."""
        return self.policy == "oracle" and not self.settings.get("known_after")

    @property
    def is_computed_oracle(self) -> bool:
        """Whether it is the policy ``oracle`` without curves: these are computed from the references."""
        return self.policy == "oracle" and not self.settings.keys() & {"curves", "file"}

    @property
    def policy_settings(self) -> dict[str, Any]:
        """The settings for the policy; those of a computed oracle have no curves yet."""
        return {**self.settings, "curves": {}} if self.is_computed_oracle else self.settings

    def baseline(self, guest: Guest) -> int:
        """Return the baseline of `guest` in this arm, bytes."""
        return self.baselines.get(guest.name, guest.baseline)


class Frame(Struct, frozen=True, kw_only=True):
    """``[experiment]``.

    Attributes:
        name: Letters, digits, ``-``, ``_`` and ``.``.
        budget: Bytes all guests share.
        interval: Time between decisions; one trial.
        warm_up: Before the first trial: ``read`` each guest's first file once, in order and in large requests, or
            ``none``: begin with a cold cache.
        repeats: How often every arm is run.
        seed: Of the references and of the order of arms.
        reference: The arm all others are compared with.
    """

    name: Name
    budget: Size
    interval: Duration = Duration(15.0)
    warm_up: Literal["read", "none"] = "read"
    repeats: Annotated[int, bounds("3 give a confidence interval", ge=1, le=REPEATS_MAX)] = 3
    seed: Annotated[int, bounds("any other number makes other references", ge=0)] = 1
    reference: str = "static"

    def mistakes(self) -> Found:
        """Yield what cannot be."""
        if self.interval < LEAST_INTERVAL_S:
            yield "interval", f"must be at least {LEAST_INTERVAL_S:g} s", 'for example "15s"'


class ExperimentFile(Struct, frozen=True, kw_only=True):
    """An experiment of qmpalloc."""

    experiment: Frame
    disk: Disk = Disk()
    image: ImageConfig = ImageConfig()
    guest: tuple[Guest, ...]
    arm: tuple[Arm, ...]


class Specification(Frame, frozen=True, kw_only=True):
    """A whole experiment, validated.

    Attributes:
        file: Where it came from, absolute; what is brought into guests lies beside it.
        home: Directory that sockets and commands of this host are relative to.
        disk: ``[disk]``.
        guests: At least one.
        arms: At least one.
        scale: What sizes were multiplied by since they were read, as ``"1"`` or ``"1/4"``.
        image: ``[image]``.
    """

    file: str
    disk: Disk
    guests: tuple[Guest, ...]
    arms: tuple[Arm, ...]
    home: str = ""
    scale: str = "1"
    image: ImageConfig = ImageConfig()

    @property
    def tables(self) -> ExperimentFile:
        """The same as a file has it."""
        frame = Frame(**{name: getattr(self, name) for name in Frame.__struct_fields__})
        return ExperimentFile(experiment=frame, disk=self.disk, image=self.image, guest=self.guests, arm=self.arms)

    @property
    def has_unequal_work(self) -> bool:
        """Whether arms may do unequal work in equal time, so that they are compared by metrics."""
        return any(guest.programs or any(phase.is_timed for phase in guest.phases) for guest in self.guests)

    @property
    def not_reset(self) -> tuple[str, ...]:
        """What is not the same at the beginning of every arm, a sentence each."""
        return tuple(
            line
            for guest in self.guests
            if guest.attach is not None
            for line in not_reset(guest.name, guest.attach, guest.start)
        )

    def fill(self, text: str, guest: Guest) -> str:
        """Return `text` of a program's command with ``{seed}``, ``{guest}`` and ``{scale}`` filled in, and no more."""
        for name, value in (("seed", self.seed), ("guest", guest.name), ("scale", self.scale)):
            text = text.replace(f"{{{name}}}", str(value))
        return text
