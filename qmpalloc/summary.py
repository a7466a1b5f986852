"""What a run amounts to: a reduction of its events, written as ``summary.json``."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from qmpalloc.events import (
    AnyEvent,
    CaughtUp,
    Commanded,
    ControlChanged,
    Decided,
    Ended,
    GuestHeader,
    Header,
    Reloaded,
    Sampled,
    SampleRejected,
    SizeChanged,
)
from qmpalloc.sample import PageIns


class GuestSummary(Struct, kw_only=True):
    """One guest's part. Bytes, and pages for the counts; they cover the time of control. None: nothing was counted."""

    name: str
    start_bytes: int
    end_bytes: int
    floor_bytes: int
    cap_bytes: int
    hits: int | None = None
    misses: int | None = None
    faults: int | None = None
    """Pages brought in by page faults."""
    swap_ins: int | None = None
    swap_ins_zram: int | None = None
    """Of these, the ones for which no disk was read."""
    page_ins: int | None = None
    """Pages brought in for whatever cause."""
    disk_read_pages: int | None = None
    """What QEMU read from its disks."""

    @property
    def causes(self) -> PageIns:
        """What was brought in, by cause."""
        return PageIns(reads=self.misses, faults=self.faults, swap_ins=self.swap_ins, swap_ins_zram=self.swap_ins_zram)


class Summary(Struct, kw_only=True):
    """A run in figures.

    Attributes:
        mode: ``run``, ``watch`` or ``dry-run``.
        policy: Name of the policy.
        policy_settings: Its settings.
        budget_bytes: The budget.
        max_committed_bytes: Largest sum of what the guests were charged with while the budget was in force.
        found_bytes: That sum when the guests were found, before anything was asked of them.
        decisions: Number of policy calls.
        moves: Transfers decided.
        commands: Sizes asked of QEMUs.
        samples: Samples accepted.
        rejected_samples: Readings not used (repeated ones are not counted).
        duration_s: From the first event to the last.
        reason: Why the run ended; None when it was cut off.
        clean: Whether every guest was left where it was meant to be.
        guests: In the order of the configuration.
    """

    mode: str = ""
    policy: str = ""
    policy_settings: dict[str, Any] = {}
    budget_bytes: int = 0
    max_committed_bytes: int = 0
    found_bytes: int = 0
    decisions: int = 0
    moves: int = 0
    commands: int = 0
    samples: int = 0
    rejected_samples: int = 0
    duration_s: float = 0.0
    reason: str | None = None
    clean: bool = False
    guests: list[GuestSummary] = []


class Summarizer:
    """A sink that sums a run up as it goes."""

    def __init__(self) -> None:
        self.summary = Summary()
        self._guests: dict[str, GuestSummary] = {}
        self._in_force = False
        self._stopping = False

    def __call__(self, event: AnyEvent) -> None:
        """Take one event into account."""
        summary = self.summary
        summary.duration_s = event.t
        match event:
            case Header():
                self._begin(event)
            case ControlChanged():
                self._stopping = event.control in {"returning", "stopped"}
                self._in_force = self._in_force or event.control == "running"
            case SizeChanged():
                self._size(event)
            case Sampled():
                summary.samples += 1
                if event.delta is not None and self._in_force and not self._stopping:
                    guest = self._guests[event.guest]
                    guest.hits = _plus(guest.hits, event.delta.hits)
                    guest.misses = _plus(guest.misses, event.delta.misses)
                    guest.faults = _plus(guest.faults, event.delta.inserts_fault)
                    guest.swap_ins = _plus(guest.swap_ins, event.delta.swap_ins)
                    guest.swap_ins_zram = _plus(guest.swap_ins_zram, event.delta.swap_ins_zram)
                    guest.page_ins = guest.causes.total
                    guest.disk_read_pages = _plus(guest.disk_read_pages, event.disk_read_pages)
            case SampleRejected():
                summary.rejected_samples += 1
            case Decided():
                summary.decisions += 1
                summary.moves += len(event.decision.moves)
            case Commanded():
                summary.commands += 1
            case CaughtUp():
                self._take_over(event)
            case Reloaded():
                summary.budget_bytes = event.budget_bytes
                self._rename(event.renamed)
                self._add(event.guests)
            case Ended():
                summary.reason, summary.clean = event.reason, event.clean
            case _:
                pass

    def _begin(self, header: Header) -> None:
        summary = self.summary
        summary.mode, summary.policy, summary.policy_settings = header.mode, header.policy, header.policy_settings
        summary.budget_bytes = header.budget_bytes
        # Watching moves nothing, so that all of it counts.
        self._in_force = header.mode != "run"
        summary.guests, self._guests = [], {}
        self._add(header.guests)

    def _take_over(self, event: CaughtUp) -> None:
        """Go on with the sums of who has seen the run from its beginning."""
        self.summary = msgspec.convert(event.summary, Summary)
        self._guests = {guest.name: guest for guest in self.summary.guests}

    def _rename(self, names: dict[str, str]) -> None:
        """Go on with the figures of guests under their new names; two may have swapped theirs."""
        found = [(self._guests.pop(old), new) for old, new in names.items() if old in self._guests]
        for known, new in found:
            known.name = new
            self._guests[new] = known

    def _add(self, guests: tuple[GuestHeader, ...]) -> None:
        """Take guests in; one that was there keeps its figures, one that has left stays."""
        for guest in guests:
            known = self._guests.get(guest.name)
            if known is None:
                known = GuestSummary(name=guest.name, start_bytes=0, end_bytes=0, floor_bytes=0, cap_bytes=0)
                self._guests[guest.name] = known
                self.summary.guests.append(known)
            known.floor_bytes, known.cap_bytes = guest.floor_bytes, guest.cap_bytes

    def _size(self, event: SizeChanged) -> None:
        summary, guest = self.summary, self._guests[event.guest]
        if self._in_force:
            summary.max_committed_bytes = max(summary.max_committed_bytes, event.committed_bytes)
        else:
            summary.found_bytes = max(summary.found_bytes, event.committed_bytes)
        if not self._stopping:
            guest.end_bytes = event.actual_bytes
            if not self._in_force or guest.start_bytes == 0:
                guest.start_bytes = event.actual_bytes


def _plus(total: int | None, more: int | None) -> int | None:
    """Return the sum of what is known; None when nothing is."""
    return total if more is None else (total or 0) + more
