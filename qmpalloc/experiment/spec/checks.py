"""What must hold in an experiment between keys, guests and arms; refused before anything boots."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from qmpalloc.config.convert import Mistakes, below, told
from qmpalloc.config.keys import Found, baseline_mistakes
from qmpalloc.errors import ConfigError
from qmpalloc.experiment.spec.attached import SOCKETS
from qmpalloc.experiment.spec.program import Metric, ProgramPhase
from qmpalloc.experiment.spec.schema import Arm, Guest, Phase, Specification
from qmpalloc.policy import registry
from qmpalloc.units import MIB, format_size

QEMU_BYTES = 128 * MIB
"""What QEMU takes besides its guest's memory; seen with emulation, whose translated code is most of it."""

COPY_BYTES = 16 * MIB
"""Files that are brought into a guest for a phase; its agent takes about a second for each."""

REFERENCE_BYTES = 4
"""Of a guest's memory, for each read of its load."""

REFERENCES_SHARE = 4
"""One of so many parts of its floor may hold them."""


def check(specification: Specification, mistakes: Mistakes) -> None:
    """Note everything in `specification` that cannot be run."""
    mistakes.add_all(_all(specification))


def check_memory(specification: Specification, available_bytes: int) -> None:
    """Refuse guests that this host's memory cannot hold, should they all grow to their full size.

    Args:
        specification: Scaled.
        available_bytes: That the host can give.

    Raises:
        ConfigError: They need more.
    """
    guests = [guest for guest in specification.guests if guest.attach is None or guest.start is not None]
    memory_bytes = sum(guest.memory for guest in guests)
    needed_bytes = memory_bytes + len(guests) * QEMU_BYTES
    if needed_bytes <= available_bytes:
        return
    message = f"the memory of all guests adds up to {format_size(memory_bytes)}, and QEMU itself takes "
    message += f"{format_size(QEMU_BYTES)} for each; this host has {format_size(available_bytes)} available"
    hint = "end what else uses it, or scale the experiment down"
    left_bytes = available_bytes - len(guests) * QEMU_BYTES
    if left_bytes > 0:
        parts = -(-memory_bytes // left_bytes)
        hint += f": --scale {Fraction(specification.scale) / parts}"
    largest = specification.guests.index(max(guests, key=lambda guest: guest.memory))
    raise ConfigError(message, file=specification.file, key=f"guest[{largest}].memory", hint=hint)


def _all(spec: Specification) -> Found:
    yield from told(spec.tables)
    if spec.disk.by == "programs" and not any(guest.programs for guest in spec.guests):
        yield "disk.by", "no guest runs a program", "leave it out: the ratio is that of reads"
    yield from _beside("image", spec.image.sources)
    yield from _sockets(spec)
    if spec.reference not in {arm.name for arm in spec.arms}:
        yield "experiment.reference", f"no arm is called {spec.reference!r}", "all arms are compared with this one"
    for index, guest in enumerate(spec.guests):
        yield from _guest(f"guest[{index}]", guest, spec)
    yield from _outputs(spec)
    yield from _units(spec)
    floors_bytes = sum(guest.floor for guest in spec.guests)
    if floors_bytes > spec.budget:
        yield "experiment.budget", _above("floors", floors_bytes, spec.budget), "lower the floors or raise the budget"
    for index, arm in enumerate(spec.arms):
        yield from _arm(f"arm[{index}]", arm, spec)


def _sockets(spec: Specification) -> Found:
    """Look at what is said of guests that are not ours."""
    seen: dict[str, str] = {}
    for index, guest in enumerate(spec.guests):
        if guest.attach is None:
            continue
        key = f"guest[{index}].attach"
        for name in SOCKETS:
            path = getattr(guest.attach, name)
            if not seen.get(path, key).startswith(key):
                yield f"{key}.{name}", f"{path} is already {seen[path]}", "each guest has sockets of its own"
            seen.setdefault(path, f"{key}.{name}")


def _guest(key: str, guest: Guest, spec: Specification) -> Found:
    """Look at what it needs of its disk and memory, and at what is made from the user's files."""
    yield from _room(key, guest, spec.disk.size)
    yield from _beside(f"{key}.image", guest.image.sources if guest.image is not None else ())
    yield from _beside(f"{key}.data", guest.data.sources if guest.data is not None else ())
    for index, phase in enumerate(guest.phases):
        if isinstance(phase, ProgramPhase):
            yield from _copied(f"{key}.phase[{index}].copy", phase, Path(spec.file).parent)


def _beside(key: str, names: Iterable[tuple[str, str]]) -> Found:
    """Look at what an experiment keeps: files of the user's that lie beside its own."""
    for name, path in names:
        if ".." in Path(path).parts:
            yield f"{key}.{name}", f"{path} is not beside the experiment's file", "a path below it, or an absolute one"


def _room(key: str, guest: Guest, disk_bytes: int) -> Found:
    """Look at what its references take of its memory, and its files of its disk; 0 is as large as they need."""
    most = max(guest.reads, key=lambda phase: phase.total_reads, default=None)
    references_bytes = REFERENCE_BYTES * sum(phase.total_reads for phase in guest.reads)
    if most is not None and references_bytes > guest.floor / REFERENCES_SHARE > 0:
        message = f"the page numbers of all reads of {guest.name} take {format_size(references_bytes)} of its memory"
        hint = f"at most a quarter of its floor of {format_size(guest.floor)}: fewer reads or rounds, or a higher floor"
        yield f"{key}.phase[{guest.phases.index(most)}].reads", message, hint
    if disk_bytes and guest.disk_bytes > disk_bytes:
        largest = max(range(len(guest.phases)), key=lambda index: sum(guest.phases[index].files.values()))
        message = f"the files of {guest.name} need {format_size(guest.disk_bytes)} of a disk of "
        where = f"{key}.phase[{largest}].{guest.phases[largest].size_key}"
        yield where, message + format_size(disk_bytes), "raise disk.size or leave it out"


def _outputs(spec: Specification) -> Found:
    """Look for programs whose outputs would be kept under one name: ``a-b`` and ``c``, ``a`` and ``b-c``."""
    first: dict[str, str] = {}
    for index, guest in enumerate(spec.guests):
        for number, phase in enumerate(guest.phases):
            where, kept = f"guest[{index}].phase[{number}]", f"{guest.name}-{phase.name}"
            if first.setdefault(kept, where) != where:
                message = f"its output would be kept under the name of that of {first[kept]}, {kept}"
                yield f"{where}.name", message, "give it another one"


def _units(spec: Specification) -> Found:
    """Look for a metric that is not the same everywhere it is named: in another unit, or better the other way."""
    first: dict[str, tuple[str, Metric]] = {}
    for index, guest in enumerate(spec.guests):
        for number, phase in enumerate(guest.phases):
            for position, metric in enumerate(phase.metrics):
                where = f"guest[{index}].phase[{number}].metric[{position}]"
                if isinstance(phase, Phase):
                    where = f"guest[{index}].phase[{number}]"
                other, known = first.setdefault(metric.name, (where, metric))
                for key in ("unit", "better"):
                    ours, theirs = getattr(metric, key), getattr(known, key)
                    if ours != theirs:
                        message = f"{metric.name} is {ours!r} here and {theirs!r} in {other}"
                        yield f"{where}.{key}", message, "give one of them another name, or both the same unit"


def _copied(key: str, phase: ProgramPhase, beside: Path) -> Found:
    """Look at the files that are to be brought into a guest, all through its agent."""
    total_bytes = 0
    for name in phase.copy:
        try:
            total_bytes += (beside / name).stat().st_size
        except OSError as error:
            yield key, f"{beside / name}: {error.strerror}", "paths are relative to the experiment's file"
            continue
        if not (beside / name).is_file():
            yield key, f"{beside / name} is not a file", "name each file"
        elif not os.access(beside / name, os.R_OK):
            yield key, f"{beside / name} cannot be read by you", "it is brought into the guest"
    if total_bytes > COPY_BYTES:
        message = f"{format_size(total_bytes)} are to be copied, at most {format_size(COPY_BYTES)} can be"
        yield key, message, "for data there is `files`; packages can be installed in the image"
    names = [Path(name).name for name in phase.copy]
    if len(set(names)) < len(names):
        yield key, "two files have the same name", "all lie in the directory in which the program runs"


def _arm(key: str, arm: Arm, spec: Specification) -> Found:
    guests = {guest.name: guest for guest in spec.guests}
    for name, size in arm.baselines.items():
        if name in guests:
            yield from baseline_mistakes(f"{key}.baselines.{name}", guests[name].floor, size, guests[name].cap)
        else:
            yield f"{key}.baselines.{name}", "no such guest", f"known are {', '.join(guests)}"
    total_bytes = sum(arm.baseline(guest) for guest in spec.guests)
    if total_bytes > spec.budget:
        hint = "lower the baselines or raise the budget"
        yield f"{key}.baselines", _above(f"baselines of {arm.name}", total_bytes, spec.budget), hint
    if arm.is_computed_oracle and any(guest.programs for guest in spec.guests):
        message = "what programs read is not known beforehand, so their curves cannot be computed"
        yield f"{key}.policy", message, "give the policy its curves, or leave this arm out"
    for guest in spec.guests:
        if arm.is_computed_oracle and guest.attach is not None and guest.lru is None:
            message = f"which page replacement {guest.name} runs is not known, so its curve cannot be computed"
            yield f"{key}.policy", message, 'say it: lru = "multi-gen" or "two-list"'
    found = registry.wrong(arm.policy, arm.policy_settings, file=spec.file)
    yield from ((below(key, name), message, hint) for name, message, hint in found)


def _above(what: str, total_bytes: int, budget_bytes: int) -> str:
    return f"the {what} add up to {format_size(total_bytes)}, the budget is {format_size(budget_bytes)}"
