"""Which guests are shown, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from qmpalloc.model import GuestState
from qmpalloc.tui.facts import GuestFacts

_KEYS: dict[str, Callable[[GuestFacts], float]] = {
    "configured": lambda _: 0.0,
    "trouble": lambda guest: guest.state is GuestState.FRESH and guest.fault is None,
    "page-ins": lambda guest: -(guest.page_ins_s or 0.0),
    "ratio": lambda guest: 2.0 if not guest.rate_known or guest.ratio[-1] is None else guest.ratio[-1],
    "size": lambda guest: -(guest.actual_bytes or 0),
}
ORDERS = tuple(_KEYS)
"""As configured; or first those in trouble, with most page-ins, with the worst hit ratio, the largest."""


def shown(guests: Iterable[GuestFacts], order: str, search: str) -> list[GuestFacts]:
    """Return the guests in whose name or state `search` is, in an order of `ORDERS`; what is equal stays as it was."""
    wanted = search.lower()
    return sorted((guest for guest in guests if wanted in f"{guest.name} {guest.state}".lower()), key=_KEYS[order])
