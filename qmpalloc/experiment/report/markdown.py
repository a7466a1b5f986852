"""The parts of a report as Markdown (GitHub's, for its tables). All text put in is plain: it is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

SPECIAL = re.compile(r"[\\`*_{}\[\]<>|#&~$]")
OPENING = re.compile(r"^(\d*)([-+=.)])")
"""What makes a list or a rule of a line that begins so."""

CONTENTS = "[contents]"
"""Stands in a report where the headings of level 2 are listed, as links."""


def document(parts: Iterable[str]) -> str:
    """Return the text of a file."""
    known = list(parts)
    titles = [part.removeprefix("## ") for part in known if part.startswith("## ")]
    links = " · ".join(f"[{title}](#{anchor(title)})" for title in titles)
    return "\n\n".join(links if part is CONTENTS else part for part in known) + "\n"


def heading(text: str, level: int = 2) -> str:
    """Return a heading; level 1 is the title."""
    return f"{'#' * level} {_line(text)}"


def paragraph(text: str, *, strong: bool = False) -> str:
    """Return running text. `strong` is for what a reader must not miss."""
    return f"**{escaped(text)}**" if strong else _line(text)


def bullets(items: Iterable[str]) -> str:
    """Return a list."""
    return "\n".join(f"- {_line(item)}" for item in items)


def picture(file: str, title: str, caption: str) -> str:
    """Return a figure: its SVG relative to the report, what it shows, and how to read it."""
    return f"![{escaped(title)}]({file})\n\n*{escaped(title)}.* {escaped(caption)}"


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """Return a table.

    Args:
        caption: What it shows; empty where its heading says so.
        columns: Headings.
        rows: Cells, as many as there are columns.
        numbers: Whether all columns but the first hold numbers, which are aligned to the right.
    """
    rules = ["---", *(["---:" if numbers else "---"] * (len(columns) - 1))]
    lines = [[escaped(cell) for cell in row] for row in (columns, *rows)]
    lines.insert(1, rules)
    return f"{_line(caption)}\n\n" * bool(caption) + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escaped(text: str) -> str:
    """Return text in which nothing is markup, on one line."""
    return SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def anchor(text: str) -> str:
    """Return the name by which GitHub links to a heading."""
    return re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-")


def _line(text: str) -> str:
    return OPENING.sub(r"\1\\\2", escaped(text))
