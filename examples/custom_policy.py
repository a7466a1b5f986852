"""A policy of your own in a few lines: give every guest memory in proportion to its misses.

Name it in a configuration that lies beside this file::

    [policy]
    name = "custom_policy:ByMisses"
    smoothing = 0.5

and look at what it would do before you let it: ``qmpalloc plan lab.toml``, ``qmpalloc run lab.toml --dry-run``.
Floors, caps, the budget and danger are not its business: the controller keeps them whatever a policy says.
With ``promises = True`` it stands for what it does: a guest that brings in more than was promised gets its memory back.
"""

from __future__ import annotations

from msgspec import Struct

from qmpalloc import Decision, GuestDecision, Limiter, Promise, Snapshot, hold


class ByMisses:
    """Split the budget in proportion to smoothed misses."""

    promises = True

    class Settings(Struct, frozen=True, kw_only=True):
        """Settings of ``[policy]``: unknown keys and wrong types are refused with file and key."""

        smoothing: float = 0.5

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def decide(self, snapshot: Snapshot) -> Decision:
        """Return the split. Pure: what it remembers travels in `carry`, so that a record can be replayed."""
        if not all(guest.decidable for guest in snapshot.guests):
            return hold(snapshot, "not all guests are known")
        before: dict[str, float] = snapshot.carry or {}
        smooth = {
            guest.name: self.settings.smoothing * before.get(guest.name, 0.0)
            + (1 - self.settings.smoothing) * ((guest.misses or 0) + 1)
            for guest in snapshot.guests
        }
        spare = snapshot.budget_bytes - sum(guest.floor_bytes for guest in snapshot.guests)
        return Decision(
            guests=tuple(
                GuestDecision(
                    name=guest.name,
                    target_bytes=guest.floor_bytes + int(spare * smooth[guest.name] / sum(smooth.values())),
                    reason="in proportion to its misses",
                    limiter=Limiter.POLICY,
                    terms={"misses": smooth[guest.name]},
                    # Where a target is below what the guest has: twice what it brings in now, for two minutes.
                    promise=Promise(page_ins_per_s=2 * (guest.page_ins_per_s or 0.0), for_s=120.0),
                )
                for guest in snapshot.guests
            ),
            summary="split by misses",
            carry=smooth,
        )
