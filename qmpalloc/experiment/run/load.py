"""The load of one guest, from the host: generator, references and programs are shipped, started, watched and ended.

::

    traces = Traces(specification)
    async with open_load(channel, traces, guest) as load:
        await load.prepare()
        await load.warm_up()
        await load.go()
        ...
        progress = await load.progress()

In the guest everything is in `DIRECTORY`, on tmpfs. The references are read and removed when the load is armed, so that
they are in memory once. The guest is not trusted: what it says of its load is checked like any of its words.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import trio

from qmpalloc.channel import Channel
from qmpalloc.errors import HostError, NonsenseError, QmpallocError, RefusedError
from qmpalloc.experiment.run.lru import choose_lru
from qmpalloc.experiment.run.shipping import packed_generator
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec.program import Metric, ProgramPhase
from qmpalloc.experiment.spec.schema import AnyPhase, Guest, Phase, Specification
from qmpalloc.experiment.store.records import LoadProgress, PhaseProgress, ProgramPace, SeriesPoint, Service
from qmpalloc.qmp import ExecResult, deadline
from qmpalloc.text import printable

T = TypeVar("T")

DIRECTORY = "/run/qmpalloc-load"
PROGRESS_FILE = f"{DIRECTORY}/progress.json"
GO_FILE = f"{DIRECTORY}/go"
LOG_FILE = f"{DIRECTORY}/log"
PLAN_FILE = f"{DIRECTORY}/plan.json"
PROGRAM_FILE = f"{DIRECTORY}/generator.pyz"
PID_FILE = f"{DIRECTORY}/pid"
STEP_PID_FILE = f"{DIRECTORY}/step-pid"
GENERATE = ("python3", PROGRAM_FILE)
END = (
    f"for f in {PID_FILE} {STEP_PID_FILE}; do p=$(cat $f 2>/dev/null) && "
    "grep -q generator /proc/$p/cmdline 2>/dev/null && kill $p; done; true"
)
"""Ends the generator, and the step of a program that is run now, with all that these have started."""
CLEAR = f"{END}; rm -rf {DIRECTORY} && mkdir -m 700 {DIRECTORY}"
"""Also ends what a host that died has left running in a guest that goes on."""

PROGRAMS_DIRECTORY = "/var/tmp/qmpalloc"
"""On the guest's own disk: what programs bring and write there costs no memory but cache."""

COMMAND_TIMEOUT_S = 30.0
SHIP_TIMEOUT_S = 60.0
SHIP_BYTES_PER_S = 100_000
"""A load is shipped in `SHIP_TIMEOUT_S` and a second for so many bytes, or the guest hangs."""

ARM_TIMEOUT_S = 60.0
ARM_POLL_S = 0.1
SERVICE_TIMEOUT_S = 120.0
READ_THROUGH_TIMEOUT_S = 1800.0
PREPARE_TIMEOUT_S = 1800.0
"""A little more than the generator itself allows a step of a program."""

STOP_TIMEOUT_S = 5.0

PROGRESS_BYTES = 4096
PROGRESS_PHASE_BYTES = 16384
"""The longest progress: so much, and so much for each phase. A histogram has at most some 500 numbers."""

LOG_MAX_BYTES = 64 * 1024
OUTPUT_MAX_BYTES = 160 * 1024
"""Of what is kept of a program's output; the generator keeps less."""
SERIES_METRIC_BYTES = 384 * 1024
"""The longest series of a metric; the generator keeps at most 4096 points of up to 80 bytes."""
PROGRESS, SERVICE_TIMES, SERIES = "progress of the load", "service times", "series of a metric"
COUNT_MAX = 2**53


class Load:
    """The load of a guest. Open one with `open_load`.

    All methods raise `QmpallocError` when the guest does not answer or refuses, `HostError` when what they start in it
    fails, and `NonsenseError` when what is there no generator with this plan has written.

    Attributes:
        guest: Whose load it is.
        started: What the channel calls the generator; None before it was started.
    """

    def __init__(self, channel: Channel, specification: Specification, guest: Guest) -> None:
        self.guest = guest
        self._spec = specification
        self._channel = channel
        self.started: int | None = None
        self._end: ExecResult | None = None

    async def go(self) -> None:
        """Start reading. Returns when the guest has been told; it looks every 20 ms."""
        with deadline(COMMAND_TIMEOUT_S, self._channel.address, "the start of the load"):
            await self._channel.write_file(GO_FILE, b"")

    async def progress(self) -> LoadProgress | None:
        """Return what the generator last wrote, at most half a second old while it runs; None: nothing yet."""
        limit = PROGRESS_BYTES + PROGRESS_PHASE_BYTES * len(self.guest.phases)
        data = await self._kept(PROGRESS_FILE, limit, PROGRESS)
        if data is None:
            return None
        progress = self._decoded(self._short(data, limit, PROGRESS), LoadProgress, PROGRESS)
        for wrong in self._contradictions(progress):
            raise self._nonsense(wrong, PROGRESS)
        return msgspec.structs.replace(progress, error=printable(progress.error))

    async def raise_if_dead(self) -> None:
        """Return while the generator runs, and when it has finished all its reads; else raise why it ended."""
        if self.started is None:
            raise HostError(f"guest {self.guest.name}: its load was never started")
        if self._end is None:
            with deadline(COMMAND_TIMEOUT_S, self._channel.address, "the state of the load"):
                self._end = await self._channel.poll(self.started)
        if self._end is None:
            return
        progress = await self.progress()
        if progress is not None and progress.finished and not progress.error:
            return
        reason = (progress.error if progress is not None else "") or await self._log_tail()
        out_of_memory = self._end.signal == signal.SIGKILL or "MemoryError" in reason
        place = f"{self._spec.file}: " if self.guest.programs else ""  # whose reasons name keys of it
        hint = f"what its programs printed is kept: output-{self.guest.name}-PHASE.txt" if self.guest.programs else ""
        raise HostError(
            f"{place}guest {self.guest.name}: its load {_how(self._end)}: {reason}",
            hint="the guest had no memory left: raise its floor" if out_of_memory else hint,
        )

    async def read_through(self) -> None:
        """Read the first phase's file once, in order and in large requests."""
        path = self.guest.path(next(iter(self.guest.files)))
        await self._run([*GENERATE, "read-through", path], READ_THROUGH_TIMEOUT_S)

    async def prepare(self) -> None:
        """Set the programs of the load up, and wait until they are ready."""
        if self.guest.programs:
            for step in ("setup", "ready"):
                await self._prepare(step)

    async def warm_up(self, *, reads: bool) -> None:
        """Run the warm-up of the first phase: of a program its own, of reads, if so wanted, its file once."""
        if isinstance(self.guest.phases[0], ProgramPhase):
            await self._prepare("warm_up")
        elif reads:
            await self.read_through()

    async def _prepare(self, step: str) -> None:
        limit_s, what = PREPARE_TIMEOUT_S * len(self.guest.programs), f"{step} of the programs"
        await self._run([*GENERATE, "prepare", step, PLAN_FILE], limit_s, of_program=what)

    async def run_once(self, number: int, limit_s: float, *, first: Literal["", "warm-up", "cold"] = "") -> ProgramPace:
        """Run the program of a phase outside of the load, and return how it went; what is counted is not in it.

        Args:
            number: Of the phase, from 0.
            limit_s: For so long at most.
            first: Run its warm-up, or have the kernel drop its caches; neither is in the time.
        """
        what = f"a run of {self.guest.phases[number].name}"
        argv = [*GENERATE, "once", PLAN_FILE, str(number), str(limit_s), *([f"--{first}"] if first else [])]
        out = await self._run(argv, PREPARE_TIMEOUT_S + limit_s, of_program=what)
        return self._decoded(out, ProgramPace, what)

    async def outputs(self) -> dict[str, bytes]:
        """Return what is kept of the output of each program that was begun, by phase."""
        found = {}
        for number, phase in enumerate(self.guest.phases):
            if isinstance(phase, ProgramPhase):
                data = await self._kept(_own("output", number), OUTPUT_MAX_BYTES, f"output of {phase.name}")
                if data is not None:
                    found[phase.name] = data[:OUTPUT_MAX_BYTES]
        return found

    async def series(self) -> dict[str, tuple[SeriesPoint, ...]]:
        """Return the values of the metrics that are series, with their times, by phase; of programs that have ended."""
        found = {}
        for number, phase in enumerate(self.guest.phases):
            names = [metric.name for metric in phase.metrics if metric.series]
            limit = SERIES_METRIC_BYTES * len(names)
            data = await self._kept(_own("series", number), limit, f"series of {phase.name}") if names else None
            if data is not None:
                lines = self._short(data, limit, SERIES).splitlines()
                found[phase.name] = tuple(self._point(line, names) for line in lines)
        return found

    def _point(self, line: bytes, names: Collection[str]) -> SeriesPoint:
        with suppress(ValueError, msgspec.ValidationError):
            point = SeriesPoint.parse(line.decode())
            if point.metric in names:
                return point
        raise self._nonsense(printable(line.decode(errors="replace"), 80), SERIES)

    async def measure_service(self) -> Service:
        """Measure what cached and uncached reads take, with the disk's throttle as it is; 5 to 10 seconds.

        Afterwards nothing of the file of the first phase is cached.
        """
        path = self.guest.path(next(iter(self.guest.files)))
        out = await self._run([*GENERATE, "service", path], SERVICE_TIMEOUT_S)
        service = self._decoded(out, Service, SERVICE_TIMES)
        if service.hits < 1 or service.misses < 1:
            raise HostError(
                f"guest {self.guest.name}: its first file is too small to measure service times",
                hint="a few MiB are enough",
            )
        if not (service.hit_s and service.miss_s):
            raise self._nonsense(f"a hit of {service.hit_s} s and a miss of {service.miss_s} s", SERVICE_TIMES)
        return service

    async def drop_caches(self) -> None:
        """Have the guest's kernel drop all that it can of its page cache and its caches of inodes."""
        await self._run(["/bin/sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches"], COMMAND_TIMEOUT_S)

    async def stop(self) -> None:
        """End the generator, if it runs, and what it does besides."""
        if self.started is not None and self._end is None:
            await self._run(["/bin/sh", "-c", END], COMMAND_TIMEOUT_S)

    async def arm(self, traces: Traces) -> None:
        """Ship everything and start the generator, which then waits for `go`."""
        await self._run(["/bin/sh", "-c", CLEAR], COMMAND_TIMEOUT_S)
        await self._ship(PROGRAM_FILE, packed_generator())
        for number, phase in enumerate(self.guest.phases):
            if isinstance(phase, Phase):
                await self._ship(_own("trace", number), await trio.to_thread.run_sync(traces.trace, self.guest, phase))
            else:
                await self._bring(phase, _directory(number))
        await self._ship(PLAN_FILE, json.dumps(plan(self._spec, self.guest)).encode())
        command = f"echo $$ > {PID_FILE}; exec python3 {PROGRAM_FILE} run {PLAN_FILE} > {LOG_FILE} 2>&1"
        with deadline(COMMAND_TIMEOUT_S, self._channel.address, "starting the load"):
            self.started = await self._channel.start(["/bin/sh", "-c", command])
        with trio.move_on_after(ARM_TIMEOUT_S):
            while await self.progress() is None:
                await self.raise_if_dead()
                await trio.sleep(ARM_POLL_S)
            return
        raise HostError(f"guest {self.guest.name}: its load is not ready after {ARM_TIMEOUT_S:.0f} s")

    async def _bring(self, phase: ProgramPhase, directory: str) -> None:
        """Make the directory of a program, and copy its files into it."""
        await self._run(["mkdir", "-p", directory], COMMAND_TIMEOUT_S)
        for name in phase.copy:
            file = Path(self._spec.file).parent / name
            try:
                data = await trio.Path(file).read_bytes()
            except OSError as error:
                raise HostError(f"{file} cannot be read: {error.strerror}") from error
            await self._ship(f"{directory}/{file.name}", data)
            if os.access(file, os.X_OK):
                await self._run(["chmod", "755", f"{directory}/{file.name}"], COMMAND_TIMEOUT_S)

    async def _ship(self, path: str, data: bytes) -> None:
        with deadline(SHIP_TIMEOUT_S + len(data) / SHIP_BYTES_PER_S, self._channel.address, f"writing {path}"):
            await self._channel.write_file(path, data)

    async def _run(self, argv: list[str], timeout_s: float, *, of_program: str = "") -> bytes:
        """Run something in the guest, and return what it prints.

        Args:
            argv: Program and arguments.
            timeout_s: For it to end.
            of_program: What of the user's programs the generator does, whose complaint names a key of the file.

        Raises:
            HostError: It failed.
            QmpallocError: The guest does not answer.
        """
        guest = f"guest {self.guest.name}"
        with deadline(timeout_s, self._channel.address, f"{of_program or argv[0]} in {guest}"):
            result = await self._channel.run(argv)
        if result.exit_code == 0:
            return result.out
        if of_program:
            raise HostError(f"{self._spec.file}: {guest}: {_last_lines(result.err)}")
        words = printable(" ".join(argv), 80)
        raise HostError(f"{guest}: {words} {_how(result)}: {_last_lines(result.err)}")

    async def _kept(self, path: str, limit: int, what: str) -> bytes | None:
        """Return what the generator has written, a little more than `limit` bytes at most; None: nothing yet."""
        with deadline(COMMAND_TIMEOUT_S, self._channel.address, f"the {what}"), suppress(RefusedError):
            return await self._channel.read_file(path, limit)
        return None

    def _short(self, data: bytes, limit: int, what: str) -> bytes:
        if len(data) > limit:
            raise self._nonsense(f"it is longer than {limit} bytes", what)
        return data

    async def _log_tail(self) -> str:
        with suppress(QmpallocError):
            data = await self._kept(LOG_FILE, LOG_MAX_BYTES, "log of the load")
            if data is not None:
                return _last_lines(data)
        return "its log cannot be read"

    def _contradictions(self, progress: LoadProgress) -> Iterable[str]:
        """Yield what no generator with this plan could have written."""
        if len(progress.phases) > len(self.guest.phases):
            yield f"{len(progress.phases)} phases of {len(self.guest.phases)}"
        for state, phase in zip(progress.phases, self.guest.phases, strict=False):
            if state.name != phase.name:
                yield f"phase {printable(state.name, 64)} in place of {phase.name}"
            elif not _possible(state, phase):
                yield f"impossible numbers in phase {phase.name}"
        if progress.finished and sum(state.done for state in progress.phases) != len(self.guest.phases):
            yield f"it is finished after {sum(state.reads for state in progress.phases)} reads"

    def _decoded(self, data: bytes, kind: type[T], what: str) -> T:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._nonsense(printable(str(error)), what) from error

    def _nonsense(self, why: str, what: str) -> NonsenseError:
        hint = "something in the guest writes there besides the generator"
        return NonsenseError(f"guest {self.guest.name}: the {what} makes no sense: {why}", hint=hint)


@asynccontextmanager
async def open_load(channel: Channel, traces: Traces, guest: Guest) -> AsyncIterator[Load]:
    """Switch a guest to its page replacement, bring its load into it, ready to start, and end it after the block.

    Args:
        channel: Into the guest, as root there.
        traces: The references.
        guest: As the specification of `traces` describes it.

    Raises:
        HostError: Its kernel cannot switch.
        QmpallocError: As `Load.arm`.
    """
    await choose_lru(channel, guest)
    load = Load(channel, traces.specification, guest)
    try:
        await load.arm(traces)
        yield load
    finally:
        with trio.move_on_after(STOP_TIMEOUT_S, shield=True), suppress(QmpallocError):  # its guest may be gone
            await load.stop()


def plan(specification: Specification, guest: Guest) -> dict[str, object]:
    """Return the plan of a guest's load, as the generator reads it."""
    fill = partial(specification.fill, guest=guest)
    phases: list[dict[str, object]] = []
    for number, phase in enumerate(guest.phases):
        if isinstance(phase, Phase):
            described: dict[str, object] = {
                "file": guest.path(phase.file_name),
                "trace": _own("trace", number),
                "readahead": phase.reads_ahead,
                "rate": phase.rate,
            }
        else:
            described = {
                **phase.with_texts(fill),
                "key": f"guest[{specification.guests.index(guest)}].phase[{number}]",
                "directory": _directory(number),
                "output": _own("output", number),
                "series": _own("series", number),
                "timeout": phase.timeout,
                "metrics": [_gauge(metric, fill) for metric in phase.metrics],
            }
        phases.append({"name": phase.name, "duration": phase.duration, **described})
    return {"progress": PROGRESS_FILE, "go": GO_FILE, "step_pid": STEP_PID_FILE, "phases": phases}


def _gauge(metric: Metric, fill: Callable[[str], str]) -> object:
    """Return a metric as the generator reads it, the name of its file filled in; a pattern has braces of its own."""
    if metric.json is not None:
        metric = msgspec.structs.replace(metric, json=msgspec.structs.replace(metric.json, file=fill(metric.json.file)))
    return msgspec.to_builtins(metric)


def _possible(state: PhaseProgress, phase: AnyPhase) -> bool:
    """Return whether a generator can have written this of a phase."""
    most = 0
    if isinstance(phase, Phase):
        most = COUNT_MAX if phase.is_timed else phase.total_reads
    return (
        state.errors <= state.reads <= most
        and sum(state.latency.values()) <= most
        and (not state.done or phase.is_timed or state.reads == most)
        and state.metrics.keys() <= {metric.name for metric in phase.metrics}
    )


def _own(kind: str, number: int) -> str:
    """Return the path of a phase's trace, output or series."""
    return f"{DIRECTORY}/{kind}{number}"


def _directory(number: int) -> str:
    return f"{PROGRAMS_DIRECTORY}/phase{number + 1}"


def _how(result: ExecResult) -> str:
    return f"was killed by signal {result.signal}" if result.signal is not None else f"ended with {result.exit_code}"


def _last_lines(data: bytes) -> str:
    lines = data.decode(errors="replace").strip().splitlines()[-3:]
    return printable(" | ".join(lines), 500) or "no output"
