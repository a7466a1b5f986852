"""Guests without guests: seeded references through a model of Linux's page replacement, at whatever size is given.

A `ReplayGuest` yields what a real one does: exact counts, sampled accesses, and (with its `CurveTracker`) a curve. A
`ReplayHost` lets a policy split a budget among several, as fast as the machine can, with no clock and no I/O::

    zipf = ReplayGuest("a", Zipf(exponent=0.99), file_bytes=GIB, accesses_per_s=20_000, size_bytes=700 * MIB)
    loop = ReplayGuest("b", Sequential(), file_bytes=512 * MIB, accesses_per_s=20_000, size_bytes=700 * MIB)
    host = ReplayHost([zipf, loop], budget_bytes=1400 * MIB)
    policy = load("curve", {})
    for _ in range(60):
        host.step(policy)
    print(host.last_hits, zipf.size_bytes)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.mapping import SizeMapping
from qmpalloc.curves.replacement import Replacement
from qmpalloc.curves.samples import BLOCK_SHIFT, Window
from qmpalloc.curves.service import ServiceTimes
from qmpalloc.curves.simulation import POLICIES
from qmpalloc.curves.tracker import CurveTracker
from qmpalloc.experiment.spec.access import Access
from qmpalloc.experiment.spec.references import page_numbers
from qmpalloc.idle import IdleMemory
from qmpalloc.model import Decision, GuestSnapshot, GuestState, Policy, Snapshot
from qmpalloc.returns import EDGES, ReturnsTracker
from qmpalloc.rules.limits import apply_limits
from qmpalloc.sample import AGE_BINS, GHOST_BINS, Delta, Memory, RefaultDistances
from qmpalloc.units import MIB, PAGE_BYTES, align_down

_CHUNK = 1_000
_STEP_S = 1.0
_LEVELS = 10

_FIRST_PAGES = 16 << BLOCK_SHIFT
"""End of the first bin of refault distances, as in ``guest_agent/ghosts.py``."""

_NONE = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))

OUTSTANDING = 250
"""Reads that wait for the disk at a time when they come faster than it serves them: Linux lets 256 queue for it, and
real guests had 250 of them (QEMU's ``rd_total_time_ns`` by time)."""


class ReplayGuest:
    """A guest with a load that reads a file, and the page cache that serves it.

    To be fast, one page in the model stands for `scale` pages of the guest; all that is seen from outside is in pages
    and bytes of the guest.

    Attributes:
        name: Of the guest.
        size_bytes: What the balloon leaves it; set it with `resize`.
        floor_bytes: The least it may be set to.
        cap_bytes: The most.
        baseline_bytes: Its size under a static split; its size at first.
        accesses_per_s: Pages read per second; by a load that waits, if all of them hit.
        miss_s: Additional time of a miss; 0 for a load that does not wait.
        due_per_s: Rate of its own at which reads come, whatever became of those before; None: one comes when the one
            before is done. What could not be done in time is caught up with as fast as the misses let it.
        weight: Relative importance.
        own_bytes: Memory that is never cache.
        pages_read: Pages of the model that were read in the last `advance`, in order.
        references: The pages of the model's file that are read next, without end; may be replaced by the same, cached.
        tracker: Its curve.
        mapping: From its size to its cache.
        service: What a miss costs it.
    """

    def __init__(
        self,
        name: str,
        access: Access,
        *,
        file_bytes: int,
        accesses_per_s: float,
        size_bytes: int,
        lru: str = "lru_gen",
        own_bytes: int = 160 * MIB,
        floor_bytes: int = 224 * MIB,
        cap_bytes: int = 4096 * MIB,
        miss_s: float = 0.0,
        due_per_s: float | None = None,
        weight: float = 1.0,
        scale: int = 8,
        seed: int = 1,
        observed: bool = True,
        aged: bool = True,
        ghosts: bool = False,
    ) -> None:
        """Make a guest with an empty cache.

        Args:
            name: Of the guest.
            access: How its load reads.
            file_bytes: What it reads.
            accesses_per_s: How fast, if all hit.
            size_bytes: Its memory at first, and under a static split.
            lru: Its page replacement, a name of `qmpalloc.curves.simulation.POLICIES`.
            own_bytes: Memory that is never cache.
            floor_bytes: The least it may be set to.
            cap_bytes: The most.
            miss_s: Additional time of a miss; 0 for a load that does not wait for its reads.
            due_per_s: Rate of its own at which reads come, if that is not as fast as they are done.
            weight: Relative importance.
            scale: Pages of the guest that one page of the model stands for, a power of two up to 64.
            seed: Of its references.
            observed: False spares the work of sampling and of its curve.
            aged: Whether its kernel tells how long memory has not been touched.
            ghosts: Whether its collector tells how far evicted pages had gone when they came back.
        """
        self.name = name
        self.size_bytes = self.baseline_bytes = size_bytes
        self.floor_bytes, self.cap_bytes = floor_bytes, cap_bytes
        self.accesses_per_s, self.miss_s, self.weight = accesses_per_s, miss_s, weight
        self.due_per_s = due_per_s
        self._lru, self.own_bytes, self._scale, self._seed = lru, own_bytes, scale, seed
        self._generation = self._files = 0
        self._observed, self._aged = observed, aged
        self._returns = ReturnsTracker() if ghosts else None
        self._came: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._time_s = 0.0
        self._salt = np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
        self.tracker = CurveTracker(lru, self._room_pages(floor_bytes) * scale, self._room_pages(cap_bytes) * scale)
        self.mapping, self.service = SizeMapping(system_pages=0, kept_bytes=0), ServiceTimes()
        self._touched_s = np.empty(0)
        self.load(access, file_bytes)
        self.drop_cache()
        self.hits = self.misses = self.refaults = self.interval_s = 0.0
        self.pages_read = np.empty(0, dtype=np.int64)

    def load(self, access: Access, file_bytes: int, *, file: int | None = None) -> None:
        """Read another file from now on; the pages of the one before stay cached until they are evicted.

        Args:
            access: How.
            file_bytes: Its size.
            file: The number of a file that was read before, from 1; None: a new one.
        """
        self._files += file is None
        self._generation = self._files if file is None else file
        self._pages = max(1, file_bytes // PAGE_BYTES // self._scale)
        self._due = 0.0
        self._seen = np.zeros(self._pages, dtype=bool)
        ended = self.first_page + self._pages - len(self._touched_s)
        self._touched_s = np.append(self._touched_s, np.full(max(0, ended), -np.inf))
        phase = str(self._generation)
        self.references: Iterator[int] = page_numbers(
            access, self._pages, seed=self._seed, guest=self.name, phase=phase
        )

    def resize(self, size_bytes: int) -> None:
        """Set the size, as a balloon does at once; what no longer fits is evicted."""
        self.size_bytes = size_bytes
        before = self.cache.holds()
        self.cache.resize(self._room_pages(size_bytes))
        self._note_gone(before)

    def read_through(self) -> None:
        """Read the present file once from end to end, unobserved and in no time: to warm the cache up."""
        self.cache.grow(self.first_page + self._pages)
        self.cache.read(range(self.first_page, self.first_page + self._pages))
        self._seen[:] = True
        self._touched_s[self.first_page : self.first_page + self._pages] = self._time_s

    def drop_cache(self) -> None:
        """Begin with an empty cache, as after a boot."""
        pages = self.first_page + self._pages
        self.cache: Replacement = POLICIES[self._lru](self._room_pages(self.size_bytes), pages, scale=self._scale)
        self._left_at, self._clock = np.zeros(0, dtype=np.int64), 0

    def _read(self, numbers: NDArray[np.int64]) -> int:
        """Read pages; note which came back after how many others were evicted. Return how many missed."""
        if self._returns is None:
            return self.cache.read(numbers.tolist())
        before = self.cache.holds()
        missed = self.cache.read(numbers.tolist())
        self._left_at.resize(len(before), refcheck=False)  # with zeros
        came = np.unique(numbers[~before[numbers]])
        came = came[self._left_at[came] > 0]
        self._came.append((came, self._clock - self._left_at[came]))
        self._left_at[came] = 0
        self._note_gone(before)
        return missed

    def _note_gone(self, before: NDArray[np.bool_]) -> None:
        """Note when the pages that were there before were evicted."""
        if self._returns is None:
            return
        self._left_at.resize(len(before), refcheck=False)
        gone = np.flatnonzero(before & ~self.cache.holds())
        self._clock += len(gone)
        self._left_at[gone] = self._clock

    def _distances(self) -> RefaultDistances:
        """Return what a collector would tell of the pages that came back since the last time, one of every 64."""
        pages, distances = (np.concatenate(each) for each in zip(*self._came, strict=True)) if self._came else _NONE
        self._came = []
        watched = mixed(pages.astype(np.uint64) + self._salt) % np.uint64(2**BLOCK_SHIFT // self._scale) == 0
        bins = np.searchsorted(EDGES, distances[watched] * self._scale / _FIRST_PAGES, side="right") - 1
        counts = np.bincount(bins, minlength=GHOST_BINS).tolist()
        none = (0,) * GHOST_BINS
        return RefaultDistances(pages_each=2**BLOCK_SHIFT, pages_first=_FIRST_PAGES, read=tuple(counts), fault=none)

    def advance(self, seconds: float) -> None:
        """Let the load run, and observe it."""
        left_s, accesses, misses, known = seconds, 0, 0, int(self._seen.sum())
        parts: list[NDArray[np.int64]] = []
        each_s = self._scale / self.accesses_per_s if self.accesses_per_s > 0 else float("inf")
        self._due = float("inf") if self.due_per_s is None else self._due + self.due_per_s * seconds / self._scale
        longest_s = each_s + self.miss_s * self._scale
        while left_s >= each_s and self._due >= 1:
            count = int(min(_CHUNK, max(1.0, left_s / longest_s), self._due))
            pages = list(islice(self.references, count))
            numbers = np.array(pages, dtype=np.int64) + self.first_page
            self.cache.grow(self.first_page + self._pages)
            missed = self._read(numbers)
            self._seen[pages] = True
            self._due -= count
            left_s -= count * each_s + missed * self.miss_s * self._scale
            accesses += count
            misses += missed
            parts.append(numbers)
        scale = self._scale
        self.hits, self.misses = float((accesses - misses) * scale), float(misses * scale)
        # A load that has nothing to do rests; one that is at work ends its last read later than asked.
        self.interval_s = seconds - (left_s if self.due_per_s is None and accesses else min(0.0, left_s))
        self.refaults = float(max(0, misses + known - int(self._seen.sum())) * scale)
        self.pages_read = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        self._time_s += seconds
        self._touched_s[self.pages_read] = self._time_s
        self._observe(self.pages_read, accesses * scale, misses * scale)
        if self._returns is not None:
            interval = Delta(interval_s=seconds, misses=round(self.misses), refault_distances=self._distances())
            self._returns.observe(interval, self.size_bytes)

    def snapshot(self) -> GuestSnapshot:
        """Return what a policy sees."""
        rate = (self.hits + self.misses) / self.interval_s if self.interval_s else 0.0
        ghosts = self.tracker.ghosts() if self._observed else None
        return GuestSnapshot(
            name=self.name,
            state=GuestState.FRESH,
            target_bytes=self.size_bytes,
            actual_bytes=self.size_bytes,
            charge_bytes=self.size_bytes,
            floor_bytes=self.floor_bytes,
            cap_bytes=self.cap_bytes,
            baseline_bytes=self.baseline_bytes,
            weight=self.weight,
            hits=round(self.hits),
            misses=round(self.misses),
            refaults=round(self.refaults),
            memory=self._memory(),
            resident_bytes=min(self.size_bytes, self.own_bytes + self.cached_pages * PAGE_BYTES),
            in_use_bytes=self.own_bytes,
            idle=self._idle() if self._aged else None,
            returns=None if self._returns is None else self._returns.returns,
            interval_s=self.interval_s or None,
            curve=self.tracker.curve(self.mapping, self.floor_bytes, self.cap_bytes) if self._observed else None,
            ghost_gain=None if ghosts is None else ghosts[0] * rate,
            ghost_loss=None if ghosts is None else ghosts[1] * rate,
            hit_s=self.service.hit_s,
            miss_s=self.service.miss_s,
            waits=self.service.waits,
        )

    @property
    def cached_pages(self) -> int:
        """Pages of its files in its cache."""
        return self.cache.resident * self._scale

    @property
    def file_pages(self) -> int:
        """Pages of the present file."""
        return self._pages * self._scale

    @property
    def first_page(self) -> int:
        """Number of the first page of the present file: every file has pages of its own."""
        return (self._generation - 1) * 2**21 // self._scale

    def sampled(self, numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the keys of the accesses that a collector would ship: one page of every 64, or 64 / scale here."""
        slots = np.uint64(2**BLOCK_SHIFT // self._scale)
        blocks = numbers.astype(np.uint64) // slots
        keys = mixed(blocks + self._salt)
        watched = blocks * slots + (keys >> np.uint64(40)) % slots == numbers.astype(np.uint64)
        blocks, keys = blocks[watched], keys[watched]
        low = np.zeros(len(blocks), dtype=np.uint64)
        for level in range(_LEVELS):  # as in program.c
            ours, pair = blocks >> np.uint64(level), blocks >> np.uint64(level + 1)
            half = ours ^ mixed(pair + np.uint64((int(self._salt) + (level << 58)) % 2**64))
            low |= (half & np.uint64(1)) << np.uint64(level)
        return np.asarray(keys >> np.uint64(4) & ~np.uint64(2**_LEVELS - 1) | low)

    def _idle(self) -> IdleMemory:
        """Return how long nothing has read its cache: the pages cached are taken to be those read last."""
        cached = self.cache.resident
        touched = np.sort(self._touched_s)[::-1][:cached]
        frames = np.searchsorted(-touched, [_STEP_S * 2**power - self._time_s for power in range(AGE_BINS - 1)])
        scale = self._scale * PAGE_BYTES
        return IdleMemory(
            seconds=tuple(_STEP_S * 2**power for power in range(AGE_BINS - 1)),
            read=tuple(int(cached - count) * scale for count in frames),
            unread=(0,) * (AGE_BINS - 1),
        )

    def _room_pages(self, size_bytes: int) -> int:
        return max(1, (size_bytes - self.own_bytes) // PAGE_BYTES // self._scale)

    def _memory(self) -> Memory:
        """Return what the guest's kernel tells: all that is not cache belongs to programs, and there is no swap."""
        file_bytes = self.cached_pages * PAGE_BYTES
        free = max(0, self.size_bytes - self.own_bytes - file_bytes)
        return Memory(
            total=self.size_bytes,
            free=free,
            available=free + file_bytes,
            active_file=0,
            inactive_file=file_bytes,
            anon=self.own_bytes,
            shmem=0,
            swap_total=0,
            swap_free=0,
        )

    def _observe(self, numbers: NDArray[np.int64], accesses: int, misses: int) -> None:
        memory = self._memory()
        evicting = self.cache.resident >= self.cache.capacity
        self.mapping.observe(self.size_bytes, memory, evicting=evicting)
        if not accesses or not self._observed:
            return
        keys = self.sampled(numbers)
        self.tracker.observe(Window(keys=keys, accesses=accesses, lost=0, shift=BLOCK_SHIFT))
        cached = self.mapping.cached_pages(memory)
        assert cached is not None
        self.tracker.measure(accesses, misses, cached, self.interval_s, evicting=evicting)
        self.service.observe(accesses, misses, self.interval_s, disk_miss_s=self._disk_miss_s())

    def _disk_miss_s(self) -> float | None:
        """Return what QEMU would measure for a read: with those it waits for, if reads have piled up."""
        behind = self.due_per_s is not None and self._due >= OUTSTANDING
        return self.miss_s * (OUTSTANDING if behind else 1) or None


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a hash of each number (the finaliser of MurmurHash3)."""
    with np.errstate(over="ignore"):
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            numbers = (numbers ^ (numbers >> np.uint64(33))) * np.uint64(factor)
    return np.asarray(numbers ^ (numbers >> np.uint64(33)))


class ReplayHost:
    """A host that splits its memory among replay guests by a policy.

    Attributes:
        guests: In the order of the configuration.
        budget_bytes: What they have together.
        interval_s: Time between decisions.
        time_s: Time that has passed.
        decision: The last one, after limits; None before the first.
        moved_bytes: Memory given to guests so far.
        moves: Decisions so far that changed a size.
    """

    def __init__(self, guests: Sequence[ReplayGuest], *, budget_bytes: int, interval_s: float = 5.0) -> None:
        self.guests = tuple(guests)
        self.budget_bytes, self.interval_s = budget_bytes, interval_s
        self.time_s = 0.0
        self.decision: Decision | None = None
        self.moved_bytes = self.moves = 0
        self._cycle = 0

    @property
    def last_hits(self) -> float:
        """Hits of all guests in the last interval."""
        return sum(guest.hits for guest in self.guests)

    @property
    def last_accesses(self) -> float:
        """Accesses of all guests in the last interval."""
        return sum(guest.hits + guest.misses for guest in self.guests)

    def step(self, policy: Policy | None = None) -> None:
        """Let all guests run for an interval, then ask the policy; None leaves the sizes as they are."""
        for guest in self.guests:
            guest.advance(self.interval_s)
        self.time_s += self.interval_s
        if policy is not None:
            self._decide(policy)

    def snapshot(self) -> Snapshot:
        """Return what a policy sees."""
        return Snapshot(
            cycle=self._cycle,
            time_s=self.time_s,
            budget_bytes=self.budget_bytes,
            interval_s=self.interval_s,
            guests=tuple(guest.snapshot() for guest in self.guests),
            carry=None if self.decision is None else self.decision.carry,
        )

    def _decide(self, policy: Policy) -> None:
        self._cycle += 1
        snapshot = self.snapshot()
        self.decision = apply_limits(snapshot, policy.decide(snapshot), {})
        changed = 0
        for guest, verdict in zip(self.guests, self.decision.guests, strict=True):
            changed += max(0, verdict.target_bytes - guest.size_bytes)
            if verdict.target_bytes != guest.size_bytes:
                guest.resize(align_down(verdict.target_bytes))
        self.moved_bytes += changed
        self.moves += changed > 0
