"""The same facts as lines of text, for a log or a pipe: printable, one line per event that is worth one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from qmpalloc.events import (
    AnyEvent,
    Asked,
    Commanded,
    ControlChanged,
    Decided,
    Ended,
    Faulted,
    Header,
    Reloaded,
    Sampled,
    SampleRejected,
    SamplesDropped,
    StateChanged,
)
from qmpalloc.model import GuestState
from qmpalloc.tui.facts import asked_text, hit_ratio, page_in_text
from qmpalloc.tui.text import clean, number, percent, signed_size, size

REPEAT_S = 60.0
"""A sample refused for the same reason is reported again after this time."""


class PlainLog:
    """Turns events into lines. Routine samples get at most one line per interval, and none while decisions are made."""

    def __init__(self) -> None:
        self._header: Header | None = None
        self._routine_t = 0.0
        self._rates: dict[str, str] = {}
        self._refused: dict[tuple[str, str], tuple[float, int]] = {}

    def line(self, event: AnyEvent) -> str | None:
        """Return the line for `event`, without a line end; None when it is not worth one."""
        match event:
            case Header():
                self._header = event
            case Decided():
                self._routine_t = event.t
            case Sampled():
                return self._sample(event)
            case SampleRejected():
                return self._reject(event, event.fault)
            case SamplesDropped():
                return self._reject(event, "samples")
        return plain_line(event, budget_bytes=self._header.budget_bytes if self._header else None)

    def _sample(self, event: Sampled) -> str | None:
        if event.delta is not None:
            delta = event.delta
            page_ins = page_in_text(delta.page_ins, event.disk_read_pages, delta.interval_s)
            estimated = "~" if delta.accesses_error else ""
            ratio = estimated + percent(hit_ratio(delta.hits, delta.misses))
            self._rates[event.guest] = f"{clean(event.guest)} {page_ins} ratio {ratio}"
        interval_s = self._header.interval_s if self._header else 0.0
        # Decisions come once per interval and say more; only without them samples speak for themselves.
        if not self._rates or event.t - self._routine_t < interval_s * 1.5:
            return None
        self._routine_t, told, self._rates = event.t, self._rates, {}
        return _stamp(event) + "samples: " + "; ".join(told.values())

    def _reject(self, event: SampleRejected | SamplesDropped, kind: str) -> str | None:
        since, silent = self._refused.get((event.guest, kind), (-REPEAT_S, 0))
        if event.t - since < REPEAT_S:
            self._refused[event.guest, kind] = (since, silent + 1)
            return None
        self._refused[event.guest, kind] = (event.t, 0)
        line = plain_line(event)
        return f"{line} (and {silent} more since)" if line and silent else line


def plain_line(event: AnyEvent, *, budget_bytes: int | None = None) -> str | None:
    """Return the line for one event by itself: time in UTC, guest if any, and what happened; None for routine."""
    text = _TEXTS[type(event)](event) if type(event) in _TEXTS else None
    if isinstance(event, Decided):
        text = f"{text}; committed {size(event.committed_bytes)} of {size(budget_bytes)}"
    return None if not text else _stamp(event) + text


def _stamp(event: AnyEvent) -> str:
    return datetime.fromtimestamp(event.wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ ")


def _header(event: Header) -> str:
    guests = ", ".join(f"{clean(g.name)} {size(g.floor_bytes)}..{size(g.cap_bytes)}" for g in event.guests)
    settings = " ".join(f"{name}={value}" for name, value in event.policy_settings.items())
    policy = clean(f"{event.policy} {settings}".strip())
    return f"{event.mode}: policy {policy}, budget {size(event.budget_bytes)}, guests {guests}"


def _state(event: StateChanged) -> str:
    before = f" (was {event.previous})" if event.previous else ""
    detail = f": {clean(event.detail)}" if event.detail else ""
    return f"{clean(event.guest)}: {event.state}{before}{detail}"


def _rejected(event: SampleRejected) -> str:
    return f"{clean(event.guest)}: sample not used, {event.fault}: {clean(event.message)}"


def _samples(event: SamplesDropped) -> str:
    return f"{clean(event.guest)}: sampled accesses: {clean(event.message)}"


def _decided(event: Decided) -> str:
    parts = []
    for seen, verdict in zip(event.snapshot.guests, event.decision.guests, strict=False):
        e = verdict.terms.get("e")
        change = verdict.target_bytes - seen.target_bytes
        parts.append(f"{clean(verdict.name)} {'' if e is None else f'e {number(e)} '}{size(verdict.target_bytes)}")
        if page_ins := page_in_text(seen.page_ins, seen.disk_read_pages, seen.interval_s or 0.0):
            parts[-1] += f" {page_ins}"
        if change:
            parts[-1] += f" ({signed_size(change)}: {clean(verdict.reason)})"
        elif seen.state is GuestState.FRESH and not seen.decidable:
            parts[-1] += f" ({seen.undecidable})"
    return f"decision {event.snapshot.cycle}: {clean(event.decision.summary)}; {', '.join(parts)}"


def _commanded(event: Commanded) -> str | None:
    if not event.error:
        return None
    return f"{clean(event.guest)}: {event.purpose} to {size(event.target_bytes)} failed: {clean(event.error)}"


def _faulted(event: Faulted) -> str:
    where = f"{clean(event.guest)}: " if event.guest is not None else ""
    hint = f" (hint: {clean(event.hint)})" if event.hint else ""
    return f"{where}FAULT {clean(event.kind)}: {clean(event.message)}{hint}"


def _control(event: ControlChanged) -> str:
    return f"control {event.control}" + (f": {clean(event.detail)}" if event.detail else "")


def _reloaded(event: Reloaded) -> str:
    names = ", ".join(clean(guest.name) for guest in event.guests)
    leaving = f", leaving {', '.join(clean(name) for name in event.leaving)}" if event.leaving else ""
    renamed = "".join(f", {clean(old)} is now {clean(new)}" for old, new in event.renamed.items())
    return f"reloaded: budget {size(event.budget_bytes)}, guests {names}{leaving}{renamed}"


def _ended(event: Ended) -> str:
    return f"ended {'clean' if event.clean else 'NOT CLEAN'}: {clean(event.reason)}"


_TEXTS: dict[type, Callable[..., str | None]] = {
    Header: _header,
    StateChanged: _state,
    SampleRejected: _rejected,
    SamplesDropped: _samples,
    Decided: _decided,
    Commanded: _commanded,
    Faulted: _faulted,
    ControlChanged: _control,
    Asked: asked_text,
    Reloaded: _reloaded,
    Ended: _ended,
}
