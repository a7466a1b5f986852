"""``qmpalloc replay``: a recorded run through the dashboard, as log lines, or as a picture."""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmpalloc.cli import EXIT_INTERRUPTED
from qmpalloc.cli.signals import StopSignals
from qmpalloc.cli.streams import print_json

if TYPE_CHECKING:
    from qmpalloc.events import AnyEvent
    from qmpalloc.tui import Dashboard


LEAST_SIZE = 30, 8


def _screen_size(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", value)
    if match is None:
        raise click.BadParameter("write columns and lines, for example 160x50")
    columns, lines = int(match[1]), int(match[2])
    if columns < LEAST_SIZE[0] or lines < LEAST_SIZE[1]:
        raise click.BadParameter(f"must be at least {LEAST_SIZE[0]}x{LEAST_SIZE[1]}")
    return columns, lines


@click.command()
@click.argument("record", type=click.Path(path_type=Path))
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Times as fast as it was.",
)
@click.option(
    "--at", "at_s", type=click.FloatRange(min=0), help="Begin, or take the picture, at this second of the run."
)
@click.option("--svg", type=click.Path(path_type=Path), help="Write one frame to this file instead of playing.")
@click.option(
    "--size", callback=_screen_size, default="120x36", show_default=True, help="Columns and lines of the picture."
)
@click.option("--plain", "--headless", "plain", is_flag=True, help="Log lines instead of the dashboard, at once.")
@click.option("--json", "as_json", is_flag=True, help="The state at --at, or at the end, as qmpalloc status has it.")
@click.option("--follow", is_flag=True, help="Show a record that is being written, as it grows.")
def replay(
    record: Path,
    speed: float,
    at_s: float | None,
    svg: Path | None,
    size: tuple[int, int],
    plain: bool,
    as_json: bool,
    follow: bool,
) -> None:
    """Replay a RECORD (record.jsonl) through the dashboard. What a run showed, its record shows again.

    Where standard output is not a terminal, log lines are printed.
    """
    from qmpalloc.record import ended, read_record
    from qmpalloc.tui import is_interactive

    if not math.isfinite(speed):
        raise click.BadParameter("must be a number", param_hint="--speed")
    if at_s is not None and not math.isfinite(at_s):
        raise click.BadParameter("must be a number of seconds", param_hint="--at")
    if follow:
        if at_s is not None or svg is not None or speed != 1.0 or as_json:
            raise click.UsageError("--follow shows what is now: it goes with --plain, and with nothing else")
        follow_record(record, on_screen=not plain and is_interactive())
        return
    events = read_record(record)
    if as_json:
        from qmpalloc.tui.status import status_of

        print_json(status_of(_dashboard_at(events, math.inf if at_s is None else at_s)))
    elif svg is not None:
        export_svg(events, svg, at_s=math.inf if at_s is None else at_s, size=size)
    elif plain or not is_interactive():
        for line in plain_lines(events, until_s=math.inf if at_s is None else at_s):
            click.echo(line)
        if at_s is None and ended(record) is None:
            click.echo("the record ends here without an end: its run was cut off", err=True)
    else:
        import trio

        if trio.run(play, events, speed, at_s or 0.0):
            sys.exit(EXIT_INTERRUPTED)


FOLLOW_S = 0.25


def follow_record(record: Path, *, on_screen: bool) -> None:
    """Show a record as it grows, until its run ends or the person quits."""
    import trio

    from qmpalloc.cli.onlooker import look_on
    from qmpalloc.events import Ended
    from qmpalloc.record import GrowingRecord
    from qmpalloc.tui import PlainLog

    async def events() -> AsyncGenerator[AnyEvent]:
        growing = GrowingRecord(record)
        with contextlib.closing(growing):
            while True:
                for event in growing.more():
                    yield event
                    if isinstance(event, Ended):
                        return
                await trio.sleep(FOLLOW_S)

    if trio.run(look_on, events, None if on_screen else PlainLog().line):
        sys.exit(EXIT_INTERRUPTED)


def plain_lines(events: Iterator[AnyEvent], *, until_s: float) -> Iterator[str]:
    """Yield the log lines of a record up to a time."""
    from qmpalloc.tui import PlainLog

    log = PlainLog()
    for event in events:
        if event.t > until_s:
            return
        line = log.line(event)
        if line is not None:
            yield line


def _dashboard_at(events: Iterator[AnyEvent], at_s: float) -> Dashboard:
    """Return what a run showed at a time."""
    from qmpalloc.tui import Dashboard

    dashboard = Dashboard()
    for event in events:
        if event.t > at_s and dashboard.header is not None:
            break
        dashboard.apply(event)
    return dashboard


def export_svg(events: Iterator[AnyEvent], path: Path, *, at_s: float, size: tuple[int, int]) -> None:
    """Write the dashboard as it was at a time, or at the end, as an SVG picture."""
    import io

    from rich.console import Console

    from qmpalloc.errors import HostError
    from qmpalloc.tui import Ui, View

    dashboard = _dashboard_at(events, at_s)
    now_s = dashboard.t if math.isinf(at_s) else at_s
    width, height = size
    console = Console(
        file=io.StringIO(), record=True, width=width, height=height, force_terminal=True, color_system="truecolor",
        legacy_windows=False, _environ={},
    )  # fmt: skip
    console.print(View(dashboard, Ui(), lambda: now_s))
    # Without rich's web fonts: a picture in a README should not fetch anything, and any monospaced font will do.
    picture = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="qmpalloc"), flags=re.DOTALL)
    try:
        path.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}") from error


class Player:
    """The clock of a replay, and what its keys do."""

    def __init__(self, dashboard: Dashboard, events: Iterator[AnyEvent], speed: float) -> None:
        import trio

        self._dashboard, self._events, self._speed = dashboard, events, speed
        self._at_s, self._since_s = 0.0, trio.current_time()
        self._paused = False
        self._changed = trio.Event()
        self._over = False
        self.done = trio.Event()

    def now_s(self) -> float:
        """Return the time in the run that is shown."""
        import trio

        if self._paused or self._over:
            return self._at_s
        return self._at_s + (trio.current_time() - self._since_s) * self._speed

    def title(self) -> str:
        """Return what is replayed, in a few words."""
        state = "over" if self._over else "paused" if self._paused else f"x{self._speed:g}"
        return f"REPLAY {state}"

    def quit(self) -> None:
        """End the replay."""
        self.done.set()

    def toggle_pause(self) -> None:
        """Stop the clock of the replay, or let it go on."""
        import trio

        self._at_s, self._since_s = self.now_s(), trio.current_time()
        self._paused = not self._paused
        self._changed.set()

    def return_to_baseline(self) -> None:
        """Do nothing: a record cannot be changed."""

    def _due_s(self, at_s: float) -> float:
        """Return the trio time at which the replay reaches a time of the run."""
        return math.inf if self._paused else self._since_s + (at_s - self._at_s) / self._speed

    async def run(self, start_s: float) -> None:
        """Apply each event when its time has come; those up to `start_s` at once."""
        import trio

        for event in self._events:
            await trio.lowlevel.checkpoint()  # a long record, or a fast replay, never waits for anything else
            if event.t <= start_s:
                self._dashboard.apply(event)
                self._at_s, self._since_s = event.t, trio.current_time()
                continue
            while (due_s := self._due_s(event.t)) > trio.current_time():
                self._changed = trio.Event()
                with trio.move_on_at(due_s):
                    await self._changed.wait()
            self._dashboard.apply(event)
        self._at_s, self._over = self._dashboard.t, True


async def play(events: Iterator[AnyEvent], speed: float, start_s: float) -> bool:
    """Play a record on the terminal until the person quits; return True when a signal ended it."""
    import trio

    from qmpalloc.tui import Dashboard, run_tui

    dashboard = Dashboard()
    player = Player(dashboard, events, speed)
    interrupted = False

    async def heed_signals() -> None:
        nonlocal interrupted
        await anext(signals.received)
        interrupted = True
        player.quit()

    with StopSignals() as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heed_signals)
            await nursery.start(partial(run_tui, dashboard, controls=player, now=player.now_s, replay=player.title))
            nursery.start_soon(player.run, start_s)
            await player.done.wait()
            nursery.cancel_scope.cancel()
    return interrupted
