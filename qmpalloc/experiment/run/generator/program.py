"""A phase that runs a program, and the steps before it."""

from __future__ import annotations

import os
import pwd
import select
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .output import Gauge, Output
from .progress import GaveUpError, PhaseState, Progress

READ_BYTES = 64 * 1024
PROGRAM_POLL_S = 0.1
STOP_S = 5.0
"""For a program to end when it is told to; then it is killed."""
STEP_S = 1500.0
READY_S = 120.0
READY_TRY_S = 10.0
READY_POLL_S = 0.5
LAST_CHUNKS = 256
"""Read at most from a pipe whose program has ended, for another program may hold it open and go on writing."""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
}


class FailedError(GaveUpError):
    """A program did not do what it was run for."""


class Program:
    """A phase that runs a program, with the steps before it."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.name: str = plan["name"]
        self._plan = plan
        self._key: str = plan["key"]
        self._gauges()  # what is wrong with one is told before anything is begun

    def prepare(self, step: str) -> None:
        """Run ``setup``, ``ready`` or ``warm_up`` to its end.

        Raises:
            GaveUpError: It failed, or took too long.
        """
        if self._plan[step] and step == "ready":
            self._wait_until_ready()
        elif self._plan[step]:
            self._execute(step, limit_s=STEP_S)
        if step == "setup":  # which may have made the user
            directory, entry = Path(self._plan["directory"]), self._entry(self._plan["user"])
            os.chown(directory, entry.pw_uid, entry.pw_gid)
            for place, directories, files in os.walk(directory):
                for name in (*directories, *files):
                    with suppress(FileNotFoundError):  # a server that was set up may work in there
                        os.chown(Path(place, name), entry.pw_uid, entry.pw_gid, follow_symlinks=False)

    def _wait_until_ready(self) -> None:
        end_s = time.monotonic() + READY_S
        failure: FailedError | None = None
        while time.monotonic() < end_s:
            try:
                self._execute("ready", limit_s=READY_TRY_S)
            except FailedError as error:
                failure = error
                time.sleep(READY_POLL_S)
            else:
                return
        raise GaveUpError(f"never ready in {READY_S:.0f} s: {failure}")

    def once(self, limit_s: float) -> dict[str, Any]:
        """Run it for a time at most; return how long it ran, and what it said of its metrics.

        Raises:
            GaveUpError: It failed, or what it said of a metric makes no sense.
        """
        gauges = self._begin_gauges()
        output, began_s = Output(None, gauges, key=f"{self._key}.command"), time.monotonic()
        limit_s = min(limit_s, self._plan["duration"] or limit_s)
        self._execute("command", output, limit_s=limit_s, ends_by_itself=False)
        seconds = time.monotonic() - began_s
        for gauge in gauges:
            with suppress(GaveUpError):  # it may not have come so far
                gauge.look_into_file(self._plan["directory"])
        return {"seconds": seconds, "metrics": {gauge.name: gauge.value for gauge in gauges if gauge.count}}

    def _gauges(self) -> list[Gauge]:
        metrics = self._plan["metrics"]
        return [Gauge(metric, f"{self._key}.metric[{number}]") for number, metric in enumerate(metrics)]

    def _begin_gauges(self) -> list[Gauge]:
        gauges = self._gauges()
        for gauge in gauges:
            gauge.mark_file(self._plan["directory"])
        return gauges

    def run(self, progress: Progress) -> None:
        """Run it, and see what it says of its metrics.

        Raises:
            GaveUpError: It failed, did not end in time, or a metric is missing or makes no sense.
        """
        if progress.phases:  # else the host has warmed up, with a disk that is not throttled
            self.prepare("warm_up")
        gauges = self._begin_gauges()
        output = Output(self._plan["output"], gauges, key=f"{self._key}.command")

        def said() -> dict[str, Any]:
            return {"metrics": {gauge.name: gauge.values() for gauge in gauges if gauge.count}}

        progress.phases.append(state := PhaseState(self.name, said))
        timed_s = self._plan["duration"]
        try:
            limit_s = timed_s or self._plan["timeout"]
            self._execute("command", output, limit_s=limit_s, ends_by_itself=not timed_s)
        finally:
            lines = "".join(gauge.series.lines(gauge.name) for gauge in gauges if gauge.series is not None)
            Path(self._plan["series"]).write_text(lines)
        for gauge in gauges:
            gauge.look_into_file(self._plan["directory"])
            gauge.require(output)
        state.finish()

    def _execute(self, step: str, output: Output | None = None, *, limit_s: float, ends_by_itself: bool = True) -> None:
        """Run the command, or that of a step, until it ends, or until its time is over.

        Raises:
            FailedError: It ended with something other than 0, or not in time although it should.
            GaveUpError: It cannot be run, or a metric makes no sense.
        """
        argv, key = self._plan[step], f"{self._key}.{step}"
        output = output or Output(None, key=key)
        process = self._start(argv, "root" if step == "setup" else self._plan["user"], key)
        try:
            in_time = _follow(process, output, time.monotonic() + limit_s)
            if not in_time:
                os.killpg(process.pid, signal.SIGTERM)
                _follow(process, output, time.monotonic() + STOP_S)
        finally:
            with suppress(ProcessLookupError):  # whatever it has started ends with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            output.close()
        if not in_time and ends_by_itself:
            why = f"{argv[0]} has not ended after {limit_s:g} s; it said: {output.said()}"
            hint = "a command that goes on wants a duration, or a longer timeout" if step == "command" else ""
            raise FailedError(f"{key}: {why}" + (f" ({hint})" if hint else ""))
        if in_time and process.returncode < 0:
            hint = " (the guest may have had no memory left)" if process.returncode == -signal.SIGKILL else ""
            number = -process.returncode
            raise FailedError(f"{key}: {argv[0]} was killed by signal {number}{hint}; it said: {output.said()}")
        if in_time and process.returncode:
            raise FailedError(f"{key}: {argv[0]} ended with {process.returncode}; it said: {output.said()}")

    def _entry(self, user: str) -> pwd.struct_passwd:
        try:
            return pwd.getpwnam(user)
        except KeyError:
            raise GaveUpError(f"{self._key}.user: nobody is called {user!r} in this guest") from None

    def _start(self, argv: list[str], user: str, key: str) -> subprocess.Popen[bytes]:
        entry = self._entry(user)
        environment = {**ENVIRONMENT, "HOME": entry.pw_dir, "USER": user, **self._plan["environment"]}
        other: dict[str, Any] = {}
        if entry.pw_uid != os.getuid():
            groups = os.getgrouplist(user, entry.pw_gid)
            other = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}
        try:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self._plan["directory"],
                env=environment,
                start_new_session=True,
                **other,
            )
        except FileNotFoundError as error:
            raise GaveUpError(f"{key}: {_absence(argv[0], self._plan['directory'], environment['PATH'])}") from error
        except OSError as error:
            raise GaveUpError(f"{key}: {argv[0]} cannot be run: {error.strerror}") from error


def _absence(program: str, directory: str, path: str) -> str:
    """Return what it is that is not there when a program cannot be run."""
    if not Path(directory).is_dir():
        return f"its directory, {directory}, is there no more"
    if ("/" in program and Path(directory, program).exists()) or shutil.which(program, path=path):
        return f"{program} is there, but not what its first line names (#!…; its lines may end as those of Windows do)"
    return f"{program} is not in this guest: install its package (image.packages), or copy it"


def _follow(process: subprocess.Popen[bytes], output: Output, end_s: float) -> bool:
    """Take what a program prints until it ends; return False when it has not at `end_s`.

    Raises:
        GaveUpError: A metric makes no sense.
    """
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    last_chunks, closed = 0, False
    while (left_s := end_s - time.monotonic()) > 0:
        ended = process.poll() is not None
        if closed:
            if ended:
                return True
            time.sleep(min(PROGRAM_POLL_S, left_s))
            continue
        readable, _, _ = select.select([pipe], [], [], 0.0 if ended else min(PROGRAM_POLL_S, left_s))
        data = os.read(pipe, READ_BYTES) if readable else b""
        output.add(data)
        closed = bool(readable) and not data
        last_chunks += ended
        if ended and (not data or last_chunks > LAST_CHUNKS):
            return True
    return process.poll() is not None
