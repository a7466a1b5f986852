"""What no policy may overrule: floors, caps, the step on the losing side, danger, and the budget.

`apply_limits` turns a policy's decision into one that is safe to carry out, and says at every guest what limited it.
What all guests together may have is in `qmpalloc.rules.budget`; the order in time is the ledger's business
(`qmpalloc.rules.ledger`). Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import structs

from qmpalloc.errors import PolicyError
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
from qmpalloc.rules.budget import UNCONTROLLED, fit_budget
from qmpalloc.rules.hostguard import most_bytes
from qmpalloc.rules.step import lowest_bytes
from qmpalloc.text import one_line
from qmpalloc.units import align_down, format_size

_NOT_A_POLICYS = frozenset({Limiter.DANGER, Limiter.FLOOR, Limiter.PERSON})
_TAKE_NOTHING = frozenset({Limiter.STATE, Limiter.DANGER, Limiter.STUCK, Limiter.PERSON})

_decoder = msgspec.json.Decoder(Decision)


def apply_limits(
    snapshot: Snapshot, decision: Decision, dangers: Mapping[str, str], *, emergency: bool = False
) -> Decision:
    """Return `decision` within all limits.

    Args:
        snapshot: What the policy saw.
        decision: What it wants.
        dangers: Guests that are short of memory they cannot do without, with the reason: they get their baseline at
            once and give nothing.
        emergency: The host is short of memory: nobody else grows but to its floor, in whatever state it is, not even
            by what was decided before.

    Raises:
        PolicyError: The decision is not about exactly the guests of the snapshot, or a target is no size.
    """
    decision = _checked(snapshot, decision)
    wishes = dict(zip((guest.name for guest in snapshot.guests), decision.guests, strict=True))
    limited = [_limit_guest(guest, wishes[guest.name], dangers.get(guest.name)) for guest in snapshot.guests]
    if emergency:
        limited = [_ungrown(guest, verdict) for guest, verdict in zip(snapshot.guests, limited, strict=True)]
    final = fit_budget(snapshot, _give_back(snapshot.guests, decision.guests, limited))
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
        if guest.promise is not None and min(guest.promise.page_ins_per_s, guest.promise.for_s or 0.0) < 0:
            raise PolicyError(f"the policy promised less than nothing of {guest.name}")
        if guest.band is not None and not len(guest.band.sizes_bytes) == len(guest.band.least) == len(guest.band.most):
            raise PolicyError(f"the policy told bounds of {guest.name} at other sizes than it names")
    return _legible(decision)


def _legible(decision: Decision) -> Decision:
    """Return `decision` with each of its texts as one printable line: people see them, and a record keeps them."""
    return structs.replace(
        decision,
        guests=tuple(
            structs.replace(
                guest,
                reason=one_line(guest.reason),
                terms={one_line(name): value for name, value in guest.terms.items()},
                band=guest.band and structs.replace(guest.band, source=one_line(guest.band.source)),
            )
            for guest in decision.guests
        ),
        moves=tuple(
            structs.replace(move, donor=one_line(move.donor), receiver=one_line(move.receiver))
            for move in decision.moves
        ),
        summary=one_line(decision.summary),
    )


def _limit_guest(guest: GuestSnapshot, wish: GuestDecision, danger: str | None) -> GuestDecision:
    """Return what one guest may have, whatever the others have. The first case that holds decides.

    1. It cannot be moved, or there is none: left alone.
    2. It is in danger: its baseline at once, or what it needs; what it needs no more it gives back in steps.
    3. Its size does not do what it is asked: left alone, heard of or not.
    4. Nobody has heard of it for long: its baseline, in steps. The size a person chose is all that can be defended; in
       steps, for what it needs may have grown unseen.
    5. Its counts are not fresh: left alone.
    6. A person has chosen its size, or else the wish; within the cap, the step and the floor.
    """
    if guest.state in UNCONTROLLED or guest.state is GuestState.GONE:
        return _with(wish, guest.target_bytes, Limiter.STATE, f"left alone: {guest.state}")
    if danger is not None:
        needed = guest.rescue_bytes or max(guest.baseline_bytes, guest.target_bytes)
        return _with(wish, max(needed, lowest_bytes(guest)), Limiter.DANGER, danger)
    if guest.frozen:
        return _with(wish, guest.target_bytes, Limiter.STUCK, guest.frozen)
    if guest.state is GuestState.LOST:
        home = max(guest.baseline_bytes, lowest_bytes(guest))
        return _with(wish, home, Limiter.STATE, "lost: back to baseline")
    if guest.state is not GuestState.FRESH:
        return _with(wish, guest.target_bytes, Limiter.STATE, f"left alone: {guest.state}")
    target, reason = align_down(wish.target_bytes), wish.reason
    # Who is in need, or what a person wants, is not for a policy to say.
    limiter = Limiter.POLICY if wish.limiter in _NOT_A_POLICYS else wish.limiter
    if guest.pin is not None:
        target, limiter, reason = guest.pin.size_bytes, Limiter.PERSON, guest.pin.why
        wish = structs.replace(wish, promise=None, band=None)  # what the policy thought of is not what is done
    if target > guest.cap_bytes:
        target, limiter, reason = guest.cap_bytes, Limiter.CAP, f"{reason} (cap {format_size(guest.cap_bytes)})"
    if target < lowest_bytes(guest):
        limiter = limiter if limiter is Limiter.PERSON else Limiter.STEP
        target, reason = lowest_bytes(guest), f"{reason} (no more than a quarter at once)"
    if target < guest.floor_bytes:
        target, limiter, reason = guest.floor_bytes, Limiter.FLOOR, f"{reason} (floor {format_size(guest.floor_bytes)})"
    return _with(wish, target, limiter, reason)


def _ungrown(guest: GuestSnapshot, verdict: GuestDecision) -> GuestDecision:
    if verdict.limiter is Limiter.DANGER or verdict.target_bytes <= most_bytes(guest):
        return verdict
    return _with(verdict, most_bytes(guest), Limiter.HOST, "the host has nothing to give")


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


def _with(wish: GuestDecision, target_bytes: int, limiter: Limiter, reason: str) -> GuestDecision:
    return structs.replace(wish, target_bytes=align_down(target_bytes), limiter=limiter, reason=reason)
