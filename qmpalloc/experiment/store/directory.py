"""The directory of an experiment, and how what is in it is written and read.

::

    DIR/
      experiment.toml            the file as it was given, and beside it the policies that lay beside that
      manifest.json              scale, repeats, arms, versions, host, footprints     (Manifest)
      disk.json                  the throttle, measured once                          (DiskCalibration)
      runs/repeat1-static/
        record.jsonl             the controller's record
        readings.jsonl           each guest at the end of each trial                  (Reading)
        load-g1.json             what the generator of g1 reports in the end          (LoadProgress)
        output-g1-phase1.txt     what a program printed, its beginning and its end
        series-g1-phase1.csv     the values of its metrics with their times           (SeriesPoint)
        outcome.json             written last                                         (Outcome)
      trials.csv summary.json report.md report.html figures/       made from the above, again at any time
"""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from qmpalloc.config.toml import read_text
from qmpalloc.errors import ConfigError, HostError
from qmpalloc.experiment.spec.parsing import parse
from qmpalloc.experiment.spec.plan import ArmRun, planned
from qmpalloc.experiment.spec.scaling import scale
from qmpalloc.experiment.spec.schema import REPEATS_MAX, Arm, Guest, Specification
from qmpalloc.experiment.store.records import (
    FORMAT,
    DiskCalibration,
    LoadProgress,
    Manifest,
    Outcome,
    Reading,
    SeriesPoint,
)
from qmpalloc.files import append, check_place, make_directory, write_json, write_whole
from qmpalloc.units import MIB

T = TypeVar("T")
SET_ASIDE = ".set-aside"
SERIES_HEADER = ",".join(SeriesPoint.__struct_fields__)
KEPT_BYTES = 64 * MIB
"""The longest file of the user's that is kept with an experiment; of a longer one, where it is."""


class Left(Struct, frozen=True):
    """What a run left, interrupted or not.

    Attributes:
        outcome: How it ended; None when it was interrupted or goes on.
        readings: In order.
        loads: Guest to what its generator reported in the end; None where the run came not so far.
        series: Guest to phase to the values of its program's metrics; none where none were kept.
    """

    outcome: Outcome | None
    readings: list[Reading]
    loads: dict[str, LoadProgress | None]
    series: dict[str, dict[str, tuple[SeriesPoint, ...]]]


class RunDirectory:
    """The directory of one run of one arm.

    What cannot be written is a `HostError`, what cannot be read or holds something else a `ConfigError`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def record(self) -> Path:
        """The controller's record."""
        return self.path / "record.jsonl"

    @property
    def readings_file(self) -> Path:
        """Lines of `Reading`."""
        return self.path / "readings.jsonl"

    def left(self, guests: Collection[Guest]) -> Left:
        """Return what the run has left.

        Raises:
            ConfigError: A file cannot be used, or the readings of a run that ended well were cut since.
        """
        outcome, readings = self.outcome(), self.readings()
        ended = {reading.guest for reading in readings if reading.load is not None and reading.load.finished}
        if outcome is not None and not outcome.failed and outcome.load_s and {guest.name for guest in guests} - ended:
            last_s = max((reading.t for reading in readings), default=0.0)
            raise ConfigError(f"ends after {last_s:.0f} s of {outcome.load_s:.0f} s", file=str(self.readings_file))
        return Left(
            outcome,
            readings,
            loads={guest.name: self.load(guest.name) for guest in guests},
            series={
                guest.name: {phase.name: self.series(guest.name, phase.name) for phase in guest.programs}
                for guest in guests
            },
        )

    def begin(self) -> None:
        """Make the directory; what an interrupted or failed run left there is kept beside it under another name."""
        try:
            if self.path.exists():
                number = 1
                while (aside := self.path.with_name(f"{self.path.name}{SET_ASIDE}{number}")).exists():
                    number += 1
                self.path.rename(aside)
            make_directory(self.path)
        except OSError as error:
            raise HostError(f"{self.path} cannot be made: {error.strerror}") from error

    def append_readings(self, readings: list[Reading]) -> None:
        """Append the guests' readings of one trial."""
        try:
            append(self.readings_file, b"".join(msgspec.json.encode(reading) + b"\n" for reading in readings))
        except OSError as error:
            raise HostError(f"{self.readings_file} cannot be written: {error.strerror}") from error

    def readings(self) -> list[Reading]:
        """Return all readings in order; a cut-off last line is left out."""
        lines = (_read(self.readings_file) or b"").split(b"\n")
        return [_decoded(line, Reading, self.readings_file) for line in lines[:-1]]

    def write_load(self, guest: str, progress: LoadProgress) -> None:
        """Keep what a guest's generator reports."""
        write_json(self.path / f"load-{guest}.json", progress)

    def write_output(self, guest: str, phase: str, data: bytes) -> None:
        """Keep what a program printed."""
        write_whole(self.path / f"output-{guest}-{phase}.txt", data)

    def write_series(self, guest: str, phase: str, points: Iterable[SeriesPoint]) -> None:
        """Keep the values of a program's metrics."""
        lines = [SERIES_HEADER, *map(str, points)]
        write_whole(self._series_file(guest, phase), "".join(f"{line}\n" for line in lines).encode())

    def series(self, guest: str, phase: str) -> tuple[SeriesPoint, ...]:
        """Return the values of a program's metrics with their times; none where none were kept."""
        file = self._series_file(guest, phase)
        data = _read(file) or b""
        try:
            return tuple(SeriesPoint.parse(line) for line in data.decode().splitlines()[1:])
        except (ValueError, msgspec.ValidationError) as error:
            raise ConfigError(f"cannot be used: {error}", file=str(file), hint="it was changed by hand") from error

    def _series_file(self, guest: str, phase: str) -> Path:
        return self.path / f"series-{guest}-{phase}.csv"

    def load(self, guest: str) -> LoadProgress | None:
        """Return what a guest's generator reported in the end; None when the run came not so far."""
        return _read_json(self.path / f"load-{guest}.json", LoadProgress)

    def write_outcome(self, outcome: Outcome) -> None:
        """Close the run."""
        write_json(self.path / "outcome.json", outcome)

    def outcome(self) -> Outcome | None:
        """Return how the run ended; None when it was interrupted or goes on."""
        return _read_json(self.path / "outcome.json", Outcome)


class ExperimentDirectory:
    """The directory of an experiment. Make one with `create` or `open_existing`.

    Attributes:
        path: Of the directory.
        specification: Scaled, with the repeats asked for; which of its arms are run, the manifest says.
        manifest: What is run where.
    """

    def __init__(self, path: Path, specification: Specification, manifest: Manifest) -> None:
        self.path = path
        self.specification = specification
        self.manifest = manifest

    @classmethod
    def create(cls, path: Path, specification: Specification, manifest: Manifest, text: str) -> ExperimentDirectory:
        """Begin an experiment in a new or empty directory.

        Raises:
            ConfigError: There is something in it, or it cannot be made.
        """
        cls.check_new(path)
        try:
            make_directory(path)
            write_whole(path / "experiment.toml", text.encode())
            manifest = msgspec.structs.replace(manifest, policies=tuple(_copy_policies(specification, path)))
            write_json(path / "manifest.json", manifest)
        except OSError as error:
            raise ConfigError(f"cannot be made: {error.strerror}", file=str(path)) from error
        if manifest.policies:  # from now on all runs have what is kept, whatever becomes of the user's files meanwhile
            specification = msgspec.structs.replace(specification, file=str(path.absolute() / "experiment.toml"))
        return cls(path, specification, manifest)

    @staticmethod
    def check_new(path: Path) -> None:
        """Refuse a directory in which no experiment can begin.

        Raises:
            ConfigError: It is not a directory, it may not be written, or there is something in it.
        """
        check_place(path, hint="name another one with --out")
        if path.exists() and any(path.iterdir()):
            hint = f"qmpalloc experiment resume {path}, or name another directory with --out"
            raise ConfigError("is not empty", file=str(path), hint=hint)

    @classmethod
    def open_existing(cls, path: Path) -> ExperimentDirectory:
        """Return the experiment that was begun in a directory.

        Raises:
            ConfigError: There is none, or it is of another version.
        """
        manifest = _read_json(path / "manifest.json", Manifest)
        if manifest is None:
            raise ConfigError(
                "holds no experiment",
                file=str(path),
                hint="it has no manifest.json; DIR is what --out named, or runs/NAME-TIME",
            )
        kept = path / "experiment.toml"
        text = read_text(kept, example="it is written when an experiment begins")
        file = Path(manifest.file)
        if manifest.policies:  # as they were, wherever the directory is now; what they import may lie where they did
            if any(name.endswith(".py") or (path / name).is_dir() for name in manifest.policies):
                sys.path += [str(path.absolute()), str(file.parent)]
            file = path.absolute() / "experiment.toml"
        try:
            parsed = parse(text, file=file, home=Path(manifest.file).parent)
        except ConfigError as error:
            raise ConfigError(f"cannot be used:\n{error}", file=str(kept)) from error
        specification = scale(parsed, Fraction(manifest.scale))
        specification = chosen(specification, repeats=manifest.repeats, arms=manifest.arms)
        return cls(path, specification, manifest)

    @property
    def planned(self) -> tuple[ArmRun, ...]:
        """Every run, in order."""
        return planned(self.specification, arms=self.manifest.arms)

    def run(self, run: ArmRun) -> RunDirectory:
        """Return the directory of a run, which may not exist yet."""
        return RunDirectory(self.path / "runs" / run.name)

    def outcomes(self) -> dict[ArmRun, Outcome]:
        """Return how the runs ended that have ended, in order. One of which that cannot be read is to be run again."""
        found = {}
        for run in sorted(self.planned):
            with suppress(ConfigError):
                if (outcome := self.run(run).outcome()) is not None:
                    found[run] = outcome
        return found

    def left(self) -> tuple[ArmRun, ...]:
        """Return the runs that are not finished, in the order planned: not begun, interrupted, failed, or spoilt."""
        finished = [run for run, outcome in self.outcomes().items() if not outcome.failed and self._is_readable(run)]
        return tuple(run for run in self.planned if run not in finished)

    def _is_readable(self, run: ArmRun) -> bool:
        """Return whether what a run left can be read; reports leave it out otherwise."""
        with suppress(ConfigError):
            self.run(run).left(self.specification.guests)
            return True
        return False

    def note_changes(self, changes: Collection[str]) -> None:
        """Keep in the manifest what is other now than when the experiment began.

        Raises:
            HostError: It cannot be written.
        """
        self.manifest = msgspec.structs.replace(self.manifest, changes=(*self.manifest.changes, *changes))
        write_json(self.path / "manifest.json", self.manifest)

    def plan_repeats(self, repeats: int) -> None:
        """Plan more repeats than the experiment has. Written with the next `note_changes`.

        What is finished stays as it is, and so does the order of what was planned.

        Raises:
            ConfigError: There would be fewer.
        """
        if repeats < self.manifest.repeats:
            message = f"cannot have {repeats} repeats, it has {self.manifest.repeats}"
            raise ConfigError(message, file=str(self.path), hint="the report is of those that are finished")
        self.specification = chosen(self.specification, repeats=repeats, arms=self.manifest.arms)
        self.manifest = msgspec.structs.replace(self.manifest, repeats=repeats)

    def write_disk(self, calibration: DiskCalibration) -> None:
        """Keep the throttle of this experiment."""
        write_json(self.path / "disk.json", calibration)

    def disk(self) -> DiskCalibration | None:
        """Return the throttle of this experiment; None before it was measured."""
        return _read_json(self.path / "disk.json", DiskCalibration)

    def free_bytes(self) -> int:
        """Return the room on its file system."""
        return shutil.disk_usage(self.path).free


def _copy_policies(specification: Specification, path: Path) -> Iterator[str]:
    """Copy the users' own policies, files of curves and what programs bring, and yield their names.

    They are part of the experiment.

    What such a policy imports from beside itself is not copied, unless it is a package.
    """
    beside = Path(specification.file).parent
    own = {arm.policy.partition(":")[0] for arm in specification.arms if ":" in arm.policy}
    for name in sorted({module.partition(".")[0] for module in own}):
        module, package = beside / f"{name}.py", beside / name
        if module.is_file():
            write_whole(path / module.name, module.read_bytes())
            yield module.name
        elif (package / "__init__.py").is_file():
            shutil.copytree(package, path / name, ignore=shutil.ignore_patterns("__pycache__"))
            yield name
    for file in sorted({arm.settings["file"] for arm in specification.arms if _names_curves(arm)}):
        make_directory((path / file).parent)
        write_whole(path / file, (beside / file).read_bytes())
        yield file
    for file in sorted(set(_brought(specification))):
        _keep(beside / file, path / file)
        yield file


def _brought(specification: Specification) -> Iterator[str]:
    """Yield what lies beside the experiment's file and goes into guests, their images and their data disks."""
    for guest in specification.guests:
        yield from (name for phase in guest.programs for name in phase.copy)
        if guest.attach is not None:
            continue
        for source in (guest.image or specification.image, guest.data):
            if source is not None:
                yield from (name for _, name in source.sources if not name.startswith(("/", "~")))


def _keep(source: Path, target: Path) -> None:
    """Copy a file; leave a link to one that is large, or to a directory."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() or source.stat().st_size > KEPT_BYTES:
        target.symlink_to(source.absolute())
    else:
        shutil.copy(source, target)


def files_of(specification: Specification) -> bytes:
    """Return all that lies beside an experiment's file and is needed, as a tar file; of the same files the same bytes.

    Raises:
        ConfigError: One of the files cannot be read, or they are too large to be sent.
    """
    packed, left = io.BytesIO(), KEPT_BYTES

    def taken(info: tarfile.TarInfo) -> tarfile.TarInfo:
        nonlocal left
        left -= info.size
        if left < 0:
            message = f"brings more than {KEPT_BYTES >> 20} MiB with {info.name}, too much to send with each run"
            raise ConfigError(message, file=specification.file, hint="a sweep needs it in the image, by its recipe")
        mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
        return info.replace(mtime=0, mode=mode, uid=0, gid=0, uname="", gname="")

    with tempfile.TemporaryDirectory() as place:
        try:
            for _ in _copy_policies(specification, Path(place)):
                pass
            with tarfile.open(fileobj=packed, mode="w", dereference=True) as tar:
                tar.add(place, arcname=".", filter=taken)
        except OSError as error:
            raise ConfigError(f"needs a file that cannot be read: {error}", file=specification.file) from error
    return packed.getvalue()


def _names_curves(arm: Arm) -> bool:
    """Return whether an arm's curves are in a file that is kept with the experiment: one beside it or below."""
    file = arm.settings.get("file") if arm.policy == "oracle" else None
    return isinstance(file, str) and not Path(file).is_absolute() and ".." not in Path(file).parts


def chosen(specification: Specification, *, repeats: int, arms: Collection[str] = ()) -> Specification:
    """Return `specification` with so many repeats, once it is certain that the named arms make an experiment.

    All arms stay in it: the order of runs must not depend on which of them are run (see `planned`).

    Raises:
        ConfigError: No arm has such a name, the reference arm is missing, or `repeats` is out of bounds.
    """
    file = specification.file
    known = [arm.name for arm in specification.arms]
    for name in arms:
        if name not in known:
            hint = f"known are {', '.join(known)}"
            raise ConfigError(f"no arm is called {name!r}", file=file, key="arm", hint=hint)
    if not 1 <= repeats <= REPEATS_MAX:
        message = f"must be from 1 to {REPEATS_MAX}"
        raise ConfigError(message, file=file, key="experiment.repeats", hint="3 give an interval")
    if arms and specification.reference not in arms:
        hint = f"add {specification.reference} to the arms, or change experiment.reference"
        message = f"the reference arm {specification.reference!r} is left out"
        raise ConfigError(message, file=file, key="experiment.reference", hint=hint)
    return msgspec.structs.replace(specification, repeats=repeats)


def _read(path: Path) -> bytes | None:
    """Return what is in a file; None when there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from error


def _read_json(path: Path, kind: type[T]) -> T | None:
    data = _read(path)
    return None if data is None else _decoded(data, kind, path)


def _decoded(data: bytes, kind: type[T], path: Path) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = f"it is not of the format {FORMAT} 1, or was changed by hand"
        raise ConfigError(f"cannot be used: {error}", file=str(path), hint=hint) from error
