"""Colours, in one place. They repeat what words and glyphs already say, for terminals and people without colour."""

from __future__ import annotations

from qmpalloc.model import GuestState

LABEL = "bright_black"
FAINT = "bright_black"
TITLE = "bold"
FLOOR = "blue"
ACTUAL = "cyan"
GROWS = "green"
SHRINKS = "yellow"
HITS = "green"
MISSES = "yellow"
GOOD = "green"
WARN = "bold yellow"
BAD = "bold red"
ALERT = "bold reverse red"
NOTICE = "bold reverse yellow"
SHARES = ("white on color(24)", "white on color(238)")

STATES = {
    GuestState.CONNECTING: "blue",
    GuestState.WARMING: "blue",
    GuestState.FRESH: GOOD,
    GuestState.LATE: WARN,
    GuestState.LOST: BAD,
    GuestState.PAUSED: "bold magenta",
    GuestState.HELD: "magenta",
    GuestState.HUNG: BAD,
    GuestState.GONE: "red",
}
