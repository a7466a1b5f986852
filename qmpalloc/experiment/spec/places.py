"""On which disk the work of programs lies, as far as their commands say.

In a guest's ``/data`` is the data disk, which QEMU reads around the host's page cache; all else is on its root disk,
which the host caches, or in memory. Both disks are throttled where programs run, but a miss on the root disk may cost
the host no read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from qmpalloc.experiment.spec.program import COMMANDS, ProgramPhase
from qmpalloc.experiment.spec.schema import Guest, Specification
from qmpalloc.text import visible

PATH = re.compile(r"(?<![\w:/.~$}-])/[\w.+@%{}-]+(?:/[\w.+@%{}-]*)*")
"""An absolute path in a word of a command; not the rest of a relative path or of an address such as ``http://``."""

PROGRAMS = ("/bin", "/etc", "/lib", "/lib64", "/opt", "/proc", "/sbin", "/sys", "/usr")
"""Directories in which no work lies: programs, and how they are set up."""

MEMORY = ("/dev", "/run", "/var/run")
DATA = "/data"


class Disk(StrEnum):
    """What a path of a guest is on. The value is what people read."""

    DATA = "the data disk"
    ROOT = "the root disk"
    MEMORY = "no disk, but in memory"


class Place(Struct, frozen=True):
    """A path that a phase names."""

    path: str
    disk: Disk


def places(phase: ProgramPhase) -> tuple[Place, ...]:
    """Return the paths that the commands and variables of a phase name, each once."""
    words = [word for name in COMMANDS for word in getattr(phase, name)] + list(phase.environment.values())
    named = dict.fromkeys(path.rstrip("/") for word in words for path in PATH.findall(word))
    return tuple(Place(path, disk_of(path)) for path in named if not _is_below(path, PROGRAMS) and path != "/dev/null")


def disk_of(path: str) -> Disk:
    """Return what a path in a reference guest is on."""
    if _is_below(path, (DATA,)):
        return Disk.DATA
    return Disk.MEMORY if _is_below(path, MEMORY) else Disk.ROOT


def warnings(specification: Specification) -> Iterator[str]:
    """Yield where work may lie elsewhere than a user thinks."""
    for guest in specification.guests:
        if guest.attach is not None:  # what its paths are on is not known here
            continue
        for phase in guest.programs:
            for reason in _of_phase(specification, guest, phase):
                yield f"guest {guest.name}, {phase.name}: {reason}"


def _of_phase(specification: Specification, guest: Guest, phase: ProgramPhase) -> Iterator[str]:
    found = places(phase)
    for place in found:
        if place.disk is Disk.ROOT:
            yield f"{visible(place.path)} is on {place.disk}, which the host caches; a miss in {DATA} is really read"
        elif place.disk is Disk.MEMORY:
            yield f"{visible(place.path)} is on {place.disk}: it is never read from a disk"
    has_data = guest.data is not None or phase.files
    if has_data and not any(place.disk is Disk.DATA for place in found) and not _copies_name_data(specification, phase):
        yield f"it has data in {DATA}, but nothing in it names that directory: is its work on {Disk.ROOT}?"


def _copies_name_data(specification: Specification, phase: ProgramPhase) -> bool:
    """Return whether a file that is brought into the guest names the data disk."""
    beside = Path(specification.file).parent
    return any(DATA.encode() in (beside / name).read_bytes() for name in phase.copy)


def _is_below(path: str, directories: tuple[str, ...]) -> bool:
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)
