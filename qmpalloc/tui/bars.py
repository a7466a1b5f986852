"""Bars and small charts of block characters. Every shape differs by its glyph, so that none needs colour."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from qmpalloc.tui import palette
from qmpalloc.tui.text import fit

LEVELS = " ▁▂▃▄▅▆▇█"
LEAST_OF_WORD = 4
"""A word of which fewer cells are left says nothing."""


def memory_bar(
    width: int, scale_bytes: int, *, floor_bytes: int, actual_bytes: int, target_bytes: int, cap_bytes: int
) -> Text:
    """Return a guest's memory as a bar whose full width is `scale_bytes`.

    ``█`` up to the floor (cannot be taken), ``▓`` up to the actual size, ``░`` on its way to the guest and ``▶`` the
    target; or ``▒`` on its way out of the guest behind ``◀`` the target; ``·`` room up to the cap ``│``. One scale for
    all guests makes the bars comparable.
    """
    scale = max(scale_bytes, 1)

    def cell(size_bytes: int) -> int:
        return min(max(round(size_bytes / scale * width), 0), width)

    floor, actual, target, cap = map(cell, (floor_bytes, actual_bytes, target_bytes, cap_bytes))
    cells: list[tuple[str, str]] = [("·", palette.FAINT)] * cap + [(" ", "")] * (width - cap)
    cells[: max(actual, target)] = [("▓", palette.ACTUAL)] * max(actual, target)
    cells[: min(floor, actual)] = [("█", palette.FLOOR)] * min(floor, actual)
    if target > actual:
        cells[actual:target] = [("░", palette.GROWS)] * (target - actual)
    elif target < actual:
        cells[target:actual] = [("▒", palette.SHRINKS)] * (actual - target)
    if 0 < cap <= width and max(actual, target) < cap:
        cells[cap - 1] = ("│", palette.LABEL)
    if width and target_bytes != actual_bytes:
        marker = ("▶", palette.GROWS) if target_bytes > actual_bytes else ("◀", palette.SHRINKS)
        cells[max(min(target, width) - 1, 0) if target_bytes > actual_bytes else min(target, width - 1)] = marker
    return _join(cells)


def sparkline(values: Sequence[float | None], width: int, *, top: float | None = None) -> str:
    """Return the last `width` values as one row of blocks, scaled from 0 to `top` (default: the largest shown).

    Unknown values leave a gap; zero is drawn as the lowest block, which tells the two apart.
    """
    shown = list(values)[-width:] if width > 0 else []
    largest = max((value for value in shown if value is not None), default=0.0) if top is None else top
    steps = len(LEVELS) - 1
    row = [
        " " if value is None else LEVELS[_level(value, largest, steps) or 1]
        for value in shown
    ]  # fmt: skip
    return "".join(row).rjust(max(width, 0))


def chart(values: Sequence[float | None], width: int, height: int, *, top: float) -> list[str]:
    """Return the last `width` values as columns in `height` rows, the highest first, scaled from 0 to `top`."""
    steps = len(LEVELS) - 1
    shown = list(values)[-width:] if width > 0 else []
    heights = [0 if value is None else _level(value, top, steps * height) or 1 for value in shown]
    return [
        "".join(LEVELS[min(max(level - row * steps, 0), steps)] for level in heights).rjust(width)
        for row in reversed(range(height))
    ]


def band_chart(columns: Sequence[tuple[float, float, float]], height: int, *, top: float) -> list[str]:
    """Return a value between two bounds in each column, in `height` rows, the highest first, scaled from 0 to `top`.

    ``█`` up to the lower bound, ``▓`` up to the value, which ends in an eighth of a cell, and ``░`` up to the upper
    bound; both bounds to the nearest cell.
    """
    steps = len(LEVELS) - 1
    levels = [tuple(_level(value, top, steps * height) for value in column) for column in columns]

    def cell(least: int, value: int, most: int) -> str:
        if value >= steps:
            return "█" if least >= steps / 2 else "▓"
        if value > 0:
            return LEVELS[value]
        return "░" if most >= steps / 2 else " "

    return [
        "".join(cell(least - below, max(value, 1) - below, most - below) for least, value, most in levels)
        for below in reversed(range(0, steps * height, steps))
    ]


def share_bar(width: int, total: int, shares: Sequence[tuple[str, int]], rest: str) -> Text:
    """Return one bar of `width` cells divided among named shares of `total`; what is left over is called `rest`.

    Each part starts with ``▏`` and carries as much of its name as fits.
    """
    bar = Text(no_wrap=True)
    used, start = 0, 0
    scale = max(total, sum(amount for _, amount in shares), 1)
    for index, (label, amount) in enumerate(shares):
        used += amount
        end = min(round(used / scale * width), width)
        bar.append(_part(label, end - start), palette.SHARES[index % len(palette.SHARES)])
        start = end
    bar.append(_part(rest, width - start, "·"), palette.FAINT)
    return bar


def _part(label: str, width: int, fill: str = " ") -> str:
    """Return a label after a divider in `width` cells: whole, or its first word, cut where enough of it is left."""
    room = width - 1
    if room < 0:
        return ""
    word = label.split(" ")[0]
    text = label if cell_len(label) <= room else fit(word, room).rstrip()
    if cell_len(word) > room < LEAST_OF_WORD:
        text = ""
    text += " " if fill != " " and cell_len(text) < room else ""
    return "▏" + text + fill * (room - cell_len(text))


def _level(value: float, top: float, steps: int) -> int:
    if top <= 0 or not math.isfinite(value):
        return 0
    return min(max(round(value / top * steps), 0), steps)


def _join(cells: Sequence[tuple[str, str]]) -> Text:
    """Return cells as text, with one span for each run of the same style."""
    text = Text(no_wrap=True)
    run, style = "", ""
    for char, char_style in cells:
        if char_style != style and run:
            text.append(run, style)
            run = ""
        run, style = run + char, char_style
    text.append(run, style)
    return text
