"""A squeeze of a guest whose cache is full of pages that nobody reads any more, and back to where it was.

A kernel that must give memory up lets go of what it would have kept for long. The limits of any other move hold: the
step on the losing side, the floor, danger, freezing. One squeeze may not reach all of those pages; if it helped, there
is another when the load has lasted for as long again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from msgspec import Struct, structs

from qmpalloc.curves.value import Load, Objective
from qmpalloc.model import Decision, GuestDecision, GuestSnapshot, GuestState, Limiter, Snapshot, moves_between
from qmpalloc.policy.bounds import accesses_per_s
from qmpalloc.rules.step import take_step
from qmpalloc.units import PAGE_BYTES, align_down

_STALE_LEAST = 0.15
"""A squeeze is rough: the guest first loses what it reads now. It is not done for less than this share of accesses."""

_LEAST_SHARE = 0.1

_HELPED, _MOST_TIMES = 0.05, 3
"""A guest is squeezed again only if it misses so much less for it, and so often in all until its load changes."""


class Squeeze(Struct, frozen=True, kw_only=True):
    """A guest that was squeezed.

    Attributes:
        name: Of the guest.
        low_bytes: What it was squeezed to.
        left_pages: So many of its misses will displace what nobody reads; only then has it use for more memory.
        until_s: Time at which it ends whatever happens.
        accesses: Of the guest between the change of its load and the squeeze.
        before_bytes: The sizes of all guests before.
        under_way: Whether `low_bytes` is what the limits made of it.
    """

    name: str
    low_bytes: int
    left_pages: int
    until_s: float
    accesses: int
    before_bytes: dict[str, int]
    under_way: bool = False


class Done(Struct, frozen=True, kw_only=True):
    """What a guest has had since its load changed.

    Attributes:
        accesses: Its accesses between that change and the last squeeze.
        missed: Its miss ratio then.
        size_bytes: Its size then.
        times: Squeezes so far.
    """

    accesses: int
    missed: float
    size_bytes: int
    times: int = 1


class Purges:
    """The squeeze there is, and the guests that have had theirs since their load changed.

    Attributes:
        squeeze: The one under way; at most one at a time.
        done: Guest to what it has had.
    """

    def __init__(self, carry: Any) -> None:
        known = carry.get("purges", {}) if isinstance(carry, dict) else {}
        self.done = {name: Done(**done) for name, done in known.get("done", {}).items()}
        self.squeeze = Squeeze(**known["squeeze"]) if known.get("squeeze") else None

    @property
    def squeezed(self) -> str:
        """Name of the guest that is being squeezed; empty when there is none."""
        return "" if self.squeeze is None else self.squeeze.name

    @property
    def carry(self) -> dict[str, Any]:
        """What is handed to the next decision."""
        squeeze = None if self.squeeze is None else structs.asdict(self.squeeze)
        return {
            "purges": {"done": {name: structs.asdict(done) for name, done in self.done.items()}, "squeeze": squeeze}
        }

    def decide(
        self,
        snapshot: Snapshot,
        objective: Objective,
        horizon_s: float,
        least_gain: float,
        exempt: Collection[str] = (),
    ) -> Decision | None:
        """Return the decision that begins or ends a squeeze; None when there is neither to do.

        Args:
            snapshot: What is decided on.
            objective: What is to gain by it.
            horizon_s: Time within which it must, seconds.
            least_gain: Share of the guest's accesses that it must gain.
            exempt: Guests that more memory helps, and no squeeze.
        """
        if self.squeeze is not None:
            return self._go_on(snapshot, self.squeeze)
        for guest in snapshot.guests:
            done = self.done.get(guest.name)
            if done is not None and guest.curve is not None and guest.curve.steady_accesses < done.accesses:
                del self.done[guest.name]  # its load has changed again
        for guest in snapshot.guests:
            low = _low_bytes(guest) if guest.name not in exempt and self._may(guest) else None
            needed = least_gain * guest.weight * (1.0 if objective == "fair" else accesses_per_s(guest))
            if low is not None and _gain_per_s(guest, low, objective, horizon_s) > needed:
                return self._begin(snapshot, guest, low, horizon_s)
        return None

    def _may(self, guest: GuestSnapshot) -> bool:
        """Return whether the guest has not been squeezed yet, or has been, to its good, long ago."""
        done, curve = self.done.get(guest.name), guest.curve
        if done is None:
            return True
        # With more memory it misses less for that.
        if curve is None or curve.measured is None or guest.target_bytes > done.size_bytes:
            return False
        helped = curve.measured <= done.missed - _HELPED
        return helped and curve.steady_accesses >= 2 * done.accesses and done.times < _MOST_TIMES

    def _begin(self, snapshot: Snapshot, guest: GuestSnapshot, low_bytes: int, horizon_s: float) -> Decision:
        assert guest.curve is not None
        before = self.done.get(guest.name)
        self.done[guest.name] = Done(
            accesses=guest.curve.steady_accesses,
            missed=_missed(guest),
            size_bytes=guest.target_bytes,
            times=1 if before is None else before.times + 1,
        )
        # What is squeezed out first is what is read now, or the rest would not have been kept.
        squeezed = guest.target_bytes - low_bytes
        left = min(guest.curve.unread_bytes + squeezed, max(0, (guest.curve.cached_bytes or 0) - squeezed))
        self.squeeze = Squeeze(
            name=guest.name,
            low_bytes=low_bytes,
            left_pages=left // PAGE_BYTES,
            until_s=snapshot.time_s + horizon_s,
            accesses=guest.curve.steady_accesses,
            before_bytes={other.name: other.target_bytes for other in snapshot.guests},
        )
        again = "squeezed" if before is None else "squeezed again"
        reason = f"{again}: {guest.curve.stale:.0%} of its accesses miss for pages of the load before"
        return self._decision(snapshot, {guest.name: low_bytes}, reason)

    def _go_on(self, snapshot: Snapshot, squeeze: Squeeze) -> Decision | None:
        guest = next((guest for guest in snapshot.guests if guest.name == squeeze.name), None)
        before = squeeze.before_bytes[squeeze.name]
        others_decided = guest is not None and squeeze.under_way and guest.target_bytes != squeeze.low_bytes
        if guest is None or guest.state is GuestState.GONE or others_decided or guest.target_bytes >= before:
            self.squeeze = None
            if squeeze.name in self.done:  # it needed its memory: never again under this load
                self.done[squeeze.name] = structs.replace(self.done[squeeze.name], times=_MOST_TIMES)
            return None
        left = squeeze.left_pages - (guest.misses or 0)
        self.squeeze = structs.replace(squeeze, left_pages=left, low_bytes=guest.target_bytes, under_way=True)
        changed = guest.curve is not None and guest.curve.steady_accesses < squeeze.accesses
        over = left <= 0 or changed or snapshot.time_s >= squeeze.until_s
        if not over or guest.state is not GuestState.FRESH:
            return None
        self.squeeze = None
        return self._decision(snapshot, _given_back(snapshot, squeeze), f"{guest.name} was squeezed, as before")

    def _decision(self, snapshot: Snapshot, targets: Mapping[str, int], reason: str) -> Decision:
        guests = tuple(
            GuestDecision(
                name=guest.name,
                target_bytes=targets.get(guest.name, guest.target_bytes),
                reason=reason if guest.name in targets else "another guest's cache is being purged",
                limiter=Limiter.POLICY if guest.name in targets else Limiter.GATE,
            )
            for guest in snapshot.guests
        )
        return Decision(guests=guests, moves=moves_between(snapshot, guests), summary=reason, carry=self.carry)


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
    """Return what the guest would be squeezed to; None where there is no reason to, or not enough to give."""
    fit = guest.state is GuestState.FRESH and guest.decidable and guest.interval_s and not guest.frozen
    if not fit or guest.curve is None or guest.curve.stale < _STALE_LEAST:
        return None
    now = guest.target_bytes
    low = -align_down(-max(guest.floor_bytes, now - take_step(now)))
    # What is read now goes first: the rest is only reached if there is not much more of that than is squeezed out.
    unused = max(guest.curve.unread_bytes, guest.curve.unused_bytes)
    reached = unused + now - low >= (guest.curve.cached_bytes or 0) / 2
    return low if reached and now - low >= _LEAST_SHARE * now else None


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
