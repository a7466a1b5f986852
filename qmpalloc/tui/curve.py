"""The selected guest's miss-ratio curve: how much it would miss at every size, where it is and where it is to go."""

from __future__ import annotations

from rich.text import Text

from qmpalloc.model import Curve
from qmpalloc.tui import palette, parts
from qmpalloc.tui.bars import chart
from qmpalloc.tui.facts import GuestFacts
from qmpalloc.tui.log import rule
from qmpalloc.tui.text import clean, fit_line, number, percent, signed_number, size

MIN_LINES = 6
MAX_LINES = 14
LARGE_LINES = 28
_LABEL_CELLS = 6
_TWO_FACTS_FROM = 8


def is_relevant(guest: GuestFacts, policy: str) -> bool:
    """Tell whether there is a curve to show, or its absence matters."""
    return guest.curve is not None or (policy == "curve" and bool(guest.no_curve))


def panel(guest: GuestFacts, width: int, height: int) -> list[Text]:
    """Return the panel in at most `height` lines of `width` cells; fewer when there is no curve, none below 2."""
    if height < 2:
        return []
    title = rule(f"curve of {guest.name}", width, _legend())
    if guest.curve is None:
        return [title, fit_line(Text(f"  no curve: {guest.no_curve}", palette.WARN), width)]
    facts = [fit_line(Text("  ").append_text(line), width) for line in (_trust(guest.curve), _decision(guest))]
    if height < _TWO_FACTS_FROM:
        facts = facts[:1]
    rows = height - 2 - len(facts)
    if rows < 1 or width < 4 * _LABEL_CELLS:
        return [title, *facts][:height]
    return [title, *_chart(guest, guest.curve, width, rows), *facts]


def miss_ratio_at(curve: Curve, size_bytes: float) -> float:
    """Return the miss ratio at a size, by linear interpolation."""
    sizes, ratios = curve.sizes_bytes, curve.miss_ratio
    if size_bytes <= sizes[0]:
        return ratios[0]
    for index in range(1, len(sizes)):
        if size_bytes <= sizes[index]:
            share = (size_bytes - sizes[index - 1]) / (sizes[index] - sizes[index - 1])
            return ratios[index - 1] + share * (ratios[index] - ratios[index - 1])
    return ratios[-1]


def _legend() -> Text:
    legend = Text("  misses by accesses at each size  ", palette.LABEL)
    return (
        legend.append("▲", palette.ACTUAL)
        .append("now ", palette.LABEL)
        .append("◀▶", palette.GROWS)
        .append("target ", palette.LABEL)
    )


def _chart(guest: GuestFacts, curve: Curve, width: int, rows: int) -> list[Text]:
    """Return the curve as columns, marks in the columns of the present size and the target, and the sizes below."""
    cells = width - _LABEL_CELLS - 1
    first, last = curve.sizes_bytes[0], max(curve.sizes_bytes[-1], curve.sizes_bytes[0] + 1)
    values = [miss_ratio_at(curve, first + (last - first) * (cell + 0.5) / cells) for cell in range(cells)]
    top = max(curve.miss_ratio[0], 0.01)

    def column(size_bytes: int) -> int:
        return min(max(int((size_bytes - first) / (last - first) * cells), 0), cells - 1)

    marks = []
    if guest.actual_bytes is not None:
        marks.append((column(guest.actual_bytes), "▲", size(guest.actual_bytes), palette.ACTUAL))
        target = guest.target_bytes
        if target is not None and target != guest.actual_bytes:
            grows = target > guest.actual_bytes
            style = palette.GROWS if grows else palette.SHRINKS
            marks.append((column(target), "▶" if grows else "◀", size(target), style))
    lines = []
    for row, blocks in enumerate(chart(values, cells, rows, top=top)):
        label = percent(top) if row == 0 else percent(0.0) if row == rows - 1 else ""
        line = Text(label.rjust(_LABEL_CELLS - 1) + " ", palette.LABEL)
        drawn = Text(blocks, palette.MISSES)
        for at, _, _, style in reversed(marks):
            if blocks[at] == " ":
                drawn = Text.assemble(drawn[:at], ("│", style), drawn[at + 1 :])
            else:
                drawn.stylize(style, at, at + 1)
        lines.append(fit_line(line.append_text(drawn), width))
    return [*lines, _axis(marks, size(first), size(last), cells, width)]


def _axis(marks: list[tuple[int, str, str, str]], first: str, last: str, cells: int, width: int) -> Text:
    """Return the line of sizes: every mark in its column with its size beside it where there is room."""
    row: list[tuple[str, str]] = [(" ", "")] * cells

    def write(text: str, at: int, style: str) -> bool:
        if at < 0 or at + len(text) > cells or any(row[cell][0] != " " for cell in range(at, at + len(text))):
            return False
        row[at : at + len(text)] = [(char, style) for char in text]
        return True

    for at, glyph, _, style in reversed(marks):
        row[at] = (glyph, style)
    # The left one of two marks has its size on its left, so that neither covers the other.
    for index, (at, _, label, style) in enumerate(marks):
        is_left = len(marks) > 1 and at <= marks[1 - index][0]
        right, left = (f"{label} ", at + 1), (f" {label}", at - len(label) - 1)
        for text, start in (left, right) if is_left else (right, left):
            if write(text, start, style):
                break
    write(f"{first} ", 0, palette.LABEL)
    write(f" {last}", cells - len(last) - 1, palette.LABEL)
    return fit_line(Text.assemble(" " * _LABEL_CELLS, *row), width)


def _trust(curve: Curve) -> Text:
    """Return whether the curve may be acted on, what it rests on, and what pages of a load that is over cost."""
    text = Text()
    if curve.weak:
        text.append(f"weak: {clean('; '.join(curve.weak))}", palette.WARN)
    else:
        text.append("good", palette.GOOD)
    text.append("  measured ", palette.LABEL).append(percent(curve.measured))
    if curve.stale:
        text.append("  stale ", palette.LABEL).append(
            f"{percent(curve.stale)} (pages of the load before)", palette.WARN
        )
    text.append("  noise ", palette.LABEL).append(percent(curve.noise))
    text.append("  steady for ", palette.LABEL).append(f"{number(curve.steady_accesses)} accesses")
    text.append("  by ", palette.LABEL).append(clean(curve.estimator) or "?")
    if curve.pages_per_sampled:
        text.append(" from ", palette.LABEL).append(f"1 page in {number(curve.pages_per_sampled)}")
    return text


def _decision(guest: GuestFacts) -> Text:
    """Return what the last decision means for the guest, in misses and hits per second."""
    before, after, hits = (guest.terms.get(name) for name in ("misses_s", "misses_s_then", "hits_s_gained"))
    text = parts.change(guest).append("  ")
    if before is None or after is None or hits is None:
        return text.append_text(parts.why(guest))
    text.append("misses ", palette.LABEL).append(f"{number(before)}/s → {number(after)}/s")
    text.append(" (").append(f"{signed_number(after - before)}/s", "bold").append(")  ")
    return text.append("hits ", palette.LABEL).append(f"{signed_number(hits)}/s")
