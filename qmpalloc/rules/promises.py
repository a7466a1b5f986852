"""Every move is a test: a guest that loses more by it than was promised gets its memory back.

A policy takes memory from a guest because of what it believes: that the guest is idle, or what a curve says. It says
so with a `Promise`: so many pages a second the guest will bring in at most. What it really brings in (by reads, page
faults and from swap) is counted exactly. When that is more, the belief was wrong, whatever the policy knew or did not
know, and three things follow:

1. The guest gets back what it gave, at the next decision, from what nobody has and from those that have grown since.
2. It gives nothing of that again for a while; if it breaks another promise within as long again, for twice as long.
   After a tenth of that time it may give what it has had free ever since. One that reads more than when the promise
   was made is held until that, or until its curve is good: how much it reads was the wrong belief.
3. What its programs map or hold was never to give: see `GuestSnapshot.in_use_bytes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct, structs

from qmpalloc.curves.mapping import unused_bytes
from qmpalloc.errors import PolicyError
from qmpalloc.model import (
    Decision,
    GuestDecision,
    GuestSnapshot,
    GuestState,
    Limiter,
    Policy,
    Snapshot,
    decision_of,
    moves_between,
)
from qmpalloc.rules.budget import free_bytes
from qmpalloc.rules.step import lowest_bytes
from qmpalloc.units import MIB, PAGE_BYTES, align_down, format_count, format_size

_TIMES, _BESIDE_PER_S = 1.5, 50.0
"""A promise is broken by so many times the pages it allows, and so many pages a second more: a guest that is left alone
brings in as many now and then."""

_HELD_S = 600.0
"""How long a guest is held after a broken promise, the first time: what it reads next may not come for minutes."""

_WITH_ALL = 0.1
"""Of the time for which a guest is held, all is kept for so much, and then what was used."""

_PROGRAMS_ENDED = 0.75
"""What was believed wrongly belonged to programs that have ended when its programs hold less than this share."""

_NEAR_BYTES = 16 * MIB
"""A guest with no more than this above the least that it keeps has nothing to give."""

_KEY = "qmpalloc.promises"


class Lent(Struct, frozen=True, kw_only=True):
    """Memory that a guest has given on a promise.

    Attributes:
        before_bytes: Its size before it gave.
        size_bytes: Its size after it. With less than that, others took from it, and nothing is tested.
        given_bytes: What went to which guest.
        page_ins_per_s: Promised, see `Promise`.
        until_s: When the promise has been kept for long enough; None: as long as the memory is away.
        free_pages: What it may bring in beyond the promise before that is broken. Who is taken to lose little does not
            have to lose little at once: what a kernel lets go of is not always what is used least, and is read again.
            Whoever is taken to be idle has nothing to read again.
        accesses_per_s: What it read when the promise was made.
        broken: Whether it was broken before: then this is no other time.
    """

    before_bytes: int
    size_bytes: int
    given_bytes: dict[str, int]
    page_ins_per_s: float
    until_s: float | None = None
    free_pages: float = 0.0
    accesses_per_s: float = 0.0
    broken: bool = False


class Held(Struct, frozen=True, kw_only=True):
    """A guest of which a promise was broken.

    Attributes:
        least_bytes: What it had before: it is not taken below that.
        with_all_until_s: How long; then it is not taken below what it was seen to use.
        used_bytes: The most of its memory that was not free since.
        until_s: How long it is held at all.
        in_use_bytes: The most that its programs were seen to hold since.
        times: How often that has happened.
        load: The load that its curve was of; None where no curve was believed. With another load this ends.
        works_per_s: What it read then, if that was much more than when the promise was made; else 0. While it does so
            it is not held once it has a good curve, or all was kept for long enough.
    """

    least_bytes: int
    with_all_until_s: float
    used_bytes: int
    until_s: float
    in_use_bytes: int
    times: int
    load: int | None = None
    works_per_s: float = 0.0

    def kept_bytes(self, guest: GuestSnapshot, time_s: float) -> int:
        """Return the least that the guest may be set to; 0 when it is not held."""
        works = 0 < self.works_per_s <= _TIMES * (guest.accesses_per_s or 0.0)
        known = guest.curve is not None and not guest.curve.weak
        # 1. It is held no more. 2. It works: wrong was how much it reads. 3. All is kept. 4. What it used is.
        if time_s >= self.until_s or (works and (known or time_s >= self.with_all_until_s)):
            return 0
        return self.least_bytes if time_s < self.with_all_until_s else min(self.least_bytes, self.used_bytes)


class KeepsPromises:
    """A policy whose promises are kept; it sees nothing of that but higher floors."""

    def __init__(self, policy: Policy) -> None:
        """Wrap a policy.

        Args:
            policy: What it carries from decision to decision must be a dict, or nothing.
        """
        self.policy = policy
        self.settings = getattr(policy, "settings", None)

    def decide(self, snapshot: Snapshot) -> Decision:
        """Take back what was given on a promise that did not hold; if there is nothing of that, ask the policy.

        Raises:
            PolicyError: What the policy carries is no dict.
        """
        carried = snapshot.carry if isinstance(snapshot.carry, dict) else {}
        known = msgspec.convert(carried.get(_KEY, {}), _Known)
        lent, held = _open(known.lent, snapshot), _lasting(known.held, snapshot)
        inner = {key: value for key, value in carried.items() if key != _KEY} or None
        broken = [guest for guest in snapshot.guests if guest.name in lent and lent[guest.name].free_pages < 0]
        for guest in broken:
            held[guest.name] = _held(guest, lent[guest.name], held.get(guest.name), snapshot.time_s)
            lent[guest.name] = structs.replace(lent[guest.name], free_pages=0.0, broken=True)
        decision = _taken_back(snapshot, broken, lent, held)
        if decision is not None:
            decision = structs.replace(decision, carry=inner)
        else:  # no promise was broken, or nobody can give anything back
            shown = _with_floors(snapshot, held, inner)
            made: Any = self.policy.decide(shown)
            if not isinstance(made, Decision):  # it is the user's code
                raise PolicyError(f"the policy returned what is no decision: {type(made).__name__}")
            decision = made
            # Not about these guests: the limits refuse it by name.
            if [guest.name for guest in snapshot.guests] == [verdict.name for verdict in made.guests]:
                decision = _explained(snapshot, shown, made)
                lent = _noted(snapshot, decision, lent)
        return structs.replace(decision, carry=_carry(decision.carry, _Known(lent=lent, held=held)))


class _Known(Struct, frozen=True, omit_defaults=True):
    """What is carried from decision to decision, by guest."""

    lent: dict[str, Lent] = {}
    held: dict[str, Held] = {}


def _carry(carry: Any, known: _Known) -> Any:
    """Return what a policy carries with what is known of promises, if there is anything."""
    if carry is not None and not isinstance(carry, dict):
        raise PolicyError(f"a policy that promises carries a dict, or nothing, not {type(carry).__name__}")
    if known.lent or known.held:
        return {**(carry or {}), _KEY: msgspec.to_builtins(known)}
    return carry


def _open(lent: Mapping[str, Lent], snapshot: Snapshot) -> dict[str, Lent]:
    """Return the promises that still stand, and what is left of them: the memory is away, and not long enough yet."""
    guests = {guest.name: guest for guest in snapshot.guests}
    return {
        name: _tested(each, guests[name])
        for name, each in lent.items()
        if name in guests
        and guests[name].state is not GuestState.GONE
        and guests[name].target_bytes < min(each.before_bytes, guests[name].cap_bytes)
        and (each.until_s is None or snapshot.time_s <= each.until_s)
    }


def _lasting(held: Mapping[str, Held], snapshot: Snapshot) -> dict[str, Held]:
    """Return who is held, and for how much longer; how often it was is remembered for as long again."""
    now = {}
    for guest in snapshot.guests:
        each = held.get(guest.name)
        if each is None or guest.state is GuestState.GONE:
            continue
        if snapshot.time_s - each.until_s >= _held_s(each.times):
            continue
        told = guest.in_use_bytes if guest.state is GuestState.FRESH else None
        in_use = max(each.in_use_bytes, told or 0)
        ended = told is not None and told < _PROGRAMS_ENDED * in_use
        other_load = each.load is not None and guest.curve is not None and guest.curve.load != each.load
        until_s = snapshot.time_s if ended or other_load else each.until_s
        now[guest.name] = structs.replace(
            each,
            in_use_bytes=in_use,
            used_bytes=max(each.used_bytes, _used_bytes(guest)),
            until_s=min(until_s, each.until_s),
        )
    return now


def _held_s(times: int) -> float:
    """Return how long a guest is held that has broken promises so often."""
    return _HELD_S * 2.0 ** min(times - 1, 10)


def _used_bytes(guest: GuestSnapshot) -> int:
    """Return what a guest uses: what is not free, and its kernel's reserve; all that it has where it does not tell."""
    if guest.state is not GuestState.FRESH:  # it gives nothing until it is
        return 0
    return guest.actual_bytes - (unused_bytes(guest.memory) if guest.memory is not None else 0)


def _tested(lent: Lent, guest: GuestSnapshot) -> Lent:
    """Return what is left of a promise after what the guest has brought in since the last decision."""
    known = guest.page_ins_per_s if guest.state is GuestState.FRESH else None
    if known is None or guest.target_bytes < lent.size_bytes:
        return lent
    beyond_per_s = known - _TIMES * lent.page_ins_per_s - _BESIDE_PER_S
    free = lent.free_pages - max(0.0, beyond_per_s) * (guest.interval_s or 0.0)
    return structs.replace(lent, free_pages=free)


def _held(guest: GuestSnapshot, lent: Lent, before: Held | None, time_s: float) -> Held:
    """Return that a guest is held from now on; that it breaks the same promise once more is no other time."""
    same = before is not None and (lent.broken or time_s < before.with_all_until_s)
    times = (before.times if before else 0) + (not same)
    reads_per_s = guest.accesses_per_s or 0.0
    works_more = reads_per_s > _TIMES * lent.accesses_per_s + _BESIDE_PER_S
    held_s = _held_s(times)
    return Held(
        least_bytes=lent.before_bytes,
        with_all_until_s=time_s + _WITH_ALL * held_s,
        used_bytes=0,
        until_s=time_s + held_s,
        in_use_bytes=max(guest.in_use_bytes or 0, before.in_use_bytes if before is not None and same else 0),
        times=times,
        load=guest.curve.load if lent.until_s is not None and guest.curve is not None else None,
        works_per_s=reads_per_s if works_more else 0.0,
    )


def _taken_back(
    snapshot: Snapshot, broken: Sequence[GuestSnapshot], lent: Mapping[str, Lent], held: Mapping[str, Held]
) -> Decision | None:
    """Return the decision that gives `broken` what they gave; None when nothing can be given back.

    What nobody has goes first, then what those have who got it. Nobody gives more than a step, so that it may take more
    than one decision, or what it uses or has just got back itself.
    """
    owed = {
        guest.name: max(0, min(lent[guest.name].before_bytes, guest.cap_bytes) - guest.target_bytes) for guest in broken
    }
    names = ", ".join(guest.name for guest in broken)
    free = free_bytes(snapshot)
    taken = _payments(snapshot, owed, max(0, sum(owed.values()) - free), lent, held)
    back = min(sum(owed.values()), free + sum(taken.values()))
    share = back / sum(owed.values()) if sum(owed.values()) else 0.0
    guests = []
    for guest in snapshot.guests:
        target, reason, limiter = guest.target_bytes, f"{names} gets back what it gave", Limiter.GATE
        if guest.name in owed:
            target, limiter = target + align_down(int(owed[guest.name] * share)), Limiter.POLICY
            reason = (
                f"gets back what it gave: brings in {format_count(guest.page_ins_per_s or 0.0)} pages/s, "
                f"at most {format_count(lent[guest.name].page_ins_per_s)} were promised"
            )
        elif taken[guest.name]:
            target, limiter = target - taken[guest.name], Limiter.POLICY
            reason = f"gives back to {names} what it got"
        guests.append(GuestDecision(name=guest.name, target_bytes=target, reason=reason, limiter=limiter))
    if all(verdict.target_bytes == guest.target_bytes for guest, verdict in zip(snapshot.guests, guests, strict=True)):
        return None
    decision = decision_of(snapshot, guests)
    return structs.replace(decision, summary=f"taken back: {decision.summary}")


def _payments(
    snapshot: Snapshot, owed: Mapping[str, int], missing: int, lent: Mapping[str, Lent], held: Mapping[str, Held]
) -> dict[str, int]:
    """Return what each guest can pay of `missing` bytes: what it got of those that are owed, as far as it may go."""
    taken = {}
    for guest in snapshot.guests:
        got = sum(lent[name].given_bytes.get(guest.name, 0) for name in owed)
        least = max(lowest_bytes(guest), guest.floor_bytes, guest.in_use_bytes or 0)
        least = max(least, held[guest.name].kept_bytes(guest, snapshot.time_s) if guest.name in held else 0)
        able = guest.state is GuestState.FRESH and guest.name not in owed
        taken[guest.name] = align_down(max(0, min(got, missing, guest.target_bytes - least))) if able else 0
        missing -= taken[guest.name]
    return taken


def _with_floors(snapshot: Snapshot, held: Mapping[str, Held], carry: Any) -> Snapshot:
    """Return what the policy sees: no guest may be taken below what it holds, or what it once gave too much of."""
    guests = []
    for guest in snapshot.guests:
        least = held[guest.name].kept_bytes(guest, snapshot.time_s) if guest.name in held else 0
        in_use = guest.target_bytes if guest.in_use_bytes is None else guest.in_use_bytes
        least = min(guest.target_bytes, max(least, in_use))
        floor = max(guest.floor_bytes, align_down(least))
        guests.append(structs.replace(guest, floor_bytes=floor) if floor != guest.floor_bytes else guest)
    return structs.replace(snapshot, guests=tuple(guests), carry=carry)


def _explained(snapshot: Snapshot, shown: Snapshot, decision: Decision) -> Decision:
    """Return the decision with the reason added where a guest can give no more for what it holds."""
    verdicts = []
    for guest, seen, verdict in zip(snapshot.guests, shown.guests, decision.guests, strict=True):
        at_most = guest.floor_bytes < seen.floor_bytes and verdict.target_bytes - seen.floor_bytes < _NEAR_BYTES
        in_use = guest.in_use_bytes
        if at_most and in_use is None:
            keeps = "it does not tell what its programs map"
        elif at_most and in_use is not None and seen.floor_bytes <= in_use:
            keeps = f"its programs hold or map {format_size(in_use)}"
        elif at_most:
            keeps = f"keeps {format_size(seen.floor_bytes)}"
        else:
            keeps = ""
        verdicts.append(structs.replace(verdict, reason=f"{verdict.reason}; {keeps}") if keeps else verdict)
    return structs.replace(decision, guests=tuple(verdicts))


def _noted(snapshot: Snapshot, decision: Decision, lent: Mapping[str, Lent]) -> dict[str, Lent]:
    """Return the open promises after a decision. Of memory taken in parts, all comes back.

    While a promise stands, each further part may cost what was promised of it and no more: else one that is wrong in
    small steps would never be broken.
    """
    now = dict(lent)
    moves = moves_between(snapshot, decision.guests)
    for guest, verdict in zip(snapshot.guests, decision.guests, strict=True):
        promise = verdict.promise
        if verdict.target_bytes >= guest.target_bytes or promise is None:
            continue
        given = {move.receiver: move.size_bytes for move in moves if move.donor == guest.name}
        most, before, free = promise.page_ins_per_s, guest.target_bytes, 0.0
        if guest.name in lent:
            earlier = lent[guest.name]
            most = min(most, earlier.page_ins_per_s + max(0.0, most - (guest.page_ins_per_s or 0.0)))
            before, free = earlier.before_bytes, earlier.free_pages
            given = {
                name: given.get(name, 0) + earlier.given_bytes.get(name, 0) for name in given | earlier.given_bytes
            }
        if promise.for_s is not None:
            free += (guest.target_bytes - verdict.target_bytes) / PAGE_BYTES
        now[guest.name] = Lent(
            before_bytes=before,
            size_bytes=verdict.target_bytes,
            given_bytes=given,
            page_ins_per_s=most,
            until_s=None if promise.for_s is None else snapshot.time_s + promise.for_s,
            free_pages=free,
            accesses_per_s=guest.accesses_per_s or 0.0,
        )
    return now
