"""Guests of the user's in an experiment: started by their command, if there is one, reached, and put back."""

from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import trio

from qmpalloc.channel import Channel, open_channel, others
from qmpalloc.config import Config
from qmpalloc.control.inspection import choose_actuator
from qmpalloc.errors import BusyError, HostError, QmpallocError, RefusedError, SampleError, UnreachableError
from qmpalloc.experiment.run.load import DIRECTORY, PROGRAMS_DIRECTORY, open_load
from qmpalloc.experiment.run.readings import Link
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec.attached import SECOND_HINT, Attach, Start
from qmpalloc.experiment.spec.schema import Guest
from qmpalloc.host.qemus import find_qemus
from qmpalloc.qemu.progress import Report
from qmpalloc.qmp import Actuator, Agent, Monitor, deadline, open_agent, open_monitor, relay_agent
from qmpalloc.qmp.actuator import nearest_order
from qmpalloc.sample import FILE_MAX_BYTES, parse
from qmpalloc.text import printable
from qmpalloc.units import format_size

T = TypeVar("T")

CONTROLLED_HINT = "another controller of this guest would move its balloon as well: end it first"

ATTACH_TIMEOUT_S = 60.0
"""For a guest that runs to answer on every way into it."""

COMMAND_TIMEOUT_S = 30.0
MONITOR_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 60.0
QUIT_TIMEOUT_S = 10.0
CLEAN_TIMEOUT_S = 20.0
RETRY_S = 0.5
FILE_BYTES_PER_S = 1_000_000
"""A file is made in the guest in a minute and a second for so many bytes, or the guest hangs."""

MAKE_FILE = (
    'mkdir -p "$(dirname "$1")" && { [ "$(stat -c %s "$1" 2>/dev/null)" = "$2" ] || '
    '{ head -c "$2" /dev/urandom >"$1.part" && mv "$1.part" "$1"; }; } || { rm -f "$1.part"; exit 1; }'
)


@asynccontextmanager
async def open_attached(guest: Guest, config: Config, traces: Traces, report: Report) -> AsyncIterator[Link]:
    """Bring a guest of the user's to where the reference guests are when they have booted, and link to it.

    It is at its baseline, its collector counts, its files are there, and its load is armed. At the end what was done to
    it is undone: its size is what it was, or it is stopped if it was started here.

    Args:
        guest: With ``attach``.
        config: Of the arm.
        traces: Of the experiment.
        report: Takes lines for people.

    Raises:
        HostError: It cannot take part; says why, with its key in the experiment's file.
        QmpallocError: It does not answer.
    """
    assert guest.attach is not None
    place = _Place(guest, guest.attach, traces, config, report)
    async with AsyncExitStack() as stack:
        if guest.start is not None:
            await stack.enter_async_context(_started(place, guest.start))
        within_s = ATTACH_TIMEOUT_S if guest.start is None else guest.start.timeout
        limit_s = trio.current_time() + within_s
        async with place.reached("monitor", open_monitor, CONTROLLED_HINT) as first:
            pass  # the controller will have it
        monitor = await stack.enter_async_context(place.reached("second_monitor", open_monitor, SECOND_HINT))
        await place.check_same(first, monitor)
        actuator = await place.choose_actuator(monitor)
        await place.check_disks(monitor)
        await stack.enter_async_context(_at_size(place, actuator))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(_fail_when_gone, guest.name, monitor)
        channel = await stack.enter_async_context(_channel(place, limit_s))
        if isinstance(channel, Agent):
            relay = config.guest(guest.name).agent
            Path(relay).parent.mkdir(mode=0o700, exist_ok=True)
            await nursery.start(relay_agent, channel, relay)
        await place.wait_for_sample(channel, limit_s)
        await place.make_files(channel)
        stack.push_async_callback(_clean, channel)
        load = await stack.enter_async_context(open_load(channel, traces, guest))
        yield Link(guest.name, monitor, actuator, channel, load, guest.attach.counters_file, guest.attach.disks)


class _Place:
    """Where a guest is, and where in the experiment's file that is said."""

    def __init__(self, guest: Guest, attach: Attach, traces: Traces, config: Config, report: Report) -> None:
        specification = traces.specification
        self.guest = guest
        self.attach = attach
        self.report = report
        self.file = specification.file
        self.home = Path(specification.home)
        self.key = f"guest[{specification.guests.index(guest)}]"
        self.directory = Path(config.host.run_dir) / guest.name
        self.baseline_bytes = int(config.guest(guest.name).baseline)

    def error(self, key: str, what: str, hint: str = "") -> HostError:
        """Return an error that names file, key and guest."""
        guest = f"guest {self.guest.name}: "
        return HostError(f"{self.file}: {self.key}.{key}: {guest}{what.removeprefix(guest)}", hint=hint)

    @asynccontextmanager
    async def reached(
        self, key: str, opened: Callable[..., AbstractAsyncContextManager[T]], hint: str = ""
    ) -> AsyncIterator[T]:
        """Open one of its sockets for a block; if somebody else holds it, say who."""
        path = getattr(self.attach, key)
        async with AsyncExitStack() as stack:
            try:
                found = await stack.enter_async_context(opened(path, timeout_s=MONITOR_TIMEOUT_S))
            except UnreachableError as error:
                who = ", ".join(await others(path))
                held = isinstance(error, BusyError) or (who and not error.absent)
                what = f"{who or 'somebody else'} holds {path}" if held else error.message
                raise self.error(f"attach.{key}", what, hint if held else error.hint or hint) from error
            yield found

    async def check_same(self, first: Monitor, second: Monitor) -> None:
        """Check that both monitors are of one QEMU, as far as it is QEMU that listens: else another guest is hurt."""
        qemus = {qemu.pid for qemu in await trio.to_thread.run_sync(find_qemus)}
        one, other = first.process_id, second.process_id
        if one != other and {one, other} <= qemus:
            what = f"{second.address} is of another QEMU (process {other}) than monitor (process {one})"
            raise self.error("attach.second_monitor", what, SECOND_HINT)

    async def choose_actuator(self, monitor: Monitor) -> Actuator:
        """Return what the controller will move its memory by, and check that this reaches as far as the file says."""
        with deadline(COMMAND_TIMEOUT_S, monitor.address, "its memory"):
            try:
                actuator = await choose_actuator(monitor)
            except RefusedError as error:
                raise self.error("attach", error.message, error.hint) from error
            most_bytes = (await actuator.memory()).ram_bytes
        if self.guest.cap > most_bytes:
            what = f"its QEMU has {format_size(most_bytes)}, less than its cap of {format_size(self.guest.cap)}"
            raise self.error("cap", what, "lower the cap, or give QEMU more memory (-m)")
        return actuator

    async def check_disks(self, monitor: Monitor) -> None:
        """Check that the drives that are to be throttled are there, and that nobody else throttles them."""
        with deadline(COMMAND_TIMEOUT_S, monitor.address, "its drives"):
            known = [disk.name for disk in await monitor.block_stats()]
            blocks = await monitor.execute("query-block")
        for name in self.attach.disks:
            if name not in known:
                hint = f"it has {', '.join(printable(each, 64) for each in known) or 'none'}"
                raise self.error("attach.disks", f"its QEMU has no drive called {name!r}", hint)
            if _limited(blocks, name):
                hint = "that would be lost; leave the drive out of attach.disks"
                raise self.error("attach.disks", f"{name} has a limit of its own", hint)

    async def wait_for_sample(self, channel: Channel, limit_s: float) -> None:
        """Wait until its collector counts."""
        while True:
            try:
                with deadline(COMMAND_TIMEOUT_S, channel.address, self.attach.counters_file):
                    parse(await channel.read_file(self.attach.counters_file, FILE_MAX_BYTES))
            except (SampleError, RefusedError) as error:
                # One that runs has its collector, or has not.
                if self.guest.start is None or trio.current_time() > limit_s:
                    what = f"no sample in {self.attach.counters_file}: {error.message}"
                    hint = error.hint or "qmpalloc guest install puts the collector into a guest that runs"
                    raise self.error("attach.counters_file", what, hint) from error
                await trio.sleep(RETRY_S)
            else:
                return

    async def make_files(self, channel: Channel) -> None:
        """Make the files that its load reads, unless they are there; what is in them looks random."""
        for name, size_bytes in self.guest.files.items():
            path = self.guest.path(name)
            with deadline(60 + size_bytes / FILE_BYTES_PER_S, channel.address, f"making {path}"):
                try:
                    result = await channel.run(["/bin/sh", "-c", MAKE_FILE, "sh", path, str(size_bytes)])
                except RefusedError as error:  # the first program that is run in it
                    raise self.error("attach.channel", error.message, error.hint) from error
            if result.exit_code != 0:
                said = printable(result.err.decode("utf-8", "replace").strip(), 300) or "no reason is given"
                hint = f"{format_size(size_bytes)} are needed there; attach.data is another directory"
                raise self.error("attach.data", f"{path} cannot be made: {said}", hint)


@asynccontextmanager
async def _at_size(place: _Place, actuator: Actuator) -> AsyncIterator[None]:
    """Set its baseline. At the end it has the size it had, and no throttle."""
    monitor = actuator.monitor
    with deadline(COMMAND_TIMEOUT_S, monitor.address, "its size"):
        before_bytes = await actuator.size_bytes()
        await actuator.order(nearest_order(await actuator.memory(), place.baseline_bytes))
    try:
        yield
    finally:
        with trio.move_on_after(CLEAN_TIMEOUT_S, shield=True), suppress(QmpallocError):  # it may be gone
            for disk in place.attach.disks:
                await monitor.set_io_throttle(disk, 0)
            await actuator.order(nearest_order(await actuator.memory(), before_bytes))


@asynccontextmanager
async def _channel(place: _Place, limit_s: float) -> AsyncIterator[Channel]:
    """Open the channel, again and again while a guest that was started boots."""
    attach, name = place.attach, place.guest.name
    async with AsyncExitStack() as stack:
        while True:
            left_s = limit_s - trio.current_time()
            opened = open_channel(
                attach.channel, guest=name, agent=attach.agent, wait_s=max(left_s, 1.0), report=place.report,
                directory=place.home,
            )  # fmt: skip
            try:
                channel = await stack.enter_async_context(opened)
                break
            except UnreachableError as error:
                if place.guest.start is None or left_s <= 0:
                    raise place.error("attach.channel", error.message, error.hint) from error
            await trio.sleep(RETRY_S)
        if attach.channel != "agent":
            async with place.reached("agent", _answering):
                pass  # the controller will have it, where commands take another way
        yield channel


@asynccontextmanager
async def _answering(path: str, *, timeout_s: float) -> AsyncIterator[None]:
    """Open an agent that answers."""
    async with open_agent(path, timeout_s=timeout_s) as agent:
        with deadline(COMMAND_TIMEOUT_S, path, "its first answer"):
            await agent.info()
        yield


async def _clean(channel: Channel) -> None:
    """Remove what the load has left in a guest that goes on. The files that it read stay, for the next run."""
    with trio.move_on_after(CLEAN_TIMEOUT_S, shield=True), suppress(QmpallocError):
        await channel.run(["rm", "-rf", DIRECTORY, PROGRAMS_DIRECTORY])


async def _fail_when_gone(name: str, monitor: Monitor) -> None:
    await monitor.closed.wait()
    raise HostError(f"guest {name}: its QEMU has ended, or has closed {monitor.address}, during the run")


@asynccontextmanager
async def _started(place: _Place, start: Start) -> AsyncIterator[None]:
    """Start a guest by the user's command, and end it at the end of the block, whatever happened."""
    name = place.guest.name
    if await _answers(place.attach.second_monitor):
        hint = "stop it, or leave [guest.start] out to take it as it is"
        raise place.error("start", f"it runs already: {place.attach.second_monitor} answers", hint)
    place.directory.mkdir(mode=0o700, exist_ok=True)
    log = place.directory / "qemu.log"
    process = await _run(place, start.command, log)
    place.report(f"{name}: started by your command")
    try:
        await _wait_for_monitor(place, start, process, log)
        yield
    finally:
        with trio.CancelScope(shield=True):  # limited in time by itself
            await _stop(place, start, process)


async def _run(place: _Place, command: tuple[str, ...], log: Path) -> trio.Process:
    try:
        with log.open("wb") as output:
            return await trio.lowlevel.open_process(
                command, cwd=place.home, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        hint = "a path is relative to the experiment's file"
        raise place.error("start.command", f"{command[0]}: {error.strerror}", hint) from error


async def _answers(path: str) -> bool:
    try:
        async with open_monitor(path, timeout_s=1.0):
            return True
    except BusyError:
        return True
    except QmpallocError:
        return False


async def _wait_for_monitor(place: _Place, start: Start, process: trio.Process, log: Path) -> None:
    limit_s = trio.current_time() + start.timeout
    while not await _answers(place.attach.second_monitor):
        code = process.poll()
        if code:
            how = f"ended with {code}" if code > 0 else f"was killed by signal {-code}"
            raise place.error("start.command", f"{start.command[0]} {how}: {_tail(log)}", "run it by hand")
        if trio.current_time() > limit_s:
            what = f"{place.attach.second_monitor} does not answer {start.timeout:g} s after {start.command[0]}"
            raise place.error("start.command", f"{what}: {_tail(log)}", SECOND_HINT)
        await trio.sleep(RETRY_S)


async def _stop(place: _Place, start: Start, process: trio.Process) -> None:
    """End a guest: by the user's command, else by QEMU's, and by force what then still runs of what was started."""
    if start.stop:
        log = place.directory / "stop.log"
        with suppress(HostError):
            stopping = await _run(place, start.stop, log)
            if not await _ends(stopping, STOP_TIMEOUT_S) or stopping.returncode != 0:
                place.report(f"{place.guest.name}: {start.stop[0]} did not stop it: {_tail(log)}")
                _kill(stopping, signal.SIGKILL)
    if not await _gone(place.attach.second_monitor, 0.0 if not start.stop else QUIT_TIMEOUT_S):
        with trio.move_on_after(QUIT_TIMEOUT_S), suppress(QmpallocError):
            async with open_monitor(place.attach.second_monitor, timeout_s=MONITOR_TIMEOUT_S) as monitor:
                await monitor.execute("quit")
    for number in (signal.SIGTERM, signal.SIGKILL):
        if await _ends(process, QUIT_TIMEOUT_S):
            break
        _kill(process, number)
    else:
        await process.wait()  # nothing survives SIGKILL
    if not await _gone(place.attach.second_monitor, QUIT_TIMEOUT_S):
        place.report(f"warning: {place.guest.name} still runs: {place.attach.second_monitor} answers; stop it by hand")


async def _gone(path: str, within_s: float) -> bool:
    """Wait until nobody answers behind a monitor's socket."""
    with trio.move_on_after(within_s or math.inf):
        while await _answers(path):
            if not within_s:
                return False
            await trio.sleep(RETRY_S)
        return True
    return False


async def _ends(process: trio.Process, within_s: float) -> bool:
    with trio.move_on_after(within_s):
        await process.wait()
    return process.poll() is not None


def _kill(process: trio.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _tail(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()[-3:]
        return printable(" | ".join(lines), 500) or "it said nothing"
    return "it said nothing"


def _limited(blocks: object, name: str) -> bool:
    """Return whether a drive has a limit, by the answer to ``query-block``."""
    for block in blocks if isinstance(blocks, list) else []:
        inserted = block.get("inserted") if isinstance(block, dict) and block.get("device") == name else None
        if isinstance(inserted, dict) and any(inserted.get(key) for key in ("iops", "iops_rd", "bps", "bps_rd")):
            return True
    return False
