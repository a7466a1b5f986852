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
    """A column: its title, least width, rank (the highest is dropped first), share of spare width, and its cell.

    `meaning` is for the page of help. With `needs`, it is there when some guest tells that.
    """

    title: str
    width: int
    rank: int
    grow: int
    meaning: str
    cell: Callable[[GuestFacts, Scale, int], Text]
    needs: str = ""

    @property
    def is_number(self) -> bool:
        """Whether it stands at the right of its width."""
        return self.grow == 0 and self.title != "state"


def _actual(guest: GuestFacts, _: Scale, width: int) -> Text:
    """Return the actual size, and the direction of the last decision."""
    return Text.assemble((size(guest.actual_bytes).rjust(width - 1), "bold"), parts.arrow(guest))


def _why(guest: GuestFacts, _: Scale, width: int) -> Text:
    """Return the limiter, or the whole reason where there is room for it."""
    if width >= REASON_MIN_WIDTH:
        return fit_line(parts.why(guest), width)
    return Text(fit(UNKNOWN if guest.decision is None else guest.decision.limiter, width))


REASON_MIN_WIDTH = 24


def _number(text: Callable[[GuestFacts], str], style: str = "") -> Callable[[GuestFacts, Scale, int], Text]:
    return lambda guest, _, width: Text(text(guest).rjust(width), style)


def _kind(name: str) -> Callable[[GuestFacts, Scale, int], Text]:
    return _number(lambda guest: parts.cause(guest, getattr(guest.delta and guest.delta.page_ins, name, None)))


_COLUMNS = (
    _Column("state", 7, 0, 0, "fresh: it is heard of, and decided about; else look at why",
            lambda guest, _, width: parts.state(guest, width)),
    _Column("age", 4, 2, 0, "since its last good sample", parts.sample_age),
    _Column("memory", 10, 5, 3, "█ up to the floor ▓ actual size ░▶ or ◀▒ on its way to the target │ cap", parts.bar),
    _Column("size", 6, 1, 0, "actual size; ▲ ▼: what the last decision did to the target", _actual),
    _Column("hits/s", 6, 4, 0, "pages read that were in memory; ~: estimated",
            _number(lambda guest: parts.rates(guest)[0])),
    _Column("miss/s", 6, 3, 0, "pages brought in for reads", _number(lambda guest: parts.rates(guest)[1])),
    _Column("flt/s", 6, 6, 0, "pages brought in for faults of mapped files, if any", _kind("faults"), "faults"),
    _Column("swap/s", 6, 6, 0, "pages back from swap, if any", _kind("swap_ins"), "swap_ins"),
    _Column("pgin/s", 6, 6, 0, "page-ins of all kinds: miss, flt and swap", _number(parts.page_ins)),
    _Column("ratio", 5, 1, 0, "hits by accesses", _number(lambda guest: parts.rates(guest)[2])),
    _Column("past", 4, 7, 2, "the ratio of the last samples, the newest at the right",
            lambda guest, _, width: Text(sparkline(guest.ratio, width, top=1.0), palette.HITS)),
    _Column("e", 5, 3, 0, "(hits - misses) by MiB in an interval, where the paper's rule runs",
            _number(lambda guest: number(guest.terms.get("e")), "bold"), "e"),
    _Column("why", 6, 6, 4, "what is wrong with it, or what set its target", _why),
)  # fmt: skip

MEANINGS = tuple((column.title, column.meaning) for column in _COLUMNS)


@dataclass(frozen=True, slots=True)
class Table:
    """The columns that fit a width, with the width of each."""

    width: int
    name_width: int
    columns: tuple[tuple[_Column, int], ...]

    @classmethod
    def of(cls, width: int, scale: Scale) -> Table:
        """Return the columns for a table of `width` cells."""
        chosen = [column for column in _COLUMNS if not column.needs or column.needs in scale.told]

        def needed() -> int:
            return 1 + scale.name_width + sum(column.width + 1 for column in chosen)

        while chosen and needed() > width:
            chosen.remove(max(chosen, key=lambda column: column.rank))
        spare, grow = width - needed(), sum(column.grow for column in chosen)
        widths = [column.width + (spare * column.grow // grow if grow else 0) for column in chosen]
        return cls(width, scale.name_width, tuple(zip(chosen, widths, strict=True)))

    def titles(self) -> Text:
        """Return the line of titles."""
        text = Text(" " + fit("guest" if self.name_width >= 5 else "", self.name_width), palette.LABEL)
        for column, width in self.columns:
            title = column.title.rjust(width) if column.is_number else fit(column.title, width)
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
