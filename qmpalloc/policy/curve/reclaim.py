"""The reclaim probe: a guest whose cache is full of pages that nobody reads is made smaller for a moment, and back.

A kernel that must give memory up lets go of what it would have kept for long. The limits of any other move hold: the
step on the losing side, the floor, danger, freezing. One probe may not reach all of those pages; if it helped, there
is another when the load has lasted for as long again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec import Struct, structs

from qmpalloc.curves.value import Load, Objective
from qmpalloc.model import Decision, GuestDecision, GuestSnapshot, GuestState, Limiter, Snapshot, moves_between
from qmpalloc.policy.curve.memory import Done, Known, Memory, Squeeze
from qmpalloc.policy.evidence import accesses_per_s
from qmpalloc.rules.step import take_step
from qmpalloc.units import MIB, PAGE_BYTES, align_down


class Tuning(Struct, frozen=True, kw_only=True):
    """When a guest is probed.

    Attributes:
        stale_least: Share of its accesses that must miss for pages of the load before: a probe is rough, for the guest
            first loses what it reads now.
        least_share: Of its size that must be there to give.
        helped: It is probed again only if it misses so much less for it.
        times_most: And so often in all until its load changes.
        better_bytes: Not if it has missed less with so much more memory,
        better: by this share of its accesses: then that helps, and no probe.
    """

    stale_least: float = 0.15
    least_share: float = 0.1
    helped: float = 0.05
    times_most: int = 3
    better_bytes: int = 16 * MIB
    better: float = 0.05


def probe(
    snapshot: Snapshot, memory: Memory, objective: Objective, horizon_s: float, least_gain: float, tuning: Tuning
) -> tuple[Memory, Decision | None]:
    """Return the decision that begins or ends a probe, None when there is neither to do; and what is remembered.

    Args:
        snapshot: What is decided on.
        memory: What is remembered.
        objective: What is to gain by it.
        horizon_s: Time within which it must, seconds.
        least_gain: Share of the guest's accesses that it must gain.
        tuning: When a guest is probed.
    """
    if memory.squeeze is not None:
        return _go_on(snapshot, memory, memory.squeeze, tuning)
    loads = {guest.name: guest.curve.steady_accesses for guest in snapshot.guests if guest.curve is not None}
    # A load that has changed again is another one.
    still = {name: done for name, done in memory.squeezed.items() if loads.get(name, done.accesses) >= done.accesses}
    memory = structs.replace(memory, squeezed=still)
    for guest in snapshot.guests:
        if not _may(guest, memory.guests[guest.name], still.get(guest.name), tuning):
            continue
        low = _low_bytes(guest, tuning)
        needed = least_gain * guest.weight * (1.0 if objective == "fair" else accesses_per_s(guest))
        if low is not None and _gain_per_s(guest, low, objective, horizon_s) > needed:
            return _begin(snapshot, memory, guest, low, horizon_s)
    return memory, None


def _may(guest: GuestSnapshot, known: Known, done: Done | None, tuning: Tuning) -> bool:
    """Return whether the guest has not been probed yet, or has been, to its good, long ago."""
    curve = guest.curve
    if curve is None or _better_with_more(guest, known, tuning):
        return False
    if done is None:
        return True
    # With more memory it misses less for that.
    if curve.measured is None or guest.target_bytes > done.size_bytes:
        return False
    helped = curve.measured <= done.missed - tuning.helped
    return helped and curve.steady_accesses >= 2 * done.accesses and done.times < tuning.times_most


def _better_with_more(guest: GuestSnapshot, known: Known, tuning: Tuning) -> bool:
    """Return whether the guest missed less at a larger size it has had under this load."""
    missed, least = _missed(guest), guest.target_bytes + tuning.better_bytes
    return any(point.size_bytes >= least and missed - point.miss_ratio >= tuning.better for point in known.points)


def _begin(
    snapshot: Snapshot, memory: Memory, guest: GuestSnapshot, low_bytes: int, horizon_s: float
) -> tuple[Memory, Decision]:
    assert guest.curve is not None
    before = memory.squeezed.get(guest.name)
    done = Done(
        accesses=guest.curve.steady_accesses,
        missed=_missed(guest),
        size_bytes=guest.target_bytes,
        times=1 if before is None else before.times + 1,
    )
    # What is squeezed out first is what is read now, or the rest would not have been kept.
    squeezed = guest.target_bytes - low_bytes
    left = min(guest.curve.unread_bytes + squeezed, max(0, (guest.curve.cached_bytes or 0) - squeezed))
    squeeze = Squeeze(
        name=guest.name,
        low_bytes=low_bytes,
        left_pages=left // PAGE_BYTES,
        until_s=snapshot.time_s + horizon_s,
        accesses=guest.curve.steady_accesses,
        before_bytes={other.name: other.target_bytes for other in snapshot.guests},
    )
    again = "squeezed" if before is None else "squeezed again"
    reason = f"{again}: {guest.curve.stale:.0%} of its accesses miss for pages of the load before"
    memory = structs.replace(memory, squeeze=squeeze, squeezed={**memory.squeezed, guest.name: done})
    return memory, _decision(snapshot, {guest.name: low_bytes}, reason)


def _go_on(snapshot: Snapshot, memory: Memory, squeeze: Squeeze, tuning: Tuning) -> tuple[Memory, Decision | None]:
    guest = next((guest for guest in snapshot.guests if guest.name == squeeze.name), None)
    if guest is None or _given_up(guest, squeeze):
        done = dict(memory.squeezed)
        if squeeze.name in done:  # it needed its memory: never again under this load
            done[squeeze.name] = structs.replace(done[squeeze.name], times=tuning.times_most)
        return structs.replace(memory, squeeze=None, squeezed=done), None
    left = squeeze.left_pages - (guest.misses or 0)
    squeeze = structs.replace(squeeze, left_pages=left, low_bytes=guest.target_bytes, under_way=True)
    changed = guest.curve is not None and guest.curve.steady_accesses < squeeze.accesses
    over = left <= 0 or changed or snapshot.time_s >= squeeze.until_s
    if not over or guest.state is not GuestState.FRESH:
        return structs.replace(memory, squeeze=squeeze), None
    decision = _decision(snapshot, _given_back(snapshot, squeeze), f"{guest.name} was squeezed, as before")
    return structs.replace(memory, squeeze=None), decision


def _given_up(guest: GuestSnapshot, squeeze: Squeeze) -> bool:
    """Return whether others have decided about the guest: it is gone, or was given memory."""
    decided = squeeze.under_way and guest.target_bytes != squeeze.low_bytes
    return guest.state is GuestState.GONE or decided or guest.target_bytes >= squeeze.before_bytes[squeeze.name]


def _decision(snapshot: Snapshot, targets: Mapping[str, int], reason: str) -> Decision:
    guests = tuple(
        GuestDecision(
            name=guest.name,
            target_bytes=targets.get(guest.name, guest.target_bytes),
            reason=reason if guest.name in targets else "another guest is squeezed",
            limiter=Limiter.POLICY if guest.name in targets else Limiter.GATE,
        )
        for guest in snapshot.guests
    )
    return Decision(guests=guests, moves=moves_between(snapshot, guests), summary=reason)


def _given_back(snapshot: Snapshot, squeeze: Squeeze) -> dict[str, int]:
    """Return the sizes at which the squeezed guest has its memory again, by those that have grown meanwhile."""
    grown = {
        guest.name: max(0, guest.target_bytes - squeeze.before_bytes.get(guest.name, guest.target_bytes))
        for guest in snapshot.guests
        if guest.name != squeeze.name
    }
    before = squeeze.before_bytes[squeeze.name]
    share = min(1.0, (before - squeeze.low_bytes) / max(1, sum(grown.values())))
    targets = {
        guest.name: align_down(guest.target_bytes - int(grown[guest.name] * share))
        for guest in snapshot.guests
        if grown.get(guest.name)
    }
    return {**targets, squeeze.name: before}


def _low_bytes(guest: GuestSnapshot, tuning: Tuning) -> int | None:
    """Return what the guest would be squeezed to; None where there is no reason to, or not enough to give."""
    fit = guest.state is GuestState.FRESH and guest.decidable and guest.interval_s and not guest.frozen
    if not fit or guest.curve is None or guest.curve.stale < tuning.stale_least:
        return None
    now = guest.target_bytes
    low = -align_down(-max(guest.floor_bytes, now - take_step(now)))
    # What is read now goes first: the rest is only reached if there is not much more of that than is squeezed out.
    unused = max(guest.curve.unread_bytes, guest.curve.unused_bytes)
    reached = unused + now - low >= (guest.curve.cached_bytes or 0) / 2
    return low if reached and now - low >= tuning.least_share * now else None


def _gain_per_s(guest: GuestSnapshot, low_bytes: int, objective: Objective, horizon_s: float) -> float:
    """Return what the objective gains per second, over the horizon, if all that is squeezed out has to come back.

    That takes as many misses as there are pages. Until then the guest gains nothing, and is taken to have no hits.
    """
    assert guest.curve is not None
    rate = accesses_per_s(guest)
    if rate <= 0:
        return 0.0
    now = _missed(guest)
    waits = guest.waits or 0.0
    load = Load(accesses_per_s=rate, miss_ratio=now, miss_s=guest.miss_s, waits=waits, weight=guest.weight)
    values = load.values(np.array([now, max(0.0, now - guest.curve.stale), 1.0]), objective)
    refill_s = (guest.target_bytes - low_bytes) / PAGE_BYTES / max(1e-9, rate * now)
    refilling = min(1.0, refill_s / max(horizon_s, guest.curve.steady_accesses / rate))
    return float((values[1] - values[0]) * (1.0 - refilling) - (values[0] - values[2]) * refilling)


def _missed(guest: GuestSnapshot) -> float:
    return (guest.misses or 0) / max(1, (guest.hits or 0) + (guest.misses or 0))
