"""The values that pass between the parts: what is known of the guests, and what was decided.

All are immutable. A policy is a pure function from a `Snapshot` to a `Decision`; the record stores both, so that any
other policy can be asked what it would have done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import msgspec

from qmpalloc.idle import IdleMemory
from qmpalloc.returns import Returns
from qmpalloc.sample import Memory, PageIns
from qmpalloc.units import MIB, Grid, format_size


class GuestState(StrEnum):
    """What the host knows of a guest. Only a guest that is `FRESH` takes part in decisions."""

    CONNECTING = "connecting"  # no monitor connection yet
    WARMING = "warming"  # connected; the agent or the collector has not delivered two samples yet
    FRESH = "fresh"  # samples arrive in time
    LATE = "late"  # the last sample is older than it should be: hold
    LOST = "lost"  # no usable sample for long: back to baseline
    PAUSED = "paused"  # QEMU has stopped the virtual CPUs: hold
    HELD = "held"  # connected, but must not be controlled (neither balloon nor virtio-mem, …)
    HUNG = "hung"  # the monitor does not answer; its memory stays charged
    GONE = "gone"  # QEMU has ended; its memory is free


class MemorySizes(msgspec.Struct, frozen=True, kw_only=True):
    """What memory a QEMU gives its guest. Memory is plugged and unplugged while a guest runs, so ask again.

    Attributes:
        ram_bytes: The most that its size can be. With a balloon the RAM that ``query-balloon`` counts down from: what
            QEMU was started with and its DIMMs. With virtio-mem that, and all that the device can plug.
        outside_bytes: Memory that its size does not hold: virtio-mem that does not move the guest's memory, with what
            it has, or what it was asked to have where that is more.
        other_bytes: What else was plugged: NVDIMM and virtio-pmem, a file that the guest sees as memory.
        grid: The sizes that it can be set to.
    """

    ram_bytes: int
    outside_bytes: int = 0
    other_bytes: int = 0
    grid: Grid = Grid()


class Limiter(StrEnum):
    """What determined a guest's target."""

    POLICY = "policy"  # the policy's own wish, unhindered
    FLOOR = "floor"
    CAP = "cap"
    BUDGET = "budget"
    STEP = "step"  # no guest loses more than this at once
    DANGER = "danger"  # the guest is short of memory it cannot do without
    GATE = "gate"  # the policy's condition for moving did not hold
    STUCK = "stuck"  # its size does not do what it is asked
    HOST = "host"  # the host itself is short of memory
    STATE = "state"  # the guest is not fresh
    PAUSE = "pause"  # a person has paused control
    PERSON = "person"  # a person has chosen the guest's size
    NONE = "none"  # nothing to change


UNMEASURED = "no miss ratio measured at this size yet"
"""A curve's weakness that passes by itself, when its guest's size has not changed for a while."""


ROUNDING_BYTES = 8 * MIB
"""What a policy gives or takes beside its moves, but less than this, is the rounding of its steps: not told."""


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """A guest's miss-ratio curve as it is thought to be now.

    Attributes:
        sizes_bytes: Memory sizes of the guest, rising.
        miss_ratio: Misses by accesses at each size, 0 to 1, never rising; one entry per size.
        weak: Why the curve must not be acted on; empty when it may.
        suspect: Whether samples are missing or were refused, so that it is not just too early for a good curve.
        deviation: Standard deviation of each miss ratio by what is uncertain about the sample; empty if not known.
        cached_bytes: Page cache the guest has now, where `measured` holds.
        measured: Miss ratio measured at the present size; None when not known.
        contradicted: By how much `measured` is above what the curve said, before it was corrected, anywhere near the
            present size; 0 if that is too little to doubt the curve, negative if it is below.
        steady_accesses: Accesses since the load was last seen to change, or since it was first seen.
        load: Number of the load: another one after each change, and after the guest or its collector began anew.
        stale: Share of the accesses that miss because pages of the load before still fill the cache; 0 unless it is
            beyond doubt.
        unread_bytes: How much of the cache, at least, was not read since the load was seen to change.
        unused_bytes: How much less cache would do for what it misses now, as pages of the load before fill the rest;
            at least `unread_bytes`.
        turned_over: Whether the load has read more different pages than the cache holds, which evicts: what it misses
            is not for want of time to fill it.
        pages_per_sampled: The curve rests on one page of so many; more when the rate of the sample was lowered.
        estimator: How the curve was made, for example ``lru_gen``.
    """

    sizes_bytes: tuple[int, ...]
    miss_ratio: tuple[float, ...]
    weak: tuple[str, ...] = ()
    suspect: bool = False
    deviation: tuple[float, ...] = ()
    cached_bytes: int | None = None
    measured: float | None = None
    contradicted: float = 0.0
    steady_accesses: int = 0
    load: int = 0
    stale: float = 0.0
    unread_bytes: int = 0
    unused_bytes: int = 0
    turned_over: bool = False
    pages_per_sampled: int = 0
    estimator: str = ""

    @property
    def settling(self) -> bool:
        """True when nothing is wrong with it but that the guest's size, or what fills it, has just changed."""
        return self.weak == (UNMEASURED,)


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """A size that a person chose for a guest while a run goes on. No policy changes it; danger and the host do.

    Attributes:
        size_bytes: The size.
        why: For people: who chose it, and for how long.
        floor_bytes: The guest's own floor: a policy is shown the size in its place.
        cap_bytes: Its own cap, the same.
    """

    size_bytes: int
    why: str
    floor_bytes: int
    cap_bytes: int


class GuestSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One guest at the moment of a decision. Sizes in bytes; counts in pages since the last decision.

    Attributes:
        name: The guest's name in the configuration.
        state: Only `GuestState.FRESH` guests may be given a new target.
        target_bytes: Size last decided; the ledger may still be on its way there, donors first.
        actual_bytes: Size QEMU reports.
        charge_bytes: What the ledger counts against the budget: max(size last asked of QEMU, actual), or more while
            the outcome of a command is unknown; and `outside_bytes`.
        floor_bytes: The least it may be set to now: the larger of the configured floor and what it cannot give up.
        cap_bytes: The most it may be set to.
        baseline_bytes: The size it is returned to when control ends.
        outside_bytes: Memory it has beside what is moved (virtio-mem beside a balloon): only the charge holds it.
        grid: The sizes that it can be set to: a target between two of them is rounded down.
        weight: Relative importance; 1.0 unless configured.
        hits: Page-cache hits of reads since the last decision; None when not known.
        misses: Pages the kernel had to bring in for reads since the last decision; None when not known.
        interval_s: Guest time that `hits` and `misses` cover, seconds; None when not known.
        refaults: Pages of files that had been evicted and came back, same interval.
        faults: Pages brought in by page faults (``mmap``, programs), same interval; their hits are not counted.
        faults_major: Page faults that did not find their page, same interval: each brings in one page or more.
        swap_ins: Pages read back from swap, same interval.
        swap_ins_zram: Of these, the ones from zram, for which no disk is read; None if it does not tell.
        memory: The guest's memory facts in its last sample.
        resident_bytes: Memory of its QEMU that the host has behind it, QEMU's own included; None when not known.
        in_use_bytes: The size below which it would lose memory of which nobody counts how it is used: what it cannot
            give up, and the files that its programs map, with what must be available beside; without what nothing has
            touched for a minute, where that is known. None if it does not tell.
        idle: How long nothing has touched its memory; None where its kernel does not tell.
        returns: What it brings in again that more memory would have kept; None where that is not known.
        rescue_bytes: The size it is to have while it is in danger; 0 when it is not.
        psi_some_avg10: Per cent of time that some task waited for memory, 10 s average.
        pin: The size that a person chose for it; None where nobody did. See `qmpalloc.rules.pins`.
        frozen: Why it can give nothing now whatever a policy decides (it was in danger, or its size does not move);
            empty when it can.
        curve: Its miss-ratio curve; None where it is not sampled.
        no_curve: Why there is none, for people.
        ghost_gain: Hits per second that one more MiB would bring, from pages evicted not long ago; None if not known.
        ghost_loss: Hits per second that one MiB less would cost; None if not known.
        hit_s: Time of a hit as the load sees it, seconds by access; None if not known.
        miss_s: Additional time of a miss, the same; None if not known.
        waits: Whether the load waits for its reads, so that it goes faster when it misses less: 1 for a load that does,
            0 for reads that come at a rate of their own, 1/n for one that has n reads outstanding; None if not known.
        disk_read_pages: Pages that QEMU itself has seen being read from the guest's disks, all together, in the same
            interval as `hits`; None if not known.
        page_ins_lately: Pages of the last minutes for which its disks must have been read (`PageIns.from_disks`), each
            counting half after a minute; None if not known.
        disk_read_pages_lately: Pages that QEMU has seen being read, the same.
    """

    name: str
    state: GuestState
    target_bytes: int
    actual_bytes: int
    charge_bytes: int
    floor_bytes: int
    cap_bytes: int
    baseline_bytes: int
    outside_bytes: int = 0
    grid: Grid = Grid()
    weight: float = 1.0
    hits: int | None = None
    misses: int | None = None
    interval_s: float | None = None
    refaults: int | None = None
    faults: int | None = None
    faults_major: int | None = None
    swap_ins: int | None = None
    swap_ins_zram: int | None = None
    memory: Memory | None = None
    resident_bytes: int | None = None
    in_use_bytes: int | None = 0
    idle: IdleMemory | None = None
    returns: Returns | None = None
    rescue_bytes: int = 0
    psi_some_avg10: float | None = None
    pin: Pin | None = None
    frozen: str = ""
    curve: Curve | None = None
    no_curve: str = "accesses are not sampled"
    ghost_gain: float | None = None
    ghost_loss: float | None = None
    hit_s: float | None = None
    miss_s: float | None = None
    waits: float | None = None
    disk_read_pages: int | None = None
    page_ins_lately: int | None = None
    disk_read_pages_lately: int | None = None

    @property
    def promised_bytes(self) -> int:
        """What of the budget is not there for others while it is left as it is: its charge, or more if decided so."""
        return max(self.charge_bytes, self.target_bytes + self.outside_bytes)

    @property
    def decidable(self) -> bool:
        """True when the guest is fresh and its counts are known."""
        return self.state is GuestState.FRESH and self.accesses_per_s is not None

    @property
    def accesses(self) -> int:
        """Pages touched by reads since the last decision, as far as known."""
        return (self.hits or 0) + (self.misses or 0)

    @property
    def accesses_per_s(self) -> float | None:
        """Pages touched by reads per second; None when not known."""
        if self.hits is None or self.misses is None or not self.interval_s:
            return None
        return max(0, self.accesses) / self.interval_s

    @property
    def miss_ratio(self) -> float:
        """Misses by accesses since the last decision, 0 to 1; 0 when there were none or they are not known.

        In one interval, hits may be slightly negative (see `qmpalloc.sample.Delta`).
        """
        return min(1.0, max(0, self.misses or 0) / max(1, self.accesses))

    @property
    def page_ins(self) -> PageIns:
        """What was brought in since the last decision, by cause."""
        return PageIns(reads=self.misses, faults=self.faults, swap_ins=self.swap_ins, swap_ins_zram=self.swap_ins_zram)

    @property
    def page_ins_per_s(self) -> float | None:
        """Pages per second brought in for whatever cause, as far as known; None when none is."""
        total = self.page_ins.total
        return total / self.interval_s if total is not None and self.interval_s else None

    @property
    def undecidable(self) -> str:
        """Why the guest is not `decidable`, for people; empty when it is."""
        if self.decidable:
            return ""
        if self.state is not GuestState.FRESH:
            return f"not fresh but {self.state}"
        if self.interval_s is None:
            return "counts not known yet"
        return "its hits are not counted: see qmpalloc doctor"


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What the host's kernel tells. None is unknown.

    Attributes:
        total_bytes: RAM.
        available_bytes: What can be had without swapping (``MemAvailable``).
        swapped_in_pages: Since boot.
        stalled_us: Microseconds since boot for which all tasks waited for memory (PSI, ``full``).
        psi_some_avg10: Per cent of time that some task waited for memory, 10 s average.
        group_left_bytes: What the control groups of this process still allow, cache that can be dropped counted as
            free; None without a limit. The guests are in the same groups only if they were started from here.
        group_limit_bytes: The limit of which that is left.
        unread: What the kernel tells and could not be read, with the reason.
    """

    total_bytes: int | None = None
    available_bytes: int | None = None
    swapped_in_pages: int | None = None
    stalled_us: int | None = None
    psi_some_avg10: float | None = None
    group_left_bytes: int | None = None
    group_limit_bytes: int | None = None
    unread: tuple[str, ...] = ()

    @property
    def left_bytes(self) -> int | None:
        """What is left, of the host or of the control group, whichever is less; None if neither is known."""
        known = (size for size in (self.available_bytes, self.group_left_bytes) if size is not None)
        return min(known, default=None)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All guests at the moment of a decision.

    Attributes:
        cycle: Number of the decision, from 1.
        time_s: Seconds since the run began.
        budget_bytes: What the host gives to all guests together.
        interval_s: Configured time between decisions.
        guests: In the order of the configuration.
        host: The host's own memory; None when not known.
        carry: What the policy's previous decision carried over; None in the first cycle. Policies keep no state of
            their own, so that a decision depends on its snapshot alone.
    """

    cycle: int
    time_s: float
    budget_bytes: int
    interval_s: float
    guests: tuple[GuestSnapshot, ...]
    host: HostMemory | None = None
    carry: Any = None


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Memory that goes from one guest to another in a decision."""

    donor: str
    receiver: str
    size_bytes: int


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy stands for when it takes memory from a guest. Whoever breaks it gets the memory back.

    Attributes:
        page_ins_per_s: Pages per second that the guest brings in at the new size, at most.
        for_s: How long that must hold to be believed, seconds; None: for as long as the memory is away, as where a
            guest is taken to be idle.
    """

    page_ins_per_s: float
    for_s: float | None = None


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """Between which bounds a policy believes a guest's miss ratio to be, at every size: for people, and for a record.

    Attributes:
        sizes_bytes: Memory sizes of the guest, rising; between them the bounds are straight.
        least: Misses by accesses at each size, at least, 0 to 1, never rising.
        most: The same, at most.
        accesses_per_s: Pages that the guest is expected to access per second: what it brings in is that times a bound.
        measured: Miss ratio measured at the present size; None when not known.
        source: What the bounds rest on, for people.
    """

    sizes_bytes: tuple[int, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    accesses_per_s: float
    measured: float | None = None
    source: str = ""


class GuestDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision means for one guest.

    Attributes:
        name: The guest.
        target_bytes: The size it is to have.
        reason: One short clause for people: why this target.
        limiter: What determined it.
        terms: The policy's own numbers, for example ``{"e": 12.5}``; shown and recorded as they are.
        promise: What a smaller size costs it at most; None promises nothing, and then nothing is taken back.
        band: What is believed of it; None where a policy believes nothing, or does not tell.
    """

    name: str
    target_bytes: int
    reason: str
    limiter: Limiter = Limiter.NONE
    terms: dict[str, float] = {}
    promise: Promise | None = None
    band: Band | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one policy call: a target for every guest of the snapshot.

    Attributes:
        guests: One entry per guest of the snapshot, same order.
        moves: The transfers that make up the change, for people; empty when nothing moves.
        summary: One line for people.
        carry: Handed back in the next snapshot. JSON-like, so that it can be recorded.
    """

    guests: tuple[GuestDecision, ...]
    moves: tuple[Move, ...] = ()
    summary: str = ""
    carry: Any = None

    def target_of(self, name: str) -> int:
        """Return the target of the guest called `name`, in bytes."""
        return next(guest.target_bytes for guest in self.guests if guest.name == name)


@runtime_checkable
class Policy(Protocol):
    """Decides how the budget is split. Deterministic, no I/O, no state outside `Snapshot.carry`."""

    def decide(self, snapshot: Snapshot) -> Decision:
        """Return a target for every guest in `snapshot`."""
        ...


def hold(snapshot: Snapshot, reason: str, limiter: Limiter = Limiter.NONE) -> Decision:
    """Return the decision that changes nothing, for the given reason."""
    return Decision(
        guests=tuple(
            GuestDecision(name=guest.name, target_bytes=guest.target_bytes, reason=reason, limiter=limiter)
            for guest in snapshot.guests
        ),
        summary=reason,
        carry=snapshot.carry,
    )


def decision_of(
    snapshot: Snapshot, decisions: Iterable[GuestDecision], *, summary: str = "", carry: Any = None
) -> Decision:
    """Return the decision made of what is decided about each guest; its summary is what goes where, unless given."""
    guests = tuple(decisions)
    summary = summary or changes_text(snapshot, guests)
    return Decision(guests=guests, moves=moves_between(snapshot, guests), summary=summary, carry=carry)


def moves_between(snapshot: Snapshot, decisions: Sequence[GuestDecision]) -> tuple[Move, ...]:
    """Return the transfers that lead from the present targets to the decided ones, in the order of the guests."""
    changes = [
        (guest.name, decision.target_bytes - guest.target_bytes)
        for guest, decision in zip(snapshot.guests, decisions, strict=True)
    ]
    gives = {name: -change for name, change in changes if change < 0}
    moves = []
    for receiver, change in changes:
        wanted = max(change, 0)
        for donor, given in gives.items():
            size = min(wanted, given)
            if size > 0:
                moves.append(Move(donor=donor, receiver=receiver, size_bytes=size))
                gives[donor] -= size
                wanted -= size
    return tuple(moves)


def changes_text(snapshot: Snapshot, decisions: Sequence[GuestDecision]) -> str:
    """Return in one line, for people, what goes where: from guest to guest, and from or to what no guest has."""
    moves = moves_between(snapshot, decisions)
    parts = [f"{move.donor} → {move.receiver} {format_size(move.size_bytes)}" for move in moves]
    for guest, decision in zip(snapshot.guests, decisions, strict=True):
        got = sum(move.size_bytes for move in moves if move.receiver == guest.name)
        gave = sum(move.size_bytes for move in moves if move.donor == guest.name)
        left = decision.target_bytes - guest.target_bytes - got + gave
        if left >= ROUNDING_BYTES:
            parts.append(f"free → {guest.name} {format_size(left)}")
        elif left <= -ROUNDING_BYTES:
            parts.append(f"{guest.name} → free {format_size(-left)}")
    return "; ".join(parts) or "nothing moves"
