"""``qubes``: the memory balancing of Qubes OS (``qubes/qmemman/algo.py`` and ``systemstate.py``).

A guest prefers 1.3 times what it uses: its memory, less what is free and less its cache, and what it has swapped out.
When there is enough for all preferences, all there is is split in proportion to them. When there is not, who has more
than it prefers gives that, and what is free goes to the others in proportion to their preferences. A change is made
when more than 150 MiB move in all, or when somebody who has less than it prefers gets more than 15 MiB. Choices:

* What is free is what is left of the budget: the 50 MiB that Xen keeps are outside of it.
* A guest prefers 200 MiB at least, as published, and its floor. Only what its kernel tells counts: who does not tell
  takes no part.
* Cache is what the kernel calls file pages, and shared memory, as ``Cached`` in ``/proc/meminfo`` has both.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from qmpalloc.model import Decision, GuestSnapshot, Snapshot
from qmpalloc.policy.rivals.host import budget_of, controlled, decided
from qmpalloc.units import MIB

_CACHE_FACTOR, _LEAST_BYTES = 1.3, 200 * MIB
_ROUNDING = 0.999
_TOLD_BYTES, _MOVED_BYTES, _NEEDED_BYTES = 10 * MIB, 150 * MIB, 15 * MIB


class QubesPolicy:
    """In proportion to what guests use without their caches."""

    def decide(self, snapshot: Snapshot) -> Decision:
        """Balance the guests that tell what they use."""
        used = {guest.name: used_bytes(guest) for guest in controlled(snapshot)}
        guests = [
            Preference(guest=guest, bytes=preferred_bytes(guest, told))
            for guest in controlled(snapshot)
            if (told := used[guest.name]) is not None
        ]
        room = budget_of(snapshot, [one.guest for one in guests])
        free = room - sum(one.guest.target_bytes for one in guests)
        enough = room > sum(one.bytes for one in guests)
        targets = with_enough(guests, room) if enough else with_too_little(guests, free)
        terms = {one.guest.name: {"preferred_mib": round(one.bytes / MIB, 1)} for one in guests}
        if not _significant(guests, targets, free):
            targets = {one.guest.name: one.guest.target_bytes for one in guests}
        reason = "in proportion to what is used" if enough else "not enough for what all prefer"
        return decided(snapshot, targets, reason, terms=terms)


class Preference(Struct, frozen=True, kw_only=True):
    """A guest, and the size it prefers in bytes."""

    guest: GuestSnapshot
    bytes: int

    @property
    def needs_bytes(self) -> int:
        """What it lacks; negative is what it has beyond."""
        return self.bytes - self.guest.target_bytes


def used_bytes(guest: GuestSnapshot) -> int | None:
    """Return what a guest uses beside its cache; None where it does not tell."""
    memory = guest.memory
    if memory is None or memory.total is None or memory.free is None or memory.file_bytes is None:
        return None
    swapped = (memory.swap_total or 0) - (memory.swap_free or 0)
    return max(0, memory.total - memory.free - memory.file_bytes - (memory.shmem or 0) + swapped)


def preferred_bytes(guest: GuestSnapshot, used: int) -> int:
    """Return the size a guest prefers."""
    return max(min(int(used * _CACHE_FACTOR), guest.cap_bytes), _LEAST_BYTES, guest.floor_bytes)


def with_enough(guests: Sequence[Preference], room: int) -> dict[str, int]:
    """Split all there is in proportion to what guests prefer; what caps leave goes to the others in equal parts."""
    wanted = sum(one.bytes for one in guests)
    targets = {one.guest.name: int(_ROUNDING * one.bytes * room / wanted) for one in guests}
    caps = {one.guest.name: one.guest.cap_bytes for one in guests}
    while left := sum(max(0, size - caps[name]) for name, size in targets.items()):
        targets = {name: min(size, caps[name]) for name, size in targets.items()}
        open_ = [name for name, size in targets.items() if size < caps[name]]
        if not open_ or not (bonus := int(_ROUNDING * left / len(open_))):
            break
        targets |= {name: targets[name] + bonus for name in open_}
    return targets


def with_too_little(guests: Sequence[Preference], free: int) -> dict[str, int]:
    """Let guests give what they have beyond what they prefer, and those that lack get what is free once they have."""
    targets = {one.guest.name: one.guest.target_bytes for one in guests}
    giving = [one for one in guests if -one.needs_bytes >= _TOLD_BYTES]
    lacking = [one for one in guests if one.needs_bytes >= 0 and one.guest.target_bytes < one.guest.cap_bytes]
    targets |= {one.guest.name: one.bytes for one in giving}
    free += sum(one.needs_bytes for one in giving)  # as published: it first has to come back, and is given next time
    wanted = sum(one.bytes for one in lacking)
    for one in lacking if free > 0 else ():
        more = one.guest.target_bytes + one.bytes / wanted * free
        targets[one.guest.name] = max(one.guest.target_bytes, min(int(_ROUNDING * more), one.guest.cap_bytes))
    return targets


def _significant(guests: Sequence[Preference], targets: dict[str, int], free: int) -> bool:
    changes = {one.guest.name: targets[one.guest.name] - one.guest.target_bytes for one in guests}
    lacking = any(one.needs_bytes > 0 and changes[one.guest.name] > _NEEDED_BYTES for one in guests)
    return free < -_NEEDED_BYTES or lacking or sum(map(abs, changes.values())) + abs(free) > _MOVED_BYTES
