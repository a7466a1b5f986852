"""Whether an experiment goes on under the conditions it began with; otherwise its arms would not be comparable."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime

from msgspec import Struct

from qmpalloc.experiment.store.records import Manifest

DECISIVE_VERSIONS = ("qemu", "qmpalloc")
DECISIVE_FACTS = ("machine", "cpus")
ABSENT = "none"


class Change(Struct, frozen=True):
    """Something that is other than when the experiment began.

    Attributes:
        text: ``qemu is 9.0 (was 8.2)``.
        decisive: Runs before and after it cannot be compared: another system in the guests, or another speed of what
            runs them, from which the throttle of the disks was taken, or other code of the policies.
    """

    text: str
    decisive: bool


def changes(then: Manifest, now: Manifest) -> tuple[Change, ...]:
    """Return what is other now than in the manifest of the experiment."""
    found = [*_differences("image of {}", then.images, now.images, decisive=now.images)]
    found += _differences("accelerator of {}", then.accelerator, now.accelerator, decisive=now.accelerator)
    found += _differences("{}", then.versions, now.versions, decisive=DECISIVE_VERSIONS)
    found += _differences("host's {}", then.host, now.host, decisive=DECISIVE_FACTS)
    return tuple(found)


def at_time(text: str, wall_s: float) -> str:
    """Return what changed or happened as a line for the manifest."""
    return f"{datetime.fromtimestamp(wall_s, UTC):%Y-%m-%d %H:%M} UTC: {text}"


def _differences(
    what: str, then: Mapping[str, object], now: Mapping[str, object], *, decisive: Collection[str]
) -> Iterator[Change]:
    for name in sorted(then.keys() | now.keys()):
        before, after = then.get(name, ABSENT), now.get(name, ABSENT)
        if before != after:
            yield Change(f"{what.format(name)} is {after} (was {before})", name in decisive)
