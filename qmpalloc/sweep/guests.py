"""A run of an experiment on real guests, for somebody else: what it leaves is packed and sent back."""

from __future__ import annotations

import asyncio
import atexit
import io
import shutil
import tarfile
import tempfile
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import trio
from msgspec import Struct

from qmpalloc.errors import HostError
from qmpalloc.experiment.run.arm import Live
from qmpalloc.experiment.run.runner import describe, prepare_experiment, run_arm
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec.parsing import load as load_experiment
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.spec.scaling import scale
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.experiment.store.records import DiskCalibration, Manifest, Outcome
from qmpalloc.files import make_directory
from qmpalloc.policy.registry import forget as forget_imported
from qmpalloc.qemu.launcher import Prepared
from qmpalloc.sweep.spec import GuestsTask


class Packed(Struct, frozen=True, kw_only=True):
    """What a run of an experiment left.

    Attributes:
        manifest: Of the experiment, as it would be written on that host.
        disk: The throttle there; None when the run came not so far.
        run: Its directory, as a tar file.
        failed: Why the run does not count; empty when it does.
    """

    manifest: Manifest
    disk: DiskCalibration | None
    run: bytes
    failed: str = ""


class Ready(Struct):
    """An experiment for which all is prepared on this host: the next runs of it begin at once."""

    place: Path
    directory: ExperimentDirectory
    prepared: Prepared
    traces: Traces


class Here(Struct, eq=False):
    """A run that is under way on this host. Its trio loop has a token as soon as it is there."""

    scope: trio.CancelScope
    token: trio.lowlevel.TrioToken | None = None


_ready: dict[str, Ready] = {}
_here: list[Here] = []
"""One at most: a worker has one thread."""

STOP_S = 60.0
"""For a run to undo what it changed: guests of the user's go back to their sizes."""


def forget() -> None:
    """Take away what is prepared here for the next runs, and what was imported from it."""
    for ready in _ready.values():
        forget_imported(ready.place)
        shutil.rmtree(ready.place, ignore_errors=True)
    _ready.clear()


atexit.register(forget)


def run_on_guests(task: GuestsTask, disk: DiskCalibration | None) -> Packed:
    """Boot guests, run the arm, and return what it left. Blocks, for minutes.

    Raises:
        ConfigError: The experiment cannot be run on this host.
        HostError: The same, for want of a program or of room; or it was stopped.
    """
    here = Here(scope=trio.CancelScope())
    _here.append(here)
    try:
        return _run_on_guests(task, disk, here)
    finally:
        _here.remove(here)


async def stop_run() -> None:
    """Cancel the run that is under way here, and return when it has undone what it changed.

    For the event loop of a worker, whose other thread the run has. One that is not begun yet ends where it would begin.
    """
    until_s = time.monotonic() + STOP_S
    for here in _here[:1]:
        if here.token is None:
            here.scope.cancel()
        while here.token is not None and here in _here and time.monotonic() < until_s:
            with suppress(trio.RunFinishedError):
                here.token.run_sync_soon(here.scope.cancel)
            await asyncio.sleep(0.1)


def _run_on_guests(task: GuestsTask, disk: DiskCalibration | None, here: Here) -> Packed:
    ready = _made_ready(task)
    directory, run = ready.directory, ArmRun(task.repeat, task.arm)
    if disk is not None and directory.disk() is None:
        directory.write_disk(disk)
    silent = Live(report=lambda _: None, status=lambda _share, _words: None)

    async def stoppable() -> Outcome | None:
        here.token = trio.lowlevel.current_trio_token()
        with here.scope:
            return await run_arm(directory, run, ready.prepared, ready.traces, silent)
        return None

    outcome = trio.run(stoppable)
    if outcome is None:
        forget()
        raise HostError("was stopped, as the sweep was")
    packed, path = io.BytesIO(), directory.run(run).path
    with tarfile.open(fileobj=packed, mode="w:xz") as tar:
        tar.add(path, arcname=".")
    shutil.rmtree(path)
    return Packed(manifest=directory.manifest, disk=directory.disk(), run=packed.getvalue(), failed=outcome.failed)


def unpack(packed: bytes, path: Path) -> None:
    """Write what a tar file holds, compressed or not.

    Raises:
        OSError: It cannot be written.
    """
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(path, filter="data")


def _made_ready(task: GuestsTask) -> Ready:
    if task.experiment not in _ready:
        forget()
        place = Path(tempfile.mkdtemp(prefix="qmpalloc-sweep-"))
        try:
            _ready[task.experiment] = _prepared(task, place)
        except BaseException:
            forget_imported(place)
            shutil.rmtree(place, ignore_errors=True)
            raise
    return _ready[task.experiment]


def _prepared(task: GuestsTask, place: Path) -> Ready:
    file = place / "given" / "experiment.toml"
    make_directory(file.parent)
    unpack(task.files, file.parent)
    file.write_bytes(task.text.encode())
    specification = scale(load_experiment(file), Fraction(task.scale))
    prepared = prepare_experiment(specification, report=lambda _: None)
    traces = Traces(specification)
    manifest = describe(specification, prepared, traces.footprints(), arms=(), command="qmpalloc sweep")
    directory = ExperimentDirectory.create(place / "out", specification, manifest, task.text)
    traces.specification = directory.specification
    return Ready(place, directory, prepared, traces)
