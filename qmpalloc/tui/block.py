"""A guest as a block: three lines that name everything, then its inside and charts of its past as room allows."""

from __future__ import annotations

from rich.text import Text

from qmpalloc.tui import inside, palette, parts
from qmpalloc.tui.bars import chart, sparkline
from qmpalloc.tui.facts import GuestFacts, History, term_text
from qmpalloc.tui.scale import Scale
from qmpalloc.tui.text import fit_line, number, size, spread

MIN_WIDTH = 76
WIDE_MIN_WIDTH = 144
LINES = 3
CHART_LINES = 4
"""A chart needs this many rows, and a title."""
CHART_MAX_LINES = 10


def block(guest: GuestFacts, scale: Scale, width: int, height: int, *, selected: bool) -> list[Text]:
    """Return a guest in `height` lines of `width` cells each; at least 3 by `MIN_WIDTH`."""
    if width >= WIDE_MIN_WIDTH:
        left = width * 9 // 16
        right = width - left - 2
        lines = [
            spread(first, second, width)
            for first, second in zip(
                (fit_line(line, left) for line in _core(guest, scale, left, selected=selected)),
                (fit_line(line, right) for line in inside.lines(guest)),
                strict=True,
            )
        ]
    else:
        lines = _core(guest, scale, width, selected=selected)
        lines += [fit_line(Text("  ").append_text(line), width) for line in _below(guest, width, height - LINES)]
    charts = height - len(lines) - 2
    if charts >= CHART_LINES:
        lines += _charts(guest, scale, width, min(charts, CHART_MAX_LINES))
    return lines[:height] + [Text(" " * width)] * (height - len(lines))


def _core(guest: GuestFacts, scale: Scale, width: int, *, selected: bool) -> list[Text]:
    hits, misses, ratio = parts.rates(guest)
    first = Text.assemble(
        parts.name(guest, scale, selected=selected), " ", parts.state(guest, scale.state_width), " ",
        parts.sample_age(guest, scale),
        ("  hits ", palette.LABEL), hits.rjust(5), ("/s", palette.LABEL),
        ("  misses ", palette.LABEL), misses.rjust(5), ("/s", palette.LABEL),
        ("  page-ins ", palette.LABEL), parts.page_ins(guest).rjust(5), ("/s", palette.LABEL),
        ("  ratio ", palette.LABEL), (ratio.rjust(5), "bold"), " ",
    )  # fmt: skip
    first.append(sparkline(guest.ratio, width - first.cell_len, top=1.0), palette.HITS)
    terms = Text(term_text(guest.terms), "bold")
    terms.truncate(width // 4, overflow="ellipsis")
    head = Text.assemble("  ", parts.sizes(guest), " ")
    tail = Text.assemble(
        " ",
        (f"{size(guest.floor_bytes)}..{size(guest.cap_bytes)}".ljust(12), palette.LABEL),
        terms.plain.rjust(9) if terms.cell_len < 9 else terms,
    )
    second = Text.assemble(head, parts.bar(guest, scale, max(width - head.cell_len - tail.cell_len, 0)), tail)
    third = Text.assemble("  ", parts.change(guest), "  ", parts.why(guest))
    return [fit_line(line, width) for line in (first, second, third)]


def _below(guest: GuestFacts, width: int, height: int) -> list[Text]:
    """Return what a narrow block says below its core: the inside, or the fault with its hint on one line or on two."""
    trouble = parts.trouble(guest) or [inside.summary(guest)]
    if sum(line.cell_len + 2 for line in trouble) <= width or height < len(trouble):
        return [Text("  ").join(trouble)][: max(height, 0)]
    return trouble


def _charts(guest: GuestFacts, scale: Scale, width: int, height: int) -> list[Text]:
    """Return charts of the size, the misses and, in a wide frame, the hits, side by side below their titles."""
    kinds: list[tuple[str, str, History, float]] = [
        (f"actual size, top {size(scale.size_bytes)}", palette.ACTUAL, guest.actual, scale.size_bytes),
        (f"misses/s, top {number(scale.misses_s)}", palette.MISSES, guest.misses_s, scale.misses_s),
    ]
    if width >= WIDE_MIN_WIDTH:
        kinds.insert(1, (f"hits/s, top {number(scale.hits_s)}", palette.HITS, guest.hits_s, scale.hits_s))
    each = (width - 2) // len(kinds) - 2
    titles = [Text.assemble("  ", fit_line(Text(title, palette.LABEL), each)) for title, _, _, _ in kinds]
    columns = [chart(values, each, height, top=top) for _, _, values, top in kinds]
    lines = [Text.assemble(*titles)]
    for row in range(height):
        cells = [("  " + column[row], kind[1]) for column, kind in zip(columns, kinds, strict=True)]
        lines.append(Text.assemble(*cells))
    return [fit_line(line, width) for line in lines]
