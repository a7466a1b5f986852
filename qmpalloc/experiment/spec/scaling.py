"""The same experiment on a smaller machine."""

from __future__ import annotations

import sys
from fractions import Fraction
from typing import Any

import msgspec

from qmpalloc.config import DISK_OVERHEAD_BYTES, Size
from qmpalloc.config.convert import Mistakes
from qmpalloc.config.tables import keys_of
from qmpalloc.errors import ConfigError
from qmpalloc.experiment.spec.checks import check
from qmpalloc.experiment.spec.schema import AnyPhase, Arm, Guest, Phase, Specification, default_file_name
from qmpalloc.policy import registry
from qmpalloc.units import MIB, PAGE_BYTES, align_down, parse_size


def scale(specification: Specification, factor: Fraction) -> Specification:
    """Return `specification` with memory, files, floors, caps, baselines, budget and policy steps times `factor`.

    Sizes are rounded down to whole MiB, so that what fitted into the budget still does; sizes among a policy's
    settings, also those left at their defaults, to whole pages (at least one). Reads, rounds, rates and thresholds
    stay.

    Raises:
        ConfigError: `factor` is not above 0, or so small that something vanishes.
    """
    if factor <= 0:
        raise ConfigError(f"{factor} is not above 0", key="scale", hint="for example 1/4")
    if factor == 1:
        return specification
    disk_bytes: int = specification.disk.size
    if disk_bytes:  # what the file system needs does not shrink with the files; upwards, so that they still fit
        disk_bytes = -_mib(DISK_OVERHEAD_BYTES - disk_bytes, factor) + DISK_OVERHEAD_BYTES
    scaled = msgspec.structs.replace(
        specification,
        budget=_mib(specification.budget, factor),
        disk=msgspec.structs.replace(specification.disk, size=Size(disk_bytes)),
        guests=tuple(_guest(guest, factor) for guest in specification.guests),
        arms=tuple(_arm(arm, factor, specification.file) for arm in specification.arms),
        scale=str(Fraction(specification.scale) * factor),
    )
    mistakes = Mistakes(f"{specification.file} at scale {scaled.scale}")
    check(scaled, mistakes)
    mistakes.raise_if_any()
    return scaled


def _mib(size_bytes: int, factor: Fraction) -> int:
    return align_down(int(size_bytes * factor // 1), MIB)


def _guest(guest: Guest, factor: Fraction) -> Guest:
    sizes = {name: _mib(getattr(guest, name), factor) for name in ("memory", "floor", "cap", "baseline")}
    return msgspec.structs.replace(guest, **sizes, phases=tuple(_phase(phase, factor) for phase in guest.phases))


def _phase(phase: AnyPhase, factor: Fraction) -> AnyPhase:
    if not isinstance(phase, Phase):
        files = {name: Size(_mib(size, factor)) for name, size in phase.files.items()}
        return msgspec.structs.replace(phase, files=files)
    size_bytes = _mib(phase.file, factor)
    named = phase.file_name != default_file_name(phase.file)
    name = phase.file_name if named else default_file_name(size_bytes)
    return msgspec.structs.replace(phase, file=size_bytes, file_name=name)


def _arm(arm: Arm, factor: Fraction, file: str) -> Arm:
    settings: dict[str, Any] = dict(arm.settings)
    for name, size_bytes in _sizes(arm, file).items():
        settings[name] = f"{max(PAGE_BYTES, align_down(int(size_bytes * factor)))}B"
    baselines = {name: Size(_mib(size, factor)) for name, size in arm.baselines.items()}
    return msgspec.structs.replace(arm, settings=settings, baselines=baselines)


def _sizes(arm: Arm, file: str) -> dict[str, int]:
    """Return those settings of an arm's policy that are sizes, with the defaults of those not given."""
    policy = registry.load(arm.policy, arm.policy_settings, file=file)
    module, _, attribute = arm.policy.partition(":")
    takes_settings = not attribute or isinstance(getattr(sys.modules[module], attribute), type)
    schema = getattr(type(policy), "Settings", None)
    if schema is None or not takes_settings:
        return {}
    sizes = {}
    for name, field in keys_of(schema).items():
        if field.type is Size:
            given = arm.settings.get(name)
            sizes[name] = parse_size(given) if given is not None else int(field.default)
    return sizes
