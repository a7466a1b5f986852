"""Sizes that people choose for guests while a run goes on: what a policy sees of them, and which are refused. Pure.

A pin is a limit like others: `qmpalloc.rules.limits` puts it above every policy, and below danger, the host and what a
guest cannot give up. A policy knows nothing of it: it is shown a guest whose floor, cap and baseline are that size.
"""

from __future__ import annotations

from msgspec import Struct, structs

from qmpalloc.model import GuestSnapshot, GuestState, Pin, Snapshot
from qmpalloc.rules.budget import UNCONTROLLED
from qmpalloc.units import format_duration, format_size


class Refusal(Struct, frozen=True):
    """Why a wish of a person is not carried out, and what to do about it; both for people."""

    message: str
    hint: str = ""


class Choice(Struct, frozen=True, kw_only=True):
    """What a person chose for a guest.

    Attributes:
        size_bytes: The size, one that the guest can be set to.
        until_s: When that ends, seconds since the run began; None: with the run.
        held: It is the size that the guest had.
    """

    size_bytes: int
    until_s: float | None = None
    held: bool = False

    def pin(self, floor_bytes: int, cap_bytes: int, now_s: float) -> Pin:
        """Return what a snapshot says of it, at a guest with this floor and cap of its own."""
        why = f"{'held at' if self.held else 'set to'} {format_size(self.size_bytes)}"
        if self.until_s is not None:
            why += f", {format_duration(self.until_s - now_s)} left"
        return Pin(size_bytes=self.size_bytes, why=why, floor_bytes=floor_bytes, cap_bytes=cap_bytes)


def bound(snapshot: Snapshot) -> Snapshot:
    """Return what a policy is shown: the size of a pinned guest in the place of its floor, cap and baseline."""
    if all(guest.pin is None for guest in snapshot.guests):
        return snapshot
    return structs.replace(snapshot, guests=tuple(_bound(guest) for guest in snapshot.guests))


def _bound(guest: GuestSnapshot) -> GuestSnapshot:
    if guest.pin is None:
        return guest
    size_bytes = min(max(guest.pin.size_bytes, guest.floor_bytes), guest.cap_bytes)
    return structs.replace(guest, floor_bytes=size_bytes, cap_bytes=size_bytes, baseline_bytes=size_bytes)


def unpinned(snapshot: Snapshot) -> Snapshot:
    """Return the same without pins: while the host is short of memory nobody may choose a size."""
    if all(guest.pin is None for guest in snapshot.guests):
        return snapshot
    return structs.replace(snapshot, guests=tuple(structs.replace(guest, pin=None) for guest in snapshot.guests))


def why_not(snapshot: Snapshot, name: str, size_bytes: int, configured_floor_bytes: int) -> Refusal | None:
    """Return why a guest cannot be given a size; None when it can. The first case that holds is told.

    1. Nothing can move it.
    2. It is in danger and needs more.
    3. The size is above its cap.
    4. It is below its floor: below the configured one, or below what it cannot give up.
    5. The budget does not hold it beside what the others keep whatever is decided.

    Args:
        snapshot: The guests as they are, not as a policy is shown them.
        name: One of them.
        size_bytes: The size.
        configured_floor_bytes: Its configured floor.
    """
    guest = next(each for each in snapshot.guests if each.name == name)
    if guest.state in UNCONTROLLED or guest.state is GuestState.GONE:
        return Refusal(f"{name} is {guest.state}: nothing can move it", "qmpalloc status says why")
    size, floor, cap = (format_size(each) for each in (size_bytes, guest.floor_bytes, guest.cap_bytes))
    if size_bytes < guest.rescue_bytes:
        needed = format_size(guest.rescue_bytes)
        return Refusal(f"{name} is in danger and needs {needed}: {guest.frozen}", "try again when that is over")
    if size_bytes > guest.cap_bytes:
        return Refusal(f"{size} is more than {name} may have: its cap is {cap}", f"at most {cap}")
    if size_bytes < configured_floor_bytes:
        return Refusal(f"{size} is less than {name} may have: its floor is {floor}", f"at least {floor}")
    if size_bytes < guest.floor_bytes:
        return Refusal(
            f"{size} is less than {name} needs: {floor} with what it cannot give up and a reserve", f"at least {floor}"
        )
    kept_bytes = guest.outside_bytes + sum(_kept_bytes(each) for each in snapshot.guests if each.name != name)
    room_bytes = snapshot.budget_bytes - kept_bytes
    if size_bytes > room_bytes:
        budget, kept = format_size(snapshot.budget_bytes), format_size(kept_bytes)
        return Refusal(
            f"{size} for {name} does not fit the budget of {budget}: {kept} of it is not to be had from the others "
            "(their floors, and the sizes that people chose)",
            f"at most {format_size(max(room_bytes, 0))}, or release others first",
        )
    return None


def _kept_bytes(guest: GuestSnapshot) -> int:
    """Return what of the budget another guest keeps whatever is decided."""
    if guest.state is GuestState.GONE:
        return 0
    if guest.state in UNCONTROLLED:
        return guest.promised_bytes
    if guest.pin is not None:
        return max(guest.pin.size_bytes, guest.floor_bytes) + guest.outside_bytes
    return max(guest.floor_bytes, guest.rescue_bytes) + guest.outside_bytes
