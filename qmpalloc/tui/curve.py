"""The selected guest's miss-ratio curve and what is believed of it at every size; where it is and is to go."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from qmpalloc.model import Band
from qmpalloc.tui import palette, parts
from qmpalloc.tui.bars import band_chart
from qmpalloc.tui.facts import GuestFacts
from qmpalloc.tui.log import rule
from qmpalloc.tui.text import clean, fit_line, number, percent, signed_number, size

MIN_LINES = 6
MAX_LINES = 14
LARGE_LINES = 28
_LABEL_CELLS = 6
_TWO_FACTS_FROM = 8
_POINT = "●"
_TOP_RATIO, _TOP_PER_S = 0.01, 10.0
"""The chart is at least so high: next to nothing must not look like much."""


def is_relevant(guest: GuestFacts, policy: str) -> bool:
    """Tell whether there is a curve or a belief to show, or the absence of a curve matters."""
    return guest.curve is not None or guest.band is not None or (policy == "curve" and bool(guest.no_curve))


def panel(guest: GuestFacts, width: int, height: int) -> list[Text]:
    """Return the panel in at most `height` lines of `width` cells; fewer when nothing can be drawn, none below 2."""
    if height < 2:
        return []
    title = rule(f"curve of {guest.name}", width, _legend(guest))
    if guest.curve is None and guest.band is None:
        return [title, fit_line(Text("  ").append_text(_trust(guest)), width)]
    facts = [fit_line(Text("  ").append_text(line), width) for line in (_trust(guest), _decision(guest))]
    if height < _TWO_FACTS_FROM:
        facts = facts[:1]
    rows = height - 2 - len(facts)
    if rows < 1 or width < 4 * _LABEL_CELLS:
        return [title, *facts][:height]
    return [title, *_chart(guest, width, rows), *facts]


def ratio_at(sizes_bytes: Sequence[int], ratios: Sequence[float], size_bytes: float) -> float:
    """Return the ratio at a size, by linear interpolation."""
    if size_bytes <= sizes_bytes[0]:
        return ratios[0]
    for index in range(1, len(sizes_bytes)):
        if size_bytes <= sizes_bytes[index]:
            share = (size_bytes - sizes_bytes[index - 1]) / (sizes_bytes[index] - sizes_bytes[index - 1])
            return ratios[index - 1] + share * (ratios[index] - ratios[index - 1])
    return ratios[-1]


def _legend(guest: GuestFacts) -> Text:
    what = "misses by accesses at each size" if guest.band is None else "page-ins/s"
    legend = Text(f"  {what}  ", palette.LABEL)
    parts = [("▲", "now", palette.ACTUAL), ("◀▶", "target", palette.GROWS)]
    if guest.band is not None:
        curve = [] if guest.curve is None else [("▓", "curve", palette.MISSES)]
        bounds = [("█", "least", palette.MISSES), *curve, ("░", "most", palette.FAINT)]
        parts = [*bounds, (_POINT, "measured", palette.TITLE), *parts]
    for glyph, meaning, style in parts:
        legend.append(glyph, style).append(f"{meaning} ", palette.LABEL)
    return legend


def _chart(guest: GuestFacts, width: int, rows: int) -> list[Text]:
    """Return band and curve as columns, the point measured, marks at the present size and the target, sizes below.

    With a band in pages brought in by the second, as a guest that reads nothing loses nothing; else in miss ratios.
    """
    cells, band, curve = width - _LABEL_CELLS - 1, guest.band, guest.curve
    show, top_least = (percent, _TOP_RATIO) if band is None else (number, _TOP_PER_S)
    if band is None:
        assert curve is not None
        bounds = curve.miss_ratio
        band = Band(sizes_bytes=curve.sizes_bytes, least=bounds, most=bounds, accesses_per_s=1.0)
    within = (band.sizes_bytes, band.least) if curve is None else (curve.sizes_bytes, curve.miss_ratio)
    lines = (band.sizes_bytes, band.least), within, (band.sizes_bytes, band.most)
    first = min(sizes[0] for sizes, _ in lines)
    last = max(first + 1, *(sizes[-1] for sizes, _ in lines))
    middles = [first + (last - first) * (cell + 0.5) / cells for cell in range(cells)]
    least, value, most = ([band.accesses_per_s * ratio_at(*line, size) for size in middles] for line in lines)
    top = max(band.accesses_per_s * max(ratios[0] for _, ratios in lines), top_least)

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
    drawn = [_row(blocks, marks) for blocks in band_chart(list(zip(least, value, most, strict=True)), rows, top=top)]
    if band.measured is not None and guest.decision is not None:
        at, height = column(guest.decision.target_bytes - guest.change_bytes), band.measured * band.accesses_per_s / top
        row = drawn[min(max(int((1.0 - height) * rows), 0), rows - 1)]
        row[at] = (_POINT, palette.TITLE)
    labels = [show(top), *[""] * (rows - 2), show(0.0)][-rows:]
    return [
        *(
            fit_line(Text.assemble((f"{label:>{_LABEL_CELLS - 1}} ", palette.LABEL), *row), width)
            for label, row in zip(labels, drawn, strict=True)
        ),
        _axis(marks, size(first), size(last), cells, width),
    ]


def _row(blocks: str, marks: list[tuple[int, str, str, str]]) -> list[tuple[str, str]]:
    """Return the cells of a row with their styles: marks are lines above the curve, and a colour below it."""
    row = [(block, palette.FAINT if block == "░" else palette.MISSES) for block in blocks]
    for at, _, _, style in reversed(marks):
        row[at] = ("│" if blocks[at] in " ░" else blocks[at], style)
    return row


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


def _trust(guest: GuestFacts) -> Text:
    """Return what the belief rests on, and whether the curve may be acted on, and what that rests on."""
    curve, text = guest.curve, Text()
    if guest.band is not None:
        text.append("belief: ", palette.LABEL).append(f"{clean(guest.band.source) or '?'}  ")
    if curve is None:
        return text.append(f"no curve: {guest.no_curve}", palette.WARN)
    if curve.weak:
        text.append(f"weak: {clean('; '.join(curve.weak))}", palette.WARN)
    else:
        text.append("good", palette.GOOD)
    text.append("  measured ", palette.LABEL).append(percent(curve.measured))
    if curve.stale:
        text.append("  stale ", palette.LABEL).append(
            f"{percent(curve.stale)} (pages of the load before)", palette.WARN
        )
    text.append("  noise ", palette.LABEL).append(percent(max(curve.deviation, default=0.0)))
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
