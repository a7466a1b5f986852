"""``idle-tax``: shares with a tax on idle memory, as VMware ESX has it.

Published by C. A. Waldspurger, Memory Resource Management in VMware ESX Server, OSDI 2002, sections 5 and 6. A guest
with S shares and P pages, of which it uses a part f, pays S / (P (f + k (1 - f))) per page, k = 1 / (1 - tax): an idle
page costs k times as much as one in use. Memory is taken from who pays least. Where all pay the same nothing moves,
and P = (λ S + (k - 1) f P) / k: a guest keeps 75 % of what it uses, and of the rest its share. Choices:

* All of the budget is split so at once, within floor (the reservation there) and cap (the limit): the published rule
  takes page by page when somebody asks, and cache always asks.
* f P is memory touched in the last 32 s, by the ages of memory; there 100 pages are sampled each 30 s. Free memory is
  idle. Where ages are not known all that is not free is in use.
* The estimate is the largest of a slow mean, a fast mean and the present value, as published: up at once, down slowly.
  The gains are not: 1/2 and 1/8 for 30 s are taken.
* S is the weight. A change of the split by less than 16 MiB at all guests is not made; no threshold is published.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from qmpalloc.errors import ConfigError
from qmpalloc.model import Decision, GuestSnapshot, Snapshot
from qmpalloc.policy.rivals.host import budget_of, carried, controlled, decided
from qmpalloc.units import MIB

_SAMPLED_S, _TOUCHED_S = 30.0, 32.0
_FAST, _SLOW = 0.5, 0.125
_LEAST_BYTES = 16 * MIB


class IdleTaxPolicy:
    """Shares, with a tax on idle memory."""

    class Settings(Struct, frozen=True, kw_only=True):
        """Settings of ``[policy]`` with ``name = "idle-tax"``.

        Attributes:
            tax: Which part of an idle page is taken, from 0 to below 1.
        """

        tax: float = 0.75

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        if not 0.0 <= self.settings.tax < 1.0:
            raise ConfigError("must be from 0 to below 1", key="tax", hint="0.75 is what ESX uses")

    def decide(self, snapshot: Snapshot) -> Decision:
        """Split the budget so that all pay the same."""
        guests = controlled(snapshot)
        means = {name: (fast, slow) for name, (fast, slow) in carried(snapshot, "means").items()}
        for guest in guests:
            means[guest.name] = averaged(means.get(guest.name), active_bytes(guest), snapshot.interval_s)
        uses = [max(*means[guest.name], active_bytes(guest)) for guest in guests]
        targets = split(budget_of(snapshot, guests), guests, [self.settings.tax * used for used in uses])
        if all(abs(targets[guest.name] - guest.target_bytes) < _LEAST_BYTES for guest in guests):
            targets = {guest.name: guest.target_bytes for guest in guests}
        terms = {guest.name: {"active_mib": round(used / MIB, 1)} for guest, used in zip(guests, uses, strict=True)}
        return decided(snapshot, targets, "idle memory is taxed", carry={"means": means}, terms=terms)


def active_bytes(guest: GuestSnapshot) -> float:
    """Return how much memory a guest was seen to use lately."""
    free = guest.memory.free if guest.memory is not None else None
    idle = guest.idle.bytes_for(_TOUCHED_S) if guest.idle is not None else 0
    return float(max(0, guest.actual_bytes - (free or 0) - idle))


def averaged(means: tuple[float, float] | None, active: float, interval_s: float) -> tuple[float, float]:
    """Return the fast and the slow mean, with what was seen for an interval."""
    if means is None:
        return active, active
    fast, slow = (1.0 - (1.0 - gain) ** (interval_s / _SAMPLED_S) for gain in (_FAST, _SLOW))
    return means[0] + fast * (active - means[0]), means[1] + slow * (active - means[1])


def split(room: int, guests: Sequence[GuestSnapshot], kept: Sequence[float]) -> dict[str, int]:
    """Return the sizes at which guests keep so much each, and of the rest of `room` their shares, within bounds."""

    def sizes(each: float) -> dict[str, int]:
        wanted = [(guest, int(keeps + each * guest.weight)) for guest, keeps in zip(guests, kept, strict=True)]
        return {guest.name: max(guest.floor_bytes, min(size, guest.cap_bytes)) for guest, size in wanted}

    least = min((guest.weight for guest in guests), default=1.0)
    low, high = -room / least, room / least  # a rest below nothing takes the same from each, by its shares
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(sizes(middle).values()) <= room else (low, middle)
    return sizes(low)
