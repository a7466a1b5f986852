"""Parts of a guest that both of its views show: state, rates, bar, sizes, and why its target is what it is."""

from __future__ import annotations

from rich.text import Text

from qmpalloc.model import GuestState, Limiter
from qmpalloc.tui import palette
from qmpalloc.tui.bars import memory_bar
from qmpalloc.tui.facts import GuestFacts
from qmpalloc.tui.scale import Scale
from qmpalloc.tui.text import age, fit, number, percent, signed_size, size


def name(guest: GuestFacts, scale: Scale, *, selected: bool) -> Text:
    """Return the mark of the selection and the name."""
    return Text.assemble(("▌" if selected else " ", "bold"), (fit(guest.name, scale.name_width), palette.TITLE))


def state(guest: GuestFacts, width: int) -> Text:
    """Return the state as a word."""
    return Text(guest.state.upper()[:width].ljust(width), palette.STATES[guest.state])


def sample_age(guest: GuestFacts, scale: Scale, width: int = 4) -> Text:
    """Return how long ago the last good sample came."""
    seconds = None if guest.sample_t is None else scale.now_t - guest.sample_t
    style = "" if guest.state is GuestState.FRESH else palette.STATES[guest.state]
    return Text(age(seconds).rjust(width), style)


def rates(guest: GuestFacts) -> tuple[str, str, str]:
    """Return hits/s, misses/s and the hit ratio of the last sample; unknown once the guest is not heard of.

    ``~`` is before hits that are estimated, not counted.
    """
    if not guest.rate_known:
        return number(None), number(None), percent(None)
    estimated = "~" if guest.delta and guest.delta.accesses_error else ""
    return estimated + number(guest.hits_s[-1]), number(guest.misses_s[-1]), percent(guest.ratio[-1])


def page_ins(guest: GuestFacts) -> str:
    """Return the page-ins per second of the last sample, of all causes; unknown as `rates`."""
    return number(guest.page_ins_s)


def cause(guest: GuestFacts, pages: int | None) -> str:
    """Return by the second what one cause brought in, of the last sample."""
    delta = guest.delta if guest.rate_known else None
    return number(None if delta is None or pages is None else pages / delta.interval_s)


def bar(guest: GuestFacts, scale: Scale, width: int) -> Text:
    """Return the memory bar; an empty room when no size is known."""
    actual = guest.actual_bytes or 0
    target = actual if guest.target_bytes is None else guest.target_bytes
    return memory_bar(
        width,
        scale.size_bytes,
        floor_bytes=guest.floor_bytes,
        actual_bytes=actual,
        target_bytes=target,
        cap_bytes=guest.cap_bytes,
    )


def sizes(guest: GuestFacts) -> Text:
    """Return ``actual → target``, or ``actual = target`` once it is reached; 14 cells."""
    actual, target = guest.actual_bytes, guest.target_bytes
    text = Text(size(actual).rjust(5), "bold")
    if actual is None or target is None:
        return text.append(" " * 9)
    if actual == target:
        return text.append(" = target", palette.FAINT)
    style = palette.GROWS if target > actual else palette.SHRINKS
    return text.append(f" → {size(target):6}", style)


def change(guest: GuestFacts, width: int = 8) -> Text:
    """Return what the last decision did to the target: ``▲ +95.4M``, ``▼ -95.4M``, or ``holds``."""
    if guest.decision is None:
        return Text(" " * width)
    if guest.change_bytes == 0:
        return Text(fit("holds", width), palette.FAINT)
    return arrow(guest).append(fit(f" {signed_size(guest.change_bytes)}", width - 1))


def arrow(guest: GuestFacts) -> Text:
    """Return the direction of the last decision as one cell."""
    if guest.decision is None or guest.change_bytes == 0:
        return Text(" ")
    return Text("▲", palette.GROWS) if guest.change_bytes > 0 else Text("▼", palette.SHRINKS)


def why(guest: GuestFacts) -> Text:
    """Return why the target is what it is: what limits it and the reason; first of all what is wrong with the guest."""
    text = Text()
    if guest.state is not GuestState.FRESH and guest.detail:
        text.append(guest.detail, palette.STATES[guest.state])
    if guest.decision is None:
        return text or (Text(guest.reason) if guest.reason else Text("no decision yet", palette.FAINT))
    limiter = guest.decision.limiter
    if text and limiter is Limiter.STATE:
        return text
    if text:
        text.append(" · ", palette.FAINT)
    elif limiter is not Limiter.NONE and not guest.reason.lower().startswith(limiter):
        text.append(f"{limiter}: ", "bold" if limiter is Limiter.POLICY else palette.WARN)
    return text.append(guest.reason)


def trouble(guest: GuestFacts) -> list[Text]:
    """Return the guest's last fault and its hint, while it has not been fresh since; empty when there is none."""
    if guest.fault is None:
        return []
    lines = [Text(f"! {guest.fault.text}", palette.BAD)]
    if guest.fault.hint:
        lines.append(Text(f"hint: {guest.fault.hint}", palette.WARN))
    return lines
