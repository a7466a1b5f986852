"""Show a run that another process controls: its events as they come, under the dashboard or as lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator, Callable
from functools import partial

import click
import trio

from qmpalloc.cli.signals import StopSignals
from qmpalloc.events import AnyEvent
from qmpalloc.tui import Dashboard, OnlyQuit, run_tui

SUSPENDED = "qmpalloc is suspended here; the run it shows goes on. Bring it back with fg.\n"

PAINT_HZ = 1.0
"""Guests are heard of no more often, and a frame costs more than a cycle of control; there may be many onlookers."""


async def look_on(
    events: Callable[[], AsyncGenerator[AnyEvent]], line: Callable[[AnyEvent], str | None] | None
) -> bool:
    """Show a run until it ends, or the person quits; return True when a signal ended it.

    Args:
        events: Of the run, as they come.
        line: Returns what is printed of an event, if anything is; None: the dashboard is shown instead, of which the
            last picture stays until the person quits.

    Raises:
        QmpallocError: What `events` raises.
    """
    dashboard, done = Dashboard(), trio.Event()
    interrupted = False

    async def heed_signals() -> None:
        nonlocal interrupted
        await anext(signals.received)
        interrupted = True
        done.set()

    async def follow() -> None:
        async with contextlib.aclosing(events()) as coming:
            async for event in coming:
                await trio.lowlevel.checkpoint()  # of a long record more is there than can be shown at once
                if line is None:
                    dashboard.apply(event)
                elif (text := line(event)) is not None:
                    click.echo(text)
                    sys.stdout.flush()
        if line is not None:
            done.set()

    with StopSignals() as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heed_signals)
            nursery.start_soon(follow)
            if line is None:
                controls = OnlyQuit(done.set)
                show = partial(run_tui, dashboard, controls=controls, refresh_hz=PAINT_HZ, suspended=SUSPENDED)
                await nursery.start(show)
            await done.wait()
            nursery.cancel_scope.cancel()
    return interrupted
