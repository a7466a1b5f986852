"""Text from outside, made fit to show."""

from __future__ import annotations

DEFAULT_LIMIT = 200


def printable(text: str, limit: int = DEFAULT_LIMIT) -> str:
    """Return `text` with everything that is not visible replaced by ``?``, cut to `limit` characters.

    For text that a guest or another peer chose: terminal escapes, other control characters, line breaks, direction
    marks and lone surrogates cannot pass. A cut text ends in ``…``.
    """
    kept = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(char if char.isprintable() else "?" for char in kept)
