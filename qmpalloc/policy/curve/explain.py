"""Every reason that a person reads of policy ``curve``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qmpalloc.model import Band, Decision, GuestDecision, Limiter, Snapshot, decision_of
from qmpalloc.policy.curve.belief import Belief, Tuning
from qmpalloc.units import format_count, format_size

_NOTHING = 0.05
"""By the second: nothing, for people."""

_BAND_SIZES, _BAND_OFF = 24, 0.005
"""Sizes that a band is told at, at most, and the miss ratio that it may be off between them: it is drawn, no more."""


def stay(beliefs: Sequence[Belief], reason: str, limiter: Limiter, tuning: Tuning) -> Decision:
    """Return the decision that all stays as it is."""
    return Decision(guests=tuple(_kept(belief, reason, limiter, tuning) for belief in beliefs), summary=reason)


def move(
    snapshot: Snapshot,
    beliefs: Sequence[Belief],
    targets: Mapping[str, int],
    wanted: Mapping[str, int],
    tuning: Tuning,
) -> Decision:
    """Return the decision to go to `targets`, on the way to the sizes `wanted`."""
    return decision_of(snapshot, (_verdict(belief, targets, wanted, tuning) for belief in beliefs))


def change_text(hits_per_s: float, misses_per_s: float, *, shrinks: bool) -> str:
    """Return what a guest gains or loses, for people. A load that gets faster may miss more by the second for that."""
    hits_per_s, misses_per_s = (0.0 if abs(number) < _NOTHING else number for number in (hits_per_s, misses_per_s))
    loses = hits_per_s < 0 or (not hits_per_s and shrinks)
    more = misses_per_s > 0 or (not misses_per_s and shrinks)
    hits, misses = format_count(abs(hits_per_s)), format_count(abs(misses_per_s))
    return f"{'loses' if loses else 'gains'} {hits} hits/s, {misses} misses/s {'more' if more else 'fewer'}"


def _kept(belief: Belief, reason: str, limiter: Limiter, tuning: Tuning) -> GuestDecision:
    return GuestDecision(
        name=belief.guest.name,
        target_bytes=belief.guest.target_bytes,
        reason=belief.held or reason,
        limiter=Limiter.STATE if belief.held else limiter,
        terms={} if belief.curve is None else _terms(belief, belief.guest.target_bytes),
        band=_band(belief, tuning),
    )


def _verdict(belief: Belief, targets: Mapping[str, int], wanted: Mapping[str, int], tuning: Tuning) -> GuestDecision:
    guest = belief.guest
    target = targets.get(guest.name, guest.target_bytes)
    if target == guest.target_bytes:
        return _kept(belief, "its memory is worth most where it is", Limiter.POLICY, tuning)
    shrinks, goal = target < guest.target_bytes, wanted[guest.name]
    terms = _terms(belief, target)
    change = change_text(terms["hits_s_gained"], terms["misses_s_then"] - terms["misses_s"], shrinks=shrinks)
    source = belief.below if shrinks else belief.above
    parts = [change, source] if source.startswith("by ") else [source]
    if target != goal:
        parts.append(f"on the way to {format_size(goal)}")
    return GuestDecision(
        name=guest.name,
        target_bytes=target,
        reason=", ".join(parts),
        limiter=Limiter.STEP if shrinks and target != goal else Limiter.POLICY,
        terms=terms,
        promise=belief.promise(target, tuning) if shrinks else None,
        band=_band(belief, tuning),
    )


def _terms(belief: Belief, target_bytes: int) -> dict[str, float]:
    """Return the numbers behind a reason: what is missed now and then, and the hits that are gained."""
    ratios = belief.expected([belief.guest.target_bytes, target_bytes])
    rates = belief.load.rates(ratios)
    before, after = (float(value) for value in rates * ratios)
    hits = float(rates[1] * (1 - ratios[1]) - rates[0] * (1 - ratios[0]))
    return {"misses_s": round(before, 2), "misses_s_then": round(after, 2), "hits_s_gained": round(hits, 2)}


def _band(belief: Belief, tuning: Tuning) -> Band | None:
    """Return what is believed as it is drawn: at the sizes where it bends; None while the guest's rate is not known."""
    if belief.guest.accesses_per_s is None:
        return None
    sizes = belief.sizes if belief.curve is None else np.array(belief.curve.sizes_bytes, dtype=float)
    bounds = belief.bounds(sizes, tuning)
    kept = _bends(sizes, bounds)
    least, most = (tuple(round(float(ratio), 3) for ratio in bound[kept]) for bound in bounds)
    return Band(
        sizes_bytes=tuple(int(size) for size in sizes[kept]),
        least=least,
        most=most,
        accesses_per_s=round(belief.load.accesses_per_s, 1),
        measured=round(belief.load.miss_ratio, 4),
        source=", ".join(dict.fromkeys(source for source in (belief.below, belief.above) if source)),
    )


def _bends(sizes: NDArray[np.float64], lines: Sequence[NDArray[np.float64]]) -> list[int]:
    """Return which of `sizes` to keep: both ends, then where the lines through those kept are the most off."""
    kept = [0, len(sizes) - 1]
    while len(kept) < min(_BAND_SIZES, len(sizes)):
        off = np.max([np.abs(np.interp(sizes, sizes[kept], line[kept]) - line) for line in lines], axis=0)
        if off.max() < _BAND_OFF:
            break
        kept = sorted([*kept, int(off.argmax())])
    return kept
