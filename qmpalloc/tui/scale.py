"""What all guests of one frame share, so that they can be compared by eye."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from qmpalloc.tui.facts import GuestFacts, History

NAME_MAX = 12
USUAL = 0.8
"""Share of the samples of a guest that the scale need not reach beyond."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The common scale of one frame.

    Attributes:
        now_t: The time of the frame, on the clock of the events.
        size_bytes: Full width of a memory bar, full height of a size chart.
        hits_s: The largest rate that a guest had in a fifth of its samples: what only its start had, as a cache that
            fills, does not make all else small.
        misses_s: The same for misses.
        name_width: Cells for a name.
        state_width: Cells for the word of a state.
        told: What some guest tells that others may not: terms of its policy, kinds of page-ins.
    """

    now_t: float
    size_bytes: int
    hits_s: float
    misses_s: float
    name_width: int
    state_width: int
    told: frozenset[str]

    @classmethod
    def of(cls, guests: Sequence[GuestFacts], now_t: float) -> Scale:
        """Return the scale for all guests of a run, hidden ones included: scrolling must not change it."""
        return cls(
            now_t=now_t,
            size_bytes=max((max(guest.cap_bytes, guest.charged_bytes) for guest in guests), default=1),
            hits_s=_largest(guest.hits_s for guest in guests),
            misses_s=_largest(guest.misses_s for guest in guests),
            name_width=min(max((cell_len(guest.name) for guest in guests), default=5), NAME_MAX),
            state_width=max((len(guest.state) for guest in guests), default=5),
            told=frozenset(told for guest in guests for told in (*guest.terms, *guest.kinds)),
        )


def _largest(histories: Iterable[History]) -> float:
    known = [sorted(value for value in history if value is not None) for history in histories]
    return max((values[int(len(values) * USUAL)] for values in known if values), default=1.0) or 1.0
