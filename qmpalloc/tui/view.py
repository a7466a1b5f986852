"""The whole frame: lines of exactly the width of the screen, never more of them than it has.

`lines` is a pure function of what is known, the state of the view, the time and the size; `View` is the same as a rich
renderable, which takes the size from its console and thereby follows a resize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

from qmpalloc.text import visible
from qmpalloc.tui import curve, palette, row
from qmpalloc.tui import help as explained
from qmpalloc.tui.block import CHART_LINES, CHART_MAX_LINES, LINES, MIN_WIDTH, WIDE_MIN_WIDTH, block
from qmpalloc.tui.dashboard import Dashboard
from qmpalloc.tui.facts import GuestFacts
from qmpalloc.tui.header import banner, footer, header, keys
from qmpalloc.tui.log import log, rule
from qmpalloc.tui.order import ORDERS, shown
from qmpalloc.tui.scale import Scale
from qmpalloc.tui.text import fit_line, to_ascii
from qmpalloc.tui.ui import Ui

LOG_MIN_LINES = 4
LOG_GOOD_LINES = 10
LOG_LEAST_LINES = 3
DETAIL_LINES = 2
DETAIL_FROM_LINES = 12
_LARGE_CURVE_LEAST = 10


@dataclass(frozen=True, slots=True)
class View:
    """The dashboard as a rich renderable that fills its console."""

    dashboard: Dashboard
    ui: Ui
    now: Callable[[], float]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or console.height
        for index, line in enumerate(lines(self.dashboard, self.ui, self.now(), options.max_width, height)):
            if index:
                yield Segment.line()
            # `Text.render` leaves out the style of the whole when there are no spans.
            style = console.get_style(line.style)
            for segment in line.render(console):
                text = visible(segment.text)
                yield Segment(to_ascii(text) if options.ascii_only else text, style + (segment.style or style))


def lines(dashboard: Dashboard, ui: Ui, now_t: float, width: int, height: int) -> list[Text]:
    """Return the frame as at most `height` lines of `width` cells.

    Args:
        dashboard: What is known of the run.
        ui: State of the view.
        now_t: The time, on the clock of the events. Ages stop growing when the run has ended.
        width: Of the screen, in cells.
        height: Of the screen, in lines.
    """
    if dashboard.ended:
        now_t = dashboard.ended.t
    top = [*header(dashboard, ui, now_t, width), *banner(dashboard, now_t, width)[: max(height // 8, 1)]]
    room = height - len(top) - 1
    chosen = _Chosen.of(dashboard, ui, now_t)
    of_curve = chosen.with_curve(dashboard)
    large = of_curve is not None and ui.large_curve
    middle, scrolls = _guests(chosen, width, room, for_curve=_LARGE_CURVE_LEAST if large else 0)
    # The page of help takes the guests' place: it explains the keys for them wherever they would fit.
    offered = keys(dashboard, ui, scrolls=scrolls or ui.help, curve=of_curve is not None)
    if ui.help:
        middle = explained.page(offered, width, room, ui.help_top)
    elif of_curve is not None:
        most = curve.LARGE_LINES if large else curve.MAX_LINES
        lines_left = min(room - len(middle) - LOG_LEAST_LINES, most)
        middle += curve.panel(of_curve, width, lines_left) if lines_left >= curve.MIN_LINES else []
    rest = log(dashboard, width, room - len(middle))
    frame = [*top, *middle, *rest][: max(height - 1, 0)]
    return [*frame, footer(ui, offered, width)][-height:]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The guests that are shown, which of them is selected, how they were chosen, and the scale of all."""

    guests: Sequence[GuestFacts]
    selected: int
    how: str
    scale: Scale

    @classmethod
    def of(cls, dashboard: Dashboard, ui: Ui, now_t: float) -> _Chosen:
        every = list(dashboard.guests.values())
        guests = shown(every, ui.order, ui.search)
        selected = next((at for at, guest in enumerate(guests) if guest.name == ui.selected), 0)
        how = (f" with “{ui.search}”" if ui.search else "") + (f" by {ui.order}" if ui.order != ORDERS[0] else "")
        return cls(guests, selected, how, Scale.of(every, now_t))

    def with_curve(self, dashboard: Dashboard) -> GuestFacts | None:
        """Return the selected guest if its curve, or that it has none, is to be shown."""
        policy = dashboard.header.policy if dashboard.header else ""
        guest = self.guests[self.selected] if self.guests else None
        return guest if guest is not None and curve.is_relevant(guest, policy) else None


def _guests(chosen: _Chosen, width: int, room: int, *, for_curve: int) -> tuple[list[Text], bool]:
    """Return the lines of the guests within `room`, leaving some for log and curve, and whether some are hidden."""
    guests, selected, scale = chosen.guests, chosen.selected, chosen.scale
    if not guests:
        none = "  none is like that" if chosen.how else "  none known yet"
        return [rule(f"guests{chosen.how}", width), fit_line(Text(none, palette.FAINT), width)][: max(room, 0)], False
    each = 0 if for_curve else _block_lines(len(guests), width, room)
    if each:
        lines = [_guest_rule(f"guests{chosen.how}", width)]
        for index, guest in enumerate(guests):
            lines += block(guest, scale, width, each, selected=index == selected and len(guests) > 1)
        return lines, False
    table = row.Table.of(width, scale)
    details = DETAIL_LINES if room >= DETAIL_FROM_LINES else 0
    log_lines = LOG_LEAST_LINES if details else 0
    count = min(len(guests), max(room - 2 - details - log_lines - for_curve, 1))
    first = min(max(selected - count // 2, 0), len(guests) - count)
    which = f" {first + 1}..{first + count} of {len(guests)}" if count < len(guests) else ""
    lines = [_guest_rule(f"guests{which}{chosen.how}", width), table.titles()]
    for index in range(first, first + count):
        lines.append(table.row(guests[index], scale, selected=index == selected))
    if details:
        lines += row.detail(guests[selected], width)
    return lines[: max(room, 0)], count < len(guests)


def _block_lines(guests: int, width: int, room: int) -> int:
    """Return how many lines each guest's block gets; 0 when blocks do not fit and the table must do."""
    if width < MIN_WIDTH:
        return 0
    plain = LINES + (1 if width < WIDE_MIN_WIDTH else 0)
    with_charts = plain + 2 + CHART_MAX_LINES
    each = (room - 1 - LOG_GOOD_LINES) // guests
    if each >= plain + 2 + CHART_LINES:
        return min(each, with_charts)
    each = (room - 1 - LOG_MIN_LINES) // guests
    return min(each, plain + 1) if each >= LINES else 0


def _guest_rule(title: str, width: int) -> Text:
    """Return the line above the guests, with the legend of the memory bar."""
    legend = Text(" ")
    for glyph, meaning, style in (
        ("█", "floor", palette.FLOOR),
        ("▓", "actual", palette.ACTUAL),
        ("░▶", "/", palette.GROWS),
        ("◀▒", "target", palette.SHRINKS),
        ("│", "cap", palette.LABEL),
    ):
        legend.append(f" {glyph}", style).append(meaning, palette.LABEL)
    return rule(title, width, legend.append(" "))
