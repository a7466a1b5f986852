"""What rules see that lend memory twice, and how that is made to fit a budget.

Proxmox, MOM and the container images of qemus size guests by how full the *host* is: sizes may add up to more than
there is, as long as guests do not fill them. A budget may not be exceeded at any instant, so each choice is told here:

* The budget takes the place of the share of the host that the rule wants to fill (80 %): nothing is held back in it.
* The rule's own size of each guest is carried on. What guests really get of it is made to fit: memory that a guest does
  not fill goes first, as on a host that lends it twice; the rest is cut in proportion to what lies above the floors.
* A guest that fills what it really has is taken to fill what the rule gave it, or the rule would never learn of need.
* Floor and cap take the place of the configured minimum and maximum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from qmpalloc.curves.mapping import FREE_BYTES
from qmpalloc.model import Decision, GuestDecision, GuestSnapshot, GuestState, Limiter, Snapshot, decision_of
from qmpalloc.rules.budget import room_bytes
from qmpalloc.units import MIB, align_down

WANTED_SHARE = 0.8
"""Of the host's memory that all three rules want to be used."""

_MARGIN_BYTES = 64 * MIB
"""What a guest keeps above what it fills, so that it can be seen to need more."""


class Seen(Struct, frozen=True, kw_only=True):
    """A guest as a rule sees it that lends memory twice. Bytes.

    Attributes:
        guest: As it really is.
        size_bytes: What the rule gave it last.
        held_bytes: What the host has behind it now; its size where that is not known.
        used_bytes: What it would fill of `size_bytes`, cache included.
    """

    guest: GuestSnapshot
    size_bytes: int
    held_bytes: int
    used_bytes: int

    @property
    def unused_bytes(self) -> int:
        """What its kernel would have free."""
        return self.size_bytes - self.used_bytes


def controlled(snapshot: Snapshot) -> list[GuestSnapshot]:
    """Return the guests that a rule may size: those that are known, and whose balloons do what they are asked."""
    return [guest for guest in snapshot.guests if guest.state is GuestState.FRESH and not guest.frozen]


def seen(snapshot: Snapshot) -> list[Seen]:
    """Return the guests that a rule may size, as it sees them."""
    sizes = carried(snapshot, "sizes")
    return [_seen(guest, sizes.get(guest.name, guest.target_bytes)) for guest in controlled(snapshot)]


def carried(snapshot: Snapshot, what: str) -> Mapping[str, Any]:
    """Return what the decision before carried over of each guest; nothing if that was another policy's."""
    found = snapshot.carry.get(what) if isinstance(snapshot.carry, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _seen(guest: GuestSnapshot, size_bytes: int) -> Seen:
    size_bytes = max(guest.floor_bytes, min(size_bytes, guest.cap_bytes))
    held = guest.actual_bytes
    if guest.memory is not None and guest.memory.free is not None:
        held -= min(held, guest.memory.free)
    if guest.resident_bytes is not None:
        held = min(held, guest.resident_bytes)
    full = held >= guest.actual_bytes - FREE_BYTES
    return Seen(guest=guest, size_bytes=size_bytes, held_bytes=held, used_bytes=size_bytes if full else held)


def budget_of(snapshot: Snapshot, guests: Sequence[GuestSnapshot]) -> int:
    """Return what of the budget is there for these guests."""
    return room_bytes(snapshot, [guest.name for guest in guests])


def fitted(room: int, guests: Sequence[Seen], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes that guests really get, of what the rule gives them. The first case that holds decides.

    1. All of it is there.
    2. All is there that they fill, and a margin: what is left goes to them in proportion to what the rule gives beside.
    3. What they fill is cut, in proportion to what of it lies above their floors.
    """
    if sum(sizes.values()) <= room:
        return dict(sizes)
    least = {one.guest.name: one.guest.floor_bytes for one in guests}
    filled = {one.guest.name: _filled(one, sizes[one.guest.name]) for one in guests}
    low, high = (filled, sizes) if sum(filled.values()) <= room else (least, filled)
    between = sum(high[name] - low[name] for name in sizes)
    share = max(0.0, min(1.0, (room - sum(low.values())) / max(1, between)))
    return {name: align_down(low[name] + int((high[name] - low[name]) * share)) for name in sizes}


def _filled(one: Seen, size_bytes: int) -> int:
    if one.used_bytes >= one.size_bytes:
        return size_bytes
    return max(one.guest.floor_bytes, min(size_bytes, one.held_bytes + _MARGIN_BYTES))


def decided(
    snapshot: Snapshot,
    targets: Mapping[str, int],
    reason: str,
    *,
    carry: Any = None,
    terms: Mapping[str, dict[str, float]] | None = None,
) -> Decision:
    """Return the decision for these sizes; guests that are not among them keep theirs."""
    guests = (_verdict(guest, targets, reason, (terms or {}).get(guest.name, {})) for guest in snapshot.guests)
    return decision_of(snapshot, guests, carry=carry)


def _verdict(guest: GuestSnapshot, targets: Mapping[str, int], reason: str, terms: dict[str, float]) -> GuestDecision:
    target, limiter = guest.target_bytes, Limiter.STATE
    if guest.name in targets:
        target = align_down(targets[guest.name])
        limiter = Limiter.POLICY if target != guest.target_bytes else Limiter.NONE
    else:
        reason = guest.frozen or f"not fresh but {guest.state}"
    return GuestDecision(name=guest.name, target_bytes=target, reason=reason, limiter=limiter, terms=terms)
