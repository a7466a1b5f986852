"""One QEMU process of ours: started, brought to where its guest is observed, stopped and reaped."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import trio
from msgspec import Struct

from qmpalloc.config import GuestConfig
from qmpalloc.errors import (
    DeadlineError,
    DisconnectedError,
    HostError,
    NonsenseError,
    RefusedError,
    SampleError,
    UnreachableError,
)
from qmpalloc.qemu import argv, rundir
from qmpalloc.qemu.accelerator import Accelerator
from qmpalloc.qemu.host import SEARCH_PATH, last_lines
from qmpalloc.qemu.image import Image
from qmpalloc.qmp import Agent, deadline, find_actuators, open_agent, open_monitor
from qmpalloc.qmp.actuator import nearest_order
from qmpalloc.sample import FILE_MAX_BYTES, parse
from qmpalloc.units import format_size

MONITOR_TIMEOUT_S = 30.0
"""From the start of QEMU to its monitor; under a second unless the host is overloaded."""

READY_TIMEOUT_S = {"kvm": 120.0, "tcg": 480.0}
"""From the start of QEMU to the first sample. Under emulation bcc alone compiles for 40 s, and longer beside others."""

COMMAND_TIMEOUT_S = 5.0
RETRY_S = 0.5
SOCKET_RETRY_S = 0.02
TERM_GRACE_S = 5.0
KILL_GRACE_S = 5.0
LOG_TAIL_BYTES = 4096


class RunningGuest(Struct, frozen=True, kw_only=True):
    """A guest that runs.

    Attributes:
        config: Its configuration.
        pid: Of its QEMU.
        sockets: Its sockets and logs.
        accelerator: What runs it.
        image: What it booted.
        agent_s: Seconds from start to the agent's first answer; NaN when nobody waited for it.
        sample_s: Seconds from start to the first usable sample; NaN when nobody waited for it.
    """

    config: GuestConfig
    pid: int
    sockets: argv.Sockets
    accelerator: Accelerator
    image: Image
    agent_s: float = math.nan
    sample_s: float = math.nan

    @property
    def name(self) -> str:
        """The guest's name."""
        return self.config.name

    @property
    def lab_socket(self) -> Path | None:
        """The agent that may execute programs, in guests of profile ``lab``."""
        return self.sockets.lab if self.image.has_lab_agent else None


class Machine:
    """One QEMU process of ours."""

    def __init__(
        self, guest: GuestConfig, sockets: argv.Sockets, process: subprocess.Popen[bytes], image: Image,
        accelerator: Accelerator,
    ) -> None:  # fmt: skip
        self.guest = guest
        self.sockets = sockets
        self.process = process
        self.image = image
        self.accelerator = accelerator
        self.start_s = time.monotonic()
        self._said = ""

    @classmethod
    def start(
        cls, guest: GuestConfig, command: argv.CommandLine, *, image: Image, accelerator: Accelerator,
        sockets: argv.Sockets, config_file: str, detached: bool,
    ) -> Machine:  # fmt: skip
        """Start the process. Returns at once; nothing is known of the guest yet.

        Raises:
            HostError: A QEMU of this name runs already.
        """
        sockets.directory.mkdir(mode=0o700, exist_ok=True)
        former = rundir.read_record(sockets.directory)
        if former is not None and former.alive:
            hint = f"qmpalloc vm down {config_file} --guest {guest.name}"
            raise HostError(f"guest {guest.name} runs already (process {former.pid})", hint=hint)
        rundir.clear(sockets.directory)
        with (sockets.directory / "qemu.log").open("wb") as log:
            # Not trio.run_process: it starts processes in a worker thread, and a parent-death signal is sent when the
            # *thread* ends, which trio's idle workers do after ten seconds. A session of its own, so that Ctrl-C
            # reaches us alone and the guests are stopped in order.
            process = subprocess.Popen(
                command.argv(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "PATH": SEARCH_PATH},
            )  # fmt: skip
        try:
            machine = cls(guest, sockets, process, image, accelerator)
            rundir.write_record(sockets.directory, machine.record(config_file, detached))
        except BaseException:
            process.kill()  # nobody else knows of it yet
            process.wait()
            raise
        return machine

    def record(self, config_file: str, detached: bool) -> rundir.GuestRecord:
        """Return who this is, for other processes of qmpalloc."""
        assert self.guest.vm is not None
        return rundir.GuestRecord(
            name=self.guest.name,
            pid=self.process.pid,
            start_ticks=rundir.start_ticks(self.process.pid) or 0,
            boot_id=rundir.host_boot_id(),
            started_at_s=time.time(),
            config_file=config_file,
            memory_bytes=int(self.guest.vm.memory),
            accelerator=self.accelerator.name,
            image=self.image.directory.name,
            monitor=str(self.sockets.monitor),
            agent=str(self.sockets.agent),
            detached=detached,
        )

    async def until_ready(self, step: Callable[[str], None], *, wait_for_samples: bool) -> RunningGuest:
        """Return when the guest is observed; raise when its QEMU ends before."""
        name, baseline, vm = self.guest.name, self.guest.baseline, self.guest.vm
        assert vm is not None
        agent_s = sample_s = math.nan
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._raise_when_it_ends)
            await self._set_baseline()
            step(f"{name}: QEMU runs, {vm.actuator} set to {format_size(baseline)}")
            if wait_for_samples:
                agent_s, sample_s = await self._observed(step)
            nursery.cancel_scope.cancel()
        return RunningGuest(
            config=self.guest, pid=self.process.pid, sockets=self.sockets, accelerator=self.accelerator,
            image=self.image, agent_s=agent_s, sample_s=sample_s,
        )  # fmt: skip

    async def stop(self) -> None:
        """End the process, in order if possible, and reap it."""
        for number, grace_s in ((signal.SIGTERM, TERM_GRACE_S), (signal.SIGKILL, KILL_GRACE_S)):
            if self.process.poll() is not None:
                break
            self.process.send_signal(number)
            with trio.move_on_after(grace_s):
                await wait_pid(self.process.pid)
        self.process.poll()
        rundir.clear(self.sockets.directory)

    @property
    def _age_s(self) -> float:
        return time.monotonic() - self.start_s

    async def _raise_when_it_ends(self) -> None:
        await wait_pid(self.process.pid)
        code = self.process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise self._failure(f"its QEMU {how} after {self._age_s:.1f} s")

    def _failure(self, what: str) -> HostError:
        """Return an error with the last words of QEMU and of the guest."""
        message = f"guest {self.guest.name}: {what}"
        for title, file in (("QEMU", self.sockets.directory / "qemu.log"), ("console", self.sockets.console_log)):
            said = last_lines(_tail(file))
            message += f"\n  last lines of the {title} ({file}):\n{said}" if said else ""
        return HostError(message)

    async def _observed(self, step: Callable[[str], None]) -> tuple[float, float]:
        """As `_collector_counts`, limited in time.

        The reason of a failure is what came last: no answer at all, no counters file, or what the collector reports.
        """
        limit_s = READY_TIMEOUT_S[self.accelerator.name]
        with trio.move_on_after(limit_s - self._age_s):
            while True:
                try:
                    return await self._collector_counts(step)
                except (UnreachableError, NonsenseError) as error:
                    # Its QEMU is ending, which is noticed elsewhere, or somebody else holds the agent's socket.
                    self._say_once(error.message, step)
                    await trio.sleep(RETRY_S)
        raise self._failure(f"not ready after {limit_s:.0f} s ({self._said or 'its agent does not answer'})")

    async def _set_baseline(self) -> None:
        """Ask for the baseline as soon as the monitor is there."""
        with trio.move_on_after(MONITOR_TIMEOUT_S):
            while True:
                try:
                    async with open_monitor(str(self.sockets.monitor), timeout_s=MONITOR_TIMEOUT_S) as monitor:
                        [actuator] = await find_actuators(monitor)
                        await actuator.order(nearest_order(await actuator.memory(), self.guest.baseline))
                        return
                except DisconnectedError:
                    pass  # it is ending, which is reported elsewhere with its reason
                except UnreachableError as error:
                    if not error.absent:
                        raise
                await trio.sleep(SOCKET_RETRY_S)  # QEMU has not made its socket yet
        raise self._failure(f"its monitor does not answer after {MONITOR_TIMEOUT_S:.0f} s")

    async def _collector_counts(self, step: Callable[[str], None]) -> tuple[float, float]:
        """Wait for the agent's first answer and the first usable sample, and return when each came (age in seconds)."""
        async with open_agent(str(self.sockets.agent), timeout_s=MONITOR_TIMEOUT_S) as agent:
            await agent.info()
            agent_s = self._age_s
            step(f"{self.guest.name}: booted, its agent answers")
            while True:
                if await self._has_sample(agent, step):
                    return agent_s, self._age_s
                await trio.sleep(RETRY_S)

    async def _has_sample(self, agent: Agent, step: Callable[[str], None]) -> bool:
        try:
            with deadline(COMMAND_TIMEOUT_S, agent.address, "the counters file"):
                parse(await agent.read_file(self.guest.counters_file, FILE_MAX_BYTES))
        except SampleError as error:
            self._say_once(error.message, step)
        except RefusedError:
            self._say_once("waiting for its collector, which compiles its probes", step)
        except DeadlineError:
            pass  # a busy guest
        else:
            return True
        return False

    def _say_once(self, text: str, step: Callable[[str], None]) -> None:
        if text != self._said:
            self._said = text
            step(f"{self.guest.name}: {text}")


async def wait_pid(pid: int) -> None:
    """Wait until a process ends, without reaping it."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)


def _tail(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - LOG_TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
