"""A report as Markdown (GitHub's, for its tables)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from qmpalloc.experiment.report.document import Block, Bullets, Contents, Heading, Paragraph, Picture, Table

SPECIAL = re.compile(r"[\\`*_{}\[\]<>|#&~]")
OPENING = re.compile(r"^(\d*)([-+=.)])")
"""What makes a list or a rule of a line that begins so."""


def markdown(blocks: Iterable[Block]) -> str:
    """Return the text of a file."""
    known = list(blocks)
    return "\n\n".join(_block(block, known) for block in known) + "\n"


def escaped(text: str) -> str:
    """Return text in which nothing is markup, on one line."""
    return SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def _line(text: str) -> str:
    return OPENING.sub(r"\1\\\2", escaped(text))


def anchor(text: str) -> str:
    """Return the name by which GitHub links to a heading."""
    return re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-")


def _block(block: Block, blocks: Sequence[Block]) -> str:
    match block:
        case Heading(text=text, level=level):
            return f"{'#' * level} {_line(text)}"
        case Contents():
            titles = [each.text for each in blocks if isinstance(each, Heading) and each.level == 2]
            return " · ".join(f"[{escaped(title)}](#{anchor(title)})" for title in titles)
        case Paragraph(text=text, strong=strong):
            return f"**{escaped(text)}**" if strong else _line(text)
        case Bullets(items=items):
            return "\n".join(f"- {_line(item)}" for item in items)
        case Picture(file=file, title=title, caption=caption):
            return f"![{escaped(title)}]({file})\n\n*{escaped(title)}.* {escaped(caption)}"
        case Table(caption=caption, columns=columns, rows=rows, numbers=numbers):
            rule = "---:" if numbers else "---"
            lines = [_row(columns), _row(("---", *(rule for _ in columns[1:])), raw=True)]
            return f"{_line(caption)}\n\n" * bool(caption) + "\n".join([*lines, *(_row(row) for row in rows)])


def _row(cells: Iterable[str], *, raw: bool = False) -> str:
    return "| " + " | ".join(cell if raw else escaped(cell) for cell in cells) + " |"
