"""One run of one arm on real guests: boot, cold caches, loads, control, readings, the end.

The guests are booted anew for every run: no arm sees anything of the one before. Their data disks are the same
read-only files each time.
"""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path

import msgspec
import trio
from msgspec import Struct

from qmpalloc.config import Config
from qmpalloc.control.controller import Controller
from qmpalloc.errors import HostError, QmpallocError
from qmpalloc.events import AnyEvent, Faulted, Sink
from qmpalloc.experiment.run.attached import open_attached
from qmpalloc.experiment.run.configuration import arm_configuration
from qmpalloc.experiment.run.disk import calibrate, calibrate_by_programs, set_throttle
from qmpalloc.experiment.run.failures import cause, leaves
from qmpalloc.experiment.run.readings import (
    SIZE_TIMEOUT_S,
    Link,
    in_parallel,
    open_link,
    read_guest,
    wait_for_new_counters,
)
from qmpalloc.experiment.run.standstill import Standstill
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.run.trial_clock import TrialClock
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.spec.program import ProgramPhase
from qmpalloc.experiment.spec.schema import Arm, Guest, Phase, Specification
from qmpalloc.experiment.store.directory import RunDirectory
from qmpalloc.experiment.store.records import DiskCalibration, LoadProgress, Outcome, Reading, Service
from qmpalloc.files import write_whole
from qmpalloc.host.memory import read_host_memory
from qmpalloc.policy import load as load_policy
from qmpalloc.qemu.launcher import Prepared, RunningGuest, open_guests, wait_for_end
from qmpalloc.qemu.progress import Report
from qmpalloc.record import RecordWriter
from qmpalloc.text import one_line
from qmpalloc.units import format_size

BEGIN_TIMEOUT_S = 120.0
"""For the controller to reach all guests and to find them within the budget."""

OVERDUE_S = 60.0
"""A decision that comes so long after its time does not come."""

SPOILING = {"output", "policy", "host", "interference"}
"""Faults after which a run says nothing of its policy: an incomplete record, no decisions, those of the rule that saves
the host, and sizes that somebody else has set."""

LOADS_DONE = "the loads are done"

OUTPUTS_TIMEOUT_S = 30.0

FAILED_CHARS = 1000
"""Of why a run failed and what to do about it, the last words of a program included."""

LOG_BYTES = 1024**2
"""Kept of the end of each log of a guest in a run that failed."""

Show = Callable[[Controller], Awaitable[None]]
"""Shows a run on the screen until cancelled."""


class Live(Struct, frozen=True):
    """What follows a run while it goes on, besides the record.

    Attributes:
        report: Takes lines: what began, what went wrong.
        status: Takes the state of the moment, many times a minute: the share of the reads done, and a few words.
        sinks: Of the controller's events.
        show: Started with the controller, cancelled at its end; None: nothing is shown.
    """

    report: Report
    status: Callable[[float, str], None]
    sinks: Sequence[Sink] = ()
    show: Show | None = None


class ArmRunner:
    """Runs one arm once. The first run of an experiment has no throttle given: it measures it."""

    def __init__(
        self,
        specification: Specification,
        run: ArmRun,
        directory: RunDirectory,
        *,
        prepared: Prepared,
        traces: Traces,
        disk: DiskCalibration | None,
        live: Live,
    ) -> None:
        self.disk = disk
        self.service: dict[str, Service] = {}
        self._spec = specification
        self._run = run
        self._arm: Arm = next(arm for arm in specification.arms if arm.name == run.arm)
        self._directory = directory
        self._prepared = prepared
        self._traces = traces
        self._live = live
        self._started_s = time.monotonic()
        self._started_wall = time.time()
        self._used = (0.0, 0.0)
        self._load_s: float | None = None
        self._spoilt = ""

    async def run(self, run_dir: Path) -> Outcome:
        """Run the arm and return what came out, also when it failed. The outcome is not written yet.

        Args:
            run_dir: For sockets; its path must be short.
        """
        failed = ""
        try:
            config = await self._configuration(run_dir)
            if self.disk is None and self._spec.disk.by == "programs":
                async with self._linked(config) as links:
                    await self._calibrate_by_programs(links)
            async with self._linked(config) as links:
                await self._prepare_guests(config, links)
                await self._control(config, links)
        except* QmpallocError as group:
            failed = one_line(str(cause(group)), FAILED_CHARS)
        except* Exception as group:  # a defect of ours, or of a user's policy, must not end the other runs
            failed = self._keep_traceback(group)
        if failed:
            self._keep_logs(run_dir)
        cpu_s, wall_s = self._used
        return Outcome(
            arm=self._run.arm,
            repeat=self._run.repeat,
            started_wall=round(self._started_wall, 3),
            total_s=round(time.monotonic() - self._started_s, 1),
            load_s=self._load_s,
            failed=failed,
            disk_iops=self.disk.iops if self.disk is not None else 0,
            service=self.service,
            controller_cpu_s=round(cpu_s, 2),
            controller_wall_s=round(wall_s, 2),
        )

    async def _configuration(self, run_dir: Path) -> Config:
        config = arm_configuration(self._spec, self._arm, run_dir=run_dir)
        if not self._arm.is_computed_oracle:
            return config
        self._live.report(f"{self._arm.name}: computing the true curves of the loads")
        curves = await trio.to_thread.run_sync(self._traces.true_curves)
        return msgspec.structs.replace(config, policy_settings={**config.policy_settings, "curves": curves})

    def _keep_traceback(self, group: BaseExceptionGroup[Exception]) -> str:
        """Keep where a defect showed, and return it in one line."""
        leaf = next(leaves(group))
        file = self._directory.path / "traceback.txt"
        with suppress(HostError):
            write_whole(file, "".join(traceback.format_exception(group)).encode("utf-8", "backslashreplace"))
        return f"qmpalloc itself failed, see {file.name}: {type(leaf).__name__}: {leaf}"

    def _keep_logs(self, run_dir: Path) -> None:
        """Keep what QEMU and the guests' consoles said last; their directory is temporary."""
        for guest in self._spec.guests:
            for name in ("qemu", "console"):
                with suppress(OSError, HostError):  # the guest was never started, or there is no room
                    said = _tail(run_dir / guest.name / f"{name}.log")
                    if said:
                        write_whole(self._directory.path / f"{name}-{guest.name}.log", said)

    @asynccontextmanager
    async def _linked(self, config: Config) -> AsyncIterator[list[Link]]:
        """Boot our guests, reach the user's, and let them go after the block; one that ends ends it."""
        ours = any(guest.vm is not None for guest in config.guests)
        async with (
            open_guests(config, prepared=self._prepared, report=self._live.report)
            if ours
            else nullcontext(()) as guests,
            trio.open_nursery() as nursery,
        ):
            if guests:
                nursery.start_soon(_fail_when_one_ends, guests)
            async with AsyncExitStack() as stack:
                links = [await stack.enter_async_context(open_link(guest, self._traces)) for guest in guests]
                theirs = [guest for guest in self._spec.guests if guest.attach is not None]
                places = [open_attached(guest, config, self._traces, self._live.report) for guest in theirs]
                links += [await stack.enter_async_context(place) for place in places]
                yield links
            nursery.cancel_scope.cancel()

    # --- before the loads -------------------------------------------------------------------------------------------

    async def _prepare_guests(self, config: Config, links: list[Link]) -> None:
        await in_parallel([self._reach(link, config.guest(link.name).baseline) for link in links])
        await self._set_up(links)
        if self.disk is None:
            self.disk = await calibrate(self._spec.disk, links)
            self._tell_disk(self.disk)
        await set_throttle(links, self.disk.iops)
        await in_parallel([self._measure(link) for link in links])
        for name, service in sorted(self.service.items()):
            times = f"a hit takes {service.hit_s * 1e6:.1f} µs, a miss {service.miss_s * 1e6:.0f} µs"
            self._live.report(f"{name}: {times}: {service.ratio:.0f} times as long")
        await in_parallel([link.load.drop_caches() for link in links])
        await self._warm_up(links, self.disk.iops)
        # The file is up to a second old: what was read just now must not be counted in the first trial.
        await in_parallel([wait_for_new_counters(link) for link in links])

    async def _set_up(self, links: list[Link]) -> None:
        if any(guest.programs for guest in self._spec.guests):
            self._live.report("setting the programs up")
            await in_parallel([link.load.prepare() for link in links])

    async def _calibrate_by_programs(self, links: list[Link]) -> None:
        """Measure what hits and misses take the programs, in guests that are for nothing else."""
        await self._set_up(links)
        self._live.report("disk: running every program, warm and cold")
        self.disk = await calibrate_by_programs(self._spec.disk, links)
        self._tell_disk(self.disk)
        for guest, phases in self.disk.programs.items():
            for phase, service in phases.items():
                ratio = "is not known" if service.ratio is None else f"takes {service.ratio:.0f} times as long as a hit"
                self._live.report(f"disk: {guest}, {phase}: a miss {ratio}")

    def _tell_disk(self, disk: DiskCalibration) -> None:
        throttle = f"{disk.iops} reads per second" if disk.iops else "none"
        hit = "a hit of the programs" if disk.by == "programs" else "a cached read"
        self._live.report(f"disk: {hit} takes {disk.hit_s * 1e6:.1f} µs here; model {disk.model}: {throttle}")

    async def _measure(self, link: Link) -> None:
        self.service[link.name] = await link.load.measure_service()

    async def _warm_up(self, links: list[Link], iops: int) -> None:
        reads = self._spec.warm_up == "read"
        if reads or any(guest.programs for guest in self._spec.guests):
            what = "every guest reads its first file once" if reads else "programs only"
            self._live.report(f"warming the caches up: {what}")
            await set_throttle(links, 0)
            await in_parallel([link.load.warm_up(reads=reads) for link in links])
            await set_throttle(links, iops)

    async def _reach(self, link: Link, target_bytes: int) -> None:
        """Wait until a guest has the size it was asked to have."""
        if await link.reaches(target_bytes):
            return
        actual_bytes = await link.actuator.size_bytes()
        raise HostError(
            f"guest {link.name}: its {link.actuator.kind} stands at {format_size(actual_bytes)} after "
            f"{SIZE_TIMEOUT_S:.0f} s, not at its baseline of {format_size(target_bytes)}",
            hint="the baseline may be less than the guest's system needs, or somebody else moves its memory",
        )

    # --- while they run ---------------------------------------------------------------------------------------------

    async def _control(self, config: Config, links: list[Link]) -> None:
        """Run the controller for as long as the loads take."""
        clock = TrialClock({guest.name: int(guest.baseline) for guest in config.guests})
        policy = load_policy(config.policy, config.policy_settings, file=config.file)
        with RecordWriter(self._directory.record) as writer:
            controller = Controller(
                config, policy, writer, clock, self._note_faults, *self._live.sinks, read_host=read_host_memory
            )
            async with trio.open_nursery() as screen:
                if self._live.show is not None:
                    screen.start_soon(self._live.show, controller)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_run_controller, controller)
                    await self._follow_loads(links, clock, writer)
                    controller.quit(LOADS_DONE)
                screen.cancel_scope.cancel()
            self._raise_if_spoilt(writer)

    def _note_faults(self, event: AnyEvent) -> None:
        """Pass the controller's faults on. Those of `SPOILING` make that a run does not count."""
        if isinstance(event, Faulted):
            self._live.report(f"{event.guest or 'controller'}: {event.message}")
            if event.kind in SPOILING:
                about = f"guest {event.guest}: " if event.guest is not None else ""
                self._spoilt = self._spoilt or f"{about}{event.message}"

    def _raise_if_spoilt(self, writer: RecordWriter) -> None:
        if writer.failure is not None:
            raise HostError(f"{writer.path} cannot be written: {writer.failure.strerror}")
        if self._spoilt:
            raise HostError(self._spoilt)

    async def _follow_loads(self, links: list[Link], clock: TrialClock, writer: RecordWriter) -> None:
        """Start the loads with the first trial, and read every guest at the end of each until all are done."""
        with _time_limit(BEGIN_TIMEOUT_S, "the controller has not begun to decide"):
            await clock.begun.wait()
        started_s, cpu_s = trio.current_time(), time.process_time()
        await self._read_all(links, clock, trial=0, t=0.0)
        await in_parallel([link.load.go() for link in links])
        reading = {guest.name: {phase.name for phase in guest.reads} for guest in self._spec.guests}
        standstill = Standstill(reading, interval_s=self._spec.interval, now_s=started_s)
        trial = 0
        try:
            while True:
                with _time_limit(self._spec.interval + OVERDUE_S, "the controller has decided nothing"):
                    trial = await clock.next_trial(trial)
                now_s = trio.current_time()
                readings = await self._read_all(links, clock, trial=trial, t=now_s - started_s)
                if self._all_done(readings, len(links)):
                    break
                self._raise_if_spoilt(writer)
                standstill.note(readings, now_s=now_s)
                self._live.status(*self._progress(readings, trial))
        finally:
            self._used = (time.process_time() - cpu_s, trio.current_time() - started_s)
            with trio.move_on_after(OUTPUTS_TIMEOUT_S, shield=True):
                await self._keep_outputs(links)
        self._keep_results(readings)

    def _progress(self, readings: list[Reading], trial: int) -> tuple[float, str]:
        """Return the share of its load done by the guest that is furthest behind, and words for people."""
        shares, words = [], []
        for reading in readings:
            guest = next(found for found in self._spec.guests if found.name == reading.guest)
            shares.append(share_done(guest, reading.load))
            words.append(f"{done_text(guest, reading.load)} at {format_size(reading.actual_bytes)}")
        return min(shares, default=0.0), f"trial {trial}: {', '.join(words)}"

    def _all_done(self, readings: list[Reading], guests: int) -> bool:
        """Return whether every load is over; the first that gave up ends the run."""
        for reading in readings:
            if reading.load is not None and reading.load.error:
                raise HostError(f"{self._spec.file}: guest {reading.guest}: its load gave up: {reading.load.error}")
        finished = [reading for reading in readings if reading.load is not None and reading.load.finished]
        return len(finished) == guests

    async def _read_all(self, links: list[Link], clock: TrialClock, *, trial: int, t: float) -> list[Reading]:
        async def read(link: Link) -> Reading | None:
            target_bytes = clock.targets[link.name]
            try:
                await link.load.raise_if_dead()
                return await read_guest(link, trial=trial, t=t, target_bytes=target_bytes)
            except HostError:
                raise
            except QmpallocError as error:  # a guest may be too busy to answer; the next reading covers both trials
                self._live.report(f"{link.name}: no reading at the end of trial {trial}: {error.message}")
                return None

        readings = [reading for reading in await in_parallel([read(link) for link in links]) if reading is not None]
        self._directory.append_readings(readings)
        return readings

    async def _keep_outputs(self, links: list[Link]) -> None:
        """Keep what the programs printed, also of a run that fails; a guest that is gone has nothing to give."""

        async def keep(link: Link) -> None:
            try:
                for phase, data in (await link.load.outputs()).items():
                    self._directory.write_output(link.name, phase, data)
                for phase, points in (await link.load.series()).items():
                    self._directory.write_series(link.name, phase, points)
            except QmpallocError as error:
                self._live.report(f"{link.name}: not all that its programs printed is kept: {error.message}")

        await in_parallel([keep(link) for link in links])

    def _keep_results(self, readings: list[Reading]) -> None:
        """Keep what the loads say in the end, as it was in the readings that showed them finished."""
        seconds = []
        for reading in readings:
            assert reading.load is not None  # all are done
            self._directory.write_load(reading.guest, reading.load)
            seconds.append(reading.load.seconds)
        self._load_s = round(max(seconds, default=math.nan), 3)


def share_done(guest: Guest, load: LoadProgress | None) -> float:
    """Return the share of a guest's load that is done; where it is not reads alone, its phases count alike."""
    if load is None:
        return 0.0
    if all(isinstance(phase, Phase) and not phase.is_timed for phase in guest.phases):
        return load.reads / sum(phase.total_reads for phase in guest.reads)
    shares = 0.0
    for state, phase in zip(load.phases, guest.phases, strict=False):
        if state.done:
            shares += 1.0
        elif phase.is_timed:
            shares += min(1.0, state.seconds / phase.duration)
        elif isinstance(phase, Phase):
            shares += state.reads / phase.total_reads
    return shares / len(guest.phases)


def done_text(guest: Guest, load: LoadProgress | None) -> str:
    """Return how far a guest's load is, for people: of a program that ends by itself nobody knows the share."""
    if load is not None and load.phases and not load.phases[-1].done:
        state, phase = load.phases[-1], guest.phases[len(load.phases) - 1]
        if isinstance(phase, ProgramPhase) and not phase.is_timed:
            return f"{guest.name} {phase.name} for {state.seconds:.0f} s"
    return f"{guest.name} {share_done(guest, load):.0%}"


async def _fail_when_one_ends(guests: tuple[RunningGuest, ...]) -> None:
    guest = await wait_for_end(guests)
    raise HostError(f"guest {guest.name}: its QEMU (process {guest.pid}) {_how_it_ended(guest.pid)} during the run")


def _how_it_ended(pid: int) -> str:
    """Return how a child process ended, which is reaped elsewhere."""
    with suppress(ChildProcessError):
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if end is not None and end.si_code == os.CLD_EXITED:
            return f"ended with exit code {end.si_status}"
        if end is not None:
            return f"was killed by signal {end.si_status}"
    return "ended"


async def _run_controller(controller: Controller) -> None:
    await controller.run()
    if controller.reason != LOADS_DONE:
        raise HostError(f"the controller ended by itself: {controller.reason or 'no reason is known'}")


@contextmanager
def _time_limit(limit_s: float, what: str) -> Iterator[None]:
    with trio.move_on_after(limit_s) as scope:
        yield
    if scope.cancelled_caught:
        raise HostError(f"{what} for {limit_s:.0f} s")


def _tail(file: Path) -> bytes:
    with file.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - LOG_BYTES))
        return stream.read()
