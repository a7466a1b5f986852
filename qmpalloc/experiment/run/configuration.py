"""The configuration of one arm of an experiment: what a user would have written to run it by hand."""

from __future__ import annotations

from pathlib import Path

import msgspec

from qmpalloc.config import (
    Config,
    ControlConfig,
    DataDiskConfig,
    DataSource,
    Duration,
    GuestConfig,
    HostConfig,
    Size,
    VmConfig,
)
from qmpalloc.experiment.spec.schema import Arm, Guest, Specification
from qmpalloc.units import MIB, align_up

SAMPLE_INTERVAL_S = 1.0
SAMPLES_PER_INTERVAL = 3
"""A decision wants at least two samples in its interval; short intervals are sampled more often."""


def arm_configuration(specification: Specification, arm: Arm, *, run_dir: Path) -> Config:
    """Return what a controller and a launcher need for `arm`.

    Guests are left where they are at the end of control, because they are stopped right after it.
    """
    interval_s = float(specification.interval)
    return Config(
        file=specification.file,
        host=HostConfig(budget=specification.budget, run_dir=str(run_dir)),
        control=ControlConfig(
            interval=specification.interval,
            sample_interval=Duration(min(SAMPLE_INTERVAL_S, interval_s / SAMPLES_PER_INTERVAL)),
            on_exit="keep",
        ),
        policy=arm.policy,
        policy_settings=arm.policy_settings,
        guests=tuple(_guest(specification, arm, guest, run_dir) for guest in specification.guests),
    )


def _guest(specification: Specification, arm: Arm, guest: Guest, run_dir: Path) -> GuestConfig:
    directory = run_dir / guest.name
    attach = guest.attach
    # An agent that both run programs with and read counters from is reached through a socket of ours.
    shared = attach is None or attach.channel == "agent"
    common = GuestConfig(
        name=guest.name,
        monitor=str(directory / "monitor.sock") if attach is None else attach.monitor,
        agent=str(directory / "agent.sock") if shared or attach is None else attach.agent,
        floor=guest.floor,
        cap=guest.cap,
        baseline=Size(arm.baseline(guest)),
        weight=guest.weight,
    )
    if attach is not None:
        return msgspec.structs.replace(common, counters_file=attach.counters_file)
    vm = VmConfig(
        memory=guest.memory,
        suite=guest.suite,
        image=guest.image or specification.image,
        data=_data(specification, guest),
    )
    return msgspec.structs.replace(common, vm=vm)


def _data(specification: Specification, guest: Guest) -> DataDiskConfig:
    """Return a guest's data disk; how large one of the user's is to be is seen when it is made."""
    size_bytes = specification.disk.size or (0 if guest.data is not None else align_up(guest.disk_bytes, MIB))
    source = guest.data or DataSource()
    return DataDiskConfig(
        size=Size(size_bytes),
        files={name: Size(size) for name, size in guest.files.items()},
        build=tuple(specification.fill(word, guest) for word in source.build),
        image=source.image,
        origin=source.origin,
    )
