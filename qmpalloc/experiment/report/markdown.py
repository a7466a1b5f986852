"""A report as Markdown (GitHub's, for its tables)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qmpalloc.experiment.report.document import Block, Bullets, Heading, Paragraph, Picture, Table

SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#&~])")


def markdown(blocks: Iterable[Block]) -> str:
    """Return the text of a file."""
    return "\n\n".join(_block(block) for block in blocks) + "\n"


def escaped(text: str) -> str:
    """Return text in which nothing is markup, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _block(block: Block) -> str:
    match block:
        case Heading(text=text, level=level):
            return f"{'#' * level} {escaped(text)}"
        case Paragraph(text=text, strong=strong):
            return f"**{escaped(text)}**" if strong else escaped(text)
        case Bullets(items=items):
            return "\n".join(f"- {escaped(item)}" for item in items)
        case Picture(file=file, title=title, caption=caption):
            return f"![{escaped(title)}]({file})\n\n{escaped(title)}. {escaped(caption)}"
        case Table(caption=caption, columns=columns, rows=rows, numbers=numbers):
            rule = "---:" if numbers else "---"
            lines = [_row(columns), _row(("---", *(rule for _ in columns[1:])), raw=True)]
            return f"{escaped(caption)}\n\n" + "\n".join([*lines, *(_row(row) for row in rows)])


def _row(cells: Iterable[str], *, raw: bool = False) -> str:
    return "| " + " | ".join(cell if raw else escaped(cell) for cell in cells) + " |"
