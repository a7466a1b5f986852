"""Ten mixes of loads on which ways of splitting memory differ: for comparing policies in the model.

Every guest has 160 MiB that are not cache and a floor of 224 MiB; files are of 1 GiB where nothing else is said.
"""

from __future__ import annotations

from msgspec import Struct

from qmpalloc.experiment.spec.access import Access, HotCold, Normal, Sequential, Uniform, Zipf
from qmpalloc.sim.replay import ReplayGuest
from qmpalloc.units import GIB, MIB

FLOOR_BYTES = 224 * MIB
RATE = 16_000.0
"""Page accesses per second of a guest, where nothing else is said."""


class MixedLoad(Struct, frozen=True, kw_only=True):
    """What one guest of a mix reads."""

    access: Access
    file_bytes: int = GIB
    accesses_per_s: float = RATE


class Mix(Struct, frozen=True, kw_only=True):
    """Loads that share a budget."""

    name: str
    budget_bytes: int
    loads: tuple[MixedLoad, ...]

    @property
    def floors_bytes(self) -> int:
        """The floors of its guests together: with a budget of no more, nothing can be moved."""
        return FLOOR_BYTES * len(self.loads)

    def guests(self, lru: str, *, seed: int = 1, observed: bool = True) -> list[ReplayGuest]:
        """Return the guests, each with an equal share of the budget.

        Args:
            lru: Their page replacement, a name of `qmpalloc.curves.simulation.POLICIES`.
            seed: Of their references.
            observed: False spares the work of sampling and of curves.
        """
        share = self.budget_bytes // len(self.loads) // MIB * MIB
        return [
            ReplayGuest(
                f"g{index}",
                load.access,
                file_bytes=load.file_bytes,
                accesses_per_s=load.accesses_per_s,
                size_bytes=share,
                floor_bytes=FLOOR_BYTES,
                cap_bytes=self.budget_bytes,
                lru=lru,
                seed=seed,
                observed=observed,
            )
            for index, load in enumerate(self.loads, 1)
        ]


_ZIPF = MixedLoad(access=Zipf(exponent=0.99))
_NORMAL = MixedLoad(access=Normal(deviation=0.15))
_HOT_COLD = MixedLoad(access=HotCold(hot=0.1, hot_reads=0.9))
_SCAN = MixedLoad(access=Sequential(), file_bytes=512 * MIB)
_LONG_SCAN = MixedLoad(access=Sequential(), file_bytes=2 * GIB)


def _mix(name: str, mib: int, *loads: MixedLoad) -> Mix:
    return Mix(name=name, budget_bytes=mib * MIB, loads=loads)


MIXES = (
    _mix(
        "2 Zipf .99, rates 1:8",
        1200,
        MixedLoad(access=Zipf(exponent=0.99), accesses_per_s=RATE / 4),
        MixedLoad(access=Zipf(exponent=0.99), accesses_per_s=RATE * 2),
    ),
    _mix(
        "normal 5 % + 30 %",
        1200,
        MixedLoad(access=Normal(deviation=0.05)),
        MixedLoad(access=Normal(deviation=0.3)),
    ),
    _mix(
        "2 normal 15 %, 1:4",
        1200,
        MixedLoad(access=Normal(deviation=0.15), accesses_per_s=RATE / 2),
        MixedLoad(access=Normal(deviation=0.15), accesses_per_s=RATE * 2),
    ),
    _mix("Zipf + 2 GiB scan", 1400, _ZIPF, _LONG_SCAN),
    _mix("Zipf + 512 MiB scan that fits", 1400, _ZIPF, _SCAN),
    _mix("hot-cold + uniform", 1400, _HOT_COLD, MixedLoad(access=Uniform())),
    _mix("Zipf 1.2 + normal + 2 GiB scan", 2000, MixedLoad(access=Zipf(exponent=1.2)), _NORMAL, _LONG_SCAN),
    _mix("Zipf, normal, hot-cold, 512 MiB scan", 2600, _ZIPF, _NORMAL, _HOT_COLD, _SCAN),
    _mix("3 scans, room for 2", 1700, _SCAN, _SCAN, _SCAN),
    _mix("2 equal Zipf", 1200, _ZIPF, _ZIPF),
)
