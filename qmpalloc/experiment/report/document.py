"""A report as a sequence of blocks, independent of how it is written. All text in it is plain: writers escape it."""

from __future__ import annotations

from msgspec import Struct


class Heading(Struct, frozen=True):
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


class Contents(Struct, frozen=True):
    """Stands where the headings of level 2 are listed in a line, as links."""


class Paragraph(Struct, frozen=True):
    """Running text. `strong` is for what a reader must not miss."""

    text: str
    strong: bool = False


class Bullets(Struct, frozen=True):
    """A list."""

    items: tuple[str, ...]


class Table(Struct, frozen=True):
    """A table.

    Attributes:
        caption: What it shows; empty where its heading says so.
        columns: Headings.
        rows: Cells, as many as there are columns.
        numbers: Whether all columns but the first hold numbers, which are aligned to the right.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: bool = True


class Picture(Struct, frozen=True):
    """A figure.

    Attributes:
        file: Its SVG, relative to the report.
        title: What it shows.
        caption: How to read it.
    """

    file: str
    title: str
    caption: str


Block = Heading | Contents | Paragraph | Bullets | Table | Picture
