"""What remains on the terminal after the dashboard: one table of what every guest got and made of it."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table

from qmpalloc.tui.dashboard import Dashboard
from qmpalloc.tui.facts import GuestFacts, hit_ratio
from qmpalloc.tui.text import clean, number, percent, run_time, size


def closing_table(dashboard: Dashboard) -> Table:
    """Return the closing table: sizes at start and end, counts of the time of control, moves, and the totals.

    The figures are those of ``summary.json``. Beside the page-ins (`qmpalloc.sample.PageIns`) stands what QEMU read
    from the disks.
    """
    summary = dashboard.summarizer.summary
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    title = f"{summary.mode} · {summary.policy} · {run_time(summary.duration_s)} · budget {size(summary.budget_bytes)}"
    table.title = title if summary.mode else None
    for heading in ("guest", "start", "end", "hits", "misses", "page-ins", "disk", "ratio", "got", "gave"):
        table.add_column(heading, justify="left" if heading == "guest" else "right", no_wrap=True)
    for guest in summary.guests:
        facts = dashboard.guests.get(guest.name) or GuestFacts(clean(guest.name), 0, 0, 0)
        table.add_row(
            facts.name,
            size(guest.start_bytes or None),
            size(guest.end_bytes or None),
            number(guest.hits),
            number(guest.misses),
            number(guest.page_ins),
            number(guest.disk_read_pages),
            percent(hit_ratio(guest.hits, guest.misses)),
            _moved(facts.received_bytes, facts.moves_in),
            _moved(facts.given_bytes, facts.moves_out),
        )
    hits, misses, page_ins, disk = (
        _total(getattr(guest, field) for guest in summary.guests)
        for field in ("hits", "misses", "page_ins", "disk_read_pages")
    )
    table.add_section()
    table.add_row(
        "all",
        size(sum(guest.start_bytes for guest in summary.guests) or None),
        size(sum(guest.end_bytes for guest in summary.guests) or None),
        number(hits),
        number(misses),
        number(page_ins),
        number(disk),
        percent(hit_ratio(hits, misses)),
        _moved(dashboard.moved_bytes, summary.moves),
        "",
    )
    return table


def _total(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _moved(size_bytes: int, moves: int) -> str:
    return f"{size(size_bytes)} x{moves}" if moves else "0"
