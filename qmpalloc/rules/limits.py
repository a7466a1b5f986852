"""What no policy may overrule: floors, caps, the step on the losing side, danger, and the budget.

`apply_limits` turns a policy's decision into one that is safe to carry out, and says at every guest what limited it.
Pure. The order in time is the ledger's business (`qmpalloc.rules.ledger`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec import structs

from qmpalloc.errors import QmpallocError
from qmpalloc.events import encoder
from qmpalloc.model import (
    Decision,
    GuestDecision,
    GuestSnapshot,
    GuestState,
    Limiter,
    Snapshot,
    changes_text,
    moves_between,
)
from qmpalloc.units import MIB, align_down, format_size

TAKE_MIN_BYTES = 128 * MIB
TAKE_SHARE = 0.25
"""A guest loses at most max(128 MiB, a quarter of its size) in one decision: reclaim needs time, and a wrong decision
must be cheap to take back."""

UNCONTROLLED = frozenset({GuestState.CONNECTING, GuestState.HELD, GuestState.HUNG, GuestState.PAUSED})

_TAKE_NOTHING = frozenset({Limiter.STATE, Limiter.DANGER, Limiter.STUCK})

_decoder = msgspec.json.Decoder(Decision)


class PolicyError(QmpallocError):
    """A policy returned something that is not a decision about the guests it was shown."""


def apply_limits(snapshot: Snapshot, decision: Decision, dangers: Mapping[str, str]) -> Decision:
    """Return `decision` within all limits.

    Args:
        snapshot: What the policy saw.
        decision: What it wants.
        dangers: Guests that are short of memory they cannot do without, with the reason: they get their baseline at
            once and give nothing.

    Raises:
        PolicyError: The decision is not about exactly the guests of the snapshot, or a target is no size.
    """
    decision = _checked(snapshot, decision)
    wishes = dict(zip((guest.name for guest in snapshot.guests), decision.guests, strict=True))
    limited = [_limit_guest(guest, wishes[guest.name], dangers.get(guest.name)) for guest in snapshot.guests]
    final = _fit_budget(snapshot, _give_back(snapshot.guests, decision.guests, limited))
    if [verdict.target_bytes for verdict in final] == [align_down(wish.target_bytes) for wish in decision.guests]:
        return structs.replace(decision, guests=tuple(final))
    summary = f"{changes_text(snapshot, final)} (limited)"
    return structs.replace(decision, guests=tuple(final), moves=moves_between(snapshot, final), summary=summary)


def _checked(snapshot: Snapshot, decision: Decision) -> Decision:
    """Return the decision as it will read in a record: what cannot be recorded is no decision."""
    try:
        decision = _decoder.decode(encoder.encode(decision))
    # ValueError: also text with half a surrogate pair.
    except (TypeError, ValueError, RecursionError, NotImplementedError, msgspec.MsgspecError) as error:
        raise PolicyError(f"the policy returned what is no decision: {error}") from error
    expected = [guest.name for guest in snapshot.guests]
    found = [guest.name for guest in decision.guests]
    if expected != found:
        raise PolicyError(f"the policy decided about {found}, not about {expected}")
    for guest in decision.guests:
        if guest.target_bytes < 0:
            raise PolicyError(f"the policy gave {guest.name} the target {guest.target_bytes}, which is no size")
        if not all(math.isfinite(value) for value in guest.terms.values()):
            raise PolicyError(f"the policy gave {guest.name} a term that is no finite number")
    return decision


def _limit_guest(guest: GuestSnapshot, wish: GuestDecision, danger: str | None) -> GuestDecision:
    if guest.state in UNCONTROLLED or guest.state is GuestState.GONE:
        return _with(wish, guest.target_bytes, Limiter.STATE, f"left alone: {guest.state}")
    if danger is not None:
        return _with(wish, max(guest.baseline_bytes, guest.target_bytes), Limiter.DANGER, danger)
    if guest.state is GuestState.LOST:
        # No longer observed: the size a person chose is the only defensible one. Slowly, for what it needs may have
        # grown unseen: one that takes memory back by itself on the way is then in danger.
        lowest = guest.target_bytes - _step_bytes(guest)
        return _with(wish, max(guest.baseline_bytes, -align_down(-lowest)), Limiter.STATE, "lost: back to baseline")
    if guest.frozen and guest.state is GuestState.FRESH:
        return _with(wish, guest.target_bytes, Limiter.STUCK, guest.frozen)
    if guest.state is not GuestState.FRESH:
        return _with(wish, guest.target_bytes, Limiter.STATE, f"left alone: {guest.state}")
    target, limiter, reason = align_down(wish.target_bytes), wish.limiter, wish.reason
    if target > guest.cap_bytes:
        target, limiter, reason = guest.cap_bytes, Limiter.CAP, f"{reason} (cap {format_size(guest.cap_bytes)})"
    # From the size it really has, where that is larger: steps that a slow balloon has not taken yet do not add up.
    lowest = max(guest.target_bytes, guest.actual_bytes) - _step_bytes(guest)
    if target < lowest:
        target, limiter, reason = -align_down(-lowest), Limiter.STEP, f"{reason} (no more than a quarter at once)"
    if target < guest.floor_bytes:
        target, limiter, reason = guest.floor_bytes, Limiter.FLOOR, f"{reason} (floor {format_size(guest.floor_bytes)})"
    return _with(wish, target, limiter, reason)


def _give_back(
    guests: Sequence[GuestSnapshot], wishes: Sequence[GuestDecision], limited: list[GuestDecision]
) -> list[GuestDecision]:
    """Leave with the donors what the receivers cannot take now: else memory is lost to all, decision by decision."""
    refusing = [
        (wish, final)
        for wish, final in zip(wishes, limited, strict=True)
        if final.limiter in _TAKE_NOTHING and wish.target_bytes > final.target_bytes
    ]
    given = [
        0 if final.limiter in _TAKE_NOTHING else max(0, guest.target_bytes - final.target_bytes)
        for guest, final in zip(guests, limited, strict=True)
    ]
    refused = sum(wish.target_bytes - final.target_bytes for wish, final in refusing)
    # No more in all than the policy wanted in all: it may have had to come below the budget.
    spare = sum(wish.target_bytes - final.target_bytes for wish, final in zip(wishes, limited, strict=True))
    kept, total = min(refused, spare), sum(given)
    if kept <= 0 or total == 0:
        return limited
    share = min(1.0, kept / total)
    names = ", ".join(wish.name for wish, _ in refusing)
    return [
        _with(
            final,
            final.target_bytes + int(size * share),
            Limiter.GATE,  # not the receiver's: this one is not in danger, and may have to give to who is
            f"keeps {format_size(int(size * share))} that {names} cannot take now",
        )
        if size
        else final
        for final, size in zip(limited, given, strict=True)
    ]


def _step_bytes(guest: GuestSnapshot) -> int:
    """Return the most that a guest loses in one decision of a policy."""
    return max(TAKE_MIN_BYTES, int(max(guest.target_bytes, guest.actual_bytes) * TAKE_SHARE))


def _with(wish: GuestDecision, target_bytes: int, limiter: Limiter, reason: str) -> GuestDecision:
    return structs.replace(wish, target_bytes=align_down(target_bytes), limiter=limiter, reason=reason)


def _fit_budget(snapshot: Snapshot, decisions: list[GuestDecision]) -> list[GuestDecision]:
    """Cut what does not fit: growth that is only wished for, then what lies above baselines, then growth in need.

    Guests in danger give last, a step at a time, what they have above their baseline and their own need, and only to
    others in danger: else one that says for ever that it is in danger would keep what another's life depends on. Growth
    in need is cut only when guests below their baselines need more than the budget holds: they stay as they are.
    """
    guests = snapshot.guests
    in_need = [
        decision.limiter in {Limiter.DANGER, Limiter.FLOOR} or guest.state is GuestState.LOST
        for guest, decision in zip(guests, decisions, strict=True)
    ]

    def growth(index: int) -> int:
        return decisions[index].target_bytes - guests[index].target_bytes

    def wished_growth(index: int) -> int:
        return 0 if in_need[index] else growth(index)

    def surplus(index: int) -> int:
        return decisions[index].target_bytes - max(guests[index].baseline_bytes, guests[index].floor_bytes)

    def above_baseline(index: int) -> int:
        gives = guests[index].state not in UNCONTROLLED and decisions[index].limiter is not Limiter.STUCK
        return surplus(index) if gives and not in_danger[index] else 0

    def above_baseline_in_danger(index: int) -> int:
        return min(surplus(index), _step_bytes(guests[index])) if in_danger[index] else 0

    in_danger = [decision.limiter is Limiter.DANGER for decision in decisions]
    lacking = sum(max(growth(index), 0) for index, endangered in enumerate(in_danger) if endangered)
    stages = (
        (wished_growth, math.inf, "less: the budget is used up"),
        (above_baseline, math.inf, "gives: the budget is exceeded"),
        (above_baseline_in_danger, lacking, "gives to another in danger what is above its baseline"),
        (growth, math.inf, "less than it needs: the budget is used up"),
    )
    for part, most, reason in stages:
        excess = sum(_charge(*pair) for pair in zip(guests, decisions, strict=True)) - snapshot.budget_bytes
        if excess > 0 and most > 0:
            decisions = _cut(decisions, part, min(excess, most), reason)
    return decisions


def _charge(guest: GuestSnapshot, decision: GuestDecision) -> int:
    """Return what the guest will occupy once the decision is carried out."""
    if guest.state is GuestState.GONE:
        return 0
    if guest.state in UNCONTROLLED:
        return max(guest.charge_bytes, guest.target_bytes)  # what it was promised before, as well
    return decision.target_bytes


def _cut(
    decisions: list[GuestDecision], part: Callable[[int], int], excess_bytes: float, reason: str
) -> list[GuestDecision]:
    """Lower targets by `excess_bytes` in all, in proportion to each guest's `part`."""
    parts = [max(part(index), 0) for index in range(len(decisions))]
    total = sum(parts)
    if total == 0:
        return decisions
    share = min(excess_bytes / total, 1.0)
    return [
        _with(decision, decision.target_bytes - min(size, -int(-size * share // 1)), Limiter.BUDGET, reason)
        if size
        else decision
        for decision, size in zip(decisions, parts, strict=True)
    ]
