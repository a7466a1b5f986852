"""In which order the arms are run."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct

from qmpalloc.experiment.spec.references import seeded
from qmpalloc.experiment.spec.schema import Specification


class ArmRun(Struct, frozen=True, order=True):
    """One run of one arm. `repeat` counts from 1."""

    repeat: int
    arm: str

    @property
    def name(self) -> str:
        """A name for its directory: ``repeat2-static``."""
        return f"repeat{self.repeat}-{self.arm}"


def planned(specification: Specification, *, arms: Collection[str] = ()) -> tuple[ArmRun, ...]:
    """Return every run in order: repeat by repeat, all arms or those named, shuffled, each second repeat reversed.

    Of any two arms each then comes first equally often, and a slow drift of the host meets both alike; shuffled alone,
    three repeats may well have the same one first. The order of a repeat depends on the seed, its number and the names
    of the specification's arms only: more repeats, or fewer arms, leave the rest as it was.
    """
    names = sorted(arm.name for arm in specification.arms)
    runs = []
    for repeat in range(1, specification.repeats + 1):
        reverse = repeat % 2 == 0
        random = seeded(specification.seed, "order", str(repeat - reverse))
        shuffled = sorted(((random.random(), name) for name in names), reverse=reverse)
        runs += [ArmRun(repeat, name) for _, name in shuffled if not arms or name in arms]
    return tuple(runs)
