"""What all guests together may have: who gives what when a decision does not fit the budget. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct, structs

from qmpalloc.model import GuestDecision, GuestSnapshot, GuestState, Limiter, Snapshot
from qmpalloc.rules.step import lowest_bytes, take_step
from qmpalloc.units import MIB, align_down

UNCONTROLLED = frozenset({GuestState.CONNECTING, GuestState.HELD, GuestState.HUNG, GuestState.PAUSED})

_PIECE_BYTES, _PIECES = 16 * MIB, 512
"""What those that lose least by it give at a time: 16 MiB, or 1/512 of all, so that hosts of any size are quick."""

_UNKNOWN_PER_S = 1e18
"""Beyond what any guest may lose: who is not known gives last."""


def fit_budget(snapshot: Snapshot, decisions: list[GuestDecision]) -> list[GuestDecision]:
    """Cut what does not fit the budget. Each case takes what the ones before it have left to take.

    1. Growth that is only wished for.
    2. What lies above baselines, a step from each guest.
    3. What guests that are not in need have above their floors and above what their programs hold or map, from those
       first that lose least by it, a step from each: only as much as guests lack that a person has given a size.
    4. What they have above their floors, the same.
    5. Growth that a person asked for: it comes when the others have given it, step by step.
    6. What lies above baselines, all of it: only as much as the guests are above the budget at this moment, or as
       guests in need lack.
    7. What guests that are not in need have above their floors and above what their programs hold or map, as in 3: only
       as much as guests in need lack.
    8. What they have above their floors, the same.
    9. What guests that a person has given a size have above their floors: only as much as the guests are above the
       budget, or as guests in need lack.
    10. Growth in need beyond baselines.
    11. What guests in danger have above their baselines and their own floors, a step from each: only for others in
        danger. Else one that says for ever that it is in danger would keep what another's life depends on.
    12. Growth in need up to baselines, when all of that does not suffice: they stay as they are.

    In need is who is in danger or below its floor. One that has not told yet gives nothing; one that is lost gets its
    baseline by the cases 1 and 2. To whom a person has given a size gives nothing before case 9.
    """
    places = [
        _Place(guest, decision, decision.limiter) for guest, decision in zip(snapshot.guests, decisions, strict=True)
    ]
    excess = _excess_bytes(places, snapshot.budget_bytes)
    for part, most, share, reason in _stages(places, snapshot.budget_bytes) if excess > 0 else ():
        parts = [max(part(place), 0) for place in places]
        cut = min(excess, most, sum(parts))
        if cut > 0:
            places = [
                place.lowered(size, reason) for place, size in zip(places, share(places, parts, cut), strict=True)
            ]
            excess = _excess_bytes(places, snapshot.budget_bytes)
    return [place.decision for place in places]


def _excess_bytes(places: Sequence[_Place], budget_bytes: int) -> int:
    return sum(place.charge for place in places) - budget_bytes


def _stages(
    places: Sequence[_Place], budget_bytes: int
) -> tuple[tuple[Callable[[_Place], int], float, _Share, str], ...]:
    """Return the cases of `fit_budget`: what of a guest is taken, how much of all, shared how, and why."""
    over = max(0, sum(place.occupied for place in places) - budget_bytes)
    # Also what one in need took by itself: somebody has to pay for that.
    taken = sum(max(place.surplus, 0) for place in places if place.in_need)
    lacking = sum(max(place.growth, 0) for place in places if place.in_need) + min(over, taken)
    asked = sum(place.asked_growth for place in places)
    for_danger = sum(max(place.growth_to_baseline, 0) for place in places if place.in_danger)
    needy = ", ".join(place.guest.name for place in places if place.in_need)
    chosen = ", ".join(place.guest.name for place in places if place.asked_growth)
    above = "gives: the budget is exceeded" if over else f"gives to {needy or chosen or 'who was lost'}"
    least, used_up = f"gives to {needy}: it loses least by it", "the budget is used up"
    as_asked = f"gives to {chosen}, as a person asked"
    return (
        (lambda place: place.wished_growth, math.inf, _in_proportion, f"less: {used_up}"),
        (lambda place: place.a_step(place.above_baseline), math.inf, _in_proportion, above),
        (lambda place: place.a_step(place.above_use), asked, _least_loss, as_asked),
        (lambda place: place.a_step(place.above_floor), asked, _least_loss, as_asked),
        (lambda place: place.asked_growth, math.inf, _in_proportion, "as much as the others have given so far"),
        (lambda place: place.above_baseline, over + lacking, _in_proportion, above),
        (lambda place: place.above_use, lacking, _least_loss, least),
        (lambda place: place.above_floor, lacking, _least_loss, least),
        (lambda place: place.chosen_above_floor, over + lacking, _least_loss, above),
        (lambda place: place.growth_beyond_baseline, math.inf, _in_proportion, f"no more than that: {used_up}"),
        (
            lambda place: place.a_step_in_danger,
            for_danger,
            _in_proportion,
            "gives to another in danger what is above its baseline",
        ),
        (lambda place: place.growth, math.inf, _in_proportion, f"less than it needs: {used_up}"),
    )


_Share = Callable[["Sequence[_Place]", Sequence[int], float], list[int]]


class _Place(Struct, frozen=True):
    """A guest and what is decided about it: what it wants, and what could be taken from it. Bytes.

    `limiter` is what determined its target before anything was cut for the budget.
    """

    guest: GuestSnapshot
    decision: GuestDecision
    limiter: Limiter

    @property
    def occupied(self) -> int:
        """What it may occupy now."""
        return 0 if self.guest.state is GuestState.GONE else self.guest.charge_bytes

    @property
    def charge(self) -> int:
        """What it will occupy once the decision is carried out."""
        if self.guest.state is GuestState.GONE:
            return 0
        if self.guest.state in UNCONTROLLED:
            return self.guest.promised_bytes
        return self.decision.target_bytes + self.guest.outside_bytes

    @property
    def in_danger(self) -> bool:
        return self.limiter is Limiter.DANGER

    @property
    def in_need(self) -> bool:
        return self.in_danger or self.limiter is Limiter.FLOOR

    @property
    def is_chosen(self) -> bool:
        """Whether a person has given it its size."""
        return self.limiter is Limiter.PERSON

    @property
    def asked_growth(self) -> int:
        return max(self.growth, 0) if self.is_chosen else 0

    @property
    def gives(self) -> bool:
        # What one needs that has not told yet, nobody knows.
        fixed = self.guest.state in UNCONTROLLED | {GuestState.GONE, GuestState.WARMING}
        fixed = fixed or self.limiter is Limiter.STUCK
        fixed = fixed or self.is_chosen
        return not fixed and not self.in_danger

    @property
    def growth(self) -> int:
        return self.decision.target_bytes - self.guest.target_bytes

    @property
    def surplus(self) -> int:
        return self.decision.target_bytes - max(self.guest.baseline_bytes, self.guest.floor_bytes)

    @property
    def wished_growth(self) -> int:
        return 0 if self.in_need or self.is_chosen or self.guest.state is GuestState.LOST else self.growth

    @property
    def above_baseline(self) -> int:
        return self.surplus if self.gives else 0

    def a_step(self, part_bytes: int) -> int:
        """Return what of a part it can give within the step of one decision."""
        return min(part_bytes, self.decision.target_bytes - lowest_bytes(self.guest))

    @property
    def chosen_above_floor(self) -> int:
        return self.decision.target_bytes - self.guest.floor_bytes if self.is_chosen else 0

    @property
    def above_floor(self) -> int:
        gives = self.gives and self.guest.state is GuestState.FRESH and not self.in_need
        return self.decision.target_bytes - self.guest.floor_bytes if gives else 0

    @property
    def above_use(self) -> int:
        """Above its floor and what its programs hold or map; nothing where it does not tell."""
        if self.guest.in_use_bytes is None:
            return 0
        return min(self.above_floor, self.decision.target_bytes - self.guest.in_use_bytes)

    @property
    def growth_beyond_baseline(self) -> int:
        return min(self.growth, self.surplus) if self.in_need else 0

    @property
    def growth_to_baseline(self) -> int:
        return self.growth - max(self.growth_beyond_baseline, 0)

    @property
    def a_step_in_danger(self) -> int:
        size_bytes = max(self.guest.target_bytes, self.guest.actual_bytes)
        return min(self.surplus, take_step(size_bytes)) if self.in_danger else 0

    def loss_per_s(self, size_bytes: int) -> float:
        """Return what a smaller size costs the guest, in weighted hits per second; by its curve, or else at most.

        Without a good curve all that it reads and brings in is taken to be spread over its memory. Where not even that
        is known, it gives last.
        """
        guest = self.guest
        if size_bytes >= guest.target_bytes:
            return 0.0
        accesses = guest.accesses_per_s
        if accesses is None:
            return _UNKNOWN_PER_S * (1 - size_bytes / guest.target_bytes)
        if guest.curve is not None and not guest.curve.weak:
            then, now = np.interp([size_bytes, guest.target_bytes], guest.curve.sizes_bytes, guest.curve.miss_ratio)
            others = guest.page_ins.beside_reads / (guest.interval_s or 1.0)
            return guest.weight * (accesses * float(then - now) + others * (1 - size_bytes / guest.target_bytes))
        uses = accesses + (guest.page_ins_per_s or 0.0)
        return guest.weight * uses * (1 - size_bytes / guest.target_bytes)

    def lowered(self, size_bytes: int, reason: str) -> _Place:
        """Return the same with a target that is so much lower."""
        if not size_bytes:
            return self
        target = align_down(self.decision.target_bytes - size_bytes)
        decision = structs.replace(self.decision, target_bytes=target, limiter=Limiter.BUDGET, reason=reason)
        return _Place(self.guest, decision, self.limiter)


def _in_proportion(_places: Sequence[_Place], parts: Sequence[int], cut: float) -> list[int]:
    """Return how much of `cut` bytes each guest gives: the same share of its part."""
    share = min(cut / sum(parts), 1.0)
    return [min(size, -int(-size * share // 1)) for size in parts]


def _least_loss(places: Sequence[_Place], parts: Sequence[int], cut: float) -> list[int]:
    """Return how much of `cut` bytes each guest gives: a piece at a time, from who loses least by it."""
    given, piece_bytes = [0] * len(parts), max(_PIECE_BYTES, int(cut) // _PIECES)

    def next_piece(index: int) -> tuple[float, int, int] | None:
        size = min(piece_bytes, parts[index] - given[index])
        if size <= 0:
            return None
        place, now = places[index], places[index].decision.target_bytes - given[index]
        return (place.loss_per_s(now - size) - place.loss_per_s(now)) / size, index, size

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


def room_bytes(snapshot: Snapshot, chosen: Sequence[str]) -> int:
    """Return what is left of the budget for the sizes of the guests named in `chosen`.

    They do not grow into what a guest that is still to come will need (its baseline), but nor do they shrink for it.
    """
    here = [guest for guest in snapshot.guests if guest.state is not GuestState.GONE]
    taken = sum(guest.outside_bytes if guest.name in chosen else guest.promised_bytes for guest in here)
    awaited = [guest for guest in here if guest.state is GuestState.CONNECTING]
    kept = sum(max(0, guest.baseline_bytes - guest.promised_bytes) for guest in awaited)
    now = sum(guest.target_bytes for guest in here if guest.name in chosen)
    room = snapshot.budget_bytes - taken
    return max(min(room, now), room - kept)


def free_bytes(snapshot: Snapshot) -> int:
    """Return what is left of the budget when all keep what they have, and who is still to come gets its baseline."""
    return max(0, room_bytes(snapshot, []))
