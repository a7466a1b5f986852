"""The reclaim probe: a guest whose cache is full of pages that nobody reads is made smaller for a moment, and back.

A kernel that must give memory up lets go of what it would have kept for long. The limits of any other move hold: the
step on the losing side, the floor, danger, freezing. There is one probe for each load.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec import structs

from qmpalloc.curves.value import Load, Objective
from qmpalloc.model import Decision, GuestDecision, GuestSnapshot, GuestState, Limiter, Snapshot, decision_of
from qmpalloc.policy.curve.memory import Known, Memory, Squeeze
from qmpalloc.policy.evidence import accesses_per_s
from qmpalloc.rules.step import take_step
from qmpalloc.units import PAGE_BYTES, align_down


def probe(
    snapshot: Snapshot, memory: Memory, objective: Objective, horizon_s: float, least_gain: float
) -> tuple[Memory, Decision | None]:
    """Return the decision that begins or ends a probe, None when there is neither to do; and what is remembered.

    Args:
        snapshot: What is decided on.
        memory: What is remembered.
        objective: What is to gain by it.
        horizon_s: Time within which it must, seconds.
        least_gain: Share of the guest's accesses that it must gain.
    """
    if memory.squeeze is not None:
        return _go_on(snapshot, memory, memory.squeeze)
    # A load that has changed again is another one.
    loads = {guest.name: guest.curve.steady_accesses for guest in snapshot.guests if guest.curve is not None}
    still = {name: count for name, count in memory.squeezed.items() if loads.get(name, count) >= count}
    memory = structs.replace(memory, squeezed=still)
    for guest in snapshot.guests:
        spare = guest.name in still or _helped_by_memory(guest, memory.guests[guest.name])
        low = None if spare else _low_bytes(guest)
        needed = least_gain * guest.weight * (1.0 if objective == "fair" else accesses_per_s(guest))
        if low is not None and _gain_per_s(guest, low, objective, horizon_s) > needed:
            return _begin(snapshot, memory, guest, low, horizon_s)
    return memory, None


def _helped_by_memory(guest: GuestSnapshot, known: Known) -> bool:
    """Return whether the guest missed less by as much when it was larger: it lacks memory, no old page is to blame."""
    stale = 0.0 if guest.curve is None else guest.curve.stale
    return any(
        point.size_bytes > guest.target_bytes and guest.miss_ratio - point.miss_ratio >= stale for point in known.points
    )


def _begin(
    snapshot: Snapshot, memory: Memory, guest: GuestSnapshot, low_bytes: int, horizon_s: float
) -> tuple[Memory, Decision]:
    assert guest.curve is not None
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
    reason = f"squeezed: {guest.curve.stale:.0%} of its accesses miss for pages of the load before"
    squeezed_at = {**memory.squeezed, guest.name: guest.curve.steady_accesses}
    memory = structs.replace(memory, squeeze=squeeze, squeezed=squeezed_at)
    return memory, _decision(snapshot, {guest.name: low_bytes}, reason)


def _go_on(snapshot: Snapshot, memory: Memory, squeeze: Squeeze) -> tuple[Memory, Decision | None]:
    guest = next((guest for guest in snapshot.guests if guest.name == squeeze.name), None)
    if guest is None or _given_up(guest, squeeze):
        return structs.replace(memory, squeeze=None), None
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
    guests = (
        GuestDecision(
            name=guest.name,
            target_bytes=targets.get(guest.name, guest.target_bytes),
            reason=reason if guest.name in targets else "another guest is squeezed",
            limiter=Limiter.POLICY if guest.name in targets else Limiter.GATE,
        )
        for guest in snapshot.guests
    )
    return decision_of(snapshot, guests, summary=reason)


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


def _low_bytes(guest: GuestSnapshot) -> int | None:
    """Return what the guest would be squeezed to; None where there is no reason to, or nothing to give."""
    if not guest.decidable or guest.frozen or guest.curve is None or not guest.curve.stale:
        return None
    now = guest.target_bytes
    low = -align_down(-max(guest.floor_bytes, now - take_step(now)))
    # What is read now goes first: the rest is only reached if there is not much more of that than is squeezed out.
    reached = guest.curve.unused_bytes + now - low >= (guest.curve.cached_bytes or 0) / 2
    return low if reached and low < now else None


def _gain_per_s(guest: GuestSnapshot, low_bytes: int, objective: Objective, horizon_s: float) -> float:
    """Return what the objective gains per second, over the horizon, if all that is squeezed out has to come back.

    That takes as many misses as there are pages. Until then the guest gains nothing, and is taken to have no hits.
    """
    assert guest.curve is not None
    rate = accesses_per_s(guest)
    if rate <= 0:
        return 0.0
    now = guest.miss_ratio
    waits = guest.waits or 0.0
    load = Load(accesses_per_s=rate, miss_ratio=now, miss_s=guest.miss_s, waits=waits, weight=guest.weight)
    values = load.values(np.array([now, max(0.0, now - guest.curve.stale), 1.0]), objective)
    refill_s = (guest.target_bytes - low_bytes) / PAGE_BYTES / max(1e-9, rate * now)
    refilling = min(1.0, refill_s / max(horizon_s, guest.curve.steady_accesses / rate))
    return float((values[1] - values[0]) * (1.0 - refilling) - (values[0] - values[2]) * refilling)
