"""The page that explains every column and key."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from qmpalloc.tui import palette, row
from qmpalloc.tui.log import rule
from qmpalloc.tui.text import fit_line

_KEYS = {
    "q": "quit",
    "?": "this page, and back",
    "p": "pause or resume",
    "b": "every guest to its baseline",
    "r": "read the configuration again",
    "c": "its curve, large or small",
    "↑↓": "select; PgUp PgDn Home End too",
    "s": "sort by what is next",
    "/": "find in names and states",
}


def page(keys: Sequence[tuple[str, str]], width: int, height: int) -> list[Text]:
    """Return the page in `height` lines of `width` cells.

    Args:
        keys: Those that do something now, with their short meanings.
        width: Of the screen.
        height: What is left of it.
    """
    lines = [rule("columns", width)]
    lines += [_line(title, meaning, width) for title, meaning in row.MEANINGS]
    lines.append(rule("keys", width))
    said = [_line(key, _KEYS.get(key, short), width // 2) for key, short in keys]
    lines += [fit_line(Text.assemble(*said[at : at + 2]), width) for at in range(0, len(said), 2)]
    return [*lines, *[Text(" " * width)] * (height - len(lines))][:height]


def _line(title: str, meaning: str, width: int) -> Text:
    return fit_line(Text.assemble((f"  {title:<7}", "bold"), (meaning, palette.LABEL)), width)
