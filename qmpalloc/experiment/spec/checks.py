"""What must hold in an experiment between keys, guests and arms; refused before anything boots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

from qmpalloc.config.checks import image_mistakes, source_mistakes
from qmpalloc.config.convert import Mistakes
from qmpalloc.errors import ConfigError
from qmpalloc.experiment.spec.attached import SOCKETS
from qmpalloc.experiment.spec.program import Metric, ProgramPhase
from qmpalloc.experiment.spec.schema import AnyPhase, Arm, Guest, Phase, Specification
from qmpalloc.policy import registry
from qmpalloc.text import is_visible
from qmpalloc.units import MIB, PAGE_BYTES, align_down, align_up, format_size

SMALLEST_BYTES = 128 * MIB
"""The reference guest was seen to boot, and its collector to start, with so much memory."""

QEMU_BYTES = 128 * MIB
"""What QEMU takes besides its guest's memory; seen with emulation, whose translated code is most of it."""

LEAST_RATE = 0.1
"""A load that reads more rarely could not be told from one that hangs."""

COPY_BYTES = 16 * MIB
"""Files that are brought into a guest for a phase; its agent takes about a second for each."""

LEAST_INTERVAL_S = 1.0
"""Collectors write once a second."""

REFERENCE_BYTES = 4
"""Of a guest's memory, for each read of its load."""

REFERENCES_SHARE = 4
"""One of so many parts of its floor may hold them."""

Found = Iterator[tuple[str, str, str]]
"""Key, message and hint of each mistake."""


def check(specification: Specification, mistakes: Mistakes) -> None:
    """Note everything in `specification` that cannot be run."""
    for key, message, hint in _all(specification):
        mistakes.add(key, message, hint=hint)


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
    yield from _frame(spec)
    yield from _sources("image", image_mistakes(spec.image), spec.image.sources)
    yield from _unique("guest", (guest.name for guest in spec.guests))
    yield from _sockets(spec)
    yield from _unique("arm", (arm.name for arm in spec.arms))
    if spec.reference not in {arm.name for arm in spec.arms}:
        yield "experiment.reference", f"no arm is called {spec.reference!r}", "all arms are compared with this one"
    for index, guest in enumerate(spec.guests):
        yield from _guest(f"guest[{index}]", guest, spec)
    yield from _units(spec)
    floors_bytes = sum(guest.floor for guest in spec.guests)
    if floors_bytes > spec.budget:
        yield "experiment.budget", _above("floors", floors_bytes, spec.budget), "lower the floors or raise the budget"
    for index, arm in enumerate(spec.arms):
        yield from _arm(f"arm[{index}]", arm, spec)


def _frame(spec: Specification) -> Found:
    yield from _name("experiment.name", spec.name)
    if spec.interval < LEAST_INTERVAL_S:
        yield "experiment.interval", f"must be at least {LEAST_INTERVAL_S:g} s", 'for example "15s"'
    if spec.repeats < 1:
        yield "experiment.repeats", "must be at least 1", "3 give a confidence interval"
    if spec.seed < 0:
        yield "experiment.seed", "must not be negative", ""
    if spec.disk.iops < 0:
        yield "disk.iops", "must not be negative", 'for no limit write model = "raw"'
    if spec.disk.by == "programs" and not any(guest.programs for guest in spec.guests):
        yield "disk.by", "no guest runs a program", "leave it out: the ratio is that of reads"


def _name(key: str, name: str) -> Found:
    if not name or not all(char.isascii() and (char.isalnum() or char in "-_.") for char in name):
        yield key, f"{name!r} is not a name", "use letters, digits, '-', '_' and '.'"
    elif name in {".", ".."} or len(name) > 32:
        yield key, f"{name!r} is not a name", "use at most 32 characters"


def _unique(key: str, names: Iterable[str]) -> Found:
    seen: dict[str, str] = {}
    for index, name in enumerate(names):
        where = f"{key}[{index}].name"
        yield from _name(where, name)
        if name in seen:
            yield where, f"{name} is already {seen[name]}", "names tell results apart"
        seen.setdefault(name, where)


def _sockets(spec: Specification) -> Found:
    """Look at what is said of guests that are not ours."""
    seen: dict[str, str] = {}
    for index, guest in enumerate(spec.guests):
        if guest.attach is None:
            continue
        key = f"guest[{index}].attach"
        yield from ((f"{key}.{where}", message, hint) for where, message, hint in guest.attach.mistakes())
        if guest.start is not None:
            start = f"guest[{index}].start"
            yield from ((f"{start}.{where}", message, hint) for where, message, hint in guest.start.mistakes())
        for name in SOCKETS:
            path = getattr(guest.attach, name)
            if not seen.get(path, key).startswith(key):
                yield f"{key}.{name}", f"{path} is already {seen[path]}", "each guest has sockets of its own"
            seen.setdefault(path, f"{key}.{name}")


def _guest(key: str, guest: Guest, spec: Specification) -> Found:
    yield from _sizes(key, guest)
    yield from _unique(f"{key}.phase", (phase.name for phase in guest.phases))
    sizes: dict[str, int] = {}
    for index, phase in enumerate(guest.phases):
        where = f"{key}.phase[{index}]"
        yield from _phase(where, phase)
        for file_key, name, size_bytes in _files(phase):
            yield from _file_name(f"{where}.{file_key}", name)
            if sizes.setdefault(name, size_bytes) != size_bytes:
                message = f"{name} has two sizes, {format_size(sizes[name])} and {format_size(size_bytes)}"
                yield f"{where}.{_size_key(phase)}", message, "give one of the files another name"
    yield from _room(key, guest, spec.disk.size)
    if not guest.weight > 0 or not math.isfinite(guest.weight):
        yield f"{key}.weight", "must be above 0", "1.0 is the weight of a guest that has none given"
    if guest.image is not None:
        yield from _sources(f"{key}.image", image_mistakes(guest.image), guest.image.sources)
    if guest.data is not None:
        yield from _sources(f"{key}.data", source_mistakes(guest.data), guest.data.sources)
    for index, phase in enumerate(guest.phases):
        if isinstance(phase, ProgramPhase):
            yield from _copied(f"{key}.phase[{index}].copy", phase, Path(spec.file).parent)


def _sources(key: str, mistakes: Iterable[tuple[str, str, str]], names: Iterable[tuple[str, str]]) -> Found:
    """Look at what is made from the user's files: an experiment keeps those that lie beside its own."""
    yield from ((f"{key}.{name}", message, hint) for name, message, hint in mistakes)
    for name, path in names:
        if ".." in Path(path).parts:
            yield f"{key}.{name}", f"{path} is not beside the experiment's file", "a path below it, or an absolute one"


def _sizes(key: str, guest: Guest) -> Found:
    if guest.floor <= 0:
        yield f"{key}.floor", "must be above 0", "a guest without memory dies"
    elif guest.floor < SMALLEST_BYTES:
        message = f"{format_size(guest.floor)} is less than the reference guest needs"
        yield f"{key}.floor", message, f"at least {format_size(SMALLEST_BYTES)}; mind the scale"
    if guest.floor > guest.cap:
        message = f"{format_size(guest.floor)} is above the cap of {format_size(guest.cap)}"
        yield f"{key}.floor", message, "lower floor, raise cap"
    elif align_up(guest.floor) > align_down(guest.cap):
        message = f"no whole page of {PAGE_BYTES} bytes lies between floor and cap"
        yield f"{key}.floor", message, "write both in whole MiB"
    else:
        yield from _baseline(f"{key}.baseline", guest, guest.baseline)
    if guest.cap > guest.memory:
        message = f"{format_size(guest.cap)} is above the guest's memory of {format_size(guest.memory)}"
        yield f"{key}.cap", message, "raise memory"


def _room(key: str, guest: Guest, disk_bytes: int) -> Found:
    """Look at what its references take of its memory, and its files of its disk; 0 is as large as they need."""
    most = max(guest.reads, key=lambda phase: phase.total_reads, default=None)
    references_bytes = REFERENCE_BYTES * sum(phase.total_reads for phase in guest.reads)
    if most is not None and references_bytes > guest.floor / REFERENCES_SHARE > 0:
        message = f"the page numbers of all reads of {guest.name} take {format_size(references_bytes)} of its memory"
        hint = f"at most a quarter of its floor of {format_size(guest.floor)}: fewer reads or rounds, or a higher floor"
        yield f"{key}.phase[{guest.phases.index(most)}].reads", message, hint
    if disk_bytes and guest.disk_bytes > disk_bytes:
        largest = max(range(len(guest.phases)), key=lambda index: sum(each[2] for each in _files(guest.phases[index])))
        message = f"the files of {guest.name} need {format_size(guest.disk_bytes)} of a disk of "
        where = f"{key}.phase[{largest}].{_size_key(guest.phases[largest])}"
        yield where, message + format_size(disk_bytes), "raise disk.size or leave it out"


def _files(phase: AnyPhase) -> list[tuple[str, str, int]]:
    """Return the key, name and size of each file on the data disk that a phase names."""
    if isinstance(phase, Phase):
        return [("file_name", phase.file_name, phase.file)]
    return [("files", name, size) for name, size in phase.files.items()]


def _size_key(phase: AnyPhase) -> str:
    return "file" if isinstance(phase, Phase) else "files"


def _baseline(key: str, guest: Guest, baseline_bytes: int) -> Found:
    if not guest.floor <= baseline_bytes <= guest.cap:
        hint = f"choose one from {format_size(guest.floor)} to {format_size(guest.cap)}"
        yield key, f"{format_size(baseline_bytes)} is not between floor and cap", hint


def _phase(key: str, phase: AnyPhase) -> Found:
    for file_key, _, size_bytes in _files(phase):
        if size_bytes < PAGE_BYTES:
            yield f"{key}.{file_key.removesuffix('_name')}", "must be at least a page", 'for example "2GiB"'
    yield from _program(key, phase) if isinstance(phase, ProgramPhase) else _reads(key, phase)


def _file_name(key: str, name: str) -> Found:
    if "/" in name or not is_visible(name) or name in {"", ".", "..", "lost+found"}:
        yield key, f"{name!r} is not a file name", "files lie directly in /data of the guest"


def _program(key: str, phase: ProgramPhase) -> Found:
    yield from ((f"{key}.{where}", message, hint) for where, message, hint in phase.mistakes())
    yield from _unique(f"{key}.metric", (metric.name for metric in phase.metrics))


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
    if total_bytes > COPY_BYTES:
        message = f"{format_size(total_bytes)} are to be copied, at most {format_size(COPY_BYTES)} can be"
        yield key, message, "for data there is `files`; packages can be installed in the image"
    names = [Path(name).name for name in phase.copy]
    if len(set(names)) < len(names):
        yield key, "two files have the same name", "all lie in the directory in which the program runs"


def _reads(key: str, phase: Phase) -> Found:
    if phase.reads < 1:
        yield f"{key}.reads", "must be at least 1", "a phase that reads nothing is over before it begins"
    if phase.is_timed and phase.rounds:
        yield f"{key}.duration", "beside rounds", "a phase of reads ends after its rounds or after its duration"
    elif phase.duration < 0:
        yield f"{key}.duration", "must be above 0", 'for example "60s"'
    elif not phase.is_timed and phase.rounds < 1:
        yield f"{key}.rounds", "must be at least 1", "a phase that reads nothing is over before it begins"
    if phase.rate and phase.rate < LEAST_RATE:
        yield f"{key}.rate", f"must be at least {LEAST_RATE:g} per second", "leave it out for no limit"


def _arm(key: str, arm: Arm, spec: Specification) -> Found:
    guests = {guest.name: guest for guest in spec.guests}
    for name, size in arm.baselines.items():
        if name in guests:
            yield from _baseline(f"{key}.baselines.{name}", guests[name], size)
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
    try:
        registry.load(arm.policy, arm.policy_settings, file=spec.file)
    except ConfigError as error:
        for one in error.each or (error,):
            yield _moved(one, key)


def _moved(error: ConfigError, key: str) -> tuple[str, str, str]:
    """Return a policy's mistake, which the registry reports at ``policy.…``, at the arm's own keys."""
    name = error.key.removeprefix("policy.")
    return f"{key}.policy" if name == "name" else f"{key}.settings.{name}", error.reason, error.hint


def _above(what: str, total_bytes: int, budget_bytes: int) -> str:
    return f"the {what} add up to {format_size(total_bytes)}, the budget is {format_size(budget_bytes)}"
