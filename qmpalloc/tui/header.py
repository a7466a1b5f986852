"""The top of the screen: what runs, who has the budget, whether control is in hand; and the keys at the bottom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from qmpalloc.model import GuestState
from qmpalloc.tui import palette
from qmpalloc.tui.bars import share_bar
from qmpalloc.tui.dashboard import Dashboard
from qmpalloc.tui.order import ORDERS
from qmpalloc.tui.text import age, clean, fit_line, number, percent, run_time, size, spread
from qmpalloc.tui.ui import Ui
from qmpalloc.units import MIB

STUCK_INTERVALS = 3
STUCK_MIN_S = 10.0
FAULT_SHOWN_S = 60.0

_CONTROL_STYLE = {"running": palette.GOOD, "watching": palette.GOOD, "stopped": palette.BAD}
_NOTICES = {
    "settling": "SETTLING: nothing is decided yet",
    "paused": "PAUSED: no decision is carried out",
    "returning": "RETURNING every guest to its baseline",
}
_MODES = {"run": "run", "watch": "watch (changes nothing)", "dry-run": "dry run (changes nothing)"}


def header(dashboard: Dashboard, ui: Ui, now_t: float, width: int) -> list[Text]:
    """Return three lines: title, budget divided among the guests, and the numbers of the run; above help the first."""
    title = _title(dashboard, ui, now_t, width)
    return [title] if ui.help else [title, _budget(dashboard, width), _numbers(dashboard, now_t, width)]


def _title(dashboard: Dashboard, ui: Ui, now_t: float, width: int) -> Text:
    left = Text.assemble((" qmpalloc ", "bold reverse"), " ")
    if dashboard.header is None:
        left.append("waiting for the first event", palette.FAINT)
    else:
        left.append(_MODES[dashboard.header.mode], "bold")
        left.append(" · ", palette.LABEL).append(clean(dashboard.header.policy), "bold")
        settings = _settings(dashboard.header.policy_settings)
        left.append(f" {settings}" if settings else "", palette.LABEL)
    control = "ended" if dashboard.ended else dashboard.control or "starting"
    right = Text.assemble(
        (f"{ui.replay}  " if ui.replay else "", palette.NOTICE),
        (control.upper(), _CONTROL_STYLE.get(control, palette.WARN)),
        f"  {run_time(now_t)} ",
    )
    return spread(left, right, width)


def _settings(settings: dict[str, Any]) -> str:
    """Return settings in short; whole numbers of a mebibyte and more can only be sizes."""
    shown = []
    for name, value in settings.items():
        is_size = isinstance(value, int) and not isinstance(value, bool) and value >= MIB
        shown.append(f"{name} {size(value) if is_size else number(value) if isinstance(value, float) else value}")
    return clean(", ".join(shown))


def _budget(dashboard: Dashboard, width: int) -> Text:
    """Return the budget as one bar, divided among the guests; above it, by how much."""
    total = dashboard.header.budget_bytes if dashboard.header else 0
    shares = [(f"{guest.name} {size(guest.charged_bytes)}", guest.charged_bytes) for guest in dashboard.guests.values()]
    used = sum(amount for _, amount in shares)
    doubt = (dashboard.committed_bytes or 0) - used
    if doubt > 0 and any(guest.state is GuestState.HUNG for guest in dashboard.guests.values()):
        shares.append((f"in-doubt {size(doubt)}", doubt))
        used += doubt
    label, style, rest = f" budget {size(total or None)} ", "bold", f"free {size(total - used)}"
    if dashboard.committed_bytes is None:
        shares, rest = [], "sizes not known yet"
    elif used > total:
        label, style = f" budget {size(total)}, OVER BY {size(used - total)} ", palette.BAD
    return Text.assemble((label, style), share_bar(width - len(label) - 1, total, shares, rest), "▕")


def _numbers(dashboard: Dashboard, now_t: float, width: int) -> Text:
    total = dashboard.header.budget_bytes if dashboard.header else 0
    summary = dashboard.summarizer.summary
    committed = dashboard.committed_bytes
    part = "" if committed is None or not total else f" = {percent(committed / total)}"
    states = Counter(guest.state for guest in dashboard.guests.values())
    right = Text()
    for state in GuestState:
        if states[state]:
            right.append(f"{states[state]} {state} ", palette.STATES[state])
    text, room = Text(" "), width - right.cell_len - 1
    decided = "" if dashboard.decided_t is None else f", {age(now_t - dashboard.decided_t)} ago"
    for label, value, rest in (
        ("committed ", f"{size(committed)}{part}", ""),
        ("  most ", size(None if committed is None else max(summary.max_committed_bytes, committed)), ""),
        ("  moves ", str(summary.moves), ""),
        ("  decision ", str(dashboard.cycle), decided),
    ):
        figure = Text.assemble((label, palette.LABEL), value, (rest, palette.LABEL))
        if text.cell_len + figure.cell_len > room:
            break
        text.append_text(figure)
    return spread(text, right, width)


def banner(dashboard: Dashboard, now_t: float, width: int) -> list[Text]:
    """Return the lines that say that control is not in hand, the gravest first; none when all is well."""
    lines = [(text, palette.ALERT) for text in _alarms(dashboard, now_t)]
    if dashboard.ended:
        if dashboard.ended.clean:
            lines = [(f"ENDED: {clean(dashboard.ended.reason)}", palette.NOTICE)]
    elif dashboard.control in _NOTICES:
        detail = f" ({dashboard.control_detail})" if dashboard.control_detail else ""
        lines.append((f"{_NOTICES[dashboard.control]}{detail}", palette.NOTICE))
    return [fit_line(Text(f" {text}", style), width) for text, style in lines]


def _alarms(dashboard: Dashboard, now_t: float) -> list[str]:
    alarms = []
    if dashboard.ended:
        if not dashboard.ended.clean:
            alarms.append(f"ENDED, NOT CLEAN: {clean(dashboard.ended.reason)}. Guests may not be at their baseline.")
    elif dashboard.control == "stopped":
        alarms.append(f"CONTROL STOPPED: {dashboard.control_detail or 'no memory is moved any more'}")
    elif _decides(dashboard) and dashboard.header:
        since = now_t - max(dashboard.decided_t or 0.0, dashboard.control_t)
        if since > max(STUCK_INTERVALS * dashboard.header.interval_s, STUCK_MIN_S):
            alarms.append(f"NO DECISION for {age(since)}: control may be lost, guests keep their sizes")
    fault = dashboard.fault
    if fault is not None and (dashboard.ended or now_t - fault.t < FAULT_SHOWN_S):
        alarms.append(f"FAULT {fault.text}" + (f"  hint: {fault.hint}" if fault.hint else ""))
    return alarms


def _decides(dashboard: Dashboard) -> bool:
    """Tell whether decisions are due: also while paused, when they say so, and in a dry run."""
    dry_run = dashboard.header is not None and dashboard.header.mode == "dry-run"
    return dashboard.control in ("running", "paused") or (dry_run and dashboard.control == "watching")


def footer(ui: Ui, keys: Sequence[tuple[str, str]], width: int) -> Text:
    """Return the keys, as many as fit, or the question that waits for an answer."""
    if ui.confirming:
        question = " Return every guest to its baseline? This undoes the tuning.  y yes, else no "
        return fit_line(Text(question, palette.NOTICE), width)
    if ui.searching:
        text = Text.assemble((f" show: {ui.search}▏", "bold"), ("  Enter keeps it, Escape shows all", palette.LABEL))
        return fit_line(text, width)
    if not ui.keyboard:
        return fit_line(Text(" no keyboard: Ctrl-C quits", palette.LABEL), width)
    text = Text(" ")
    for key, meaning in keys:
        if text.cell_len + len(key) + len(meaning) + 5 <= width:
            text.append(f" {key} ", "reverse").append(f" {meaning}  ", palette.LABEL)
    return fit_line(text, width)


def keys(dashboard: Dashboard, ui: Ui, *, scrolls: bool, curve: bool) -> list[tuple[str, str]]:
    """Return the keys that do something now with a word on each, the ones needed most first.

    Args:
        dashboard: What is known of the run.
        ui: State of the view.
        scrolls: Some guests are hidden.
        curve: There is a curve to show.
    """
    found = [("q", "quitting" if ui.quitting else "quit"), ("?", "help")]
    live = dashboard.header is not None and dashboard.header.mode == "run" and not (dashboard.ended or ui.only_quit)
    if live and ui.quitting and not ui.replay:
        found.append(("Ctrl-C", "do not wait for the guests"))
    elif live or ui.replay:
        found.append(("p", "resume" if dashboard.control == "paused" else "pause"))
        found += [("b", "baseline")] if not ui.replay else []
    found.append(("↑↓", "select"))
    if scrolls or ui.search or ui.order != ORDERS[0]:
        found += [("s", "sort"), ("/", "find")]
    found += [("c", "small curve" if ui.large_curve else "large curve")] if curve else []
    return [*found, ("r", "reload")] if live and ui.reloads and not ui.quitting and not ui.replay else found
