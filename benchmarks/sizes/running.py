"""Runs a sweep on a real guest: boots it, learns the curve of its load at one size, measures the miss ratio at others.

The guest's counters and sampled accesses are read through the agent that is the controller's, as the controller reads
them, and every reading is handed on to be kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import trio
from msgspec import Struct, structs

from qmpalloc.curves.samples import FILE_MAX_BYTES as SAMPLES_MAX_BYTES
from qmpalloc.errors import DeadlineError, HostError, NonsenseError, RefusedError
from qmpalloc.experiment.run.configuration import arm_configuration
from qmpalloc.experiment.run.failures import bare_errors
from qmpalloc.experiment.run.readings import DATA_DISK, SIZE_SLACK_BYTES, Link, open_link
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.qemu.launcher import Prepared, open_guests, wait_for_end
from qmpalloc.qemu.progress import Report
from qmpalloc.qmp import Agent, deadline, open_agent
from qmpalloc.qmp.actuator import nearest_order
from qmpalloc.sample import FILE_MAX_BYTES, parse
from qmpalloc.units import format_size
from sizes.measurement import Case, Point, Shipped, SizesResult, Steadiness, measured
from sizes.predictions import Learner

READ_EVERY_S = 0.75
READ_AGAIN_S = 0.15
"""Waits after a reading that brought something new, and after one that did not; the collector writes once a second."""

READ_TIMEOUT_S = 10.0
FAILURES_MOST = 5
"""Readings in a row that may fail: a guest under load, emulated, may be slow to answer."""

SILENCE_S = 60.0
"""A guest of which nothing new was read for so long has hung."""

LEARN_MOST_S = 150.0
SETTLE_MOST_S = 75.0
MEASURE_MOST_S = 60.0
MEASURE_LEAST_S = 5.0

CASE_MOST_S = 1500.0


class Wires(Struct, frozen=True):
    """What a sweep uses of its guest.

    Attributes:
        link: With a load that is armed and not started.
        agent: The agent through which a controller would read.
        samples_file: Path in the guest.
    """

    link: Link
    agent: Agent
    samples_file: str


async def run_case(
    case: Case, *, prepared: Prepared, run_dir: Path, keep: Callable[[Shipped], None], report: Report
) -> SizesResult:
    """Boot a guest and sweep it.

    Args:
        case: What to measure.
        prepared: Images, disks and accelerators; see `qmpalloc.qemu.launcher.prepare`.
        run_dir: For sockets; its path must be short.
        keep: Takes every reading, in order.
        report: Takes lines for people.

    Raises:
        HostError: The guest ended or hung, its load ended, or its size did not change.
        QmpallocError: What else a guest or its QEMU can do.
    """
    started_s = time.monotonic()
    specification = case.specification
    config = arm_configuration(specification, specification.arms[0], run_dir=run_dir)
    traces = Traces(specification)
    result: SizesResult | None = None
    with bare_errors(), trio.move_on_after(CASE_MOST_S):
        async with open_guests(config, prepared=prepared, report=report) as guests, trio.open_nursery() as nursery:

            async def fail_when_it_ends() -> None:
                await wait_for_end(guests)
                raise HostError(f"{case.name}: the guest's QEMU ended")

            nursery.start_soon(fail_when_it_ends)
            guest = guests[0]
            async with (
                open_link(guest, traces) as link,
                open_agent(str(guest.sockets.agent)) as agent,
            ):
                await link.load.drop_caches()
                result = await over_sizes(case, Wires(link, agent, guest.config.samples_path), keep=keep, report=report)
            nursery.cancel_scope.cancel()
    if result is None:
        raise HostError(f"{case.name}: not finished after {CASE_MOST_S:.0f} s")
    total_s = round(time.monotonic() - started_s, 1)
    return structs.replace(result, accelerator=guest.accelerator.name, total_s=total_s)


async def over_sizes(case: Case, wires: Wires, *, keep: Callable[[Shipped], None], report: Report) -> SizesResult:
    """Sweep a guest that has the size `case.learn`; its load is started here.

    Raises:
        HostError: As `run_case`.
        QmpallocError: As `run_case`.
    """
    await wires.link.load.read_through()
    recording = _Recording(case, wires, keep, report)
    with bare_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recording.run)
            await wires.link.load.go()
            learnt, accesses, weak = await _learn(recording)
            points = [await _point(recording, size_bytes) for size_bytes in case.sizes]
            nursery.cancel_scope.cancel()
    return SizesResult(
        case=case,
        kernel=learnt.counters.kernel,
        learnt_t=learnt.t,
        learnt_accesses=accesses,
        weak=weak,
        points=tuple(points),
    )


class _Recording:
    """Reads the guest about once a second, for as long as the block lasts.

    Attributes:
        case: What is measured.
        wires: What it uses of its guest.
        report: Takes lines for people.
        learner: Has taken every line.
        latest: The newest line; None before the first.
    """

    def __init__(self, case: Case, wires: Wires, keep: Callable[[Shipped], None], report: Report) -> None:
        self.learner = Learner(case)
        self.latest: Shipped | None = None
        self.case = case
        self.wires = wires
        self._keep = keep
        self.report = report
        self._started_s = trio.current_time()
        self._sequence = -1
        self._news = trio.Event()

    async def next(self) -> Shipped:
        """Return the next new line.

        Raises:
            HostError: Nothing new comes, or the load has ended.
        """
        with trio.move_on_after(SILENCE_S):
            await self._news.wait()
        if not self._news.is_set():
            raise HostError(f"{self.case.name}: nothing new was read of the guest for {SILENCE_S:.0f} s")
        self._news = trio.Event()
        await self.wires.link.load.raise_if_dead()
        assert self.latest is not None
        return self.latest

    async def run(self) -> None:
        """Read for ever."""
        failures = 0
        while True:
            try:
                line = await self._read()
                failures = 0
            except (DeadlineError, NonsenseError) as error:
                failures += 1
                if failures >= FAILURES_MOST:
                    raise
                self.report(f"{self.case.name}: not read: {error.message}")
                line = None
            if line is not None:
                self._take(line)
            await trio.sleep(READ_AGAIN_S if line is None else READ_EVERY_S)

    def _take(self, line: Shipped) -> None:
        self.latest = line
        self._keep(line)
        self.learner.take(line)
        if self.learner.refused:
            self.report(f"{self.case.name}: not used: {self.learner.refused}")
        self._news.set()

    async def _read(self) -> Shipped | None:
        wires = self.wires
        with deadline(READ_TIMEOUT_S, wires.agent.address, "a reading"):
            counters = parse(await wires.agent.read_file(wires.link.counters_file, FILE_MAX_BYTES))
            if counters.sequence == self._sequence:
                return None
            actual_bytes = await wires.link.actuator.size_bytes()
            disks = await wires.link.monitor.block_stats()
            try:
                batch = await wires.agent.read_file(wires.samples_file, SAMPLES_MAX_BYTES)
            except RefusedError:
                batch = b""
        if counters.lru != self.case.lru and self._sequence >= 0:
            raise HostError(f"{self.case.name}: the guest's page replacement is {counters.lru}")
        self._sequence = counters.sequence
        return Shipped(
            t=round(trio.current_time() - self._started_s, 3),
            actual_bytes=actual_bytes,
            counters=counters,
            batch=batch,
            disk_read_bytes=sum(disk.rd_bytes for disk in disks),
            disk_read_ns=sum(disk.rd_total_time_ns for disk in disks),
            data_read_bytes=sum(disk.rd_bytes for disk in disks if disk.name == DATA_DISK),
        )


async def _learn(recording: _Recording) -> tuple[Shipped, int, tuple[str, ...]]:
    """Wait until the curve is good and the guest steady; return the last line that predictions may know."""
    case, first = recording.case, await recording.next()
    watch = Steadiness(case.window, alike=case.alike)
    needed = case.learn_files * case.pages
    while True:
        line = await recording.next()
        watch.note(line)
        facts = recording.learner.facts
        weak = facts.curve.weak if facts.curve is not None else (facts.no_curve,)
        if not weak and watch.accesses >= needed and watch.steady:
            break
        if line.t - first.t > LEARN_MOST_S:
            break
    accesses = line.accesses - first.accesses
    said = f"curve learnt from {accesses:,} accesses in {line.t - first.t:.0f} s"
    recording.report(f"{case.name}: {said}{f', weak: {weak}' if weak else ''}")
    return line, accesses, weak


async def _point(recording: _Recording, target_bytes: int) -> Point:
    """Bring the guest to a size, wait until it is steady, and measure."""
    case = recording.case
    await _resize(recording, target_bytes)
    first = await recording.next()
    watch = Steadiness(case.window, alike=case.alike)
    watch.note(first)
    line = first
    while not watch.steady and line.t - first.t <= SETTLE_MOST_S:
        line = await recording.next()
        watch.note(line)
    lines = [line]
    needed = max(case.measure_files * case.pages, case.window)
    while True:
        lines.append(await recording.next())
        seconds = lines[-1].t - lines[0].t
        enough = lines[-1].accesses - lines[0].accesses >= needed and seconds >= MEASURE_LEAST_S
        if enough or seconds > MEASURE_MOST_S:
            break
    point = measured(lines, lap=case.lap, target_bytes=target_bytes, watch=watch, warm_s=line.t - first.t)
    warm = "after" if point.steady else "NOT STEADY after"
    recording.report(
        f"{case.name}: {format_size(point.actual_bytes)} misses {point.miss_ratio:.4f} of "
        f"{point.accesses:,.0f} accesses in {point.seconds:.0f} s, {warm} {point.warm_accesses:,} "
        f"in {point.warm_s:.0f} s"
    )
    return point


async def _resize(recording: _Recording, target_bytes: int) -> None:
    case, link = recording.case, recording.wires.link
    load, actuator = link.load, link.actuator
    with deadline(READ_TIMEOUT_S, actuator.monitor.address, actuator.command):
        grows = target_bytes > await actuator.size_bytes() + SIZE_SLACK_BYTES
        await actuator.order(nearest_order(await actuator.memory(), target_bytes))
    if not await link.reaches(target_bytes):
        raise HostError(f"{case.name}: its {actuator.kind} does not reach {format_size(target_bytes)}")
    if case.fresh:
        await load.drop_caches()
    if grows or case.fresh:  # what the load's misses alone would take long for
        await load.read_through()
