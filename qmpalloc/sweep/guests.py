"""A run of an experiment on real guests, for somebody else: what it leaves is packed and sent back."""

from __future__ import annotations

import hashlib
import io
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

    place: tempfile.TemporaryDirectory[str]
    directory: ExperimentDirectory
    prepared: Prepared
    traces: Traces


_ready: dict[str, Ready] = {}


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
    with io.BytesIO() as packed:
        with tarfile.open(fileobj=packed, mode="w:xz") as tar:
            tar.add(directory.run(run).path, arcname=".")
        return Packed(
            manifest=directory.manifest, disk=directory.disk(), run=packed.getvalue(), failed=outcome.failed
        )  # fmt: skip


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
        for other in _ready.values():
            other.place.cleanup()
        _ready.clear()
        place = tempfile.TemporaryDirectory(prefix="qmpalloc-sweep-")
        for name, content in task.files.items():
            path = Path(place.name, "given", name)
            make_directory(path.parent)
            path.write_bytes(content)
        file = Path(place.name, "given", "experiment.toml")
        specification = chosen(scale(load_experiment(file), Fraction(task.scale)), repeats=task.repeats)
        prepared = prepare_experiment(specification, report=lambda _: None)
        traces = Traces(specification)
        manifest = describe(specification, prepared, traces.footprints(), arms=(), command="qmpalloc sweep")
        text = task.files["experiment.toml"].decode()
        directory = ExperimentDirectory.create(Path(place.name, "out"), specification, manifest, text)
        _ready[key] = Ready(place, directory, prepared, traces)
    return _ready[key]
