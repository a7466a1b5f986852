"""The live dashboard: one task paints it, one reads keys; the terminal is restored however they end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from rich.console import Console, ConsoleDimensions
from rich.live import Live

from qmpalloc.tui.dashboard import Dashboard
from qmpalloc.tui.keys import Decoder, key_mode
from qmpalloc.tui.order import shown
from qmpalloc.tui.terminal import Terminal
from qmpalloc.tui.ui import Controls, OnlyQuit, Reloads, Ui, press
from qmpalloc.tui.view import View

SUSPENDED = "qmpalloc is suspended: no memory is moved, guests keep their sizes. Bring it back with fg.\n"


class EventClock:
    """The time on the clock of the events, learnt from the events: none of them can lie in the future."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard
        self._ahead_s = dashboard.t - trio.current_time()

    def __call__(self) -> float:
        """Return the time now."""
        now_s = trio.current_time()
        self._ahead_s = max(self._ahead_s, self._dashboard.t - now_s)
        return now_s + self._ahead_s


@dataclass
class _Screen:
    """What is shown, on which terminal, and what its keys do."""

    dashboard: Dashboard
    ui: Ui
    controls: Controls
    console: Console
    now: Callable[[], float]
    replay: Callable[[], str] | None
    pressed: trio.Event = field(default_factory=trio.Event)

    async def paint(self, terminal: Terminal, live: Live, period_s: float, on_first: Callable[[], None]) -> None:
        """Paint whenever an event came, a key was pressed, the size changed or the second ticked."""
        shown: object = None
        while not terminal.lost:
            self.pressed = trio.Event()
            if self.replay is not None:
                self.ui.replay = self.replay()
            size = terminal.size()
            current = (self.dashboard.version, int(self.now()), size, self.ui.shown)
            if current != shown:
                # rich would trust COLUMNS and LINES of the environment, which know nothing of a resize.
                live.console.size = ConsoleDimensions(*size)
                live.refresh()
                await terminal.send()
                if shown is None:
                    on_first()
                shown = current
            with trio.move_on_after(period_s):
                await self.pressed.wait()
        # Whoever watches is gone. To go on controlling unseen would not be what they asked for.
        self.controls.quit()

    async def read_keys(self, fd: int) -> None:
        """Read and obey keys until the terminal is gone."""
        decoder = Decoder()
        while True:
            await trio.lowlevel.wait_readable(fd)
            try:
                data = os.read(fd, 256)
            except OSError:
                data = b""
            if not data:
                self.controls.quit()
                return
            for key in decoder.feed(data):
                header = self.dashboard.header
                may_control = header is not None and header.mode == "run" and not self.ui.only_quit
                names = [each.name for each in shown(self.dashboard.guests.values(), self.ui.order, self.ui.search)]
                press(key, self.ui, self.controls, guests=names, may_control=may_control)
            self.pressed.set()


async def run_tui(
    dashboard: Dashboard,
    *,
    controls: Controls,
    console: Console | None = None,
    now: Callable[[], float] | None = None,
    refresh_hz: float = 4.0,
    replay: Callable[[], str] | None = None,
    suspended: str = SUSPENDED,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Show `dashboard` on the terminal until cancelled; started once the first frame is painted.

    Ctrl-Z gives the terminal back and says what rests meanwhile; ``fg`` resumes. Ctrl-C, SIGTERM and SIGHUP are the
    caller's: cancelling restores the terminal.

    Args:
        dashboard: Fed by the caller, from the same trio loop.
        controls: What the keys do; `OnlyQuit` leaves those out that would change the course of the run.
        console: Whose terminal to use; by default that of standard output.
        now: The time on the clock of the events; by default learnt from the events, which then must be live.
        refresh_hz: How often to look whether there is something new to paint.
        replay: Says what is replayed, in a few words; None when live.
        suspended: What Ctrl-Z says.
        task_status: For ``nursery.start``.
    """
    keyboard = sys.stdin.isatty()
    replayed = replay() if replay else ""
    reloads, only_quit = isinstance(controls, Reloads), isinstance(controls, OnlyQuit)
    ui = Ui(keyboard=keyboard, reloads=reloads, replay=replayed, only_quit=only_quit)
    screen = _Screen(dashboard, ui, controls, console or Console(), now or EventClock(dashboard), replay)
    started = contextlib.ExitStack()
    started.callback(task_status.started)
    with trio.open_signal_receiver(signal.SIGTSTP, signal.SIGCONT) as signals:
        while True:
            async with _taken_terminal(screen) as (terminal, live), trio.open_nursery() as nursery:
                nursery.start_soon(screen.paint, terminal, live, 1 / refresh_hz, started.close)
                if keyboard:
                    nursery.start_soon(screen.read_keys, sys.stdin.fileno())
                number = await anext(signals)
                nursery.cancel_scope.cancel()
            if number == signal.SIGTSTP:
                sys.stderr.write(suspended)
                sys.stderr.flush()
                os.kill(os.getpid(), signal.SIGSTOP)


@asynccontextmanager
async def _taken_terminal(screen: _Screen) -> AsyncIterator[tuple[Terminal, Live]]:
    """Take the terminal: key mode, second screen, no cursor. Give it back as it was."""
    terminal = Terminal(screen.console.file.fileno())
    view = View(screen.dashboard, screen.ui, screen.now)
    live = Live(
        view,
        console=terminal.console(screen.console),
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with key_mode(sys.stdin.fileno()) if screen.ui.keyboard else contextlib.nullcontext():
        try:
            with live:
                yield terminal, live
        finally:
            await terminal.restore()
