"""The end of a run: guests go back to their baselines, with their sessions or, should those have failed, without."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from qmpalloc.config import ControlConfig
from qmpalloc.control.guest import Guest, Link
from qmpalloc.control.journal import Journal
from qmpalloc.control.session import send_once
from qmpalloc.errors import QmpallocError
from qmpalloc.rules.balloon_progress import PROGRESS_BYTES
from qmpalloc.rules.progress_deadline import ProgressDeadline
from qmpalloc.units import format_size


def is_restored(guest: Guest) -> bool:
    """Tell whether nothing is left to do for a guest at the end."""
    if guest.size.settled and missing_bytes(guest) < PROGRESS_BYTES:
        return True  # what it needs, by which a baseline can rise, changes by some pages every second
    if guest.link is Link.UP and guest.paused and not guest.migrating and guest.size.commanded:
        # It cannot move while it does not run. QEMU has its target, and it goes there by itself when it does.
        return guest.size.target_bytes == guest.memory.baseline_bytes and not guest.size.doubt_bytes
    # What cannot be reached cannot be moved; it is a mess left behind only if we moved it.
    reachable = guest.link is Link.UP and not guest.migrating and not guest.paused
    return not reachable and not guest.size.commanded


def want_baselines(guests: Sequence[Guest]) -> None:
    """Want every guest whose size is known at its baseline; one that does not run is left as it was found."""
    for guest in guests:
        if guest.size.target_bytes and (guest.size.commanded or not guest.paused):
            there = is_restored(guest)
            guest.size.desired_bytes = guest.size.target_bytes if there else guest.memory.baseline_bytes


def missing_bytes(guest: Guest) -> int:
    """Return how far a guest is from its baseline."""
    return abs(guest.memory.baseline_bytes - guest.size.actual_bytes)


async def restore_baselines(
    guests: Sequence[Guest],
    control: ControlConfig,
    journal: Journal,
    *,
    serving: Callable[[], bool],
    on_change: Callable[[], None],
) -> None:
    """Bring guests to their baselines; returns when all are there, or none has come closer for ``exit_timeout``.

    Args:
        guests: To restore.
        control: For its times.
        journal: For what goes wrong.
        serving: Whether the sessions still run.
        on_change: Called when something is to be sent.
    """
    for guest in guests:
        guest.progress.forgive()
    deadline = ProgressDeadline(float(control.exit_timeout), journal.now_s())
    while serving() and not all(is_restored(guest) for guest in guests):
        if deadline.passed(sum(missing_bytes(guest) for guest in guests if not is_restored(guest)), journal.now_s()):
            return
        want_baselines(guests)
        on_change()
        await trio.sleep(float(control.balloon_poll))
    if not serving():
        with trio.move_on_after(float(control.exit_timeout)):
            await _without_sessions(guests, journal, float(control.command_timeout))


async def _without_sessions(guests: Sequence[Guest], journal: Journal, timeout_s: float) -> None:
    """Send the baselines although the sessions have failed: those that shrink first."""
    for guest in sorted(guests, key=lambda guest: guest.memory.baseline_bytes - guest.size.actual_bytes):
        if not guest.size.commanded or guest.link is Link.GONE or guest.migrating:
            continue
        try:
            await send_once(guest, guest.memory.baseline_bytes, timeout_s)
        except QmpallocError as error:
            journal.fault(guest.name, "exit", error.message, error.hint)
        else:
            guest.size.target_bytes = guest.size.actual_bytes = guest.memory.baseline_bytes
            guest.size.confirmed()


def report_unrestored(guests: Sequence[Guest], journal: Journal) -> bool:
    """Report the guests that are not back at their baselines; return whether there are any."""
    away = [guest for guest in guests if not is_restored(guest)]
    if away:
        where = [
            f"{guest.name} at {format_size(guest.size.actual_bytes)} of {format_size(guest.memory.baseline_bytes)}"
            for guest in away
        ]
        hint = (
            "one that has its target goes on by itself; else run again, or use QEMU's balloon command or requested-size"
        )
        journal.fault(None, "exit", f"not back at baseline: {', '.join(where)}", hint)
    return bool(away)
