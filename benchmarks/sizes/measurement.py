"""A sweep: a guest's curve is learnt at one size, then its real miss ratio is measured at others.

What the guest shipped is kept line by line (`Shipped`), so that any estimator can be asked afterwards what it would
have predicted (`sizes.predictions`). `sizes.running` runs sweeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qmpalloc.config import Duration, Size
from qmpalloc.experiment.spec.access import Access, Loop, Mixture, Sequential
from qmpalloc.experiment.spec.schema import LRU_FLAVOURS, Arm, Disk, Guest, Phase, Specification, default_file_name
from qmpalloc.sample import Sample
from qmpalloc.units import PAGE_BYTES

GUEST = "guest"
"""Name of the only guest."""

TRACE_FILES = 16
"""References of a load, by pages of its file; then they are read again, too far apart for any cache to notice."""

ENDLESS = Duration(86_400.0)
"""Longer than a case may take."""

ALIKE = 0.01
"""Miss ratios of windows that differ by no more than this are alike, or by no more than chance explains (`CHANCE`)."""

CHANCE = 4.0
"""Standard errors of the difference of two windows."""

WINDOWS = 3
"""So many windows in a row must be alike."""

CACHE_ALIKE = 0.02
"""Share by which the size of the cache may differ between them."""

LAPS = 2
"""Laps in a window of a load that goes round: in a part of a lap anything may miss."""

LOOP_ALIKE = 0.03
"""In place of `ALIKE` for a load that only goes round: readings fall anywhere in a lap."""


class Case(Struct, frozen=True, kw_only=True):
    """One guest, one load, one page replacement. Sizes in bytes.

    Attributes:
        workload: A name for `access`.
        access: What its load reads, without a rate: as fast as hits and misses let it.
        file: Size of the file it reads.
        lru: Page replacement that the guest is switched to.
        memory: RAM of the guest.
        learn: Its size while the curve is learnt.
        sizes: Those measured, in this order; `learn` should be among them.
        learn_files: Accesses, by pages of the file, after which learning may end.
        measure_files: The same for the measurement of a size.
        fresh: Empty the cache at every size, and fill it by reading the file through. Otherwise only what a larger size
            lacks is filled, and what is cached at a smaller one comes from the larger before.
        suite: Debian suite of its image.
        seed: Of its references.
    """

    workload: str
    access: Access
    file: int
    lru: Literal["two_list", "lru_gen"]
    memory: int
    learn: int
    sizes: tuple[int, ...]
    learn_files: float = 8.0
    measure_files: float = 1.0
    fresh: bool = False
    suite: Literal["trixie", "bookworm"] = "trixie"
    seed: int = 1

    @property
    def name(self) -> str:
        """A name for its files."""
        suite = "" if self.suite == "trixie" else f"-{self.suite}"
        return f"{self.workload}-{self.lru}{suite}{'-fresh' if self.fresh else ''}"

    @property
    def pages(self) -> int:
        """Pages of the file."""
        return self.file // PAGE_BYTES

    @property
    def lap(self) -> int:
        """Accesses in which a load that goes round, or the slowest scan in a mixture, comes round; 1 without any."""
        match self.access:
            case Mixture(parts=parts):
                weights = sum(part.weight for part in parts)
                return max(1, *(round(_lap(part.access, self.pages) * weights / part.weight) for part in parts))
            case simple:
                return max(1, _lap(simple, self.pages))

    @property
    def window(self) -> int:
        """Accesses in a window of `Steadiness`: whole laps, and at least half as many as the file has pages."""
        laps = 1 if isinstance(self.access, Mixture) else LAPS
        return max(self.pages // 2, laps * self.lap)

    @property
    def alike(self) -> float:
        """By how much the miss ratios of windows may differ that are alike."""
        return LOOP_ALIKE if isinstance(self.access, Sequential | Loop) else ALIKE

    @property
    def specification(self) -> Specification:
        """The experiment with this guest and its load."""
        phase = Phase(
            name=self.workload,
            file=Size(self.file),
            file_name=default_file_name(self.file),
            access=self.access,
            reads=TRACE_FILES * self.pages,
            duration=ENDLESS,
        )
        guest = Guest(
            name=GUEST,
            memory=Size(self.memory),
            floor=Size(min(self.sizes)),
            cap=Size(self.memory),
            baseline=Size(self.learn),
            suite=self.suite,
            lru=next(name for name, flavour in LRU_FLAVOURS.items() if flavour == self.lru),
            phases=(phase,),
        )
        return Specification(
            name=self.name,
            file="sweep",
            budget=Size(self.memory),
            interval=Duration(15.0),
            seed=self.seed,
            disk=Disk(model="raw"),
            guests=(guest,),
            arms=(Arm(name="static", policy="static"),),
        )


class Shipped(Struct, frozen=True, kw_only=True):
    """A line of a recording: what was read of the guest at one moment.

    Attributes:
        t: Host seconds since the recording began.
        actual_bytes: Size QEMU reports.
        counters: The counters file.
        batch: The samples file, as it was; empty when there was none.
        disk_read_bytes: Read from all disks, as QEMU counts.
        disk_read_ns: Time that took, summed.
        data_read_bytes: Read from the data disk alone.
    """

    t: float
    actual_bytes: int
    counters: Sample
    batch: bytes
    disk_read_bytes: int
    disk_read_ns: int
    data_read_bytes: int

    @property
    def accesses(self) -> int:
        """Pages accessed since the collector's start."""
        return self.counters.counters.accesses or 0

    @property
    def misses(self) -> int:
        """Pages brought in for reads, the same."""
        return self.counters.counters.inserts_read or 0

    @property
    def file_bytes(self) -> int:
        """File pages in its memory."""
        return self.counters.memory_bytes.file_bytes or 0


class Point(Struct, frozen=True, kw_only=True):
    """What was measured at one size.

    Attributes:
        target_bytes: Size asked for.
        actual_bytes: Size QEMU reported while it was measured.
        steady: Whether the miss ratio had settled before; see `Steadiness`.
        warm_accesses: Accesses at this size before the measurement.
        warm_s: The time they took.
        accesses: Measured; whole laps of a load that goes round.
        misses: Of those, by the collector.
        data_read_pages: Read from the data disk meanwhile, by QEMU: the witness.
        seconds: Length of the measurement.
        file_bytes: File pages in memory, on average.
        events_lost: Events the collector did not count meanwhile; None if not known.
        windows: Miss ratios of the last windows before it.
    """

    target_bytes: int
    actual_bytes: int
    steady: bool
    warm_accesses: int
    warm_s: float
    accesses: float
    misses: float
    data_read_pages: float
    seconds: float
    file_bytes: float
    events_lost: int | None
    windows: tuple[float, ...]

    @property
    def miss_ratio(self) -> float:
        """Misses by accesses."""
        return min(1.0, max(0.0, self.misses / self.accesses)) if self.accesses else math.nan

    @property
    def standard_error(self) -> float:
        """Of the miss ratio, were the accesses independent."""
        ratio = self.miss_ratio
        return math.sqrt(ratio * (1.0 - ratio) / self.accesses) if self.accesses else math.nan

    @property
    def witness(self) -> float | None:
        """Pages the data disk says it read, by misses; None when nothing was missed."""
        return self.data_read_pages / self.misses if self.misses > 0 else None


class SizesResult(Struct, frozen=True, kw_only=True):
    """``result.json``: a whole case; written last, so that one without it was interrupted.

    Attributes:
        case: What was measured.
        kernel: Of the guest.
        accelerator: ``kvm`` or ``tcg``.
        learnt_t: Time of the recording up to which predictions may know it.
        learnt_accesses: Accesses up to then.
        weak: Why the curve was weak then; empty when it was good.
        points: The measurements, in order.
        total_s: Booting included.
    """

    case: Case
    kernel: str = ""
    accelerator: str = ""
    learnt_t: float
    learnt_accesses: int
    weak: tuple[str, ...] = ()
    points: tuple[Point, ...]
    total_s: float = 0.0


class Steadiness:
    """Tells when the miss ratio of a guest at a new size has settled.

    It has when the last three windows of `window` accesses are alike: their miss ratios within .01, or within four
    standard errors, and their caches within 2 %. So a cache that still fills is not steady, nor one whose content still
    changes by what the size before has left.

    Args:
        window: Accesses.
        alike: In place of .01.
    """

    def __init__(self, window: int, *, alike: float = ALIKE) -> None:
        self._window = window
        self._alike = alike
        self._accesses: list[float] = []
        self._misses: list[float] = []
        self._cached: list[float] = []

    def note(self, line: Shipped) -> None:
        """Take a reading, later than the one before."""
        self._accesses.append(float(line.accesses))
        self._misses.append(float(line.misses))
        self._cached.append(float(line.file_bytes))

    @property
    def accesses(self) -> int:
        """Accesses since the first reading."""
        return round(self._accesses[-1] - self._accesses[0]) if self._accesses else 0

    @property
    def windows(self) -> tuple[float, ...]:
        """Miss ratios of the last windows, at most `WINDOWS`, that end with the last reading; oldest first."""
        return tuple((np.diff(self._at_ends(self._misses))[::-1] / -self._window).tolist())

    @property
    def steady(self) -> bool:
        """Whether it has settled."""
        ratios = self.windows
        if len(ratios) < WINDOWS:
            return False
        mean = float(np.clip(np.mean(ratios), 0.0, 1.0))
        error = math.sqrt(2.0 * mean * (1.0 - mean) / self._window)
        cached = self._at_ends(self._cached)
        alike = max(ratios) - min(ratios) <= max(self._alike, CHANCE * error)
        return bool(alike and np.ptp(cached) <= CACHE_ALIKE * np.max(cached))

    def _at_ends(self, values: Sequence[float]) -> NDArray[Any]:
        """Return values at the ends of the last windows, newest first; between readings they are interpolated."""
        if not self._accesses:
            return np.empty(0)
        last = self._accesses[-1]
        ends = last - self._window * np.arange(WINDOWS + 1)
        return np.asarray(np.interp(ends[ends >= self._accesses[0]], self._accesses, values))


def _lap(access: Access, pages: int) -> int:
    match access:
        case Sequential():
            return pages
        case Loop(share=share):
            return max(1, round(share * pages))
        case _:
            return 0


def measured(lines: Sequence[Shipped], *, lap: int, target_bytes: int, watch: Steadiness, warm_s: float) -> Point:
    """Return the point that readings at one steady size give.

    Args:
        lines: The readings, at least two.
        lap: Accesses in a lap; only whole laps count.
        target_bytes: Size asked for.
        watch: What came before.
        warm_s: The time that took.
    """
    first, last = lines[0], lines[-1]
    accesses = float(last.accesses - first.accesses)
    if accesses >= lap:
        accesses -= accesses % lap
    ends = first.accesses + accesses
    known = [line.accesses for line in lines]
    misses = float(np.interp(ends, known, [line.misses for line in lines])) - first.misses
    data = float(np.interp(ends, known, [line.data_read_bytes for line in lines])) - first.data_read_bytes
    lost = [line.counters.counters.events_lost for line in (first, last)]
    return Point(
        target_bytes=target_bytes,
        actual_bytes=last.actual_bytes,
        steady=watch.steady,
        warm_accesses=watch.accesses,
        warm_s=round(warm_s, 3),
        accesses=accesses,
        misses=round(misses, 1),
        data_read_pages=round(data / PAGE_BYTES, 1),
        seconds=round(last.t - first.t, 3),
        file_bytes=round(float(np.mean([line.file_bytes for line in lines]))),
        events_lost=None if None in lost else (lost[1] or 0) - (lost[0] or 0),
        windows=tuple(round(ratio, 5) for ratio in watch.windows),
    )


def measured_curve(result: SizesResult) -> dict[str, list[object]]:
    """Return the steady points as the policy ``oracle`` takes them."""
    points = sorted((point for point in result.points if point.steady), key=lambda point: point.actual_bytes)
    known = {point.actual_bytes: point.miss_ratio for point in points}
    return {
        "sizes": [f"{size_bytes}B" for size_bytes in known],
        "miss_ratio": [round(ratio, 5) for ratio in known.values()],
    }
