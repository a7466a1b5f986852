"""Read the specification of an experiment: TOML in, a `Specification` out. Format: ``docs/experiments.md``."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import msgspec

from qmpalloc.config.addresses import socket_path
from qmpalloc.config.convert import Mistakes
from qmpalloc.config.toml import read_tables, read_text
from qmpalloc.errors import ConfigError
from qmpalloc.experiment.spec.attached import SOCKETS, Attach
from qmpalloc.experiment.spec.checks import check
from qmpalloc.experiment.spec.schema import (
    AnyPhase,
    ExperimentFile,
    Guest,
    Phase,
    Specification,
    default_file_name,
)

DOCS = "docs/experiments.md"

OURS_ONLY = {"suite", "image", "data"}
"""Keys of a guest that say what it is made from."""


def load(path: str | os.PathLike[str]) -> Specification:
    """Read and validate the specification of an experiment.

    Raises:
        ConfigError: With file, dotted key and hint. Several mistakes are reported together, one per line.
    """
    text = read_text(path, example="see {examples}/ for an experiment")
    return parse(text, file=Path(path).absolute())


def parse(text: str, *, file: Path, home: Path | None = None) -> Specification:
    """Validate the text of a specification; a user's own policies are also looked for beside `file`.

    Args:
        text: Of the file.
        file: Its path; what is brought into guests lies beside it.
        home: Where sockets are and commands of this host are run; by default the directory of `file`.

    Raises:
        ConfigError: As `load`.
    """
    brackets = "guests, phases and arms are tables with two brackets: [[guest]], [[guest.phase]], [[arm]]"
    data = read_tables(text, file=file, brackets=brackets)
    if "host" in data and "experiment" not in data:
        raise ConfigError("this is a configuration, not an experiment", file=str(file), hint=f"qmpalloc run {file}")
    mistakes = Mistakes(str(file), DOCS)
    found: ExperimentFile = mistakes.convert({"image": {}, **data}, ExperimentFile, "")
    mistakes.raise_if_any()
    if found.disk.iops and "model" in data["disk"]:
        mistakes.add("disk.iops", "beside disk.model", hint="give a model or explicit iops, not both")
    guests = [
        _whole(guest, f"guest[{index}]", data["guest"][index].keys(), mistakes, home or file.parent)
        for index, guest in enumerate(found.guest)
    ]
    specification = Specification(
        **msgspec.structs.asdict(found.experiment),
        file=str(file),
        home=str(home or file.parent),
        disk=found.disk,
        image=found.image,
        guests=tuple(guests),
        arms=found.arm,
    )
    check(specification, mistakes)
    mistakes.raise_if_any()
    return specification


def _whole(guest: Guest, key: str, given: Collection[str], mistakes: Mistakes, base: Path) -> Guest:
    """Return a guest whose phases and files have names, and whose sockets are looked for beside `base`."""
    phases = tuple(_named(phase, number) for number, phase in enumerate(guest.phases, start=1))
    attach = guest.attach
    if attach is not None:
        attach = _with_paths(attach, f"{key}.attach", mistakes, base)
        for name in sorted(OURS_ONLY & set(given)):
            mistakes.add(f"{key}.{name}", "beside attach", hint="such a guest has its own system; leave it out")
    return msgspec.structs.replace(guest, phases=phases, attach=attach)


def _named(phase: AnyPhase, number: int) -> AnyPhase:
    names = {"name": phase.name or f"phase{number}"}
    if isinstance(phase, Phase):
        names["file_name"] = phase.file_name or default_file_name(phase.file)
    return msgspec.structs.replace(phase, **names)


def _with_paths(attach: Attach, key: str, mistakes: Mistakes, base: Path) -> Attach:
    """Make the paths of its sockets absolute."""
    paths = {}
    for name in SOCKETS:
        with mistakes.addressed(f"{key}.{name}"):
            paths[name] = socket_path(getattr(attach, name), base)
    return msgspec.structs.replace(attach, **paths)
