"""What a policy has made of equal shares: a table of before and after, of a run that began with them."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from rich import box
from rich.table import Table

from qmpalloc.events import AnyEvent, ControlChanged, Header, Sampled, SizeChanged
from qmpalloc.tui.text import clean, number, size

COMPARED_S = 30.0
"""The last so many seconds of both parts are compared: until then caches fill and memory moves."""


class Part(Struct):
    """What one guest did in one part of a run: pages, seconds, and its size at the end."""

    hits: int = 0
    misses: int = 0
    page_ins: int = 0
    seconds: float = 0.0
    size_bytes: int = 0

    def by_second(self) -> tuple[float, float, float]:
        """Return hits, page-ins and all reads by the second. Hits that read-ahead has below zero are none."""
        seconds = self.seconds or 1.0
        return max(0, self.hits) / seconds, self.page_ins / seconds, (self.hits + self.misses) / seconds


def comparison_table(record: Iterable[AnyEvent]) -> Table | None:
    """Return the table; None where a run has not both parts, control paused first and then at work."""
    events = list(record)
    header = next((event for event in events if isinstance(event, Header)), None)
    changes = [event for event in events if isinstance(event, ControlChanged)]
    paused = next((at for at, event in enumerate(changes) if event.control == "paused"), None)
    if header is None or paused is None or paused + 2 > len(changes) or changes[paused + 1].control != "running":
        return None
    end_t = changes[paused + 2].t if paused + 2 < len(changes) else events[-1].t
    ends = changes[paused + 1].t, end_t
    length_s = min(COMPARED_S, ends[0] - changes[paused].t, ends[1] - ends[0])
    before, after = (_parts(events, end - length_s, end) for end in ends)
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 2, 0, 0), pad_edge=False)
    table.title = f"equal shares → {clean(header.policy)}, the last {length_s:.0f} s of each"
    for heading in ("guest", "size", "hits/s", "page-ins/s", "reads/s"):
        table.add_column(heading, justify="left" if heading == "guest" else "right", no_wrap=True)
    for guest in header.guests:
        then, now = before.get(guest.name, Part()), after.get(guest.name, Part())
        rates = zip(then.by_second(), now.by_second(), strict=True)
        sizes = f"{size(then.size_bytes)} → {size(now.size_bytes)}"
        table.add_row(clean(guest.name), sizes, *(f"{number(one)} → {number(other)}" for one, other in rates))
    table.add_section()
    every = [[part.by_second() for part in found.values()] for found in (before, after)]
    sums = zip(*([sum(column) for column in zip(*rates, strict=True)] for rates in every), strict=True)
    table.add_row("all", "", *(f"{number(one)} → {number(other)}" for one, other in sums))
    return table


def _parts(events: Iterable[AnyEvent], start_t: float, end_t: float) -> dict[str, Part]:
    """Return what each guest did between two times; samples that do not know their hits are left out."""
    parts: dict[str, Part] = {}
    for event in events:
        if event.t > end_t:
            break
        if isinstance(event, SizeChanged):
            parts.setdefault(event.guest, Part()).size_bytes = event.actual_bytes
        elif isinstance(event, Sampled) and event.t > start_t and (delta := event.delta) is not None:
            if delta.hits is None or delta.misses is None:
                continue
            part = parts.setdefault(event.guest, Part())
            part.hits, part.misses = part.hits + delta.hits, part.misses + delta.misses
            part.page_ins += delta.page_ins.total or 0
            part.seconds += delta.interval_s
    return parts
