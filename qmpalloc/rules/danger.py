"""Signs that a guest is short of memory it cannot do without, as opposed to cache it would like. Pure.

Neither memory pressure as PSI reports it nor refaults are such a sign by themselves: waiting for a cached page to come
back counts as a memory stall, so a guest whose cache is too small shows both without being in danger. What is meant
here is the loss of memory that no policy may take: programs swapped, killed or waiting for an allocation, the pages
they are mapped from thrown out and read again and again, or nothing left to allocate.

Within the limit of a control group (a container's), programs are swapped and killed however much is free; no size of
the guest would change that.
"""

from __future__ import annotations

import math

from qmpalloc.curves.mapping import is_full
from qmpalloc.idle import idle_anonymous_bytes
from qmpalloc.sample import Sample
from qmpalloc.units import MIB, format_size

AVAILABLE_MIN_BYTES = 24 * MIB
AVAILABLE_MIN_SHARE = 0.04
SWAP_IN_PAGES_PER_S = 50.0
SWAP_WAIT_PERCENT = 10.0
"""Of the last ten seconds, for which some task waited for memory. Where cold memory has just been swapped out, a few
pages that were not so cold come back at once, and that is all."""

PRESSURE_SHARE = 0.5
"""Part of the time for which *all* tasks waited for memory, from which twice the available memory is required."""

THRASH_PAGES_PER_S = 200.0
SCARCE_SHARE = 0.15
"""With more than this available, reclaim has other pages to take: a program that starts reads its files once more."""

STALLS_PER_S = 100.0
RISE = 8.0
"""A rate is a sign from this many times its own recent level on, and not below the constants above."""

LEVEL_S = 60.0
"""Time constant of a recent level: what goes on for minutes is this guest's normal life."""

LEARN_S = 10.0
"""How long a rate must have been watched before a rise can be told."""

LEAD_S = 2.0
"""How far ahead the growth of programs is looked at: a reading, a donor's balloon and its own take as long."""

FREEZE_S = 60.0
"""How long a guest that was in danger gives nothing."""


_AT_FLOOR = 1.5
"""How many times the least available memory a guest is to have at its floor."""

COMFORT = 4
"""How many times the least available memory a guest that was in danger is to have."""

NEED_STEP_BYTES = 32 * MIB
"""Sizes that a guest in danger needs are told in steps of this, so that it is not moved for a trifle."""


def least_available_bytes(actual_bytes: int) -> int:
    """Return how much memory a guest of this size must have available so as not to be in danger."""
    return max(AVAILABLE_MIN_BYTES, int(actual_bytes * AVAILABLE_MIN_SHARE))


def with_reserve(used_bytes: int, reserve_bytes: int) -> int:
    """Return the least size of a guest that uses so much: with the reserve, and not at the edge of danger.

    What must be available is a share of the size, so that a fixed reserve is too little for a large guest: at its floor
    it would be in danger, and would get its memory back, and lose it again, for ever.
    """
    return max(used_bytes + reserve_bytes, int(used_bytes / (1.0 - _AT_FLOOR * AVAILABLE_MIN_SHARE)))


def available_bytes(sample: Sample) -> int | None:
    """Return what the guest has for programs: what its kernel calls available, and what it can swap out unnoticed.

    A guest that was taken memory for being cold has next to nothing available until it has swapped that out.
    """
    available = sample.memory_bytes.available
    return None if available is None else available + idle_anonymous_bytes(sample)


def growth_bytes(earlier: Sample | None, later: Sample) -> int:
    """Return what programs will have taken within `LEAD_S` if they go on as between the two samples; 0 if not known."""
    if earlier is None:
        return 0
    before, now = (_held(sample) for sample in (earlier, later))
    seconds = (later.monotonic_ns - earlier.monotonic_ns) / 1e9
    if before is None or now is None or seconds <= 0:
        return 0
    return int(max(0, now - before) / seconds * LEAD_S)


def _held(sample: Sample) -> int | None:
    anon, shmem = sample.memory_bytes.anon, sample.memory_bytes.shmem
    return None if anon is None or shmem is None else anon + shmem


def needed_bytes(sample: Sample, actual_bytes: int, *, short: bool, growth_bytes: int = 0) -> int:
    """Return the size at which a guest would have enough available again; 0 when it does not tell what it has.

    Args:
        sample: Its newest sample.
        actual_bytes: Its size as QEMU reports it.
        short: It shows a sign of danger now: then this is more than it has, whatever it says is available.
        growth_bytes: What its programs are about to take.
    """
    comfort = COMFORT * least_available_bytes(actual_bytes)
    available = available_bytes(sample)
    needed = 0 if available is None else max(0, actual_bytes - available) + growth_bytes + comfort
    if short:
        needed = max(needed, actual_bytes + comfort // 2)
    return -(-needed // NEED_STEP_BYTES) * NEED_STEP_BYTES


class Level:
    """The recent level of a rate, against which a rise shows."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._known_s = 0.0

    def rises(self, rate: float, seconds: float, least: float) -> bool:
        """Take a rate, per second, that held for `seconds`; return whether it is far above its recent level."""
        risen = self._known_s >= LEARN_S and rate > max(least, RISE * self._rate)
        self._known_s += seconds
        # At first the plain average, so that the level does not begin at 0.
        self._rate += (rate - self._rate) * max(1 - math.exp(-seconds / LEVEL_S), seconds / self._known_s)
        return risen

    @property
    def rate(self) -> float:
        """The level, per second."""
        return self._rate


def find_danger(
    earlier: Sample | None,
    later: Sample,
    actual_bytes: int,
    thrash: Level | None = None,
    stalls: Level | None = None,
) -> str | None:
    """Return why the guest is in danger, with the numbers, or None.

    Args:
        earlier: The accepted sample before, of the same series; None if there is none.
        later: The newest sample.
        actual_bytes: Its size as QEMU reports it.
        thrash: Its recent level of mapped pages read again; updated.
        stalls: Its recent level of allocations that had to wait; updated.
    """
    available = available_bytes(later)
    least = least_available_bytes(actual_bytes)
    lacks = _find_lack(earlier, later, least)
    if lacks:
        return lacks
    if earlier is None:
        return None
    was_full = any(
        each.memory_bytes.free is None or is_full(each.memory_bytes, actual_bytes) for each in (earlier, later)
    )
    killed = _find_kills(earlier, later, was_full=was_full)
    if killed:
        return killed
    seconds = (later.monotonic_ns - earlier.monotonic_ns) / 1e9
    if seconds <= 0:
        return None
    swapping = _find_swapping(earlier, later, seconds) if was_full else None
    lost = swapping or _find_standstill(earlier, later, seconds, least)
    if lost:
        return lost
    # Both levels are to learn from every sample, whatever the other one says.
    thrashing = _find_thrashing(earlier, later, seconds, thrash) if thrash is not None else None
    waiting = _find_waiting(earlier, later, seconds, stalls) if stalls is not None else None
    # Allocations wait for a page of the cache to be dropped as well: no sign while there is plenty of that.
    scarce = available is None or available < actual_bytes * SCARCE_SHARE
    return thrashing or waiting if scarce else None


def _find_lack(earlier: Sample | None, later: Sample, least: int) -> str | None:
    """Return why too little is available, or will be before anything can be done about it."""
    available, growth = available_bytes(later), growth_bytes(earlier, later)
    if available is None or available - growth >= least:
        return None
    if available < least:
        return f"danger: {format_size(available)} available, below {format_size(least)}"
    return f"danger: programs take {format_size(int(growth / LEAD_S))} a second, {format_size(available)} available"


def _find_kills(earlier: Sample, later: Sample, *, was_full: bool) -> str | None:
    """Return that the kernel killed for want of memory: only after allocations waited, and no control group's count."""
    killed = _change(earlier.oom_kills, later.oom_kills)
    waited = _change(earlier.allocation_stalls, later.allocation_stalls)
    if killed is None or killed <= 0 or not (was_full or waited != 0):
        return None
    return f"danger: {killed} processes killed for lack of memory"


def _find_swapping(earlier: Sample, later: Sample, seconds: float) -> str | None:
    swapped_in = _change(earlier.swap_pages.in_, later.swap_pages.in_)
    if swapped_in is None or swapped_in / seconds <= SWAP_IN_PAGES_PER_S:
        return None
    waited = later.psi_memory.some_avg10
    if waited is not None and waited < SWAP_WAIT_PERCENT:
        return None
    return f"danger: {swapped_in / seconds:.0f} pages/s come back from swap"


def _find_standstill(earlier: Sample, later: Sample, seconds: float, least: int) -> str | None:
    """Return why the guest comes to a standstill, if it does: all its tasks wait, and little is left."""
    stalled_us = _change(earlier.psi_memory.full_total_us, later.psi_memory.full_total_us)
    stalled = 0.0 if stalled_us is None else stalled_us / 1e6 / seconds
    available = available_bytes(later)
    if stalled <= PRESSURE_SHARE or available is None or available >= 2 * least:
        return None
    return f"danger: all tasks waited for memory {stalled:.0%} of the time, {format_size(available)} available"


def _find_thrashing(earlier: Sample, later: Sample, seconds: float, thrash: Level) -> str | None:
    """Return why the guest reads its own programs again and again, if it does.

    A page that a page fault brings in and that had been evicted belongs to a mapped file, mostly a program or a
    library. Neither count alone says so, but no more pages can be both than the smaller one.
    """
    faulted = _change(earlier.counters.inserts_fault, later.counters.inserts_fault)
    refaulted = _change(earlier.counters.refaults, later.counters.refaults)
    if faulted is None or refaulted is None:
        return None
    rate, level = min(faulted, refaulted) / seconds, thrash.rate
    if not thrash.rises(rate, seconds, THRASH_PAGES_PER_S):
        return None
    return f"danger: {rate:.0f} evicted pages/s of mapped files come back, {level:.0f}/s lately"


def _find_waiting(earlier: Sample, later: Sample, seconds: float, stalls: Level) -> str | None:
    waits = _change(earlier.allocation_stalls, later.allocation_stalls)
    return None if waits is None else find_stalls(max(waits, 0), 0, seconds, stalls)


def find_stalls(stalls: int, oom_kills: int, seconds: float, level: Level) -> str | None:
    """Return why the balloon's statistics show danger, with the numbers, or None.

    Args:
        stalls: Allocations that had to wait for reclaim, in that time.
        oom_kills: Processes killed for lack of memory, in that time.
        seconds: Time between the two reports.
        level: The recent level of `stalls`; updated.
    """
    usual = level.rate
    risen = level.rises(stalls / seconds, seconds, STALLS_PER_S)
    if oom_kills > 0:
        return f"danger: {oom_kills} processes killed for lack of memory"
    if risen:
        return f"danger: {stalls / seconds:.0f} allocations/s wait for memory, {usual:.0f}/s lately"
    return None


def _change(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before
