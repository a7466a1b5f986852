"""Text for a terminal: cleaned of everything a guest could do harm with, fitted to a width, and short numbers.

A terminal obeys escape sequences, so text that a guest had a hand in is data until it has passed `clean`.
"""

from __future__ import annotations

import math
import unicodedata

from rich.cells import cell_len
from rich.text import Text

from qmpalloc.text import is_visible
from qmpalloc.units import format_count, format_size

UNKNOWN = "-"
"""Stands for a number that is not known. It never becomes 0."""

TEXT_MAX_CHARS = 400

_ASCII = str.maketrans(
    "█▇▆▅▄▃▂▁▓▒░▶◀▲▼●▌▕▏│─·→←↑↓…≥≤Δ—\u2013\u2212\u00d7",
    "#*+=-:._=~.><^vo||||-.><^v~><d---x",
)


def clean(text: str) -> str:
    """Return `text` as printable characters of a bounded number; what is not printable becomes ``?``.

    Control characters would drive the terminal, format characters (bidirectional overrides, zero-width joiners)
    would make it lie, and combining marks would paint over neighbouring lines.
    """
    if len(text) > TEXT_MAX_CHARS:
        text = text[: TEXT_MAX_CHARS - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    text = " ".join(text.splitlines())
    return "".join(char if is_visible(char) and unicodedata.category(char)[0] != "M" else "?" for char in text)


def to_ascii(text: str) -> str:
    """Return `text` for a terminal that is not UTF-8, in as many cells: our glyphs translated, others ``?``."""
    text = text.translate(_ASCII)
    return text if text.isascii() else "".join(char if char.isascii() else "?" * cell_len(char) for char in text)


def fit(text: str, width: int) -> str:
    """Return `text` in exactly `width` cells: padded on the right, or cut with an ellipsis."""
    length = cell_len(text)
    if length <= width:
        return text + " " * (width - length)
    if width <= 0:
        return ""
    kept, used = [], 0
    for char in text:
        used += cell_len(char)
        if used > width - 1:
            break
        kept.append(char)
    return fit("".join(kept) + "…", width)


def fit_line(line: Text, width: int) -> Text:
    """Return `line` in exactly `width` cells, as `fit` does for a string."""
    line.truncate(max(width, 0), overflow="ellipsis", pad=True)
    line.no_wrap = True
    return line


def spread(left: Text, right: Text, width: int) -> Text:
    """Return one line with `right` at the right edge, and of `left` what fits before it."""
    if right.cell_len + 1 >= width:
        return fit_line(left, width)
    return Text.assemble(fit_line(left, width - right.cell_len - 1), " ", right, no_wrap=True)


def size(size_bytes: float | None) -> str:
    """Return a size of about five characters, or the sign for unknown."""
    return UNKNOWN if size_bytes is None else format_size(size_bytes)


def signed_size(size_bytes: float) -> str:
    """Return a change of size with its sign."""
    return ("+" if size_bytes >= 0 else "-") + format_size(abs(size_bytes))


def signed_number(value: float) -> str:
    """Return a change of a count or rate with its sign."""
    return ("+" if value >= 0 else "-") + number(abs(value))


def number(value: float | None) -> str:
    """Return a count, rate or term of about five characters, or the sign for unknown."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return str(value)
    return format_count(value)


def percent(fraction: float | None) -> str:
    """Return a fraction as per cent, at most five characters, or the sign for unknown."""
    if fraction is None:
        return UNKNOWN
    value = 100 * fraction
    return "100%" if value >= 99.95 else f"{value:.1f}%"


def age(seconds: float | None) -> str:
    """Return how long ago something was, at most four characters up to ten hours, or the sign for unknown."""
    if seconds is None:
        return UNKNOWN
    seconds = max(seconds, 0.0)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    if seconds < 99.5:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 100 else f"{minutes / 60:.0f}h"


def run_time(seconds: float) -> str:
    """Return the time since a run began as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
