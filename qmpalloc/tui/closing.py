"""What remains on the terminal after the dashboard: one table of what every guest got and made of it."""

from __future__ import annotations

from rich import box
from rich.table import Table

from qmpalloc.tui.dashboard import Dashboard
from qmpalloc.tui.facts import GuestFacts, hit_ratio
from qmpalloc.tui.text import clean, number, percent, run_time, size


def closing_table(dashboard: Dashboard) -> Table:
    """Return the closing table: sizes at start and end, limits, counts of the time of control, moves, and the totals.

    The figures are those of ``summary.json``.
    """
    summary = dashboard.summarizer.summary
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    table.title = f"{summary.mode} · {summary.policy} · {run_time(summary.duration_s)}" if summary.mode else None
    for heading in ("guest", "start", "end", "floor", "cap", "hits", "misses", "ratio", "got", "gave"):
        table.add_column(heading, justify="left" if heading == "guest" else "right", no_wrap=True)
    for guest in summary.guests:
        facts = dashboard.guests.get(guest.name) or GuestFacts(clean(guest.name), 0, 0, 0)
        table.add_row(
            facts.name,
            size(guest.start_bytes or None),
            size(guest.end_bytes or None),
            size(guest.floor_bytes),
            size(guest.cap_bytes),
            number(guest.hits),
            number(guest.misses),
            percent(hit_ratio(guest.hits, guest.misses)),
            _moved(facts.received_bytes, facts.moves_in),
            _moved(facts.given_bytes, facts.moves_out),
        )
    hits, misses = (sum(getattr(guest, field) or 0 for guest in summary.guests) for field in ("hits", "misses"))
    table.add_section()
    table.add_row(
        "all",
        size(sum(guest.start_bytes for guest in summary.guests) or None),
        size(sum(guest.end_bytes for guest in summary.guests) or None),
        "",
        size(summary.budget_bytes),
        number(hits),
        number(misses),
        percent(hit_ratio(hits, misses)),
        _moved(dashboard.moved_bytes, summary.moves),
        "",
    )
    return table


def _moved(size_bytes: int, moves: int) -> str:
    return f"{size(size_bytes)} x{moves}" if moves else "0"
