"""The state of a run once, not as a picture: for people as a table, for programs as values."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qmpalloc.tui import palette, parts
from qmpalloc.tui.dashboard import Dashboard
from qmpalloc.tui.facts import GuestFacts
from qmpalloc.tui.header import banner
from qmpalloc.tui.text import clean, run_time, size

VERSION = 1


class GuestStatus(Struct, frozen=True, kw_only=True):
    """A guest now. Bytes, pages by the second; None: not known."""

    name: str
    state: str
    detail: str
    target_bytes: int | None
    actual_bytes: int | None
    outside_bytes: int
    floor_bytes: int
    cap_bytes: int
    baseline_bytes: int
    chosen_bytes: int | None
    """The size that a person has given it."""
    limiter: str | None
    reason: str
    hits_s: float | None
    misses_s: float | None
    ratio: float | None
    fault: str


class Status(Struct, frozen=True, kw_only=True):
    """A run now. `version` is that of this format; `moves`, and what else is counted, is of the whole run."""

    version: int
    pid: int
    t: float
    mode: str
    policy: str
    control: str
    control_detail: str
    config: str
    budget_bytes: int
    committed_bytes: int | None
    max_committed_bytes: int
    decision: int
    decided_t: float | None
    moves: int
    fault: str
    ended: str | None
    guests: tuple[GuestStatus, ...]


def status_of(dashboard: Dashboard) -> Status:
    """Return the state of a run, of which at least the header is known."""
    header, summary = dashboard.header, dashboard.summarizer.summary
    assert header is not None
    config: Any = header.config.get("file", "")
    return Status(
        version=VERSION,
        pid=dashboard.pid,
        t=dashboard.t,
        mode=header.mode,
        policy=header.policy,
        control=dashboard.control,
        control_detail=dashboard.control_detail,
        config=str(config),
        budget_bytes=header.budget_bytes,
        committed_bytes=dashboard.committed_bytes,
        max_committed_bytes=summary.max_committed_bytes,
        decision=dashboard.cycle,
        decided_t=dashboard.decided_t,
        moves=summary.moves,
        fault=dashboard.fault.text if dashboard.fault else "",
        ended=dashboard.ended.reason if dashboard.ended else None,
        guests=tuple(_guest(guest) for guest in dashboard.guests.values()),
    )


def _guest(guest: GuestFacts) -> GuestStatus:
    hits_s, misses_s, ratio = (
        history[-1] if guest.rate_known and history else None for history in (guest.hits_s, guest.misses_s, guest.ratio)
    )
    return GuestStatus(
        name=guest.name,
        state=guest.state.value,
        detail=guest.detail,
        target_bytes=guest.target_bytes,
        actual_bytes=guest.actual_bytes,
        outside_bytes=guest.outside_bytes,
        floor_bytes=guest.floor_bytes,
        cap_bytes=guest.cap_bytes,
        baseline_bytes=guest.baseline_bytes,
        chosen_bytes=guest.pin.size_bytes if guest.pin else None,
        limiter=guest.decision.limiter.value if guest.decision else None,
        reason=guest.reason,
        hits_s=hits_s,
        misses_s=misses_s,
        ratio=ratio,
        fault=guest.fault.text if guest.fault else "",
    )


def status_text(dashboard: Dashboard) -> RenderableType:
    """Return the same for people: what control does, what is wrong, and a line for each guest."""
    header = dashboard.header
    assert header is not None
    head = Text.assemble(
        (f"{header.mode} · {clean(header.policy)}", "bold"),
        f" · {dashboard.control or 'starting'} for {run_time(dashboard.t)}",
        f" · {size(dashboard.committed_bytes)} of {size(header.budget_bytes)}",
        (f" · process {dashboard.pid}" if dashboard.pid else "", palette.LABEL),
    )
    alarms = [Text(line.plain.rstrip(), line.style) for line in banner(dashboard, dashboard.t, 200)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("guest", "state", "size", "target", "hits/s", "miss/s", "ratio"):
        right = heading not in ("guest", "state")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    table.add_column("why")
    for guest in dashboard.guests.values():
        sizes = (size(guest.actual_bytes), size(guest.target_bytes))
        state = Text(guest.state.value, palette.STATES[guest.state])
        table.add_row(guest.name, state, *sizes, *parts.rates(guest), parts.why(guest))
    return Group(head, *alarms, table)
