"""The last decisions, and what else happened: faults with their hints, changes of state, refused samples."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qmpalloc.tui import palette
from qmpalloc.tui.dashboard import Dashboard
from qmpalloc.tui.facts import LogEntry
from qmpalloc.tui.text import fit_line, run_time

SIDE_BY_SIDE_MIN_WIDTH = 120
ROOMY_LINES = 6

_STYLES = {
    "decision": ("", ""),
    "fault": ("! ", palette.BAD),
    "rejected": ("? ", palette.WARN),
    "state": ("", ""),
    "command": ("", ""),
    "control": ("", "bold"),
    "end": ("", "bold"),
}


def log(dashboard: Dashboard, width: int, height: int) -> list[Text]:
    """Return `height` lines, newest entries first; decisions and events side by side where the width allows."""
    if height <= 0:
        return []
    if width >= SIDE_BY_SIDE_MIN_WIDTH:
        left = width * 7 // 16
        right = width - left - 2
        decisions = _pane("last decisions", reversed(dashboard.decisions), left, height)
        events = _pane("faults and changes", reversed(dashboard.log), right, height)
        return [Text.assemble(one, "  ", other) for one, other in zip(decisions, events, strict=True)]
    return _pane("last decisions, faults and changes", _mixed(dashboard, height - 1), width, height)


def _mixed(dashboard: Dashboard, count: int) -> list[LogEntry]:
    """Return the newest entries of both kinds, newest first, so that decisions do not push faults off the screen."""
    events = list(dashboard.log)[-max(count - min(len(dashboard.decisions), count // 2), 0) :] if count > 0 else []
    decisions = list(dashboard.decisions)[-(count - len(events)) :] if count > len(events) else []
    return sorted([*decisions, *events], key=lambda entry: -entry.t)


def _pane(title: str, entries: Iterable[LogEntry], width: int, height: int) -> list[Text]:
    lines = [rule(title, width)]
    for entry in entries:
        # In few lines a hint must not push the last decision out.
        for line in _entry(entry, width)[: 2 if height >= ROOMY_LINES else 1]:
            if len(lines) < height:
                lines.append(line)
    return lines + [Text(" " * width)] * (height - len(lines))


def _entry(entry: LogEntry, width: int) -> list[Text]:
    """Return an entry as one line, or as two when its hint does not fit on the first."""
    mark, style = _STYLES[entry.kind]
    text = Text.assemble(
        (f" {run_time(entry.t):>6}  ", palette.LABEL),
        (mark, style),
        (f"{entry.guest}: " if entry.guest else "", "bold"),
        (entry.text, style),
        (f"  x{entry.count}" if entry.count > 1 else "", palette.LABEL),
    )
    if not entry.hint:
        return [fit_line(text, width)]
    label = "hint: " if entry.kind == "fault" else ""
    hint = Text(f"{label}{entry.hint}", palette.WARN if label else palette.LABEL)
    if text.cell_len + 2 + hint.cell_len <= width:
        return [fit_line(text.append("  ").append_text(hint), width)]
    return [fit_line(text, width), fit_line(Text.assemble(" " * 11, hint), width)]


def rule(title: str, width: int, right: Text | None = None) -> Text:
    """Return a dividing line that carries a title, and something at its right end."""
    right = right or Text()
    line = Text.assemble(("─ ", palette.FAINT), (title, "bold"), " ")
    room = width - line.cell_len - right.cell_len
    if room < 0:
        return fit_line(line, width)
    return fit_line(line.append("─" * room, palette.FAINT).append_text(right), width)
