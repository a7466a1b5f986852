"""What is known of a run: the reduction of its events, from which all views are drawn.

`Dashboard.apply` is the only way in. Histories are bounded, so a run of days costs no more than one of minutes.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from msgspec import structs

from qmpalloc.events import (
    AnyEvent,
    Asked,
    CaughtUp,
    Commanded,
    ControlChanged,
    CurveSeen,
    Decided,
    Ended,
    Faulted,
    Header,
    Reloaded,
    Sampled,
    SampleRejected,
    SamplesDropped,
    SizeChanged,
    StateChanged,
)
from qmpalloc.model import Curve, GuestState
from qmpalloc.summary import Summarizer
from qmpalloc.tui.facts import GuestFacts, Kind, LogEntry, asked_text, collector_cpu, hit_ratio
from qmpalloc.tui.text import clean, size

LOG = 60
REPEAT_S = 60.0
"""The same trouble within this time is one log entry with a count."""

Control = Literal["", "settling", "running", "paused", "returning", "watching", "stopped"]


@dataclass(slots=True)
class Dashboard:
    """What is known of a run.

    Attributes:
        version: Number of events applied, to tell whether a picture of it is stale.
        t: Time of the last event.
        committed_bytes: The sum of what the guests are charged with; None until a size is known.
        decisions: The last decisions; those that repeat the one before and move nothing share an entry.
        log: What else happened, newest last.
        fault: The last fault of the whole run.
        pid: Process id of the controller; 0 where that is not told, as in a record.
        summarizer: The figures that ``summary.json`` will hold, so that screen and file cannot differ.
    """

    version: int = 0
    t: float = 0.0
    header: Header | None = None
    guests: dict[str, GuestFacts] = field(default_factory=dict)
    control: Control = ""
    control_t: float = 0.0
    control_detail: str = ""
    committed_bytes: int | None = None
    cycle: int = 0
    decided_t: float | None = None
    moved_bytes: int = 0
    decisions: deque[LogEntry] = field(default_factory=lambda: deque(maxlen=LOG))
    log: deque[LogEntry] = field(default_factory=lambda: deque(maxlen=LOG))
    fault: LogEntry | None = None
    ended: Ended | None = None
    pid: int = 0
    summarizer: Summarizer = field(default_factory=Summarizer, compare=False)

    def apply(self, event: AnyEvent) -> None:
        """Take the next event of the run."""
        self.version += 1
        self.t = max(self.t, event.t)
        if self.header is not None or isinstance(event, Header):
            self.summarizer(event)
        match event:
            case Header():
                self._begin(event)
            case StateChanged():
                self._change_state(event)
            case Sampled():
                self._sample(event)
            case SampleRejected():
                self._reject(event)
            case SamplesDropped():
                self._note(LogEntry(event.t, "rejected", self._guest(event.guest).name, clean(event.message)))
            case CurveSeen():
                self._show_curve(self._guest(event.guest), event.curve, event.no_curve)
            case SizeChanged():
                self._resize(event)
            case Decided():
                self._decide(event)
            case Commanded():
                self._command(event)
            case Faulted():
                self._fault(event)
            case ControlChanged():
                self._control(event)
            case Asked():
                kind: Kind = "rejected" if event.error else "control"
                self._note(LogEntry(event.t, kind, None, asked_text(event)))
            case CaughtUp():
                self._catch_up(event)
            case Reloaded():
                self._reload(event)
            case Ended():
                self.ended = event
                outcome = "ended clean" if event.clean else "ended, NOT CLEAN"
                self._note(LogEntry(event.t, "end", None, f"{outcome}: {clean(event.reason)}"))

    def _begin(self, header: Header) -> None:
        self.header = header
        self.guests = {guest.name: GuestFacts.of(guest) for guest in header.guests}

    def _reload(self, event: Reloaded) -> None:
        if self.header is not None:
            self.header = structs.replace(self.header, budget_bytes=event.budget_bytes, guests=event.guests)
        found = [(self.guests.pop(old), new) for old, new in event.renamed.items() if old in self.guests]
        for facts, new in found:  # two may have swapped their names
            facts.name = clean(new)
            self.guests[new] = facts
        self.guests = {guest.name: self.guests.get(guest.name) or GuestFacts.of(guest) for guest in event.guests}
        self._note(
            LogEntry(
                event.t, "control", None, f"reloaded: {len(event.guests)} guests, budget {size(event.budget_bytes)}"
            )
        )

    def _catch_up(self, event: CaughtUp) -> None:
        """Take the sums of a run of which only a part was seen."""
        self.pid = event.pid
        self.moved_bytes = sum(totals.received_bytes for totals in event.totals.values())
        for name, totals in event.totals.items():
            if (guest := self.guests.get(name)) is not None:
                guest.received_bytes, guest.given_bytes = totals.received_bytes, totals.given_bytes
                guest.moves_in, guest.moves_out = totals.moves_in, totals.moves_out
                guest.rejected = Counter(totals.rejected)

    def _guest(self, name: str) -> GuestFacts:
        """Return the guest called `name`; a record cut at its beginning may name guests that no header announced."""
        return self.guests.setdefault(name, GuestFacts(clean(name), 0, 0, 0))

    def _note(self, entry: LogEntry) -> None:
        for earlier in self.log:
            if earlier.same_as(entry) and entry.t - earlier.t < REPEAT_S:
                entry.count = earlier.count + 1
                self.log.remove(earlier)
                break
        self.log.append(entry)

    def _change_state(self, event: StateChanged) -> None:
        guest = self._guest(event.guest)
        guest.state, guest.detail = event.state, clean(event.detail)
        if event.state is GuestState.GONE:
            guest.target_bytes, guest.actual_bytes, guest.outside_bytes = None, None, 0
        if event.state is GuestState.FRESH:
            guest.fault = None
        else:
            guest.delta = None
            for history in (guest.hits_s, guest.misses_s, guest.ratio, guest.actual):
                history.append(None)
        before = f"{event.previous} → " if event.previous else ""
        self._note(LogEntry(event.t, "state", guest.name, f"{before}{event.state}", guest.detail))

    def _sample(self, event: Sampled) -> None:
        guest, delta = self._guest(event.guest), event.delta
        guest.cpu = collector_cpu(guest.sample, event.sample)
        guest.sample, guest.sample_t, guest.delta = event.sample, event.t, delta
        guest.disk_read_pages = event.disk_read_pages
        hits, misses = (None, None) if delta is None else (delta.hits, delta.misses)
        guest.hits_s.append(None if delta is None or hits is None else hits / delta.interval_s)
        guest.misses_s.append(None if delta is None or misses is None else misses / delta.interval_s)
        guest.ratio.append(hit_ratio(hits, misses))
        guest.actual.append(guest.actual_bytes)

    def _reject(self, event: SampleRejected) -> None:
        guest = self._guest(event.guest)
        guest.rejected[event.fault] += 1
        self._note(LogEntry(event.t, "rejected", guest.name, f"sample {event.fault}: {clean(event.message)}"))

    def _resize(self, event: SizeChanged) -> None:
        guest = self._guest(event.guest)
        guest.target_bytes, guest.actual_bytes = event.target_bytes, event.actual_bytes
        guest.outside_bytes = event.outside_bytes
        self.committed_bytes = event.committed_bytes

    def _show_curve(self, guest: GuestFacts, curve: Curve | None, no_curve: str) -> None:
        # A curve without sizes is of no use, whoever made it.
        guest.curve = curve if curve and curve.sizes_bytes else None
        guest.no_curve = "" if guest.curve else clean(no_curve)

    def _decide(self, event: Decided) -> None:
        self.cycle, self.decided_t = event.snapshot.cycle, event.t
        for seen in event.snapshot.guests:
            guest = self._guest(seen.name)
            limits = seen if seen.pin is None else seen.pin
            guest.floor_bytes, guest.cap_bytes, guest.pin = limits.floor_bytes, limits.cap_bytes, seen.pin
            self._show_curve(guest, seen.curve, seen.no_curve)
            if seen.state is GuestState.GONE:  # its last size is that of a QEMU that has ended
                continue
            guest.outside_bytes = seen.outside_bytes
            # A guest whose monitor never answered has the sizes 0 in a snapshot, which means unknown.
            if guest.actual_bytes is None and seen.actual_bytes:
                guest.target_bytes, guest.actual_bytes = seen.target_bytes, seen.actual_bytes
        if any(guest.actual_bytes is not None for guest in self.guests.values()):
            self.committed_bytes = event.committed_bytes
        before = {seen.name: seen for seen in event.snapshot.guests}
        for verdict in event.decision.guests:
            guest = self._guest(verdict.name)
            guest.decision, guest.reason = verdict, clean(verdict.reason)
            seen_before = before.get(verdict.name)
            guest.change_bytes = verdict.target_bytes - seen_before.target_bytes if seen_before else 0
            guest.terms = {clean(name): value for name, value in verdict.terms.items()}
        for move in event.decision.moves:
            donor, receiver = self._guest(move.donor), self._guest(move.receiver)
            donor.moves_out, donor.given_bytes = donor.moves_out + 1, donor.given_bytes + move.size_bytes
            receiver.moves_in, receiver.received_bytes = (
                receiver.moves_in + 1,
                receiver.received_bytes + move.size_bytes,
            )
            self.moved_bytes += move.size_bytes
        entry = LogEntry(event.t, "decision", None, clean(event.decision.summary) or "no summary")
        if self.decisions and not event.decision.moves and self.decisions[-1].same_as(entry):
            entry.count = self.decisions.pop().count + 1
        self.decisions.append(entry)

    def _command(self, event: Commanded) -> None:
        guest = self._guest(event.guest)
        change = f"{event.purpose} {size(event.previous_bytes)} → {size(event.target_bytes)}"
        if event.error:
            self._note(LogEntry(event.t, "fault", guest.name, f"{change} failed: {clean(event.error)}"))
        elif event.purpose == "adopt":
            self._note(LogEntry(event.t, "command", guest.name, f"adopted at {size(event.target_bytes)}"))
        elif event.purpose == "repeat":
            self._note(LogEntry(event.t, "command", guest.name, f"asked again for {size(event.target_bytes)}"))

    def _control(self, event: ControlChanged) -> None:
        self.control, self.control_t, self.control_detail = event.control, event.t, clean(event.detail)
        self._note(LogEntry(event.t, "control", None, f"control {event.control}", self.control_detail))
        if event.control == "returning":
            for guest in self.guests.values():
                guest.decision, guest.reason = None, "all guests return to baseline"

    def _fault(self, event: Faulted) -> None:
        text = f"{clean(event.kind)}: {clean(event.message)}"
        if event.guest is None:
            self.fault = LogEntry(event.t, "fault", None, text, clean(event.hint))
            self._note(LogEntry(event.t, "fault", None, text, clean(event.hint)))
        else:
            guest = self._guest(event.guest)
            guest.fault = LogEntry(event.t, "fault", guest.name, text, clean(event.hint))
            self._note(LogEntry(event.t, "fault", guest.name, text, clean(event.hint)))
