"""The start of a run: every monitor answers or counts as hung, and guests found above the budget settle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from qmpalloc.control.commitments import Commitments
from qmpalloc.control.guest import Guest, Link
from qmpalloc.control.restore import is_restored, want_baselines
from qmpalloc.model import GuestState

FIRST_CONTACT_S = 5.0
"""How long the run waits for all monitors to answer before it goes on without the rest, which then count as hung."""

SETTLE_MOST_S = 60.0
"""How long guests found above the budget may take to their baselines before decisions begin all the same."""

SETTLE_TICK_S = 0.5


async def wait_for_contact(guests: Sequence[Guest], stop: trio.Event, next_change: Callable[[], trio.Event]) -> None:
    """Wait until every monitor has answered in some way, within a limit, or the run is to end.

    Args:
        guests: All of the run.
        stop: Set when the run is to end.
        next_change: Returns what is set at the next change.
    """
    with trio.move_on_after(FIRST_CONTACT_S):
        while any(guest.link is Link.CONNECTING and not guest.detail for guest in guests):
            if stop.is_set():
                return
            await next_change().wait()
    for guest in guests:
        if guest.link is Link.CONNECTING and not guest.detail:
            # It may run, with all the memory it may have, and command_timeout may be long.
            guest.note_link(Link.HUNG, f"no answer yet after {FIRST_CONTACT_S:g} s")


async def settle(
    guests: Sequence[Guest],
    commitments: Commitments,
    stop: trio.Event,
    now_s: Callable[[], float],
    act: Callable[[], bool],
) -> None:
    """Bring guests to their baselines until they fit the budget, within a limit, or the run is to end.

    What a guest needs is not known until it has told, so one that may still do so is left as it is for that time.

    Args:
        guests: All of the run.
        commitments: What they may occupy.
        stop: Set when the run is to end.
        now_s: Tells the time.
        act: Carries out what is wanted; returns whether something cannot wait, so that decisions are to begin.
    """
    with trio.move_on_after(SETTLE_MOST_S):
        while not commitments.fit() and not stop.is_set():
            # Every time, as guests may appear meanwhile.
            warming = [guest for guest in guests if guest.state(now_s()) is GuestState.WARMING]
            want_baselines([guest for guest in guests if guest not in warming])
            if act() or (not warming and all(is_restored(guest) for guest in guests)):
                return  # what is left then belongs to guests that cannot be measured
            with trio.move_on_after(SETTLE_TICK_S):
                await stop.wait()
