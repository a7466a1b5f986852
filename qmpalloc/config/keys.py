"""What the keys of TOML tables can be: kinds of values with their bounds, and rules that several tables share.

A struct declares a table: its fields are the keys, with type, bounds, default, and what its docstring says of each.
From that follow the reading (`qmpalloc.config.convert`) and the JSON Schema. What has to hold between the keys of one
table its method ``mistakes()`` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta

from qmpalloc.text import is_visible
from qmpalloc.units import PAGE_BYTES, align_down, align_up, format_size

Mistake = tuple[str, str, str]
"""Key below the table, message and hint."""

Found = Iterator[Mistake]

MAX_SOCKET_PATH_BYTES = 107  # sun_path of a Unix socket is 108 bytes with its closing zero

FLAT = Meta(extra={"flat": True})
"""Marks a field that is no key: it takes all that the other keys of its table leave."""


class Size(int):
    """Bytes; written with a unit in TOML (``"1GiB"``)."""

    __slots__ = ()


class Duration(float):
    """Seconds; written with a unit in TOML (``"2s"``)."""

    __slots__ = ()


def bounds(hint: str = "", **limits: Any) -> Meta:
    """Return the bounds of a key, as `msgspec.Meta` has them, with a hint for who exceeds them."""
    return Meta(**limits, extra={"hint": hint})


def pattern(title: str, expression: str, hint: str) -> Meta:
    """Return that a key's text matches the whole of an expression; `title` says what it is then, ``a name``."""
    return bounds(hint, title=title, pattern=rf"^(?:{expression})$(?!\n)")


NAME = r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,32}"
NAME_HINT = "use letters, digits, '-', '_' and '.', at most 32 characters"
Name = Annotated[str, pattern("a name", NAME, NAME_HINT)]
NameOrNone = Annotated[str, pattern("a name", f"({NAME})?", NAME_HINT)]
"""Empty: one that is given later."""

PACKAGE = r"[a-z0-9][a-z0-9+.-]+"
"""A Debian package's name (Debian Policy, 5.6.1)."""

Package = Annotated[str, pattern("the name of a Debian package", PACKAGE, 'names, as apt knows them: ["postgresql"]')]
GuestPath = Annotated[
    str, pattern("an absolute path inside the guest", r"/[^\0]*", 'for example "/run/qmpalloc/counters.json"')
]
Weight = Annotated[float, bounds("1.0 is the weight of a guest that has none given", gt=0)]


def command_mistakes(key: str, argv: str | tuple[str, ...], example: str) -> Found:
    """Yield a mistake if a command cannot be run."""
    if not argv or not argv[0]:
        yield key, "is no command", example


def file_name_mistakes(key: str, name: str) -> Found:
    """Yield a mistake if no file of a data disk can have a name."""
    if "/" in name or not is_visible(name) or name in {"", ".", "..", "lost+found"}:
        yield key, f"{name!r} is not a file name", "files lie directly in /data of the guest"


def baseline_mistakes(key: str, floor: int, baseline: int, cap: int) -> Found:
    """Yield a mistake if a baseline is not between floor and cap."""
    if not floor <= baseline <= cap:
        hint = f"choose one from {format_size(floor)} to {format_size(cap)}"
        yield key, f"{format_size(baseline)} is not between floor and cap", hint


def size_mistakes(floor: int, baseline: int, cap: int, memory: int | None, memory_key: str) -> Found:
    """Yield what cannot be of the sizes of a guest, in bytes; `memory` is None where it is not known."""
    if floor <= 0:
        yield "floor", "must be above 0", "a guest without memory dies"
    if floor > cap:
        yield "floor", f"{format_size(floor)} is above the cap of {format_size(cap)}", "lower floor, raise cap"
    elif align_up(floor) > align_down(cap):
        yield "floor", f"no whole page of {PAGE_BYTES} bytes lies between floor and cap", "write both in whole MiB"
    else:
        yield from baseline_mistakes("baseline", floor, baseline, cap)
    if memory is not None and cap > memory:
        message = f"{format_size(cap)} is above the guest's memory of {format_size(memory)}"
        yield "cap", message, f"raise {memory_key}"
