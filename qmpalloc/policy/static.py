"""``static``: every guest at its baseline, never changed. The paper's "3G3G"."""

from __future__ import annotations

from qmpalloc.model import Decision, GuestDecision, Limiter, Snapshot


class StaticPolicy:
    """Keep every guest at its baseline."""

    def decide(self, snapshot: Snapshot) -> Decision:
        """Return each guest's baseline as its target."""
        return Decision(
            guests=tuple(
                GuestDecision(
                    name=guest.name, target_bytes=guest.baseline_bytes, reason="static split", limiter=Limiter.POLICY
                )
                for guest in snapshot.guests
            ),
            summary="static split",
        )
