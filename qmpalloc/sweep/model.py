"""A run in the model: guests replay seeded references through a model of their page replacement."""

from __future__ import annotations

from msgspec import Struct, structs

from qmpalloc.policy.registry import made
from qmpalloc.sim.replay import ReplayHost
from qmpalloc.sweep.spec import ModelTask
from qmpalloc.units import MIB, align_down


class ModelRow(Struct, frozen=True, kw_only=True):
    """What came out of a run in the model: a row of the results. Counts are of the counted time, in pages.

    Attributes:
        load: Its name.
        lru: Page replacement.
        size: Budget in times of the load's own.
        seed: Of the references.
        policy: With its settings.
        budget_bytes: Of all guests.
        accesses: Of all guests.
        misses: Of all guests.
        hit_ratio: Of all guests.
        moves: Decisions that changed a size.
        moved_bytes: Memory given to guests.
        sizes_mib: Of the guests in the end, joined by ``/``.
    """

    load: str
    lru: str
    size: float
    seed: int
    policy: str
    budget_bytes: int
    accesses: int
    misses: int
    hit_ratio: float
    moves: int
    moved_bytes: int
    sizes_mib: str


def run_in_model(task: ModelTask) -> ModelRow:
    """Run it: warm-up under a static split, then the policy. Seconds of one core.

    Raises:
        ConfigError: There is no such policy here.
        PolicyError: Its decision is none.
    """
    policy = made(task.policy.policy, task.policy.settings)
    budget = align_down(int(task.load.budget_bytes * task.size), MIB)
    mix = structs.replace(task.load, budget_bytes=budget)
    guests = mix.guests(task.lru, seed=task.seed)
    host = ReplayHost(guests, budget_bytes=budget, interval_s=task.interval_s)
    hits = accesses = 0.0
    while host.time_s < task.warm_up_s + task.duration_s:
        counted = host.time_s >= task.warm_up_s
        host.step(policy if counted else None)
        hits += host.last_hits * counted
        accesses += host.last_accesses * counted
    return ModelRow(
        load=task.load.name,
        lru=task.lru,
        size=task.size,
        seed=task.seed,
        policy=task.policy.name,
        budget_bytes=budget,
        accesses=int(accesses),
        misses=int(accesses - hits),
        hit_ratio=hits / accesses if accesses else 1.0,
        moves=host.moves,
        moved_bytes=host.moved_bytes,
        sizes_mib="/".join(str(guest.size_bytes // MIB) for guest in guests),
    )
