"""A whole experiment: every arm, every repeat, in the planned order; what is finished stays finished."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qmpalloc.errors import HostError
from qmpalloc.experiment.run.arm import ArmRunner, Live
from qmpalloc.experiment.run.configuration import arm_configuration
from qmpalloc.experiment.run.preflight import RUN_DIR_PREFIX, preflight
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.spec.schema import Specification
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.experiment.store.records import Manifest, Outcome, PhaseFootprint
from qmpalloc.host.facts import host_facts, versions
from qmpalloc.qemu.host import qemu_version
from qmpalloc.qemu.launcher import Prepared, prepare
from qmpalloc.qemu.progress import Report

ROOM_BYTES = 64 * 1024**2
"""Left on the file system of the directory before an arm begins; one arm writes a few MB."""

FAILURES_IN_A_ROW = 3
"""Runs that failed one after the other before their loads began: the next one would fail as well."""

MEASURABLE_SHARE = 0.02
"""Of a run's reads: progress from which its pace can be told."""

Footprints = dict[str, dict[str, PhaseFootprint]]
"""Guest to phase to what its references touch."""

MakeLive = Callable[[ArmRun, "Remaining"], Live]
"""Returns what follows a run; called when it begins."""


class Remaining:
    """What is left to do, for people. Time is estimated from the runs that are over, in the first from itself."""

    def __init__(
        self,
        runs: tuple[ArmRun, ...],
        outcomes: dict[ArmRun, Outcome],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runs = runs
        self.number = 0
        self._clock = clock
        self._total_s = [outcome.total_s for outcome in outcomes.values() if not outcome.failed]
        self._began_s = 0.0
        self._first: tuple[float, float] | None = None

    def begin(self) -> None:
        """Note that the next run begins."""
        self.number += 1
        self._began_s = self._clock()
        self._first = None

    def note(self, outcome: Outcome) -> None:
        """Note how it ended."""
        if not outcome.failed:
            self._total_s.append(outcome.total_s)

    def seconds(self, share: float = 0.0) -> float | None:
        """Return the estimated time to the end of all runs; None as long as nothing is known.

        Args:
            share: Of the present run's reads that are done. Two values far enough apart give its pace; what came
                before the first, booting, says nothing of it.
        """
        now_s = self._clock()
        spent_s = now_s - self._began_s
        if self._first is None and share > 0:
            self._first = (now_s, share)
        each_s = sum(self._total_s) / len(self._total_s) if self._total_s else None
        if each_s is None and self._first is not None and share > self._first[1] + MEASURABLE_SHARE:
            first_s, first_share = self._first
            each_s = spent_s + (1 - share) * (now_s - first_s) / (share - first_share)
        if each_s is None:
            return None
        return max(each_s - spent_s, 0.0) + each_s * (len(self.runs) - self.number)


def prepare_experiment(specification: Specification, *, report: Report) -> Prepared:
    """Build or find images and data disks. Blocks; minutes when all is new.

    Raises:
        ConfigError: As `preflight`.
        HostError: As `preflight`, or as `qmpalloc.qemu.launcher.prepare`.
    """
    preflight(specification)
    if all(guest.attach is not None for guest in specification.guests):
        return Prepared(images={}, data_disks={}, accelerators={})
    # Guests and disks are the same in all arms.
    return prepare(arm_configuration(specification, specification.arms[0], run_dir=Path("unused")), report=report)


def describe(
    specification: Specification,
    prepared: Prepared,
    footprints: Footprints,
    *,
    arms: tuple[str, ...],
    command: str,
) -> Manifest:
    """Return what is to be written down of an experiment before it begins."""
    images = {name: image.manifest for name, image in prepared.images.items()}
    return Manifest(
        name=specification.name,
        file=specification.file,
        scale=specification.scale,
        arms=arms or tuple(arm.name for arm in specification.arms),
        repeats=specification.repeats,
        command=command,
        created_wall=round(time.time(), 3),
        accelerator={name: accelerator.name for name, accelerator in prepared.accelerators.items()},
        images={name: f"{found.kernel_release} {found.rootfs_sha256[:16]}" for name, found in images.items()}
        | {guest.name: "its own" for guest in specification.guests if guest.attach is not None},
        versions=versions() | {"qemu": qemu_version()},
        host=host_facts(),
        footprints=footprints,
    )


async def run_experiment(
    directory: ExperimentDirectory, prepared: Prepared, traces: Traces, *, make_live: MakeLive
) -> bool:
    """Run what is not finished, in the planned order, and return whether every run counts.

    A run that fails is written down with its cause, and the others go on. Cancelling stops the guests and leaves the
    run without an outcome, so that it is run again next time; what it left is kept.

    Raises:
        HostError: There is no room left, or several runs in a row failed before they really began.
    """
    left = Remaining(directory.left(), directory.outcomes())
    failures = 0
    for run in left.runs:
        left.begin()
        live = make_live(run, left)
        if directory.free_bytes() < ROOM_BYTES:
            hint = f"make room, then: qmpalloc experiment resume {directory.path}"
            raise HostError(f"less than {ROOM_BYTES >> 20} MiB are left for {directory.path}", hint=hint)
        outcome = await run_arm(directory, run, prepared, traces, live)
        left.note(outcome)
        if not outcome.failed:
            failures = 0
            continue
        live.report(f"{run.name} failed and does not count: {outcome.failed}")
        failures = failures + 1 if not outcome.service else 0
        if failures == FAILURES_IN_A_ROW:
            hint = f"mend it, then: qmpalloc experiment resume {directory.path}"
            raise HostError(f"{failures} runs in a row failed before their loads began: {outcome.failed}", hint=hint)
    return all(not outcome.failed for outcome in directory.outcomes().values())


async def run_arm(
    directory: ExperimentDirectory, run: ArmRun, prepared: Prepared, traces: Traces, live: Live
) -> Outcome:
    """Run one arm once; what becomes of it is written down.

    Raises:
        HostError: What it leaves cannot be written.
    """
    files = directory.run(run)
    files.begin()
    disk = directory.disk()
    runner = ArmRunner(directory.specification, run, files, prepared=prepared, traces=traces, disk=disk, live=live)
    # In the directory for temporary files, because the path of a Unix socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix=RUN_DIR_PREFIX) as run_dir:
        outcome = await runner.run(Path(run_dir))
    if disk is None and runner.disk is not None:
        directory.write_disk(runner.disk)
    files.write_outcome(outcome)
    return outcome
