"""What a change of size means for a guest, in words."""

from __future__ import annotations

from qmpalloc.units import format_count

_NOTHING = 0.05
"""By the second: nothing, for people."""


def change_text(hits_per_s: float, misses_per_s: float, *, shrinks: bool) -> str:
    """Return what a guest gains or loses, for people. A load that gets faster may miss more by the second for that."""
    hits_per_s, misses_per_s = (0.0 if abs(number) < _NOTHING else number for number in (hits_per_s, misses_per_s))
    loses = hits_per_s < 0 or (not hits_per_s and shrinks)
    more = misses_per_s > 0 or (not misses_per_s and shrinks)
    hits, misses = format_count(abs(hits_per_s)), format_count(abs(misses_per_s))
    return f"{'loses' if loses else 'gains'} {hits} hits/s, {misses} misses/s {'more' if more else 'fewer'}"
