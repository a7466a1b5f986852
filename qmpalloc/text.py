"""Text from outside, made fit to show."""

from __future__ import annotations

from itertools import chain

DEFAULT_LIMIT = 200

LINE_LIMIT = 500
"""Characters of a text in an event: one line that can be read."""

_BLANK = frozenset(
    map(
        chr,
        chain(
            (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, 0x16FE4, 0x1D159),
            range(0x180B, 0x1810),
            range(0xFE00, 0xFE10),
            range(0xE0100, 0xE01F0),
        ),
    )
)
"""Characters that Python calls printable and that show nothing: fillers, variation selectors, the empty Braille cell
(Unicode's ``Default_Ignorable_Code_Point`` that are letters or marks, and the blank symbols)."""


def is_visible(text: str) -> bool:
    """Return whether every character of `text` shows something, or is a space."""
    return text.isprintable() and (text.isascii() or _BLANK.isdisjoint(text))


def visible(text: str) -> str:
    """Return `text` with everything that is not visible replaced by ``?``."""
    return text if is_visible(text) else "".join(char if is_visible(char) else "?" for char in text)


def printable(text: str, limit: int = DEFAULT_LIMIT) -> str:
    """Return `text` with everything that is not visible replaced by ``?``, cut to `limit` characters.

    For text that a guest or another peer chose: terminal escapes, other control characters, line breaks, direction
    marks, letters without a shape and lone surrogates cannot pass. A cut text ends in ``…``.
    """
    return visible(text if len(text) <= limit else text[: limit - 1] + "…")


def one_line(text: str, limit: int = LINE_LIMIT) -> str:
    """Return `text` as one printable line of at most `limit` characters: its lines are joined by ``; ``.

    For every text in an event, whoever wrote it. Bytes of a path that are no UTF-8 are spelt out.
    """
    if len(text) <= limit and is_visible(text):
        return text
    lines = (line.strip() for line in text[: 4 * limit].splitlines())
    spelt = "; ".join(line for line in lines if line).encode("utf-8", "backslashreplace").decode("utf-8")
    return printable(spelt, limit)
