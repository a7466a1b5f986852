"""From the readings of a run to its trials: what each guest did between two readings.

Counts are differences of cumulative counters, so their sums over trials are exact whatever was missed in between. Where
a guest gave no reading at the end of a trial, its next row covers both trials and says so; nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Any

from msgspec import Struct, structs

from qmpalloc.experiment.analysis import latency
from qmpalloc.experiment.analysis.statistics import all_known
from qmpalloc.experiment.store.records import Counters, LoadProgress, PhaseProgress, Reading
from qmpalloc.sample import PageIns
from qmpalloc.units import PAGE_BYTES

ALWAYS_KNOWN = ("monotonic_ns", "accesses", "misses", "disk_read_bytes", "disk_reads", "disk_read_ns")
"""Counters of a reading of which none is ever missing."""


class Counts(Counters, frozen=True, kw_only=True):
    """What was counted of a guest in one trial, or summed over several trials or guests.

    Attributes:
        witnessed: Pages that the disks must have read for what is counted: misses, and where programs run, whose disks
            are all looked at, all page-ins but zram's.
    """

    witnessed: int = 0

    @property
    def causes(self) -> PageIns:
        """What was brought in, by cause."""
        return PageIns(reads=self.misses, faults=self.faults, swap_ins=self.swap_ins, swap_ins_zram=self.swap_ins_zram)

    @property
    def page_ins(self) -> int:
        """Pages brought in for whatever cause, as far as known."""
        return self.causes.total or 0

    @property
    def hits(self) -> int:
        """Accesses that needed no disk read; slightly negative when read-ahead came in before it was accessed."""
        return self.accesses - self.misses

    @property
    def hit_ratio(self) -> float | None:
        """Hits per access; None when nothing was accessed."""
        return self.hits / self.accesses if self.accesses else None

    @property
    def witness(self) -> float | None:
        """Bytes the disks say they read, per byte of what was counted; None when nothing was."""
        return self.disk_read_bytes / (self.witnessed * PAGE_BYTES) if self.witnessed else None

    @property
    def disk_read_s(self) -> float:
        """Time that requests to the data disks took, summed."""
        return self.disk_read_ns / 1e9

    @property
    def request_s(self) -> float | None:
        """Mean time of a request to the data disks; None when there was none."""
        return self.disk_read_s / self.disk_reads if self.disk_reads else None


def total(parts: Iterable[Counts]) -> Counts:
    """Return the sum of counts; what is not always known is known only where all are."""
    known = list(parts)
    if not known:
        return Counts()
    sums: dict[str, Any] = {}
    for name in Counts.__struct_fields__:
        values = all_known(getattr(part, name) for part in known)
        sums[name] = None if values is None else sum(values)
    return Counts(**sums)


class Trial(Counts, frozen=True, kw_only=True):
    """What one guest did in one trial, or in the few that its reading covers.

    Attributes:
        trial: Number of the (last) trial, from 1.
        covers: How many trials; 1 unless readings are missing.
        guest: Its name.
        start_s: Host seconds since the loads began, at the start.
        end_s: The same at the end.
        target_bytes: Size last asked of QEMU, at the end.
        actual_bytes: Size QEMU reports, at the end.
        reads: Reads that the load finished.
        read_mean_s: Mean latency of those; None when there is none. With a rate, from the histogram.
        read_p50_s: Median latency; None when no read was timed.
        read_p99_s: 99th percentile; the same.
        phase: The phases that read or ran a program in it, joined by ``+``; empty when none did.
    """

    trial: int
    covers: int = 1
    guest: str
    start_s: float
    end_s: float
    target_bytes: int
    actual_bytes: int
    reads: int
    read_mean_s: float | None
    read_p50_s: float | None
    read_p99_s: float | None
    phase: str

    @property
    def seconds(self) -> float:
        """Host time covered."""
        return self.end_s - self.start_s


class GuestTrials(Struct, frozen=True, kw_only=True):
    """One guest's trials in a run.

    Attributes:
        guest: Its name.
        trials: In order.
        notes: What is missing, a sentence each; empty when nothing is.
        whole: Whether the rows hold all that was counted from the start of the loads to the last reading.
    """

    guest: str
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    whole: bool = True


def guest_trials(
    readings: Iterable[Reading], guest: str, *, open_loop: Collection[str] = (), programs: Collection[str] = ()
) -> GuestTrials:
    """Return the trials of `guest`.

    Args:
        readings: Of a run; those of other guests tell how far the run came.
        guest: Name of the guest.
        open_loop: Names of its phases with a rate, in which time per read is no latency.
        programs: Names of its phases that run programs.
    """
    known = sorted(readings, key=lambda reading: reading.trial)
    own = list({reading.trial: reading for reading in known if reading.guest == guest}.values())
    last = max((reading.trial for reading in known), default=0)
    if not own:
        return GuestTrials(guest=guest, trials=(), notes=(f"{guest} gave no reading at all",), whole=False)
    rows: list[Trial] = []
    notes: list[str] = []
    whole = own[0].trial == 0
    if not whole:
        notes.append(f"{guest} gave no reading before the end of trial {own[0].trial}: what came before is not counted")
    for before, after in pairwise(own):
        missed = _span(before.trial + 1, after.trial - 1)
        if began_anew(before, after):
            whole = False
            lost = _span(before.trial + 1, after.trial)
            notes.append(f"counters of {guest} began anew in {lost}, of which nothing is counted")
            continue
        if missed:
            notes.append(f"{guest} gave no reading at the end of {missed}: its row {after.trial} covers it as well")
        rows.append(_trial(before, after, open_loop, programs))
    if own[-1].trial < last:
        whole = False
        notes.append(f"{guest} gave no reading after trial {own[-1].trial}; the run has {last}")
    return GuestTrials(guest=guest, trials=tuple(rows), notes=tuple(notes), whole=whole)


def began_anew(before: Reading, after: Reading) -> bool:
    """Return whether a counter went back: something was started anew, and no difference means anything."""
    return any(getattr(after, name) < getattr(before, name) for name in ALWAYS_KNOWN)


def total_hits_by_trial(guests: Sequence[GuestTrials]) -> tuple[int | None, ...]:
    """Return the hits of all guests together by trial, from the first; None where a guest has no row of its own."""
    rows = [{row.trial: row.hits for row in each.trials if row.covers == 1} for each in guests]
    last = max((row.trial for each in guests for row in each.trials), default=0)
    totals: list[int | None] = []
    for number in range(1, last + 1):
        known = all_known(row.get(number) for row in rows)
        totals.append(None if known is None else sum(known))
    return tuple(totals)


def _span(first: int, last: int) -> str:
    if last < first:
        return ""
    return f"trial {first}" if first == last else f"trials {first} to {last}"


def _trial(before: Reading, after: Reading, open_loop: Collection[str], programs: Collection[str]) -> Trial:
    running = [part for part in _progress(before.load, after.load) if part.reads > 0 or part.name in programs]
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in Counters.__struct_fields__}
    counts: dict[str, Any] = {name: _difference(*pair) for name, pair in pairs.items()}
    causes = Counts(**counts).causes
    mean_s, p50_s, p99_s = latency.read_times_s(running, open_loop)
    return Trial(
        trial=after.trial,
        covers=after.trial - before.trial,
        guest=after.guest,
        start_s=before.t,
        end_s=after.t,
        target_bytes=after.target_bytes,
        actual_bytes=after.actual_bytes,
        **counts,
        witnessed=(causes.from_disks or 0) if programs else counts["misses"],
        phase="+".join(part.name for part in running),
        reads=sum(part.reads for part in running),
        read_mean_s=mean_s,
        read_p50_s=p50_s,
        read_p99_s=p99_s,
    )


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None or after < before else after - before


def _progress(before: LoadProgress | None, after: LoadProgress | None) -> list[PhaseProgress]:
    """Return what the load did between two of its reports, by phase."""
    earlier = {phase.name: phase for phase in before.phases} if before is not None else {}
    parts = []
    for phase in after.phases if after is not None else ():
        start = earlier.get(phase.name)
        if start is None:
            parts.append(phase)
        elif not start.done:
            new = latency.difference(phase.latency, start.latency)
            reads, seconds = phase.reads - start.reads, phase.seconds - start.seconds
            parts.append(structs.replace(phase, reads=reads, seconds=seconds, latency=new))
    return parts
