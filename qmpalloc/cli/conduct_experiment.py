"""Conduct an experiment: its progress on the terminal, the dashboard of the running arm, and the signals."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from qmpalloc.cli.signals import StopSignals
from qmpalloc.control.controller import Controller
from qmpalloc.experiment.run.arm import Live
from qmpalloc.experiment.run.runner import Remaining, run_experiment
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.qemu.launcher import Prepared
from qmpalloc.tui import Dashboard, OnlyQuit, is_interactive, run_tui

STATUS_EVERY_S = 30.0
"""Between lines of progress where there is no terminal to show a bar."""


async def conduct(directory: ExperimentDirectory, prepared: Prepared, traces: Traces, live: bool) -> bool | None:
    """Run what is left; return whether all runs count, or None when interrupted."""
    finished: bool | None = None
    console = Console()
    on_screen = live and is_interactive(console)
    with StopSignals() as signals:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            def interrupt() -> None:
                if not scope.cancel_called:
                    scope.cancel()
                    follower.say("stopping the guests; what is finished is kept")

            follower = Follower(console, dashboard=on_screen, interrupt=interrupt)
            if live and not on_screen:
                follower.say("there is no terminal for --live: progress is told in lines")
            nursery.start_soon(_interrupt_at_signal, signals.received, interrupt)
            with scope, follower:
                finished = await run_experiment(directory, prepared, traces, make_live=follower.begin)
            nursery.cancel_scope.cancel()
    return finished


async def _interrupt_at_signal(received: AsyncIterator[int], interrupt: Callable[[], None]) -> None:
    async for _ in received:
        interrupt()


class Follower:
    """Shows an experiment: lines that stay, above a bar for the run in progress; or the dashboard.

    Args:
        console: Where to.
        dashboard: Show the running arm's dashboard while its loads run.
        interrupt: Called when somebody quits the dashboard, and when nobody reads the lines any more.
    """

    def __init__(self, console: Console, *, dashboard: bool, interrupt: Callable[[], None]) -> None:
        self._console = console
        self._wants_dashboard = dashboard
        self._interrupt = interrupt
        self._hidden: list[str] | None = None
        self._warned: set[str] = set()
        self._said_s = -STATUS_EVERY_S
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[words]}"))
        self._bar = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self._task = self._bar.add_task("starting", total=1.0, words="")

    def __enter__(self) -> None:
        if self._console.is_terminal:
            self._draw(self._bar.start)

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:  # elsewhere it would print an empty line
            self._draw(self._bar.stop)

    def say(self, line: str) -> None:
        """Print a line that stays; behind the dashboard it waits for its end."""
        if line.startswith("warning: "):  # of the guests, the same in every run
            if line in self._warned:
                return
            self._warned.add(line)
        if self._hidden is not None:
            self._hidden.append(line)
            return
        try:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        except (OSError, SystemExit):  # rich exits where standard output is closed
            self._interrupt()

    def _draw(self, change: Callable[[], None]) -> None:
        try:
            change()
        except (OSError, SystemExit):  # the terminal is closed
            self._interrupt()

    def begin(self, run: ArmRun, left: Remaining) -> Live:
        """Return what follows the run that begins now."""
        self.say(f"run {left.number} of {len(left.runs)}: {run.arm}, repeat {run.repeat}{_about(left.seconds())}")
        self._draw(lambda: self._bar.reset(self._task, description=run.name, words="booting the guests"))
        self._said_s = time.monotonic()

        def status(share: float, words: str) -> None:
            text = words + _about(left.seconds(share))
            if self._console.is_terminal and self._hidden is None:
                self._bar.update(self._task, completed=share, words=text)
                self._draw(self._bar.refresh)
            elif not self._console.is_terminal and time.monotonic() - self._said_s >= STATUS_EVERY_S:
                self._said_s = time.monotonic()
                self.say(f"  {run.name}, {text}")

        if not self._wants_dashboard:
            return Live(self.say, status)
        dashboard = Dashboard()

        async def show(controller: Controller) -> None:  # noqa: ARG001 - its keys are not for experiments
            self._draw(self._bar.stop)
            self._hidden = []
            try:
                await run_tui(dashboard, controls=OnlyQuit(self._interrupt), console=self._console)
            finally:
                lines, self._hidden = self._hidden, None
                for line in lines:
                    self.say(line)
                self._draw(self._bar.start)

        return Live(self.say, status, sinks=[dashboard.apply], show=show)


def _about(seconds: float | None) -> str:
    """Return the estimate of what remains, in words; empty when there is none."""
    if seconds is None:
        return ""
    return f"; about {max(round(seconds / 60), 1)} min remain"
