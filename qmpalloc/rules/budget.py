"""What all guests together may have: who gives what when a decision does not fit the budget. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import structs

from qmpalloc.model import GuestDecision, GuestSnapshot, GuestState, Limiter, Snapshot
from qmpalloc.rules.step import lowest_bytes, take_step
from qmpalloc.units import MIB, align_down

UNCONTROLLED = frozenset({GuestState.CONNECTING, GuestState.HELD, GuestState.HUNG, GuestState.PAUSED})

_PIECE_BYTES = 16 * MIB
"""What those that lose least by it give at a time."""

_OUT_OF_NEED = frozenset({Limiter.DANGER, Limiter.FLOOR})


def fit_budget(snapshot: Snapshot, decisions: list[GuestDecision]) -> list[GuestDecision]:
    """Cut what does not fit the budget. Each case takes what the ones before it have left to take.

    1. Growth that is only wished for.
    2. What lies above baselines, a step from each guest.
    3. What lies above baselines, all of it: only as much as the guests are above the budget at this moment, or as
       guests in need lack.
    4. What lies above the floors of guests that are not in need, from those first that lose least by it: only as much
       as guests in need lack.
    5. Growth in need beyond baselines.
    6. What guests in danger have above their baselines and their own need, a step from each: only for others in danger.
       Else one that says for ever that it is in danger would keep what another's life depends on.
    7. Growth in need up to baselines, when all of that does not suffice: they stay as they are.

    In need is who is in danger or below its floor. One that is lost gets its baseline by the cases 1 and 2.
    """
    guests = snapshot.guests
    in_danger = [decision.limiter is Limiter.DANGER for decision in decisions]
    in_need = [decision.limiter in _OUT_OF_NEED for decision in decisions]
    served = [
        need or guest.state is GuestState.LOST for guest, need in zip(guests, in_need, strict=True)
    ]  # their growth is no mere wish

    def growth(index: int) -> int:
        return decisions[index].target_bytes - guests[index].target_bytes

    def surplus(index: int) -> int:
        return decisions[index].target_bytes - max(guests[index].baseline_bytes, guests[index].floor_bytes)

    def gives(index: int) -> bool:
        fixed = guests[index].state in UNCONTROLLED | {GuestState.GONE} or decisions[index].limiter is Limiter.STUCK
        return not fixed and not in_danger[index]

    def wished_growth(index: int) -> int:
        return 0 if served[index] else growth(index)

    def a_step_above_baseline(index: int) -> int:
        return min(surplus(index), decisions[index].target_bytes - lowest_bytes(guests[index])) if gives(index) else 0

    def above_baseline(index: int) -> int:
        return surplus(index) if gives(index) else 0

    def above_floor(index: int) -> int:
        fresh = guests[index].state is GuestState.FRESH and not in_need[index]
        return decisions[index].target_bytes - guests[index].floor_bytes if fresh and gives(index) else 0

    def growth_beyond_baseline(index: int) -> int:
        return min(growth(index), surplus(index)) if in_need[index] else 0

    def a_step_in_danger(index: int) -> int:
        size_bytes = max(guests[index].target_bytes, guests[index].actual_bytes)
        return min(surplus(index), take_step(size_bytes)) if in_danger[index] else 0

    numbers = range(len(guests))
    occupied = sum(guest.charge_bytes for guest in guests if guest.state is not GuestState.GONE)
    over = max(0, occupied - snapshot.budget_bytes)
    # Also what one in need took by itself: somebody has to pay for that.
    taken = sum(max(surplus(index), 0) for index in numbers if in_need[index])
    lacking = sum(max(growth(index), 0) for index in numbers if in_need[index]) + min(over, taken)
    for_danger = sum(
        max(growth(index) - max(growth_beyond_baseline(index), 0), 0) for index in numbers if in_danger[index]
    )
    needy = ", ".join(guest.name for guest, need in zip(guests, in_need, strict=True) if need)
    above = "gives: the budget is exceeded" if over else f"gives to {needy or 'who was lost'}"
    stages: tuple[tuple[Callable[[int], int], float, str], ...] = (
        (wished_growth, math.inf, "less: the budget is used up"),
        (a_step_above_baseline, math.inf, above),
        (above_baseline, over + lacking, above),
        (above_floor, lacking, f"gives to {needy}: it loses least by it"),
        (growth_beyond_baseline, math.inf, "no more than that: the budget is used up"),
        (a_step_in_danger, for_danger, "gives to another in danger what is above its baseline"),
        (growth, math.inf, "less than it needs: the budget is used up"),
    )
    for part, most, reason in stages:
        excess = sum(_charge(*pair) for pair in zip(guests, decisions, strict=True)) - snapshot.budget_bytes
        parts = [max(part(index), 0) for index in numbers]
        cut = min(excess, most, sum(parts))
        if cut > 0:
            share = _least_loss if part is above_floor else _in_proportion
            decisions = _lowered(decisions, share(guests, decisions, parts, cut), reason)
    return decisions


def _charge(guest: GuestSnapshot, decision: GuestDecision) -> int:
    """Return what the guest will occupy once the decision is carried out."""
    if guest.state is GuestState.GONE:
        return 0
    if guest.state in UNCONTROLLED:
        return guest.promised_bytes
    return decision.target_bytes + guest.outside_bytes


def _in_proportion(
    _guests: Sequence[GuestSnapshot], _decisions: Sequence[GuestDecision], parts: Sequence[int], cut: float
) -> list[int]:
    """Return how much of `cut` bytes each guest gives: the same share of its part."""
    share = min(cut / sum(parts), 1.0)
    return [min(size, -int(-size * share // 1)) for size in parts]


def _least_loss(
    guests: Sequence[GuestSnapshot], decisions: Sequence[GuestDecision], parts: Sequence[int], cut: float
) -> list[int]:
    """Return how much of `cut` bytes each guest gives: a piece at a time, from who loses least by it."""
    given = [0] * len(parts)

    def next_piece(index: int) -> tuple[float, int, int] | None:
        size = min(_PIECE_BYTES, parts[index] - given[index])
        if size <= 0:
            return None
        now = decisions[index].target_bytes - given[index]
        return (_loss_per_s(guests[index], now - size) - _loss_per_s(guests[index], now)) / size, index, size

    pieces = [piece for index in range(len(parts)) if (piece := next_piece(index)) is not None]
    heapq.heapify(pieces)
    left = cut
    while pieces and left > 0:
        _, index, size = heapq.heappop(pieces)
        given[index] += min(size, -int(-left // 1))
        left -= size
        if (piece := next_piece(index)) is not None:
            heapq.heappush(pieces, piece)
    return given


def _loss_per_s(guest: GuestSnapshot, size_bytes: int) -> float:
    """Return what a smaller size costs the guest, in weighted hits per second; by its curve, or else at most.

    Without a good curve all that it reads and brings in is taken to be spread over its memory. Where not even that is
    known, it gives last.
    """
    if size_bytes >= guest.target_bytes:
        return 0.0
    accesses = guest.accesses_per_s
    if accesses is None:
        return 1e18 * (guest.target_bytes - size_bytes) / guest.target_bytes
    if guest.curve is not None and not guest.curve.weak:
        then, now = np.interp([size_bytes, guest.target_bytes], guest.curve.sizes_bytes, guest.curve.miss_ratio)
        return guest.weight * accesses * float(then - now)
    uses = accesses + (guest.page_ins_per_s or 0.0)
    return guest.weight * uses * (guest.target_bytes - size_bytes) / guest.target_bytes


def _lowered(decisions: Sequence[GuestDecision], given: Sequence[int], reason: str) -> list[GuestDecision]:
    return [
        structs.replace(
            decision, target_bytes=align_down(decision.target_bytes - size), limiter=Limiter.BUDGET, reason=reason
        )
        if size
        else decision
        for decision, size in zip(decisions, given, strict=True)
    ]
