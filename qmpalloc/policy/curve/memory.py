"""What policy ``curve`` remembers from decision to decision: one value, versioned, that a record can hold."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import Struct, structs

from qmpalloc.curves.value import OUTSTANDING_SURE
from qmpalloc.model import GuestSnapshot, Snapshot
from qmpalloc.policy.curve.measured import Point, noted
from qmpalloc.policy.evidence import accesses_per_s

VERSION = 1


class Tuning(Struct, frozen=True, kw_only=True):
    """How loads are told apart over time.

    Attributes:
        rest_share: A guest rests when it reads less than this share of what it reads at work.
        patience_s: A rest shorter than this is a pause; a longer one means that the guest is idle.
        patience_times: A guest that has woken is idle from this many times the rest on that it had.
        loads_least: Loads that must have ended before their length says how long the next will last.
        load_least_s: A shorter one does not count: a system that boots, or a change that was none.
        rest_half_life_s: Of a rest, after which only half of the rate at work is expected again: who boots, or makes a
            copy of all it has, does so for once.
    """

    rest_share: float = 0.1
    patience_s: float = 15.0
    patience_times: float = 2.0
    loads_least: int = 2
    load_least_s: float = 15.0
    rest_half_life_s: float = 3600.0


class Average(Struct, frozen=True):
    """Accesses and seconds, those of before fading."""

    accesses: float = 0.0
    seconds: float = 0.0

    @property
    def per_s(self) -> float:
        """Accesses per second; 0 before anything was seen."""
        return self.accesses / self.seconds if self.seconds else 0.0

    def with_more(self, per_s: float, seconds: float, half_life_s: float) -> Average:
        """Return the average with another interval."""
        kept = 0.5 ** (seconds / half_life_s)
        return Average(kept * self.accesses + per_s * seconds, kept * self.seconds + seconds)

    def faded(self, seconds: float, half_life_s: float) -> Average:
        """Return the average with a part of it forgotten: half, after a half-life."""
        return Average(0.5 ** (seconds / half_life_s) * self.accesses, self.seconds)


class Known(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is remembered of a guest.

    Attributes:
        since_s: Since when it has been seen without a gap.
        seen_s: When it was seen last.
        at_work: Its rate while it did not rest.
        overall: Its rate, rests included.
        rests_since_s: When its present rest began; None: it is at work.
        patience_s: How long a rest must be to mean that it is idle, after one that had been taken for that and ended
            within the horizon; 0: there was none.
        load: The number of its load, `Curve.load`.
        load_since_s: When that load began.
        lasted_s: How long its last two loads lasted.
        points: What it missed at the sizes it has had under this load.
        direction: Of its last move: 1 more memory, -1 less, 0 none yet.
        reversals: Moves of it that were taken back, those of before fading.
        reversals_at_s: When that number was true.
    """

    since_s: float = 0.0
    seen_s: float = 0.0
    at_work: Average = Average()
    overall: Average = Average()
    rests_since_s: float | None = None
    patience_s: float = 0.0
    load: int = 0
    load_since_s: float = 0.0
    lasted_s: tuple[float, ...] = ()
    points: tuple[Point, ...] = ()
    direction: int = 0
    reversals: float = 0.0
    reversals_at_s: float = 0.0

    @property
    def alternates(self) -> bool:
        """True when it works and rests in turn, faster than memory can follow."""
        return self.patience_s > 0

    def rested_s(self, time_s: float) -> float:
        """Return how long it has rested; 0 when it is at work."""
        return 0.0 if self.rests_since_s is None else time_s - self.rests_since_s


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


class Pace(Struct, frozen=True, kw_only=True):
    """How fast a guest will read, and for how long.

    Attributes:
        planned_per_s: Accesses per second to plan with.
        most_per_s: The most that it makes: now, or at work where it works and rests in turn.
        lasts_s: How long its load is thought to go on, seconds.
        promised_s: How long a promise by its curve must hold; None: for as long as the memory is away.
        watched_s: How long its present load has been watched.
        unseen: It has hardly been seen yet: it may only pause.
    """

    planned_per_s: float = 0.0
    most_per_s: float = 0.0
    lasts_s: float = math.inf
    promised_s: float | None = None
    watched_s: float = 0.0
    unseen: bool = False


class Memory(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that is carried over.

    Attributes:
        version: Of this format: what another version wrote is forgotten.
        guests: By name.
        squeeze: The reclaim probe under way.
        squeezed: Guests that have had theirs under their present load: its accesses by then.
    """

    version: int = VERSION
    guests: dict[str, Known] = {}
    squeeze: Squeeze | None = None
    squeezed: dict[str, int] = {}


def recalled(carry: Any) -> Memory:
    """Return what a decision before has carried over; nothing if that was another policy, or another version."""
    if not isinstance(carry, dict) or carry.get("version") != VERSION:
        return Memory()
    try:
        return msgspec.convert(carry, Memory)
    except msgspec.ValidationError:
        return Memory()


def carried(memory: Memory) -> dict[str, Any]:
    """Return what to carry over, JSON-like."""
    return {"version": VERSION, **msgspec.to_builtins(memory)}


def updated(memory: Memory, snapshot: Snapshot, horizon_s: float, tuning: Tuning) -> Memory:
    """Return what is remembered with what the snapshot adds."""
    squeezed = "" if memory.squeeze is None else memory.squeeze.name
    guests = {}
    for guest in snapshot.guests:
        known = memory.guests.get(guest.name) or _first(guest, snapshot.time_s)
        if guest.decidable:
            known = _paced(known, guest, snapshot.time_s, horizon_s, tuning)
        if guest.curve is not None:
            known = _with_load(known, guest, snapshot.time_s, tuning)
            known = structs.replace(known, points=noted(known.points, guest, squeezed=guest.name == squeezed))
        guests[guest.name] = known
    return structs.replace(memory, guests=guests)


def _first(guest: GuestSnapshot, time_s: float) -> Known:
    """Return what is remembered of a guest that is seen for the first time: when it was, and which load it has."""
    since_s = time_s - (guest.interval_s or 0.0)
    known = Known(since_s=since_s, seen_s=since_s, load_since_s=since_s)
    if guest.curve is None:
        return known
    lasted_s = guest.curve.steady_accesses / accesses_per_s(guest) if accesses_per_s(guest) else 0.0
    return structs.replace(known, load=guest.curve.load, load_since_s=min(since_s, time_s - lasted_s))


def pauses(known: Known, time_s: float, tuning: Tuning) -> bool:
    """Return whether a guest rests, but not for long enough to be idle: it would have to read anew what it lost."""
    return known.rests_since_s is not None and known.rested_s(time_s) < max(known.patience_s, tuning.patience_s)


def pace(guest: GuestSnapshot, known: Known, time_s: float, horizon_s: float, tuning: Tuning) -> Pace:
    """Return how fast a guest will read, and for how long."""
    lasts = lasts_s(known, time_s, horizon_s, tuning)
    return Pace(
        planned_per_s=planned_per_s(guest, known, time_s, tuning),
        most_per_s=max(accesses_per_s(guest), known.at_work.per_s if known.alternates else 0.0),
        lasts_s=lasts,
        # An idle guest proves nothing by being idle.
        promised_s=None if known.rests_since_s is not None else max(horizon_s, lasts),
        watched_s=time_s - max(known.since_s, known.load_since_s),
        unseen=time_s - known.since_s < tuning.patience_s,
    )


def planned_per_s(guest: GuestSnapshot, known: Known, time_s: float, tuning: Tuning) -> float:
    """Return the accesses per second to plan with: what a guest will do, which is not always what it does now."""
    now = accesses_per_s(guest)
    paused = pauses(known, time_s, tuning)
    # 1. It is idle. 2. It works and rests in turn, too fast for memory to follow: the average of both. 3. It pauses.
    if known.rests_since_s is not None and not paused:
        return now
    if known.alternates:
        return known.overall.per_s
    if paused:
        return known.at_work.per_s
    # 4. Its reads have piled up, perhaps for a moment: it may only catch up with a rate of its own. 5. Else as now.
    piled_up = bool(guest.waits) and (guest.waits or 0.0) < 1.0 / OUTSTANDING_SURE
    return min(now, known.overall.per_s) if piled_up else now


def lasts_s(known: Known, time_s: float, horizon_s: float, tuning: Tuning) -> float:
    """Return how long a load is thought to go on.

    As long as those before it, if there were some; one that has lasted for longer already, as long again.
    """
    so_far = max(0.0, time_s - known.load_since_s)
    usual = max(known.lasted_s) if len(known.lasted_s) >= tuning.loads_least else horizon_s
    if so_far < usual and len(known.lasted_s) >= tuning.loads_least:
        return max(1.0, usual - so_far)
    return max(so_far, min(usual, horizon_s))


def _paced(known: Known, guest: GuestSnapshot, time_s: float, horizon_s: float, tuning: Tuning) -> Known:
    """Return what is known with the rate of the last interval: at work, at rest, or just awake."""
    seconds, now = guest.interval_s or 0.0, accesses_per_s(guest)
    began_s = time_s - seconds
    if began_s - known.seen_s > max(seconds, tuning.patience_s):  # it was not seen for a while: that was no rest
        known = structs.replace(known, since_s=began_s, rests_since_s=None)
    known = structs.replace(known, seen_s=time_s, overall=known.overall.with_more(now, seconds, horizon_s))
    if now <= tuning.rest_share * known.at_work.per_s:
        # Who faults pages in, or swaps, is at work in its own way: its rest does not grow.
        works = (guest.page_ins_per_s or 0.0) > tuning.rest_share * known.at_work.per_s
        since = began_s if works or known.rests_since_s is None else known.rests_since_s
        known = structs.replace(known, rests_since_s=since)
        if pauses(known, time_s, tuning):
            return known
        return structs.replace(known, at_work=known.at_work.faded(seconds, tuning.rest_half_life_s))
    rested = known.rested_s(began_s)
    patience = known.patience_s
    if known.at_work.seconds > 0 and rested >= max(patience, tuning.patience_s):  # it had been taken for idle
        patience = tuning.patience_times * rested if rested <= horizon_s else 0.0
    at_work = known.at_work.with_more(now, seconds, horizon_s)
    return structs.replace(known, at_work=at_work, rests_since_s=None, patience_s=patience)


def _with_load(known: Known, guest: GuestSnapshot, time_s: float, tuning: Tuning) -> Known:
    """Return what is known with a change of load noted, if there was one."""
    assert guest.curve is not None
    if guest.curve.load == known.load:
        return known
    lasted_s = time_s - known.load_since_s
    lasted = (*known.lasted_s, lasted_s)[-2:] if lasted_s >= tuning.load_least_s else known.lasted_s
    return structs.replace(known, load=guest.curve.load, load_since_s=time_s, lasted_s=lasted)
