"""A guest as one line of a table. In a narrow terminal the least telling columns go first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.text import Text

from qmpalloc.tui import inside, palette, parts
from qmpalloc.tui.bars import sparkline
from qmpalloc.tui.facts import GuestFacts
from qmpalloc.tui.scale import Scale
from qmpalloc.tui.text import UNKNOWN, fit, fit_line, number, size


@dataclass(frozen=True, slots=True)
class _Column:
    """A column: its title, least width, rank (the highest is dropped first), share of spare width, and its cell."""

    title: str
    width: int
    rank: int
    grow: int
    cell: Callable[[GuestFacts, Scale, int], Text]
    right: bool = False


def _actual(guest: GuestFacts, _: Scale, width: int) -> Text:
    """Return the actual size, and the direction of the last decision."""
    return Text.assemble((size(guest.actual_bytes).rjust(width - 1), "bold"), parts.arrow(guest))


def _why(guest: GuestFacts, _: Scale, width: int) -> Text:
    """Return the limiter, or the whole reason where there is room for it."""
    if width >= REASON_MIN_WIDTH:
        return fit_line(parts.why(guest), width)
    return Text(fit(UNKNOWN if guest.decision is None else guest.decision.limiter, width))


REASON_MIN_WIDTH = 24

_COLUMNS = (
    _Column("state", 7, 0, 0, lambda guest, _, width: parts.state(guest, width)),
    _Column("age", 4, 2, 0, parts.sample_age, right=True),
    _Column("memory", 10, 5, 3, parts.bar),
    _Column("size", 6, 1, 0, _actual, right=True),
    _Column("hits/s", 6, 4, 0, lambda guest, _, width: Text(parts.rates(guest)[0].rjust(width)), right=True),
    _Column("miss/s", 6, 3, 0, lambda guest, _, width: Text(parts.rates(guest)[1].rjust(width)), right=True),
    _Column("pgin/s", 6, 6, 0, lambda guest, _, width: Text(parts.page_ins(guest).rjust(width)), right=True),
    _Column("ratio", 5, 1, 0, lambda guest, _, width: Text(parts.rates(guest)[2].rjust(width)), right=True),
    _Column("", 4, 7, 2, lambda guest, _, width: Text(sparkline(guest.ratio, width, top=1.0), palette.HITS)),
    _Column("e", 5, 3, 0, lambda guest, _, width: Text(number(guest.terms.get("e")).rjust(width), "bold"), right=True),
    _Column("why", 6, 6, 4, _why),
)


@dataclass(frozen=True, slots=True)
class Table:
    """The columns that fit a width, with the width of each."""

    width: int
    name_width: int
    columns: tuple[tuple[_Column, int], ...]

    @classmethod
    def of(cls, width: int, scale: Scale) -> Table:
        """Return the columns for a table of `width` cells."""
        chosen = list(_COLUMNS)

        def needed() -> int:
            return 1 + scale.name_width + sum(column.width + 1 for column in chosen)

        while chosen and needed() > width:
            chosen.remove(max(chosen, key=lambda column: column.rank))
        spare, grow = width - needed(), sum(column.grow for column in chosen)
        widths = [column.width + (spare * column.grow // grow if grow else 0) for column in chosen]
        return cls(width, scale.name_width, tuple(zip(chosen, widths, strict=True)))

    def titles(self) -> Text:
        """Return the line of titles."""
        text = Text(" " + fit("guest", self.name_width), palette.LABEL)
        for column, width in self.columns:
            title = column.title.rjust(width) if column.right else fit(column.title, width)
            text.append(" " + title)
        return fit_line(text, self.width)

    def row(self, guest: GuestFacts, scale: Scale, *, selected: bool) -> Text:
        """Return a guest's line."""
        text = parts.name(guest, scale, selected=selected)
        for column, width in self.columns:
            text.append(" ").append_text(column.cell(guest, scale, width))
        return fit_line(text, self.width)


def detail(guest: GuestFacts, width: int) -> list[Text]:
    """Return two lines on the selected guest, for what its row has no room to say."""
    head = Text.assemble(("▌", "bold"), (guest.name, palette.TITLE), " ")
    trouble = Text("  ").join(parts.trouble(guest))
    first = Text.assemble(head, parts.change(guest, 9), trouble or parts.why(guest))
    limits = Text(f"  floor {size(guest.floor_bytes)} cap {size(guest.cap_bytes)}  ", palette.LABEL)
    second = Text.assemble("  ", parts.sizes(guest), limits, inside.summary(guest))
    return [fit_line(first, width), fit_line(second, width)]
