"""What guests gave for others' need, or for the budget, and get back when nobody has it any more. Pure.

A policy that moves memory between pairs of guests, as the paper's rule does, never gives out what is free: without this
a guest that paid for another's need would stay small for the rest of a run.
"""

from __future__ import annotations

from msgspec import structs

from qmpalloc.model import Decision, GuestDecision, GuestSnapshot, GuestState, Limiter, Snapshot, decision_of
from qmpalloc.units import align_down, format_size


class Loans:
    """The sizes of guests before they gave."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}
        self._guests: tuple[str, ...] = ()

    def repay(self, snapshot: Snapshot, decision: Decision) -> Decision:
        """Return what a policy wants, with what is free given to those that gave and are left as they are by it.

        Args:
            snapshot: What the policy saw.
            decision: What it wants, within all limits.
        """
        verdicts = {verdict.name: verdict for verdict in decision.guests}
        self._see(snapshot)
        if not self._before:
            return decision
        free = snapshot.budget_bytes - sum(_kept(guest, verdicts[guest.name]) for guest in snapshot.guests)
        for guest in snapshot.guests:
            left_alone = verdicts[guest.name].target_bytes == guest.target_bytes
            owed = min(self._before.get(guest.name, 0), guest.cap_bytes) - guest.target_bytes
            back = align_down(min(owed, free))
            if back > 0 and left_alone and guest.state is GuestState.FRESH and not guest.frozen:
                free -= back
                verdicts[guest.name] = structs.replace(
                    verdicts[guest.name],
                    target_bytes=guest.target_bytes + back,
                    limiter=Limiter.BUDGET,
                    reason=f"gets back {format_size(back)} of what it gave",
                )
        guests = tuple(verdicts[guest.name] for guest in snapshot.guests)
        if guests == decision.guests:
            return decision
        return decision_of(snapshot, guests, carry=decision.carry)

    def note(self, snapshot: Snapshot, decision: Decision) -> None:
        """Note who gave, and who was moved otherwise since: that one is the policy's business again.

        Args:
            snapshot: What was decided on.
            decision: What was decided, within all limits.
        """
        self._see(snapshot)
        for guest, verdict in zip(snapshot.guests, decision.guests, strict=True):
            gave = verdict.target_bytes < guest.target_bytes and verdict.limiter is Limiter.BUDGET
            if gave:
                self._before[guest.name] = max(guest.target_bytes, self._before.get(guest.name, 0))
            elif verdict.target_bytes < guest.target_bytes or verdict.target_bytes >= self._before.get(guest.name, 0):
                self._before.pop(guest.name, None)

    def _see(self, snapshot: Snapshot) -> None:
        """Forget all when a guest has come, left or ended: what it had may be there for others than these."""
        names = tuple(guest.name for guest in snapshot.guests if guest.state is not GuestState.GONE)
        if names != self._guests:
            self._before.clear()
        self._guests = names


def _kept(guest: GuestSnapshot, verdict: GuestDecision) -> int:
    """Return what of the budget is not free: what a guest may have, is to have, or is to find when it comes."""
    if guest.state is GuestState.GONE:
        return 0
    awaited = guest.baseline_bytes if guest.state is GuestState.CONNECTING else 0
    return max(guest.promised_bytes, verdict.target_bytes + guest.outside_bytes, awaited)
