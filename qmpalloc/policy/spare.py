"""Memory that nobody would miss: who has it, and who gets it before any curve is known.

An idle guest is hardly sampled, and a scan that does not come back for minutes shows no reuse, so that their curves
stay weak for long; to hold them for that would keep memory from all others. Nor need the others' curves be known, which
takes one and a half working sets, minutes for a starved guest: where there is nothing to lose, memory can only help.
The same goes for what a guest has beyond its need, when its own curve is good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct

from qmpalloc.model import (
    Decision,
    GuestDecision,
    GuestSnapshot,
    GuestState,
    Limiter,
    Promise,
    Snapshot,
    changes_text,
    moves_between,
)
from qmpalloc.policy.bounds import (
    accesses_per_s,
    hits_nothing,
    losable_per_s,
    missed_anyway,
    missed_per_s,
    page_ins_most,
    unconfirmed,
    uncounted,
    uncounted_per_s,
)
from qmpalloc.policy.division import Candidate
from qmpalloc.policy.moves import change_text
from qmpalloc.policy.promises import curve_promise
from qmpalloc.policy.quiet import Quiet
from qmpalloc.rules.step import lowest_bytes, take_step
from qmpalloc.units import MIB, align_down, format_count

_LITTLE, _HITS_ALL = 0.02, 0.05
"""A guest of which nothing is known but what it can lose at most may give if that is so little of all accesses, and if
it misses next to nothing, or next to all. What is gained for it must be more."""

_LOSS_MOST = 0.1
"""What donors may lose at most, of the hits that the receiver lacks."""

_LITTLE_MOST_PER_S = 1_000.0
"""Accesses that are never next to nothing: one guest that reads a million a second makes no others idle."""

_STEP_BYTES = 4 * MIB
_BEYOND_LEAST_BYTES = 16 * MIB
"""A curve is not exact to the page: where it says that a guest could do without less than this, nothing is taken."""


class Donor(Struct, frozen=True, kw_only=True):
    """A guest that has memory to spare.

    Attributes:
        guest: Its snapshot.
        least_bytes: How far down it may be taken.
        loses_per_s: Weighted hits per second that it may lose by that.
        why: The same in words.
        terms: The same in numbers, as `GuestDecision.terms`.
        promise: The same in pages brought in.
    """

    guest: GuestSnapshot
    least_bytes: int
    loses_per_s: float
    why: str
    promise: Promise
    terms: dict[str, float] = {}


def with_nothing_at_stake(guest: GuestSnapshot) -> Donor:
    """Return a guest that has next to nothing to lose whatever its curve: it may be taken down to its floor."""
    loses = losable_per_s(guest)
    why = f"loses {format_count(loses)} hits/s at most"
    return Donor(
        guest=guest,
        least_bytes=guest.floor_bytes,
        loses_per_s=guest.weight * loses,
        why=why,
        promise=Promise(page_ins_per_s=page_ins_most(guest, missed_per_s(guest) + loses)),
    )


def with_more_than_needed(candidate: Candidate, least_gain: float) -> Donor | None:
    """Return a guest with what its good curve says it can do without; None when that is not worth taking.

    It is left so much that no size it may have would bring it more to speak of; so it is robbed of no more, however
    often it gives.

    Args:
        candidate: The guest, its curve and load.
        least_gain: Share of its accesses of which the hits do not count, reads that get slower included.
    """
    guest = candidate.guest
    least = max(guest.floor_bytes, lowest_bytes(guest))
    sizes = np.arange(least, guest.target_bytes, _STEP_BYTES, dtype=float)
    if not len(sizes):
        return None
    ratios = candidate.miss_ratios([*sizes, guest.target_bytes, max(guest.cap_bytes, guest.target_bytes)])
    hits = candidate.load.values(ratios, "hits")
    enough = np.flatnonzero(hits.max() - hits[:-2] <= least_gain * guest.weight * accesses_per_s(guest))
    if not len(enough) or guest.target_bytes - sizes[enough[0]] < _BEYOND_LEAST_BYTES:
        return None
    chosen = enough[0]
    lost = max(0.0, float(hits[-2] - hits[chosen]))
    misses = candidate.load.rates(ratios) * ratios
    now, then = float(misses[-2]), float(misses[chosen])
    return Donor(
        guest=guest,
        least_bytes=int(sizes[chosen]),
        loses_per_s=lost,
        promise=curve_promise(candidate, int(sizes[chosen])),
        why=f"{change_text(-lost / guest.weight, then - now, shrinks=True)}, by its curve",
        terms={"misses_s": round(now, 2), "misses_s_then": round(then, 2), "hits_s_gained": -round(lost, 2)},
    )


def read_next_to_nothing(snapshot: Snapshot, least_gain: float) -> dict[str, bool]:
    """Return, for each guest whose counts are known, whether its accesses are next to none of all."""
    known = _known(snapshot)
    total = _accesses_per_s(known)
    return {
        guest.name: _is_little(guest, accesses_per_s(guest) + uncounted_per_s(guest), total, least_gain)
        for guest in known
    }


def with_nothing_to_lose(
    snapshot: Snapshot, guests: Sequence[GuestSnapshot], quiet: Quiet, least_gain: float
) -> list[GuestSnapshot]:
    """Return those of `guests` that have next to nothing to lose whatever their curves: idle ones and scans."""
    total = _accesses_per_s(_known(snapshot))
    return [
        guest
        for guest in guests
        if guest.decidable
        and guest.interval_s
        and guest.state is GuestState.FRESH
        and not guest.frozen
        and not uncounted(guest)
        and _is_little(guest, losable_per_s(guest), total, least_gain)
        and (missed_anyway(guest) or quiet.lasts(guest.name))
    ]


def give_spare(
    snapshot: Snapshot,
    donors: Sequence[Donor],
    lacking: Sequence[GuestSnapshot],
    least_gain: float,
    *,
    unused_bytes: int = 0,
) -> Decision | None:
    """Return a step to the guest that lacks most, of what no guest has or from those that can spare it; None if none.

    A guest lacks as many hits as it has refaults: misses of pages that it had and its kernel evicted. One that hits
    nothing does not count, for what it reads may never fit. Its disks must confirm what it misses, and nothing may be
    wrong with its samples.

    Args:
        snapshot: What is decided on.
        donors: Guests that may give, each one step.
        lacking: Guests that may be given something.
        least_gain: What the receiver lacks must be this share of its accesses and the donors'.
        unused_bytes: Memory that no guest has: where that is enough, no guest gives.
    """
    names = {donor.guest.name for donor in donors}
    takers = [guest for guest in lacking if guest.name not in names and _lacks_per_s(guest) > 0]
    if not takers:
        return None
    taker = max(takers, key=_lacks_per_s)
    lacks = _lacks_per_s(taker)
    if lacks < least_gain * _accesses_per_s([taker, *(donor.guest for donor in donors)]):
        return None
    left = taker.cap_bytes - taker.target_bytes
    free = align_down(min(left, unused_bytes, take_step(taker.target_bytes)))
    if free >= _BEYOND_LEAST_BYTES:
        return _decision(snapshot, {taker.name: taker.target_bytes + free}, {})
    targets, giving, lost = {taker.name: taker.target_bytes}, {}, 0.0
    for donor in sorted(donors, key=_loses_per_s):
        guest = donor.guest
        lost += donor.loses_per_s
        least = max(guest.floor_bytes, donor.least_bytes, lowest_bytes(guest))
        given = align_down(min(left, max(0, guest.target_bytes + align_down(-least))))
        if given and lost <= _LOSS_MOST * lacks:
            giving[guest.name] = donor
            targets[guest.name] = guest.target_bytes - given
            targets[taker.name] += given
            left -= given
    return _decision(snapshot, targets, giving) if giving else None


def _decision(snapshot: Snapshot, targets: Mapping[str, int], giving: Mapping[str, Donor]) -> Decision:
    guests = tuple(
        _verdict(guest, targets.get(guest.name, guest.target_bytes), giving.get(guest.name))
        for guest in snapshot.guests
    )
    moves = moves_between(snapshot, guests)
    return Decision(guests=guests, moves=moves, summary=changes_text(snapshot, guests), carry=snapshot.carry)


def _loses_per_s(donor: Donor) -> float:
    return donor.loses_per_s


def _known(snapshot: Snapshot) -> list[GuestSnapshot]:
    return [guest for guest in snapshot.guests if guest.decidable and guest.interval_s]


def _accesses_per_s(guests: Sequence[GuestSnapshot]) -> float:
    return sum(guest.weight * accesses_per_s(guest) for guest in guests)


def _is_little(guest: GuestSnapshot, per_s: float, total_per_s: float, least_gain: float) -> bool:
    """Return whether `per_s` of a guest are next to nothing beside all accesses: so much one in doubt may lose.

    One that hits a part of what it reads may read so little because it is starved: it waits for its misses, and its
    curve is learnt the more slowly for that.
    """
    missed = (guest.misses or 0) / max(1, (guest.hits or 0) + (guest.misses or 0))
    share = _LITTLE if missed <= _HITS_ALL or missed_anyway(guest) else least_gain
    return per_s <= _LITTLE_MOST_PER_S and guest.weight * per_s <= share * total_per_s


def _lacks_per_s(guest: GuestSnapshot) -> float:
    """Return the weighted refaults per second of a guest that more memory may help; 0 if that is not known."""
    if not guest.decidable or guest.state is not GuestState.FRESH or not guest.interval_s or not guest.refaults:
        return 0.0
    if guest.frozen or hits_nothing(guest) or unconfirmed(guest) or guest.cap_bytes <= guest.target_bytes:
        return 0.0
    if guest.curve is not None and guest.curve.suspect:
        return 0.0
    return guest.weight * max(0, min(guest.refaults, guest.misses or 0)) / guest.interval_s


def _verdict(guest: GuestSnapshot, target: int, donor: Donor | None) -> GuestDecision:
    limiter, terms, promise = Limiter.POLICY, {}, None
    if not guest.decidable:
        reason, limiter = guest.undecidable, Limiter.STATE
    elif donor is not None:
        reason, terms, promise = donor.why, donor.terms, donor.promise
    elif target > guest.target_bytes:
        lacks = _lacks_per_s(guest) / guest.weight
        reason, terms = (
            f"reads {format_count(lacks)} pages/s again that it had to drop",
            {"refaults_s": round(lacks, 2)},
        )
    else:
        reason, limiter = "another guest lacks more, or has less to lose", Limiter.GATE
    return GuestDecision(
        name=guest.name, target_bytes=target, reason=reason, limiter=limiter, terms=terms, promise=promise
    )
