"""The directory of a sweep, and how what is in it is written and read.

::

    DIR/
      sweep.toml               the file as it was given last
      manifest.json            which code, and the hosts that took part            (SweepManifest)
      done.jsonl               a line for each task that is over                   (Done)
      experiments/NAME-SCALE-DIGEST/  of each experiment, as `qmpalloc experiment` leaves it
      results.csv results.parquet report.md      made from the above
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, structs

from qmpalloc.errors import ConfigError, HostError
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.experiment.store.records import DiskCalibration
from qmpalloc.experiment.store.resumption import changes
from qmpalloc.files import append, check_place, make_directory, write_json, write_whole
from qmpalloc.sweep.guests import unpack
from qmpalloc.sweep.spec import GuestsTask, ModelTask, RealExperiment, Sweep
from qmpalloc.sweep.work import Done, HostFacts

NEW_HINT = "name another directory with --out"


class SweepManifest(Struct, frozen=True, kw_only=True):
    """``manifest.json``.

    Attributes:
        code: Digest of the qmpalloc that runs it.
        hosts: Name to facts of each host that took part.
        disks: Experiment to host to the throttle there.
    """

    format: Literal["qmpalloc-sweep"] = "qmpalloc-sweep"
    version: Literal[1] = 1
    code: str
    hosts: dict[str, HostFacts] = {}
    disks: dict[str, dict[str, DiskCalibration]] = {}


class SweepDirectory:
    """The directory of a sweep: begun in an empty place, or gone on with, `anyway` also where another code began.

    Attributes:
        done: Key to the last that became of each task of this sweep.

    Raises:
        ConfigError: It holds something else, cannot be read, or was begun with another qmpalloc.
        HostError: It cannot be written.
    """

    def __init__(self, path: Path, sweep: Sweep, text: str, *, code: str, anyway: bool = False) -> None:
        self.path, self.sweep, self._tasks = path, sweep, sweep.tasks
        check_place(path, hint=NEW_HINT)
        manifest_file = path / "manifest.json"
        if path.exists() and any(path.iterdir()) and not manifest_file.exists():
            raise ConfigError("is not empty, and holds no sweep", file=str(path), hint=NEW_HINT)
        try:
            make_directory(path)
        except OSError as error:
            raise HostError(f"{path} cannot be made: {error.strerror}") from error
        self.manifest = _read(manifest_file) or SweepManifest(code=code)
        if self.manifest.code != code and not anyway:
            message = f"was begun with another qmpalloc ({self.manifest.code}, this is {code})"
            raise ConfigError(message, file=str(path), hint=f"{NEW_HINT}, or go on with --anyway")
        write_json(manifest_file, self.manifest)
        write_whole(path / "sweep.toml", text.encode())
        self.done = {done.key: done for done in self._lines() if done.key in self._tasks}

    @property
    def left(self) -> list[str]:
        """Keys of the tasks that are to be run, in order: those that failed, too."""
        return [key for key in self._tasks if key not in self.done or self.done[key].failed]

    def add(self, done: Done) -> None:
        """Keep what became of a task.

        Raises:
            HostError: It cannot be written: nothing would be gained by going on.
        """
        task = self._tasks[done.key]
        try:
            if done.packed is not None and isinstance(task, GuestsTask):
                self._add_run(task, done)
            done = structs.replace(done, packed=None)
            append(self.path / "done.jsonl", msgspec.json.encode(done) + b"\n")
        except OSError as error:
            hint = "make room, then give the same command again: what is done is kept"
            raise HostError(f"{self.path} cannot be written: {error.strerror}", hint=hint) from error
        self.done[done.key] = done

    def note_hosts(self, hosts: Mapping[str, HostFacts]) -> None:
        """Keep what is known of hosts.

        Raises:
            HostError: It cannot be written.
        """
        self._note(hosts={**self.manifest.hosts, **hosts})

    def disks(self, experiment: str) -> dict[str, DiskCalibration]:
        """Return the throttle of an experiment on each host where it was measured."""
        return self.manifest.disks.get(experiment, {})

    def experiment(self, real: RealExperiment) -> ExperimentDirectory | None:
        """Return the directory of an experiment, with the repeats asked for now; None before its first run."""
        path = self.path / "experiments" / real.name
        if not (path / "manifest.json").exists():
            return None
        found, repeats = ExperimentDirectory.open_existing(path), real.specification.repeats
        if found.manifest.repeats != repeats:
            found.specification = structs.replace(found.specification, repeats=repeats)
            found.manifest = structs.replace(found.manifest, repeats=repeats)
            found.note_changes(())
        return found

    def write_results(self) -> list[Path]:
        """Write the rows of all runs in the model that are done, in the order of the sweep, as CSV and Parquet.

        Raises:
            HostError: They cannot be written.
        """
        rows = [
            structs.asdict(done.row) | {"host": done.host, "cpu_s": round(done.seconds, 6)}
            for key, task in self._tasks.items()
            if isinstance(task, ModelTask) and (done := self.done.get(key)) and done.row is not None
        ]
        if not rows:
            return []
        import pyarrow as pa
        from pyarrow import parquet

        text = io.StringIO()
        table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        packed = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist(rows), packed)
        files = {"results.csv": text.getvalue().encode(), "results.parquet": packed.getvalue()}
        for name, content in files.items():
            write_whole(self.path / name, content)
        return [self.path / name for name in files]

    def _add_run(self, task: GuestsTask, done: Done) -> None:
        """Put a run into the directory of its experiment; say there what is other on its host."""
        assert done.packed is not None
        real = next(each for each in self.sweep.experiments if each.name == task.experiment)
        directory = self.experiment(real)
        manifest, disk = done.packed.manifest, done.packed.disk
        if directory is None:
            place = self.path / "experiments" / real.name
            specification = real.specification
            manifest = structs.replace(manifest, file=specification.file, repeats=specification.repeats)
            directory = ExperimentDirectory.create(place, specification, manifest, task.text)
        known = self.disks(real.name)
        if done.host not in known:
            found = [change.text for change in changes(directory.manifest, manifest)]
            if disk is not None and known:
                first = next(iter(known.values()))
                found.append(
                    f"a hit takes {disk.hit_s * 1e6:.3g} µs (elsewhere {first.hit_s * 1e6:.3g} µs), "
                    f"its disks are throttled at {disk.iops}/s (elsewhere {first.iops}/s)"
                )
            if found:
                directory.note_changes([f"on host {done.host}: {text}" for text in found])
        if disk is not None:
            if directory.disk() is None:
                directory.write_disk(disk)
            self._note(disks={**self.manifest.disks, real.name: known | {done.host: disk}})
        run = directory.run(ArmRun(task.repeat, task.arm))
        run.begin()
        try:
            unpack(done.packed.run, run.path)
        except OSError:
            shutil.rmtree(run.path, ignore_errors=True)
            raise

    def _note(self, **new: Any) -> None:
        self.manifest = structs.replace(self.manifest, **new)
        write_json(self.path / "manifest.json", self.manifest)

    def _lines(self) -> list[Done]:
        """Return what is kept; a cut-off last line is taken away, so that the next one begins anew."""
        path = self.path / "done.jsonl"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from error
        whole = data[: data.rfind(b"\n") + 1]
        try:
            if whole != data:
                write_whole(path, whole)
            return [msgspec.json.decode(line, type=Done) for line in whole.splitlines()]
        except msgspec.DecodeError as error:
            raise ConfigError(f"cannot be used: {error}", file=str(path), hint=NEW_HINT) from error


def _read(path: Path) -> SweepManifest | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=SweepManifest)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        hint = f"it is not of the format qmpalloc-sweep 1, or was changed by hand; {NEW_HINT}"
        raise ConfigError(f"cannot be used: {error}", file=str(path), hint=hint) from error
