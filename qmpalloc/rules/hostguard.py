"""When the host itself runs out of memory, and what every guest then gives. Pure.

A budget is a promise of a person, and the host may have been used for something else since. Guests of a host that
swaps, or whose kernel begins to kill processes, are all lost together; so this rule overrides every policy: it only
ever shrinks, in proportion to what each guest has above its floor, and says so.
"""

from __future__ import annotations

import math

from msgspec import Struct

from qmpalloc.model import Decision, GuestDecision, GuestSnapshot, GuestState, HostMemory, Limiter, Snapshot
from qmpalloc.units import MIB, align_down, format_size

LEAST_BYTES = 256 * MIB
LEAST_SHARE = 0.02
"""The emergency begins when less than the larger of both is left of what there is, and ends at twice that."""

SWAP_IN_PAGES_PER_S = 200.0
STALLED_SHARE = 0.1
"""Swapping is an emergency only when it also stalls every task for this part of the time: a host may well have pages on
swap that nobody needs."""

CALM_S = 30.0
"""How long all must have been well before the emergency ends."""

BLIND_MOST_S = 120.0
"""How long an emergency lasts at most after the last reading that was whole. What cannot be read is no all-clear; but
memory that nobody can look at must not keep the guests small for ever."""

_MOVING = frozenset({GuestState.FRESH, GuestState.WARMING, GuestState.LATE, GuestState.LOST})


class Emergency(Struct, frozen=True, kw_only=True):
    """The host is short of memory.

    Attributes:
        reason: With the numbers, for people.
        deficit_bytes: What the guests together are to give.
    """

    reason: str
    deficit_bytes: int


def least_bytes(of_bytes: int | None) -> int:
    """Return how much must be left of so much memory; of an unknown amount the fixed part."""
    return max(LEAST_BYTES, int((of_bytes or 0) * LEAST_SHARE))


class _Pool(Struct, frozen=True, kw_only=True):
    """Memory of which some must be left: the host's, or that of a control group."""

    whose: str
    left_bytes: int
    least_bytes: int


def _pools(memory: HostMemory) -> list[_Pool]:
    """Return those of which it is known what is left."""
    known = (
        ("the host", memory.available_bytes, memory.total_bytes),
        ("the control group", memory.group_left_bytes, memory.group_limit_bytes),
    )
    return [
        _Pool(whose=whose, left_bytes=left_bytes, least_bytes=least_bytes(of_bytes))
        for whose, left_bytes, of_bytes in known
        if left_bytes is not None
    ]


class HostGuard:
    """Watches the host."""

    def __init__(self) -> None:
        self._last: tuple[float, HostMemory] | None = None
        self._lasts = False
        self._bad_until_s = self._read_s = -math.inf
        self._reason = ""

    def look(self, memory: HostMemory, now_s: float) -> Emergency | None:
        """Take a reading; return the emergency while it lasts.

        Of what could not be read neither good nor bad is thought: no emergency begins by it, and one that lasts goes
        on, asking for nothing more, for at most `BLIND_MOST_S`.
        """
        pools = _pools(memory)
        swapping = self._swapping(memory, now_s)
        missing_bytes = max((2 * pool.least_bytes - pool.left_bytes for pool in pools), default=0)
        tightest = min(pools, key=lambda pool: pool.left_bytes - pool.least_bytes, default=None)
        if tightest is not None and tightest.left_bytes < tightest.least_bytes:
            left, least = format_size(tightest.left_bytes), format_size(tightest.least_bytes)
            self._reason = f"{tightest.whose} has {left} left, below {least}"
            self._bad_until_s = now_s + CALM_S
        elif swapping:
            self._reason = swapping
            self._bad_until_s = now_s + CALM_S
        elif missing_bytes > 0 and now_s < self._bad_until_s:
            self._bad_until_s = now_s + CALM_S
        if not memory.unread:
            self._read_s = now_s
        blind = now_s - self._read_s < BLIND_MOST_S and bool(memory.unread)
        self._lasts = now_s < self._bad_until_s or (self._lasts and blind)
        if not self._lasts:
            return None
        at_least_bytes = least_bytes(memory.total_bytes) if swapping else 0
        return Emergency(reason=self._reason, deficit_bytes=max(missing_bytes, at_least_bytes))

    def _swapping(self, memory: HostMemory, now_s: float) -> str:
        """Return why the host's swapping is an emergency; empty when it is none."""
        (then_s, then), self._last = self._last or (now_s, memory), (now_s, memory)
        seconds = now_s - then_s
        counts = (then.swapped_in_pages, memory.swapped_in_pages, then.stalled_us, memory.stalled_us)
        if seconds <= 0 or None in counts:
            return ""
        swapped_then, swapped, stalled_then, stalled = (count or 0 for count in counts)
        rate, share = (swapped - swapped_then) / seconds, (stalled - stalled_then) / 1e6 / seconds
        if rate <= SWAP_IN_PAGES_PER_S or share <= STALLED_SHARE:
            return ""
        return f"the host reads {rate:.0f} pages/s back from swap and stands still {share:.0%} of the time"


def relieve(snapshot: Snapshot, emergency: Emergency) -> Decision:
    """Return the decision that gives the host memory back.

    Who has most above its floor gives most. What is on its way already is not asked for twice. What others were to get
    of it, they do not: it is the host's.
    """
    coming_bytes = sum(_coming_bytes(guest) for guest in snapshot.guests)
    wanted_bytes = max(emergency.deficit_bytes - coming_bytes, 0)
    spare = {guest.name: _spare_bytes(guest) for guest in snapshot.guests}
    share = min(wanted_bytes / max(sum(spare.values()), 1), 1.0)
    reason = f"host emergency: {emergency.reason}"
    return Decision(
        guests=tuple(
            GuestDecision(
                name=guest.name,
                target_bytes=align_down(_had_bytes(guest) - int(spare[guest.name] * share)),
                reason=reason,
                limiter=Limiter.HOST,
            )
            for guest in snapshot.guests
        ),
        summary=reason,
        carry=snapshot.carry,
    )


def most_bytes(guest: GuestSnapshot) -> int:
    """Return what a guest may have at most while the host is short of memory: what it has, or its floor."""
    return max(guest.actual_bytes, guest.floor_bytes)


def _had_bytes(guest: GuestSnapshot) -> int:
    """Return its target without growth that has not come yet."""
    return min(guest.target_bytes, most_bytes(guest))


def _coming_bytes(guest: GuestSnapshot) -> int:
    """Return what a guest is giving up already. Of what it has: what is charged in doubt is not there to come."""
    moves = guest.state in _MOVING and not guest.frozen
    return max(guest.actual_bytes - guest.target_bytes, 0) if moves else 0


def _spare_bytes(guest: GuestSnapshot) -> int:
    gives = guest.state is GuestState.FRESH and not guest.frozen
    return max(_had_bytes(guest) - guest.floor_bytes, 0) if gives else 0
