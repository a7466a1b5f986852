"""Budget arithmetic: which sizes may be asked of QEMUs now, so that the budget holds at every instant.

The invariant is: the sum over all guests of max(target, actual), and of what they have beside what is moved, never
exceeds the budget. So donors shrink first, and a receiver is granted only what QEMU reports to have come back. Pure: no
clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

from qmpalloc.units import Grid

GRANT_CHUNK_BYTES = 16 * 1024 * 1024
"""A partial grant is at least this large: memory comes back in 1 MiB pieces, and a command for each would be noise."""


class Account(Struct, frozen=True, kw_only=True):
    """One guest's entry in the ledger. Bytes.

    Attributes:
        name: The guest.
        target_bytes: Size last asked of QEMU.
        charge_bytes: What it may occupy now: at least max(target, actual), more while the outcome of a command is not
            known yet.
        actual_bytes: What it was last seen to occupy: with a command in doubt less than its charge may be.
        desired_bytes: The size it is to have.
        reserve_bytes: What it may occupy on top of that without having been granted it, as a system that boots may.
        outside_bytes: Memory it has beside what is moved, which no command here moves; its charge counts.
        commandable: False when no command may or can be sent to it now; its charge still counts.
        in_need: It is served before the others.
        grid: The sizes that it can be set to; target and desired are of them.
    """

    name: str
    target_bytes: int
    charge_bytes: int
    actual_bytes: int
    desired_bytes: int
    reserve_bytes: int = 0
    outside_bytes: int = 0
    commandable: bool = True
    in_need: bool = False
    grid: Grid = Grid()


class Order(Struct, frozen=True, kw_only=True):
    """A size to ask of a QEMU."""

    name: str
    target_bytes: int
    purpose: Literal["shrink", "grant"]


def committed_bytes(accounts: Iterable[Account]) -> int:
    """Return what all guests together may occupy now."""
    return sum(account.charge_bytes + account.reserve_bytes + account.outside_bytes for account in accounts)


def next_orders(accounts: Sequence[Account], budget_bytes: int) -> list[Order]:
    """Return the commands that may be sent now.

    Shrinks are always allowed. Grants share the room that is really free, those in need first, else in the order of
    `accounts`: a shrink makes no room until its guest's charge has fallen. Lowering and raising in one call is
    therefore safe.
    """
    able = sorted((account for account in accounts if account.commandable), key=lambda account: not account.in_need)
    orders = [
        Order(name=account.name, target_bytes=account.desired_bytes, purpose="shrink")
        for account in able
        if account.desired_bytes < account.target_bytes
    ]
    room_bytes = budget_bytes - committed_bytes(accounts)
    for account in able:
        missing_bytes = account.desired_bytes - account.target_bytes
        if missing_bytes <= 0:
            continue
        # Raising a target up to what the guest is charged with already costs nothing: a shrink that is taken back.
        # And what is reserved for the guest itself stands in the way of the others, not of it.
        own_room_bytes = max(room_bytes + account.reserve_bytes, 0)
        # Beyond the budget that is true only of what it has: a charge that is there for a command in doubt is to fall.
        own_bytes = account.charge_bytes if room_bytes >= 0 else min(account.charge_bytes, account.actual_bytes)
        granted_bytes = min(account.desired_bytes, account.grid.down(own_bytes + own_room_bytes))
        if granted_bytes - account.target_bytes < min(missing_bytes, GRANT_CHUNK_BYTES):
            continue
        orders.append(Order(name=account.name, target_bytes=granted_bytes, purpose="grant"))
        room_bytes -= max(granted_bytes - account.charge_bytes - account.reserve_bytes, 0)
    return orders
