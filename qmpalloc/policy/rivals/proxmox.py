"""``proxmox``: the automatic ballooning of Proxmox VE: a goal for the host, split among guests by shares.

Published in pve-manager (``PVE/AutoBalloon.pm``, ``PVE/Service/pvestatd.pm``) and in its administration guide. The
host is to be used to 80 %; what is missing or too much is shared out, 100 MiB per guest at once, so that what guests
have above their minimum is in proportion to their shares. Growth goes first to guests under pressure, and is taken
first from those with enough free memory: more than a quarter of their minimum. Choices:

* Budget, minimum and maximum: see `qmpalloc.policy.rivals.host`. What is used is what guests fill.
* The shares are 1000 times the weight; they are 1000 where nothing is configured, in both.
* It runs each interval and not each 10 s, so that all policies decide equally often.
"""

from __future__ import annotations

from collections.abc import Sequence

from qmpalloc.model import Decision, Snapshot
from qmpalloc.policy.rivals.host import Seen, budget_of, decided, fitted, seen
from qmpalloc.units import MIB, format_size

_DEAD_BYTES, _STEP_BYTES = 10 * MIB, 100 * MIB
"""A goal that is nearer is not acted on; a guest changes by no more at once."""

_FREE_SHARE = 0.25
_SHARES = 1000.0
_ROUNDS = 100
"""Sharing out ends by itself, but for rounding."""


class ProxmoxPolicy:
    """A goal for the host, by shares."""

    def decide(self, snapshot: Snapshot) -> Decision:
        """Share out what the host has to give or lacks."""
        guests = seen(snapshot)
        room = budget_of(snapshot, [one.guest for one in guests])
        goal = room - sum(one.used_bytes for one in guests)
        sizes = {one.guest.name: one.size_bytes for one in guests}
        if abs(goal) > _DEAD_BYTES:
            chosen = [one for one in guests if enough_free(one) == (goal < 0)]
            if not share_out(sizes, chosen, goal):
                share_out(sizes, guests, goal)
        reason = f"{format_size(abs(goal))} {'below' if goal > 0 else 'above'} what the host is to be used to"
        return decided(snapshot, fitted(room, guests, sizes), reason, carry={"sizes": sizes})


def enough_free(one: Seen) -> bool:
    """Return whether a guest has enough free memory; not, where it does not tell."""
    known = one.guest.memory is not None and one.guest.memory.free is not None
    return known and one.unused_bytes > _FREE_SHARE * one.guest.floor_bytes


def share_out(sizes: dict[str, int], guests: Sequence[Seen], goal: int) -> int:
    """Change sizes by `goal` bytes in all, by shares, as far as the steps allow; return what was changed.

    As published, a guest that has more than its share gives also when others are to grow.
    """
    left, rest = {one.guest.name: one for one in guests}, goal
    for _ in range(_ROUNDS):
        if not left or not rest:
            break
        above = sum(sizes[name] - one.guest.floor_bytes for name, one in left.items()) + rest
        shares = sum(_SHARES * one.guest.weight for one in left.values())
        changed = 0
        for name, one in tuple(left.items()):
            fair = one.guest.floor_bytes + int(above * _SHARES * one.guest.weight / shares)
            fair = max(one.guest.floor_bytes, min(fair, one.guest.cap_bytes))
            if fair == one.size_bytes or (fair > one.size_bytes and goal < 0):
                del left[name]
                continue
            new = max(one.size_bytes - _STEP_BYTES, min(fair, one.size_bytes + _STEP_BYTES))
            changed += new - sizes[name]
            sizes[name] = new
        rest -= changed
        if not changed:
            break
    return goal - rest
