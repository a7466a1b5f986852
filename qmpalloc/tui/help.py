"""The page that explains every column and key, and what is told of a guest's inside."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from qmpalloc.tui import palette, row
from qmpalloc.tui.log import rule
from qmpalloc.tui.text import fit_line

_KEYS = {
    "q": "quit",
    "?": "this page and back; ↑↓ scrolls",
    "p": "pause or resume",
    "b": "every guest to its baseline",
    "r": "read the configuration again",
    "c": "its curve, large or small",
    "↑↓": "select; PgUp PgDn Home End too",
    "s": "sort by what is next",
    "/": "find in names and states",
}


INSIDE = {
    "file cache": "pages of files in memory",
    "anon": "memory of programs that is no file's",
    "free": "memory that nobody uses",
    "active": "active file: of the cache, what the kernel takes for in use",
    "fixed": "what it cannot give up",
    "idle": "idle 1 min: not touched for a minute",
    "swap": "how much of its swap is used",
    "virtio-mem": "memory beside its size, which is not moved",
    "faults": "page-ins for faults of mapped files",
    "swap-ins": "page-ins from swap",
    "zram": "of these, the ones for which no disk is read",
    "disk": "what QEMU read from its disks",
    "psi": "share of 10 s in which some program waited for memory",
    "refaults": "pages read that had been thrown out",
    "evictions": "pages thrown out",
    "oom": "processes killed for lack of memory",
    "collector": "memory and CPU that the counting takes",
    "lost": "events that were not counted; also: intervals missed",
    "refused": "samples that were not used",
    "lru": "page replacement of its kernel",
    "kernel": "its release",
}
"""First words of what `qmpalloc.tui.inside` tells, and what they mean."""


def page(keys: Sequence[tuple[str, str]], width: int, height: int, top: int) -> list[Text]:
    """Return the page in `height` lines of `width` cells.

    Args:
        keys: Those that do something now, with their short meanings.
        width: Of the screen.
        height: What is left of it.
        top: Lines that are scrolled away, as far as there are more.
    """
    lines = [rule("columns", width)]
    lines += [_line(title, meaning, width) for title, meaning in row.MEANINGS]
    lines.append(rule("keys", width))
    said = [_line(key, _KEYS.get(key, short), width // 2) for key, short in keys]
    lines += [fit_line(Text.assemble(*said[at : at + 2]), width) for at in range(0, len(said), 2)]
    lines.append(rule("inside of a guest", width))
    lines += [_line(word, meaning, width, 11) for word, meaning in INSIDE.items()]
    if len(lines) > height:
        top = min(top, len(lines) - height + 1)
        lines = [rule("help", width, Text(" ↑↓ more ")), *lines[top:]]
    return [*lines, *[Text(" " * width)] * (height - len(lines))][:height]


def _line(title: str, meaning: str, width: int, cells: int = 7) -> Text:
    return fit_line(Text.assemble((f"  {title:<{cells}}", "bold"), (meaning, palette.LABEL)), width)
