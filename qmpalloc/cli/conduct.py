"""Conduct a run: a controller under a screen or log lines, a record, a summary and the signals of the terminal."""

from __future__ import annotations

import contextlib
import math
import select
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from pathlib import Path

import trio
from msgspec import Struct
from rich.console import Console

from qmpalloc import config as configuration
from qmpalloc.cli import EXIT_FAILED, EXIT_INTERRUPTED
from qmpalloc.cli.notify import notify_control, run_watchdog
from qmpalloc.cli.signals import LAST_WORDS_S, StopSignals, stop_signals
from qmpalloc.cli.streams import table_console, write_at_once
from qmpalloc.config import Config, default_run_dir
from qmpalloc.control.controller import Controller
from qmpalloc.control.lock import hold_lock
from qmpalloc.errors import HostError, UnreachableError
from qmpalloc.events import AnyEvent, ControlChanged, Faulted, Mode, Sink, encode
from qmpalloc.files import check_place, write_json
from qmpalloc.host.memory import read_host_memory
from qmpalloc.model import Policy
from qmpalloc.policy import load as load_policy
from qmpalloc.record import RecordWriter
from qmpalloc.status.feed import Feed
from qmpalloc.status.place import REQUESTS, STATUS, listening, socket_path
from qmpalloc.status.server import Server
from qmpalloc.summary import Summarizer
from qmpalloc.text import one_line
from qmpalloc.tui import Dashboard, PlainLog, closing_table, is_interactive, run_tui

RELOAD_SIGNAL = signal.SIGUSR1
EQUAL_SHARES = "equal shares first, to compare with"
METRICS_HINT = "install qmpalloc with the extra of that name: pip install 'qmpalloc[metrics]'"
Export = Callable[[Feed, Controller], Awaitable[None]]
PLACE_HINT = "name another directory with --out"


class Output(Enum):
    """What a run shows."""

    DASHBOARD = "dashboard"  # on a terminal; else lines
    LINES = "lines"
    JSON = "json"  # the lines of the record


class Metrics(Struct, frozen=True, kw_only=True):
    """Where a run's metrics go.

    Attributes:
        address: Host and port to serve them on; None: nowhere.
        file: The file to keep them in; None: none.
    """

    address: tuple[str, int] | None = None
    file: Path | None = None


def default_directory(config: Config) -> Path:
    """Return a new directory for a run's record: ``runs/<configuration>-<UTC time>``."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{Path(config.file).stem}-{stamp}"


def conduct(
    config: Config,
    mode: Mode,
    *,
    output: Output = Output.DASHBOARD,
    duration_s: float = math.inf,
    directory: Path | None = None,
    metrics: Metrics | None = None,
) -> int:
    """Run a controller until it ends and return the exit code: 0 done, 1 failed, 130 interrupted."""
    return trio.run(conduct_run, config, mode, output, duration_s, directory, metrics)


async def conduct_run(
    config: Config,
    mode: Mode,
    output: Output,
    duration_s: float,
    directory: Path | None,
    metrics: Metrics | None = None,
    *,
    equal_s: float = 0.0,
) -> int:
    """Do what `conduct` does, in a trio loop that already runs.

    For the first `equal_s` of its duration control is paused: the guests keep their baselines.
    """
    policy = load_policy(config.policy, config.policy_settings, file=config.file)
    if directory is not None:
        check_place(directory, hint=PLACE_HINT)
    with StopSignals(*stop_signals(), RELOAD_SIGNAL) as signals:
        return await _conduct(config, policy, mode, output, duration_s, directory, metrics, signals, equal_s)


async def _conduct(
    config: Config,
    policy: Policy,
    mode: Mode,
    output: Output,
    duration_s: float,
    directory: Path | None,
    metrics: Metrics | None,
    signals: StopSignals,
    equal_s: float,
) -> int:
    console = table_console()
    on_screen = output is Output.DASHBOARD and is_interactive(console)
    dashboard, summarizer = Dashboard(), Summarizer()
    feed = Feed()
    export = await _opened(metrics) if metrics is not None else None
    equal = _EqualShares(equal_s)
    sinks: list[Sink] = [dashboard.apply, summarizer, feed, notify_control, equal]
    lines = Lines(console, as_json=output is Output.JSON)
    lines.muted = on_screen
    sinks.append(lines)
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold_lock(config.file, default_run_dir()))
        if directory is not None:
            writer = stack.enter_context(RecordWriter(directory / "record.jsonl"))
            sinks.append(_watched(writer, list(sinks)))
        controller = Controller(config, policy, *sinks, mode=mode, read_host=read_host_memory)
        # Whoever reads the lines is gone: to go on controlling unseen would not be what they asked for.
        lost = False

        def end_unread() -> None:
            nonlocal lost
            lost = True
            controller.quit("nobody reads the output")

        lines.on_closed = end_unread
        sockets = _open_sockets(config.file, stack, controller)
        async with _exported(feed, controller, export), _served(feed, controller, sockets):
            show = partial(_show, controller, dashboard, console, lines) if on_screen else None
            signalled = await _run(controller, show, duration_s, signals, equal)
    failure: HostError | None = None
    if directory is not None:
        try:
            write_json(directory / "summary.json", summarizer.summary)
        except HostError as error:  # told after the table, which says the same
            failure = error
    signals.rest()
    with contextlib.suppress(OSError, SystemExit):  # rich exits where nobody reads
        lines.finish()
        if output is Output.JSON:
            console = table_console(stderr=True)
        console.print(closing_table(dashboard))
        if directory is not None:
            console.print(f"record: {directory / 'record.jsonl'}", highlight=False, markup=False)
    if failure is not None:
        raise failure
    if not signalled and not lost and all(guest.memory.facts is None for guest in controller.guests):
        raise UnreachableError("no guest was reached", address=config.file, hint=f"qmpalloc doctor {config.file}")
    if lost or not controller.clean:
        return EXIT_FAILED
    return EXIT_INTERRUPTED if signalled else 0


def _open_sockets(file: str, stack: contextlib.ExitStack, controller: Controller) -> tuple[socket.socket, ...]:
    """Return the sockets for status and requests, open as long as `stack`; none where not both can be made.

    Raises:
        UnreachableError: Another controller serves them.
    """
    directory = default_run_dir()
    try:
        with contextlib.ExitStack() as made:
            sockets = [made.enter_context(listening(socket_path(file, directory, kind))) for kind in (STATUS, REQUESTS)]
            stack.push(made.pop_all())
            return tuple(sockets)
    except HostError as error:
        controller.tell("status", f"nobody can attach: {error.message}", error.hint or "control goes on without")
        return ()


@contextlib.asynccontextmanager
async def _served(feed: Feed, controller: Controller, sockets: tuple[socket.socket, ...]) -> AsyncIterator[None]:
    """Serve status and requests for the time of a block, and let those who look on have its last events."""
    if not sockets:
        yield
        return
    server = Server(feed, controller)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, *sockets)
        yield
        await server.end()


class _EqualShares:
    """Pauses control as soon as it begins, for a while: what a policy makes of it is compared with that."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = trio.Event()

    def __call__(self, event: AnyEvent) -> None:
        if isinstance(event, ControlChanged) and event.control == "running":
            self._begun.set()

    async def keep(self, controller: Controller) -> None:
        """Pause and resume, unless the person at the keyboard has done either meanwhile."""
        await self._begun.wait()
        for control, seconds in (("running", self._seconds), ("paused", 0.0)) if self._seconds else ():
            if controller.control == control:
                controller.toggle_pause(EQUAL_SHARES)
            await trio.sleep(seconds)


async def _opened(metrics: Metrics) -> Export:
    """Return what exports metrics, ready to begin, before anything else is done.

    Raises:
        HostError: The port is in use, or prometheus-client is not there.
        ConfigError: The file cannot be written.
    """
    try:
        from qmpalloc.metrics import exporter
    except ModuleNotFoundError as error:
        raise HostError(f"metrics need {error.name}, which is not installed", hint=METRICS_HINT) from error
    if metrics.file is not None:
        exporter.check_file(metrics.file)
    listeners = await exporter.listen(*metrics.address) if metrics.address is not None else []

    async def export(feed: Feed, controller: Controller) -> None:
        made = exporter.Exporter(feed, controller.tell)
        guarded = partial(beside, controller, "metrics")
        async with trio.open_nursery() as nursery:
            if metrics.file is not None:
                nursery.start_soon(guarded, "no file of metrics is written any more", made.keep_file, metrics.file)
            if listeners:
                nursery.start_soon(guarded, "no metrics are served any more", made.serve, listeners)

    return export


async def beside(
    controller: Controller, kind: str, what: str, function: Callable[..., Awaitable[None]], *arguments: object
) -> None:
    """Do what a run is only looked at by. A defect of ours in it ends that, not the run, and is told."""
    try:
        await function(*arguments)
    except Exception as error:
        controller.tell(kind, f"{what}: {error!r}", "control goes on")


@contextlib.asynccontextmanager
async def _exported(feed: Feed, controller: Controller, export: Export | None) -> AsyncIterator[None]:
    """Export metrics for the time of a block."""
    async with trio.open_nursery() as nursery:
        if export is not None:
            nursery.start_soon(export, feed, controller)
        yield
        nursery.cancel_scope.cancel()


async def _run(
    controller: Controller,
    show: Callable[[Keys], Awaitable[None]] | None,
    duration_s: float,
    signals: StopSignals,
    equal: _EqualShares,
) -> bool:
    """Run `controller` with its screen; return whether a signal ended it."""
    signalled = False
    keys = Keys(controller)

    async def heed_signals() -> None:
        nonlocal signalled
        async for number in signals.received:
            if number == RELOAD_SIGNAL:
                keys.reload()
                continue
            if signalled or keys.quitting:  # asked a second time, it does not wait for the guests
                controller.hurry()
            signalled = True
            controller.quit(f"interrupted by {signal.Signals(number).name}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(heed_signals)
        nursery.start_soon(equal.keep, controller)
        nursery.start_soon(run_watchdog)
        if show is not None:
            await nursery.start(show, keys)
        await controller.run(duration_s=duration_s)
        nursery.cancel_scope.cancel()
    return signalled


async def _show(
    controller: Controller,
    dashboard: Dashboard,
    console: Console,
    lines: Lines,
    keys: Keys,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Show the dashboard until cancelled. Where it fails, lines are printed instead."""

    async def show() -> None:
        try:
            await run_tui(dashboard, controls=keys, console=console, task_status=task_status)
        except Exception:
            lines.muted = False
            with contextlib.suppress(RuntimeError):  # it was called already
                task_status.started()
            raise

    await beside(controller, "dashboard", "the dashboard has failed", show)


class Keys:
    """What the keys and signals of the terminal do to a run.

    Attributes:
        quitting: ``q`` was pressed.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.quitting = False
        self.return_to_baseline = controller.return_to_baseline

    def toggle_pause(self) -> None:
        """Pause control, or resume it."""
        self._controller.toggle_pause()

    def quit(self) -> None:
        """End the run in order."""
        self.quitting = True
        self._controller.quit()

    def reload(self) -> None:
        """Read the configuration file again."""
        file = self._controller.config.file
        self._controller.reload(lambda: configuration.load(file))


class Lines:
    """A sink that prints a line for what a person should know, or all as JSON; for output that is not a terminal.

    Nothing is printed while what reads it takes no more (Ctrl-S, a pager that waits): writing would then stop the whole
    run, and nobody would be told. What was left out is counted, and a line that was begun is written on later.

    Attributes:
        on_closed: Called when nobody can read any more.
        muted: Print nothing.
    """

    def __init__(self, console: Console, *, as_json: bool = False) -> None:
        self._file, self._encoding = console.file, console.encoding
        self._line: Callable[[AnyEvent], str | None] = _as_json if as_json else PlainLog().line
        self._note = '{{"type":"left-out","lines":{}}}' if as_json else "({} lines left out: nobody read them)"
        self._begun = b""
        self._left_out = 0
        self.on_closed: Callable[[], None] = lambda: None
        self.muted = False

    def __call__(self, event: AnyEvent) -> None:
        """Print the event's line, if it has one."""
        line = self._line(event)
        if line is None or self.muted:
            return
        try:
            if self._write_on():
                self._begin(line)
                self._write_on()
            else:
                self._left_out += 1
        except OSError:
            self.on_closed()
            raise

    def finish(self) -> None:
        """Print what is left of a line, and how many were left out, as long as that is read."""
        with contextlib.suppress(OSError):
            while not self._write_on() or self._left_out:
                if not self._begun:
                    self._begin()
                elif not select.select([], [self._file], [], LAST_WORDS_S)[1]:
                    return

    def _begin(self, *lines: str) -> None:
        if self._left_out:
            lines, self._left_out = (self._note.format(self._left_out), *lines), 0
        self._begun = "".join(f"{line}\n" for line in lines).encode(self._encoding, "replace")

    def _write_on(self) -> bool:
        """Write what is taken of what was begun; tell whether that is all."""
        if self._begun:
            self._begun = self._begun[write_at_once(self._file, self._begun) :]
        return not self._begun


def _as_json(event: AnyEvent) -> str:
    return encode(event).decode()


def _watched(writer: RecordWriter, others: list[Sink]) -> Sink:
    """Return a sink that records, and tells the other sinks once when that fails."""
    told = False

    def sink(event: AnyEvent) -> None:
        nonlocal told
        writer(event)
        if writer.failure is not None and not told:
            told = True
            fault = Faulted(
                t=event.t,
                wall=event.wall,
                guest=None,
                kind="record",
                message=one_line(f"{writer.path} cannot be written: {writer.failure.strerror}"),
                hint="control goes on without a record",
            )
            for each in others:
                each(fault)

    return sink


def set_aside(directory: Path) -> None:
    """Move an earlier run out of the way: ``runs/demo`` becomes ``runs/demo-<time it ended>``.

    Raises:
        HostError: It cannot be moved.
    """
    if directory.exists():
        stamp = datetime.fromtimestamp(directory.stat().st_mtime, UTC).strftime("%Y%m%d-%H%M%S")
        aside = directory.with_name(f"{directory.name}-{stamp}")
        try:
            directory.rename(aside)
        except OSError as error:
            raise HostError(f"{directory} cannot be moved to {aside}: {error.strerror}", hint=PLACE_HINT) from error
