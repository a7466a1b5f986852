"""Read the specification of an experiment: TOML in, a `Specification` out. Format: ``docs/experiments.md``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from qmpalloc.config import ImageConfig
from qmpalloc.config.addresses import socket_path
from qmpalloc.config.convert import Mistakes
from qmpalloc.config.toml import read_tables, read_text
from qmpalloc.errors import ConfigError
from qmpalloc.experiment.spec import access
from qmpalloc.experiment.spec.attached import SOCKETS, Attach
from qmpalloc.experiment.spec.checks import check
from qmpalloc.experiment.spec.program import Metric, ProgramPhase, ProgramPhaseKeys
from qmpalloc.experiment.spec.schema import (
    AnyPhase,
    Arm,
    Disk,
    Frame,
    Guest,
    GuestKeys,
    Phase,
    PhaseKeys,
    Specification,
    default_file_name,
)

DOCS = "see docs/experiments.md"
WHOLE_NAMES = {"phase": "guest.phase", "metric": "guest.phase.metric"}
ACCESS_HINT = 'for example { distribution = "normal", deviation = 0.3 }'


OURS_ONLY = {"suite", "image", "data"}
"""Keys of a guest that say what it is made from."""


class _PhaseTable(PhaseKeys, frozen=True, kw_only=True):
    access: Any


READS_ONLY = {"access", *PhaseKeys.__struct_fields__} - {*ProgramPhaseKeys.__struct_fields__}
"""Keys of a phase of reads, which one with a program has not."""


class _ProgramTable(ProgramPhaseKeys, frozen=True, kw_only=True):
    metric: tuple[Any, ...] = ()


class _GuestTable(GuestKeys, frozen=True, kw_only=True):
    phase: tuple[Any, ...] = ()


class _MixtureTable(Struct, frozen=True, kw_only=True):
    parts: list[Any]


class _PartTable(Struct, frozen=True, kw_only=True):
    weight: float


def load(path: str | os.PathLike[str]) -> Specification:
    """Read and validate the specification of an experiment.

    Raises:
        ConfigError: With file, dotted key and hint. Several mistakes are reported together, one per line.
    """
    text = read_text(path, example="see {examples}/ for an experiment")
    return parse(text, file=Path(path).absolute())


def parse(text: str, *, file: Path) -> Specification:
    """Validate the text of a specification; a user's own policies are also looked for beside `file`.

    Raises:
        ConfigError: As `load`.
    """
    brackets = "guests, phases and arms are tables with two brackets: [[guest]], [[guest.phase]], [[arm]]"
    data = read_tables(text, file=file, brackets=brackets)
    if "host" in data and "experiment" not in data:
        raise ConfigError("this is a configuration, not an experiment", file=str(file), hint=f"qmpalloc run {file}")
    mistakes = Mistakes(str(file))
    for key in sorted(data.keys() - {"experiment", "disk", "image", "guest", "arm"}):
        mistakes.add(key, "unknown table", hint="known are [experiment], [disk], [image], [[guest]] and [[arm]]")
    frame = mistakes.convert(data.get("experiment"), Frame, "experiment", missing=DOCS)
    disk = mistakes.convert(data.get("disk", {}), Disk, "disk", missing=DOCS)
    if disk is not None and disk.iops and "model" in data["disk"]:
        mistakes.add("disk.iops", "beside disk.model", hint="give a model or explicit iops, not both")
    image = mistakes.convert(data.get("image", {}), ImageConfig, "image", missing=DOCS)
    guests = [_guest(table, key, mistakes, file.parent) for key, table in _tables(data.get("guest"), "guest", mistakes)]
    arms = [mistakes.convert(table, Arm, key, missing=DOCS) for key, table in _tables(data.get("arm"), "arm", mistakes)]
    mistakes.raise_if_any()
    specification = Specification(
        **msgspec.structs.asdict(frame), file=str(file), disk=disk, image=image, guests=tuple(guests), arms=tuple(arms)
    )
    check(specification, mistakes)
    mistakes.raise_if_any()
    return specification


def _tables(value: Any, key: str, mistakes: Mistakes) -> list[tuple[str, Any]]:
    """Return every table of the array of tables `key` with its key path."""
    if isinstance(value, list) and value:
        return [(f"{key}[{index}]", table) for index, table in enumerate(value)]
    last = key.rsplit(".", 1)[-1]
    brackets = f"[[{WHOLE_NAMES.get(last, last)}]]"
    mistakes.add(key, f"no {last} is given", hint=f"add a {brackets} table for each")
    return []


def _guest(table: Any, key: str, mistakes: Mistakes, base: Path) -> Any:
    """Return a `Guest`, or None if there was a mistake; sockets are looked for beside `base`."""
    keys = mistakes.convert(table, _GuestTable, key, missing=DOCS)
    found = table.get("phase") if isinstance(table, Mapping) else None
    phases = [_phase(item, where, mistakes) for where, item in _tables(found, f"{key}.phase", mistakes)]
    if keys is None or None in phases:
        return None
    named: list[AnyPhase] = []
    for number, phase in enumerate(phases, start=1):
        names = {"name": phase.name or f"phase{number}"}
        if isinstance(phase, Phase):
            names["file_name"] = phase.file_name or default_file_name(phase.file)
        named.append(msgspec.structs.replace(phase, **names))
    common = {name: getattr(keys, name) for name in GuestKeys.__struct_fields__}
    if keys.attach is not None:
        common["attach"] = _with_paths(keys.attach, f"{key}.attach", mistakes, base)
        for name in sorted(OURS_ONLY & table.keys()):
            mistakes.add(f"{key}.{name}", "beside attach", hint="such a guest has its own system; leave it out")
    elif keys.start is not None:
        hint = "add [guest.attach] with monitor, second_monitor and agent"
        mistakes.add(f"{key}.start", "without attach, which says where its sockets are", hint=hint)
    return Guest(**common, phases=tuple(named))


def _with_paths(attach: Attach, key: str, mistakes: Mistakes, base: Path) -> Attach:
    """Make the paths of its sockets absolute."""
    paths = {}
    for name in SOCKETS:
        with mistakes.addressed(f"{key}.{name}"):
            paths[name] = socket_path(getattr(attach, name), base)
    return msgspec.structs.replace(attach, **paths)


def _phase(table: Any, key: str, mistakes: Mistakes) -> Any:
    """Return a `Phase` or `ProgramPhase`, or None if there was a mistake."""
    if isinstance(table, Mapping) and "command" in table:
        return _program(table, key, mistakes)
    keys = mistakes.convert(table, _PhaseTable, key, missing=DOCS)
    chosen = None
    if isinstance(table, Mapping) and "access" in table:
        chosen = read_access(table["access"], f"{key}.access", mistakes)
    if keys is None or chosen is None:
        return None
    common = {name: getattr(keys, name) for name in PhaseKeys.__struct_fields__}
    return Phase(**common, access=chosen)


def _program(table: Mapping[str, Any], key: str, mistakes: Mistakes) -> Any:
    """Return a `ProgramPhase`, or None if there was a mistake."""
    for name in sorted(table.keys() & READS_ONLY):
        mistakes.add(f"{key}.{name}", "beside a command", hint="a phase either runs a program or reads a file")
    kept = {name: value for name, value in table.items() if name not in READS_ONLY}
    keys = mistakes.convert(kept, _ProgramTable, key, missing=DOCS)
    metrics = []
    if "metric" in table:
        for where, item in _tables(table["metric"], f"{key}.metric", mistakes):
            metrics.append(mistakes.convert(item, Metric, where, missing=DOCS))
    if keys is None or None in metrics:
        return None
    common = {name: getattr(keys, name) for name in ProgramPhaseKeys.__struct_fields__}
    return ProgramPhase(**common, metrics=tuple(metrics))


def read_access(table: Any, key: str, mistakes: Mistakes, known: tuple[str, ...] = access.NAMES) -> Any:
    """Return the distribution a table describes, or None if there was a mistake."""
    if not isinstance(table, Mapping):
        mistakes.add(key, f"must be a table, not {type(table).__name__}", hint=ACCESS_HINT)
        return None
    name = table.get("distribution")
    if name is None:
        mistakes.add(f"{key}.distribution", "missing", hint=f"known are {', '.join(known)}")
        return None
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        mistakes.add(f"{key}.distribution", f"unknown distribution {name!r}", hint=hint)
        return None
    rest = {item: value for item, value in table.items() if item != "distribution"}
    if name == "mixture":
        return _mixture(rest, key, mistakes)
    found = mistakes.convert(rest, access.SIMPLE[name], key, missing=DOCS)
    wrong = list(access.mistakes(found)) if found is not None else []
    for parameter, message, hint in wrong:
        mistakes.add(f"{key}.{parameter}", message, hint=hint)
    return None if wrong else found


def _mixture(table: Mapping[str, Any], key: str, mistakes: Mistakes) -> Any:
    keys = mistakes.convert(table, _MixtureTable, key, missing=DOCS)
    if keys is None:
        return None
    if not keys.parts:
        mistakes.add(f"{key}.parts", "a mixture of nothing", hint='{ weight = 0.7, distribution = "zipf" } is a part')
        return None
    parts = [_part(item, f"{key}.parts[{index}]", mistakes) for index, item in enumerate(keys.parts)]
    return None if None in parts else access.Mixture(parts=tuple(parts))


def _part(table: Any, key: str, mistakes: Mistakes) -> Any:
    """Return one part of a mixture, or None if there was a mistake."""
    weighted = {"weight": table["weight"]} if isinstance(table, Mapping) and "weight" in table else {}
    rest = {item: value for item, value in table.items() if item != "weight"} if isinstance(table, Mapping) else table
    keys = mistakes.convert(weighted, _PartTable, key, missing="its share of the reads, relative to the other parts")
    if keys is not None and not keys.weight > 0:
        mistakes.add(f"{key}.weight", "must be above 0", hint="leave the part out instead")
        keys = None
    chosen = read_access(rest, key, mistakes, tuple(access.SIMPLE))
    return None if keys is None or chosen is None else access.Part(weight=keys.weight, access=chosen)
