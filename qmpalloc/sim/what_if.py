"""What another policy would have made of a recorded run: the guests' recorded curves and rates drive the model.

A record holds, of every decision, what each guest accessed and missed since the one before, at which size, and the
miss-ratio curve that was learnt until then. The guests read the same here. At another size a guest is taken to miss
what it missed, and the difference between both sizes on its curve; a cache that grows is filled by what it misses.
Where a load waits for its reads, the policy is shown the rate that follows (`qmpalloc.curves.value`). It sees the
curves as they were known then; the model uses the first good one that was learnt of the same load, also later.

What the record cannot tell is taken as recorded: guests without a curve (`Outcome.unknown` says how much that is),
danger, page faults and swap. How far off all that may be: ``docs/sweeps.md``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct, structs

from qmpalloc.curves.value import Load
from qmpalloc.model import Curve, GuestSnapshot, Policy, Snapshot
from qmpalloc.rules.limits import apply_limits
from qmpalloc.units import MIB, PAGE_BYTES, align_down

_PARTS = 10
"""Of an interval: a cache that has grown is filled meanwhile."""


class Outcome(Struct, frozen=True, kw_only=True):
    """What came out of a run, recorded or not. Counts in pages, of all guests.

    Attributes:
        accesses: By reads.
        misses: By reads.
        moves: Decisions that changed a size.
        sizes_bytes: Guest to its size in the end.
        unknown: Share of the accesses that are taken as recorded, as no curve is known of their guest.
        endangered: Decisions at which a guest was in danger in the record, as which it is taken to be here, too.
    """

    accesses: float
    misses: float
    moves: int
    sizes_bytes: dict[str, int]
    unknown: float
    endangered: int

    @property
    def miss_ratio(self) -> float:
        """Misses by accesses."""
        return self.misses / self.accesses if self.accesses else 0.0


class _Guest:
    """One guest as it would have been."""

    def __init__(self, first: GuestSnapshot) -> None:
        self.size_bytes = self._filled_bytes = first.actual_bytes

    def resize(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._filled_bytes = min(self._filled_bytes, size_bytes)

    def advance(self, was: GuestSnapshot, known: Curve | None) -> GuestSnapshot:
        """Return what a policy would have seen instead of `was`, the recorded state at the end of an interval.

        Args:
            was: The same moment in the record.
            known: The best that is known of its load now; None leaves its counts as recorded.
        """
        accesses, misses, seconds = max(0, was.hits or 0) + (was.misses or 0), was.misses or 0, was.interval_s
        if known is not None and was.decidable and seconds and accesses:
            load = Load(
                accesses_per_s=accesses / seconds, miss_ratio=misses / accesses, miss_s=was.miss_s,
                waits=was.waits or 0.0,
            )  # fmt: skip
            misses = round(self._missed(accesses, misses, known, was.actual_bytes))
            seconds = accesses / float(load.rates(np.array([misses / accesses]))[0])
        else:
            self._filled_bytes = self.size_bytes
        moved = self.size_bytes - was.actual_bytes
        if not moved:
            return structs.replace(was, target_bytes=self.size_bytes)
        curve, gain, loss = was.curve, None, None
        if curve is not None:
            measured = misses / accesses if accesses and curve.measured is not None else None
            cached = None if curve.cached_bytes is None else max(0, curve.cached_bytes + moved)
            curve = structs.replace(curve, measured=measured, cached_bytes=cached)
            rate = accesses / (seconds or 1.0)
            here, less, more = (ratio_at(curve, self.size_bytes + step) for step in (0, -MIB, MIB))
            gain, loss = rate * (here - more), rate * (less - here)
        return structs.replace(
            was,
            target_bytes=self.size_bytes,
            actual_bytes=self.size_bytes,
            charge_bytes=self.size_bytes + was.outside_bytes,
            hits=None if was.hits is None else accesses - misses,
            misses=None if was.misses is None else misses,
            interval_s=seconds,
            curve=curve,
            ghost_gain=None if was.ghost_gain is None else gain,
            ghost_loss=None if was.ghost_loss is None else loss,
        )

    def _missed(self, accesses: int, misses: int, known: Curve, was_bytes: int) -> float:
        """Return how many of the accesses miss, of which so many did at the recorded size."""
        there, missed, parts = ratio_at(known, was_bytes), 0.0, _PARTS
        for _ in range(parts):
            change = ratio_at(known, self._filled_bytes) - there
            part = accesses / parts * min(1.0, max(0.0, misses / accesses + change))
            missed += part
            self._filled_bytes = min(self.size_bytes, self._filled_bytes + int(part) * PAGE_BYTES)
        return missed


def ratio_at(curve: Curve, size_bytes: float) -> float:
    """Return the miss ratio that a curve says at a size."""
    return float(np.interp(size_bytes, curve.sizes_bytes, curve.miss_ratio))


def recorded(snapshots: Sequence[Snapshot]) -> Outcome:
    """Return what did happen."""
    return _played(snapshots, None)


def what_if(snapshots: Sequence[Snapshot], policy: Policy) -> Outcome:
    """Return what would have happened under a policy.

    Args:
        snapshots: Of a record, one for each decision.
        policy: That would have decided.

    Raises:
        PolicyError: Its decision is none.
    """
    return _played(snapshots, policy)


def _played(snapshots: Sequence[Snapshot], policy: Policy | None) -> Outcome:
    guests: dict[str, _Guest] = {}
    known = _known(snapshots)
    carry = None
    accesses = misses = unknown = 0.0
    moves = endangered = 0
    for number, snapshot in enumerate(snapshots):
        seen, changed = [], False
        endangered += any(guest.rescue_bytes for guest in snapshot.guests)
        for guest in snapshot.guests:
            model = guests.get(guest.name)
            if model is None or not model.size_bytes:  # one that was reached late had no size before
                model = guests[guest.name] = _Guest(guest)
            if policy is None:
                changed |= guest.target_bytes != model.size_bytes
                model.resize(guest.target_bytes)
            curve = known[number].get(guest.name)
            seen.append(guest if policy is None else model.advance(guest, curve))
            read = max(0, seen[-1].hits or 0) + (seen[-1].misses or 0)
            accesses, misses = accesses + read, misses + (seen[-1].misses or 0)
            unknown += read * (curve is None)
        if policy is not None:
            shown = structs.replace(snapshot, guests=tuple(seen), carry=carry)
            dangers = {guest.name: "as recorded" for guest in seen if guest.rescue_bytes}
            decision = apply_limits(shown, policy.decide(shown), dangers)
            carry = decision.carry
            for verdict in decision.guests:
                changed |= verdict.target_bytes != guests[verdict.name].size_bytes
                guests[verdict.name].resize(align_down(verdict.target_bytes))
        moves += changed
    return Outcome(
        accesses=accesses,
        misses=misses,
        moves=moves,
        sizes_bytes={name: guest.size_bytes for name, guest in guests.items()},
        unknown=unknown / accesses if accesses else 0.0,
        endangered=endangered,
    )


def _known(snapshots: Sequence[Snapshot]) -> list[dict[str, Curve]]:
    """Return, for each snapshot, guest to the best curve of the load that it has then.

    1. The one that was learnt until then, if it is good.
    2. Else the first good one that was learnt later of the same load.
    3. Else the last of that load, weak as it is.
    """
    found: list[dict[str, Curve]] = []
    later: dict[tuple[str, int], Curve] = {}
    for snapshot in reversed(snapshots):
        now = {}
        for guest in snapshot.guests:
            if guest.curve is None:
                continue
            load = guest.name, guest.curve.load
            kept = later.get(load)
            if kept is None or not guest.curve.weak or (guest.curve.settling and kept.weak):
                later[load] = guest.curve
            now[guest.name] = later[load]
        found.append(now)
    return found[::-1]
