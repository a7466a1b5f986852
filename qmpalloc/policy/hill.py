"""``hill``: hill climbing on ghost hits: a step at a time to the guest that would gain most by it.

A ghost is a page that was evicted; an access to one that left not long ago would have been a hit with a little more
memory. Climbing needs no curve beyond the present size. It finds the best split of convex curves and is stopped by
cliffs. (A. Cidon et al., Cliffhanger, NSDI 2016.)
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from qmpalloc.config import Size
from qmpalloc.errors import ConfigError
from qmpalloc.model import Decision, GuestDecision, GuestSnapshot, Limiter, Promise, Snapshot, decision_of
from qmpalloc.policy.evidence import (
    accesses_per_s,
    counted_per_s,
    losable_per_s,
    missed_per_s,
    page_ins_most,
    unconfirmed,
    uncounted,
)
from qmpalloc.rules.budget import free_bytes
from qmpalloc.units import MIB, PAGE_BYTES, align_down, format_count

_BELIEVED_S = 120.0
"""How long a step must cost no more than ghost hits say."""


class HillPolicy:
    """One step per decision, from the guest that loses least to the one that gains most.

    What is left of the budget goes first. A guest whose ghost hits are not known, as it reads next to nothing, is given
    nothing and may give. Nor is one given anything whose disks contradict its misses or that can take nothing now, and
    no step is worth more than the misses that are left to save.
    """

    class Settings(Struct, frozen=True, kw_only=True):
        """Settings of ``[policy]`` with ``name = "hill"``.

        Attributes:
            step: Bytes moved in a decision.
            ratio: The gain must be this many times the loss, so that the climb comes to rest.
            least_gain: What a step gains, less what it costs, must be this share of all accesses, but of no
                more than twice those of the two guests.
        """

        step: Size = Size(16 * MIB)
        ratio: float = 1.25
        least_gain: float = 0.0005

    promises = True

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        if self.settings.step < PAGE_BYTES:
            raise ConfigError("must be at least a page", key="step", hint='for example "16MiB"')
        if self.settings.ratio < 1:
            raise ConfigError("must be at least 1", key="ratio", hint="1.25: a gain a quarter above the loss")

    def decide(self, snapshot: Snapshot) -> Decision:
        """Move a step between the two guests where it gains most, if it gains enough."""
        known = [guest for guest in snapshot.guests if guest.decidable and guest.interval_s]
        step = align_down(int(self.settings.step))
        pair = _best_pair(snapshot, known, step)
        reason = self._against(pair, known, step)
        targets = {guest.name: guest.target_bytes for guest in snapshot.guests}
        if pair is not None and not reason:
            if pair.donor is not None:
                targets[pair.donor.name] -= step
            targets[pair.receiver.name] += step
        guests = (_verdict(guest, targets[guest.name], reason) for guest in snapshot.guests)
        return decision_of(snapshot, guests, summary=reason, carry=snapshot.carry)

    def _against(self, pair: _Pair | None, known: Sequence[GuestSnapshot], step: int) -> str:
        """Return why the step is not made; empty when it gains enough."""
        if pair is None:
            return "no two guests to move between"
        if pair.gains <= self.settings.ratio * pair.loses:
            return "no step gains more than it costs"
        changed = sum(guest.weight * accesses_per_s(guest) for guest in (pair.donor, pair.receiver) if guest)
        rate = counted_per_s(changed, sum(guest.weight * accesses_per_s(guest) for guest in known))
        difference = (pair.gains - pair.loses) * step / MIB
        if difference < self.settings.least_gain * rate:
            return f"the best step gains {format_count(difference)} hits/s: too little"
        return ""


class _Pair(Struct, frozen=True):
    """Who gives, None for what no guest has, and who gets; what that gains and loses, weighted hits/s by MiB."""

    donor: GuestSnapshot | None
    receiver: GuestSnapshot
    gains: float
    loses: float


def _best_pair(snapshot: Snapshot, known: Sequence[GuestSnapshot], step: int) -> _Pair | None:
    """Return the pair between which a step gains most; None when there is none."""
    donors: list[GuestSnapshot | None] = [guest for guest in known if _may_give(guest, step)]
    if free_bytes(snapshot) >= step:
        donors.insert(0, None)
    pairs = [
        _Pair(donor, receiver, _gain(receiver, step), _loss(donor, step))
        for donor in donors
        for receiver in known
        if _may_get(receiver, step) and donor is not receiver
    ]
    return max(pairs, key=lambda pair: pair.gains - pair.loses, default=None)


def _may_give(guest: GuestSnapshot, step: int) -> bool:
    return guest.target_bytes - guest.floor_bytes >= step and not guest.frozen and not uncounted(guest)


def _may_get(guest: GuestSnapshot, step: int) -> bool:
    room = guest.cap_bytes - guest.target_bytes >= step
    return room and guest.ghost_gain is not None and not guest.frozen and not unconfirmed(guest)


def _gain(guest: GuestSnapshot, step: int) -> float:
    """Return the weighted hits per second that a MiB more brings; a step brings no more than are missed now."""
    return guest.weight * min(guest.ghost_gain or 0.0, missed_per_s(guest) * MIB / step)


def _loss(guest: GuestSnapshot | None, step: int) -> float:
    """Return the hits per second that a MiB less costs; at most, where it is not known: a step takes all it has."""
    if guest is None:
        return 0.0  # what no guest has
    if guest.ghost_loss is None:
        return guest.weight * losable_per_s(guest) * MIB / step
    return guest.weight * guest.ghost_loss


def _promise(guest: GuestSnapshot, step: int) -> Promise:
    """Return what the guest brings in at most with a step less: what it does now, and what that costs it."""
    loses = _loss(guest, step) / guest.weight * step / MIB
    for_s = None if guest.ghost_loss is None else _BELIEVED_S
    return Promise(page_ins_per_s=page_ins_most(guest, missed_per_s(guest) + loses), for_s=for_s)


def _verdict(guest: GuestSnapshot, target: int, reason: str) -> GuestDecision:
    terms, promise = {}, None
    if target < guest.target_bytes:
        promise = _promise(guest, guest.target_bytes - target)
    if guest.ghost_gain is not None and guest.ghost_loss is not None:
        terms = {"gain_mib": round(guest.ghost_gain, 3), "loss_mib": round(guest.ghost_loss, 3)}
    if not guest.decidable:
        reason, limiter = guest.undecidable, Limiter.STATE
    elif target > guest.target_bytes:
        reason, limiter = f"gains {format_count(guest.ghost_gain or 0.0)} hits/s for each MiB", Limiter.POLICY
    elif target < guest.target_bytes and guest.ghost_loss is None:
        reason, limiter = f"loses {format_count(losable_per_s(guest))} hits/s at most", Limiter.POLICY
    elif target < guest.target_bytes:
        reason, limiter = f"loses {format_count(guest.ghost_loss or 0.0)} hits/s for each MiB", Limiter.POLICY
    elif uncounted(guest):
        reason, limiter = uncounted(guest), Limiter.STATE
    elif guest.ghost_gain is None:
        reason, limiter = "its ghost hits are not known", Limiter.STATE
    elif unconfirmed(guest):
        reason, limiter = unconfirmed(guest), Limiter.STATE
    else:
        reason, limiter = reason or "another pair gains more", Limiter.GATE
    return GuestDecision(
        name=guest.name, target_bytes=target, reason=reason, limiter=limiter, terms=terms, promise=promise
    )
