"""``curve``: the best split that the guests' miss-ratio curves allow, and no move that does not repay itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct, structs

from qmpalloc.config import Duration, Size
from qmpalloc.curves.value import Load, Objective
from qmpalloc.errors import ConfigError
from qmpalloc.model import Curve, Decision, GuestDecision, GuestSnapshot, Limiter, Snapshot, changes_text, moves_between
from qmpalloc.policy.bounds import accesses_per_s, counted_per_s, losable_per_s, missed_anyway, unconfirmed, uncounted
from qmpalloc.policy.division import Candidate, divide, free_bytes, room_bytes, take_slowly
from qmpalloc.policy.hill import HillPolicy
from qmpalloc.policy.measured import Measured
from qmpalloc.policy.moves import change_text
from qmpalloc.policy.promises import curve_promise
from qmpalloc.policy.purge import Purges
from qmpalloc.policy.quiet import Quiet
from qmpalloc.policy.rates import Rates
from qmpalloc.policy.reversals import Reversals
from qmpalloc.policy.spare import (
    give_spare,
    read_next_to_nothing,
    with_more_than_needed,
    with_nothing_at_stake,
    with_nothing_to_lose,
)
from qmpalloc.units import MIB, format_count, format_size

_CHOSEN_S = "chosen_s"
"""What is carried over: when curves last chose a split."""


class _Known(Struct, frozen=True, kw_only=True):
    """What is carried from decision to decision, beside a squeeze."""

    reversals: Reversals
    quiet: Quiet
    measured: Measured
    rates: Rates

    @property
    def carry(self) -> dict[str, Any]:
        return self.reversals.carry | self.quiet.carry | self.measured.carry | self.rates.carry


class CurvePolicy:
    """Dynamic programming over the curves of all guests that have a good one; the others are held as they are."""

    class Settings(Struct, frozen=True, kw_only=True):
        """Settings of ``[policy]`` with ``name = "curve"``.

        Attributes:
            objective: ``hits``: most hits per second. ``misses``: fewest misses per second. ``fair``: largest sum of
                weight times the logarithm of each guest's speed.
            margin: Memory given to a guest but not credited: a curve's cliffs are not known to the page.
            least_gain: A move must improve the objective by this share of all accesses (``fair``: of all weights), but
                of no more than twice those of the guests whose sizes change; by as much more for each time that moves
                of theirs were taken back since their loads changed.
            horizon: How long a split is thought to last at least; a load that has been the same for longer is thought
                to stay so for as long again. Growth pays only from when the memory has been filled, by the misses of
                the guest that got it.
        """

        objective: Objective = "hits"
        margin: Size = Size(16 * MIB)
        least_gain: float = 0.003
        horizon: Duration = Duration(120.0)

    promises = True

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        if not 0 <= self.settings.least_gain <= 1:
            raise ConfigError("is not from 0 to 1", key="least_gain", hint="0.003 is 3 in 1,000 of all accesses")
        if self.settings.horizon <= 0:
            raise ConfigError("must be above 0", key="horizon", hint='for example "120s"')
        self._hill = HillPolicy()

    def decide(self, snapshot: Snapshot) -> Decision:
        """Return the best split, or hold with the reason; or squeeze a guest that is full of what nobody reads."""
        settings, carried = self.settings, _carried(snapshot)
        purges = Purges(carried)
        known = _Known(
            reversals=Reversals(carried, snapshot),
            quiet=Quiet(carried, snapshot, read_next_to_nothing(snapshot, settings.least_gain)),
            measured=Measured(carried, snapshot, purges.squeezed),
            rates=Rates(carried, snapshot, float(settings.horizon)),
        )
        decision = purges.decide(
            snapshot,
            settings.objective,
            float(settings.horizon),
            settings.least_gain,
            exempt=known.measured.better_with_more,
        )
        if decision is None:
            decision = self._split(snapshot, purges.squeezed, known)
        carry = carried | (decision.carry or {}) | purges.carry | known.carry
        return structs.replace(decision, carry=carry)

    def _split(self, snapshot: Snapshot, squeezed: str, known: _Known) -> Decision:
        quiet, reversals = known.quiet, known.reversals
        doubts = {guest.name: _doubt(guest) or quiet.pause(guest.name) for guest in snapshot.guests}
        if squeezed:
            doubts[squeezed] = "squeezed, until what it reads has taken the place of what it read before"
        candidates = [self._candidate(guest, known) for guest in snapshot.guests if not doubts[guest.name]]
        free = [guest for guest in snapshot.guests if guest.name != squeezed]
        spare = with_nothing_to_lose(snapshot, free, quiet, self.settings.least_gain)
        lacking = [guest for guest in free if doubts[guest.name] and not self._settles(snapshot, guest)]
        # Where every guest counts alike, however little it reads, only what reads nothing has nothing to lose.
        fair = self.settings.objective == "fair"
        donors = [with_nothing_at_stake(guest) for guest in spare if not (fair and losable_per_s(guest))]
        idle = {donor.guest.name for donor in donors}
        beyond = [
            with_more_than_needed(one, self.settings.least_gain) for one in candidates if one.guest.name not in idle
        ]
        donors += [donor for donor in beyond if donor is not None]
        unused = 0 if squeezed else free_bytes(snapshot)  # what a squeeze leaves is taken back after it
        given = give_spare(snapshot, donors, lacking, self.settings.least_gain, unused_bytes=unused)
        if not candidates and not squeezed:
            return given or self._without_curves(snapshot, doubts, quiet)
        candidates += [_bounded(guest) for guest in spare if doubts[guest.name]]
        if candidates:
            chosen = {candidate.guest.name for candidate in candidates}
            candidates += self._by_measurement([guest for guest in free if guest.name not in chosen], known)
        if not candidates:
            return self._stay(snapshot, [], doubts, "no guest has a curve to act on", Limiter.STATE)
        for candidate in candidates:
            doubts[candidate.guest.name] = ""
        room = room_bytes(snapshot, [candidate.guest.name for candidate in candidates])
        wanted = divide(candidates, room, self.settings.objective)
        if wanted is None:
            return self._stay(snapshot, candidates, doubts, "the budget does not hold all floors", Limiter.BUDGET)
        now = {candidate.guest.name: candidate.guest.target_bytes for candidate in candidates}
        against = (
            "" if sum(now.values()) > room else self._not_worth_it(candidates, wanted, 1 + reversals.most(now, wanted))
        )
        if against and given is not None:
            return given
        if against:
            return self._stay(snapshot, candidates, doubts, against, Limiter.GATE)
        targets = take_slowly(candidates, wanted, room)
        reversals.moved(now, targets)
        guests = tuple(self._verdict(guest, candidates, targets, wanted, doubts) for guest in snapshot.guests)
        moves = moves_between(snapshot, guests)
        carry = _carried(snapshot) | {_CHOSEN_S: snapshot.time_s}
        return Decision(guests=guests, moves=moves, summary=changes_text(snapshot, guests), carry=carry)

    # --- what counts as a candidate -----------------------------------------------------------------------------------

    def _candidate(self, guest: GuestSnapshot, known: _Known) -> Candidate:
        assert guest.curve is not None
        margin = min(int(self.settings.margin), max(0, (guest.cap_bytes - guest.floor_bytes) // 8))
        return self._planned(guest, known.measured.corrected(guest, guest.curve), known.rates, margin)

    def _by_measurement(self, guests: Sequence[GuestSnapshot], known: _Known) -> list[Candidate]:
        """Return those guests whose curve turned out to be wrong and that are known to be better off with more."""
        curves = {
            guest.name: known.measured.instead(guest)
            for guest in guests
            if not guest.frozen and not known.quiet.pause(guest.name)
        }
        return [
            structs.replace(self._planned(guest, curve, known.rates), basis=known.measured.basis(guest))
            for guest in guests
            if (curve := curves.get(guest.name)) is not None
        ]

    def _planned(self, guest: GuestSnapshot, curve: Curve, rates: Rates, margin_bytes: int = 0) -> Candidate:
        here = float(np.interp(guest.actual_bytes, curve.sizes_bytes, curve.miss_ratio))
        rate = rates.planned_per_s(guest)
        steady_s = curve.steady_accesses / rate if rate else 0.0
        return Candidate(
            guest=guest,
            curve=curve,
            load=Load(
                accesses_per_s=rate,
                miss_ratio=here if curve.measured is None else curve.measured,
                miss_s=guest.miss_s,
                waits=guest.waits or 0.0,
                weight=guest.weight,
            ),
            horizon_s=max(float(self.settings.horizon), steady_s),
            margin_bytes=margin_bytes,
        )

    def _settles(self, snapshot: Snapshot, guest: GuestSnapshot) -> bool:
        """Return whether a good curve only waits for what is missed at the size that curves have just chosen."""
        chosen_s = _carried(snapshot).get(_CHOSEN_S, -math.inf)
        settling = guest.curve is not None and guest.curve.settling
        return settling and snapshot.time_s - chosen_s < float(self.settings.horizon)

    def _without_curves(self, snapshot: Snapshot, doubts: Mapping[str, str], quiet: Quiet) -> Decision:
        """Climb on ghost hits where they are known, else hold; but not away from what curves have just chosen."""
        if any(self._settles(snapshot, guest) for guest in snapshot.guests):
            return self._stay(snapshot, [], doubts, "waits for what is missed at the new sizes", Limiter.STATE)
        if any(guest.decidable and guest.ghost_gain is not None for guest in snapshot.guests):
            pausing = {guest.name for guest in snapshot.guests if quiet.pause(guest.name)}
            return self._hill.decide(snapshot, held=pausing)
        return self._stay(snapshot, [], doubts, "no guest has a curve to act on", Limiter.STATE)

    # --- is it worth it -----------------------------------------------------------------------------------------------

    def _not_worth_it(self, candidates: Sequence[Candidate], wanted: Mapping[str, int], factor: int) -> str:
        """Return why the move to `wanted` is not made; empty when it gains `factor` times the least gain."""
        objective, gain, noise = self.settings.objective, 0.0, 0.0
        for candidate in candidates:
            guest = candidate.guest
            pair = [guest.target_bytes, wanted[guest.name]]
            now, then = candidate.values(pair, objective)
            gain += then - now
            ratios = candidate.miss_ratios(pair)
            # A difference of two points of one curve is a share of its accesses, and as uncertain as such a share is.
            if ratios[0] != ratios[1]:
                noise += ((then - now) * candidate.curve.noise) ** 2 / abs(float(ratios[0] - ratios[1]))
        if all(wanted[candidate.guest.name] == candidate.guest.target_bytes for candidate in candidates):
            return "the split is the best"
        counts = {
            one.guest.name: one.load.weight * (1.0 if objective == "fair" else one.load.accesses_per_s)
            for one in candidates
        }
        changed = sum(counts[one.guest.name] for one in candidates if wanted[one.guest.name] != one.guest.target_bytes)
        total = counted_per_s(changed, sum(counts.values()))
        needed = max(factor * self.settings.least_gain * total, 2.0 * noise**0.5)
        unit = "" if objective == "fair" else f" {objective}/s"
        if gain < needed or gain <= 0:
            return f"gains {format_count(gain)}{unit}, below {format_count(needed)}"
        return ""

    # --- words --------------------------------------------------------------------------------------------------------

    def _stay(
        self,
        snapshot: Snapshot,
        candidates: Sequence[Candidate],
        doubts: Mapping[str, str],
        reason: str,
        limiter: Limiter,
    ) -> Decision:
        targets = {guest.name: guest.target_bytes for guest in snapshot.guests}
        guests = []
        for guest in snapshot.guests:
            verdict = self._verdict(guest, candidates, targets, targets, doubts)
            if not doubts[guest.name]:
                verdict = GuestDecision(
                    name=guest.name,
                    target_bytes=guest.target_bytes,
                    reason=reason,
                    limiter=limiter,
                    terms=verdict.terms,
                )
            guests.append(verdict)
        return Decision(guests=tuple(guests), summary=reason, carry=snapshot.carry)

    def _verdict(
        self,
        guest: GuestSnapshot,
        candidates: Sequence[Candidate],
        targets: Mapping[str, int],
        wanted: Mapping[str, int],
        doubts: Mapping[str, str],
    ) -> GuestDecision:
        candidate = next((one for one in candidates if one.guest.name == guest.name), None)
        if candidate is None:
            return GuestDecision(
                name=guest.name, target_bytes=guest.target_bytes, reason=doubts[guest.name], limiter=Limiter.STATE
            )
        target, goal = targets[guest.name], wanted[guest.name]
        # What is to be expected, where decisions are made with a margin.
        ratios = structs.replace(candidate, margin_bytes=0).miss_ratios([guest.target_bytes, target])
        rates = candidate.load.rates(ratios)
        before, after = (float(value) for value in rates * ratios)
        hits = float(rates[1] * (1 - ratios[1]) - rates[0] * (1 - ratios[0]))
        if target == guest.target_bytes:
            reason = "its memory is worth most where it is"
        else:
            reason = change_text(hits, after - before, shrinks=target < guest.target_bytes)
        on_the_way = f"on the way to {format_size(goal)}" if target != goal else ""
        limited = target != goal and target < guest.target_bytes
        promise = curve_promise(candidate, target) if target < guest.target_bytes else None
        return GuestDecision(
            name=guest.name,
            target_bytes=target,
            reason=", ".join(part for part in (reason, candidate.basis, on_the_way) if part),
            limiter=Limiter.STEP if limited else Limiter.POLICY,
            terms={"misses_s": round(before, 2), "misses_s_then": round(after, 2), "hits_s_gained": round(hits, 2)},
            promise=promise,
        )


def _carried(snapshot: Snapshot) -> dict[str, Any]:
    return snapshot.carry if isinstance(snapshot.carry, dict) else {}


def _bounded(guest: GuestSnapshot) -> Candidate:
    """Return a guest whose curve is in doubt, credited with missing all it reads as soon as it has less than now."""
    rate, missed = accesses_per_s(guest), missed_anyway(guest)
    load = Load(accesses_per_s=rate, miss_ratio=missed, weight=guest.weight)
    return Candidate(guest=guest, curve=_cautious(guest), load=load)


def _cautious(guest: GuestSnapshot) -> Curve:
    """Return the worst curve that a guest can have: what it hits now it misses with any less."""
    target = max(guest.target_bytes, guest.floor_bytes + 1)
    sizes = (guest.floor_bytes, target - 1, target) if target - 1 > guest.floor_bytes else (guest.floor_bytes, target)
    return Curve(sizes_bytes=sizes, miss_ratio=(*([1.0] * (len(sizes) - 1)), missed_anyway(guest)), estimator="bound")


def _doubt(guest: GuestSnapshot) -> str:
    """Return why the guest is held as it is; empty when its curve may be acted on."""
    if not guest.decidable:
        return guest.undecidable
    if not guest.interval_s:
        return "counts not known yet"
    if guest.frozen:
        return guest.frozen
    if guest.curve is None:
        return f"no curve: {guest.no_curve}"
    if guest.curve.weak:
        return f"weak curve: {guest.curve.weak[0]}"
    return unconfirmed(guest) or uncounted(guest)
