"""A run of an experiment on real guests, for somebody else: what it leaves is packed and sent back."""

from __future__ import annotations

import atexit
import hashlib
import io
import shutil
import tarfile
import tempfile
from fractions import Fraction
from pathlib import Path

import msgspec
import trio
from msgspec import Struct

from qmpalloc.experiment.run.arm import Live
from qmpalloc.experiment.run.runner import describe, prepare_experiment, run_arm
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec.parsing import load as load_experiment
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.spec.scaling import scale
from qmpalloc.experiment.store.directory import ExperimentDirectory, chosen
from qmpalloc.experiment.store.records import DiskCalibration, Manifest
from qmpalloc.files import make_directory
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


_ready: dict[str, Ready] = {}


def forget() -> None:
    """Take away what is prepared here for the next runs."""
    for ready in _ready.values():
        shutil.rmtree(ready.place, ignore_errors=True)
    _ready.clear()


atexit.register(forget)


def run_on_guests(task: GuestsTask, disk: DiskCalibration | None) -> Packed:
    """Boot guests, run the arm, and return what it left. Blocks, for minutes.

    Raises:
        ConfigError: The experiment cannot be run on this host.
        HostError: The same, for want of a program or of room.
    """
    ready = _made_ready(task)
    directory, run = ready.directory, ArmRun(task.repeat, task.arm)
    if disk is not None and directory.disk() is None:
        directory.write_disk(disk)
    silent = Live(report=lambda _: None, status=lambda _share, _words: None)
    outcome = trio.run(run_arm, directory, run, ready.prepared, ready.traces, silent)
    packed, path = io.BytesIO(), directory.run(run).path
    with tarfile.open(fileobj=packed, mode="w:xz") as tar:
        tar.add(path, arcname=".")
    shutil.rmtree(path)
    return Packed(manifest=directory.manifest, disk=directory.disk(), run=packed.getvalue(), failed=outcome.failed)


def unpack(packed: Packed, path: Path) -> None:
    """Write the directory of a run.

    Raises:
        OSError: It cannot be written.
    """
    with tarfile.open(fileobj=io.BytesIO(packed.run), mode="r:xz") as tar:
        tar.extractall(path, filter="data")


def _made_ready(task: GuestsTask) -> Ready:
    key = hashlib.sha256(msgspec.json.encode((task.files, task.scale, task.repeats))).hexdigest()
    if key not in _ready:
        forget()
        place = Path(tempfile.mkdtemp(prefix="qmpalloc-sweep-"))
        try:
            _ready[key] = _prepared(task, place)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    return _ready[key]


def _prepared(task: GuestsTask, place: Path) -> Ready:
    for name, content in task.files.items():
        path = place / "given" / name
        make_directory(path.parent)
        path.write_bytes(content)
    given = load_experiment(place / "given" / "experiment.toml")
    specification = chosen(scale(given, Fraction(task.scale)), repeats=task.repeats)
    prepared = prepare_experiment(specification, report=lambda _: None)
    traces = Traces(specification)
    manifest = describe(specification, prepared, traces.footprints(), arms=(), command="qmpalloc sweep")
    text = task.files["experiment.toml"].decode()
    directory = ExperimentDirectory.create(place / "out", specification, manifest, text)
    traces.specification = directory.specification
    return Ready(place, directory, prepared, traces)
