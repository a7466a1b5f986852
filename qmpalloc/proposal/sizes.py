"""Which budget, floors, caps and baselines fit guests as they were found, and why. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from qmpalloc.config import ControlConfig
from qmpalloc.model import HostMemory
from qmpalloc.proposal.seen import Memory
from qmpalloc.rules.danger import with_reserve
from qmpalloc.units import MIB, align_down, align_up, format_size

LEAST_FLOOR_BYTES = 128 * MIB
"""The floor of a guest that uses next to nothing: kernel and system need it now and then."""

UNTOLD_FLOOR_BYTES = 256 * MIB
"""The least floor of a guest that has not told what it uses."""

HOST_SHARE = 0.1
"""Of its memory the host keeps for itself: what `doctor` asks for."""


class Reasoned(Struct, frozen=True):
    """A size in bytes, whole MiB, and why it is that."""

    size_bytes: int
    why: str


class Sizes(Struct, frozen=True, kw_only=True):
    """What is proposed for one guest."""

    floor: Reasoned
    cap: Reasoned
    baseline: Reasoned


class Proposal(Struct, frozen=True, kw_only=True):
    """What is proposed for all.

    Attributes:
        budget: For all guests together.
        guests: In the order in which they were given.
        idle: Why nothing will move with that, and what would change it; empty when something can.
    """

    budget: Reasoned
    guests: tuple[Sizes, ...]
    idle: str = ""


def propose(guests: Sequence[Memory], host: HostMemory) -> Proposal:
    """Return what fits the guests. Where the host has no room for what they have now, they are given less.

    1. The host has room for the sizes they have, or does not tell: the budget is what they have, and so are the
       baselines.
    2. It has not: the budget is what it can give, and what each has above its floor is cut in the same proportion.
    3. It has not even room for their floors: the budget is the floors.
    """
    floors = [_floor(guest) for guest in guests]
    floors_bytes = sum(floor.size_bytes for floor in floors)
    outside_bytes = sum(guest.outside_bytes for guest in guests)
    now_bytes = sum(max(guest.size_bytes, floor.size_bytes) for guest, floor in zip(guests, floors, strict=True))
    room_bytes, room = _room(guests, host)
    share = 1.0
    budget = Reasoned(align_up(now_bytes + outside_bytes, MIB), f"what they have now; {room}")
    if room_bytes is not None and room_bytes < budget.size_bytes:
        budget = Reasoned(
            align_down(room_bytes, MIB), f"they have {format_size(now_bytes + outside_bytes)}, but {room}"
        )
        if budget.size_bytes < floors_bytes + outside_bytes:
            why = f"their floors: {room}, so start fewer guests, or lower the floors"
            budget = Reasoned(align_up(floors_bytes + outside_bytes, MIB), why)
        above_bytes = now_bytes - floors_bytes
        share = (budget.size_bytes - outside_bytes - floors_bytes) / above_bytes if above_bytes else 0.0
    sizes = tuple(_sizes(guest, floor, share) for guest, floor in zip(guests, floors, strict=True))
    caps_bytes = sum(each.cap.size_bytes for each in sizes) + outside_bytes
    idle = ""
    if len(guests) == 1:
        idle = "one guest has nobody to share with"
    elif caps_bytes <= budget.size_bytes:
        idle = (
            "every guest has all the memory that it can have, and the budget holds it: nothing will move. "
            "Lower the budget, or start guests with a larger -m"
        )
    return Proposal(budget=budget, guests=sizes, idle=idle)


def _floor(guest: Memory) -> Reasoned:
    """Return the least that a guest should have; never more than it has now.

    1. It tells what it uses: that, and the reserve that control keeps free.
    2. It does not: a quarter of what it has.
    """
    if guest.used_bytes is not None:
        wanted = max(with_reserve(guest.used_bytes, int(ControlConfig().reserve)), LEAST_FLOOR_BYTES)
        why = f"it uses {format_size(guest.used_bytes)} besides its page cache, and a reserve"
    else:
        wanted = max(guest.size_bytes // 4, UNTOLD_FLOOR_BYTES)
        why = "a quarter of what it has: it does not tell what it uses"
    most = align_down(guest.ram_bytes, MIB)
    if wanted >= guest.size_bytes:
        wanted, why = guest.size_bytes, "all that it has: it is small"
    if wanted <= guest.least_bytes:
        wanted, why = guest.least_bytes, "its RAM (-m): virtio-mem takes nothing of that"
    return Reasoned(min(align_up(wanted, MIB), most), why)


def _sizes(guest: Memory, floor: Reasoned, share: float) -> Sizes:
    above_bytes = max(guest.size_bytes - floor.size_bytes, 0)
    baseline = floor.size_bytes + align_down(int(above_bytes * share), MIB)
    why = "what it has now" if share == 1.0 else "what it has above its floor, cut like the others'"
    most = "all that virtio-mem can give it" if guest.least_bytes else "all its RAM (-m, and DIMMs)"
    cap = Reasoned(align_down(guest.ram_bytes, MIB), f"{most}: more needs a restart with more")
    return Sizes(floor=floor, cap=cap, baseline=Reasoned(baseline, why))


def _room(guests: Sequence[Memory], host: HostMemory) -> tuple[int | None, str]:
    """Return what the host could give these guests together, and how that is known."""
    if host.available_bytes is None or host.total_bytes is None:
        return None, "the host does not tell what it has"
    behind = sum(guest.resident_bytes or 0 for guest in guests)
    kept = int(host.total_bytes * HOST_SHARE)
    room = max(host.available_bytes + behind - kept, 0)
    return room, (
        f"the host has room for {format_size(room)}: {format_size(host.available_bytes)} available and "
        f"{format_size(behind)} behind them, less {format_size(kept)} for itself"
    )
