"""What is committed of the budget, and what may be sent now: guests and ledger in step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qmpalloc.control.guest import Guest, Link
from qmpalloc.control.journal import Journal
from qmpalloc.control.session import Session
from qmpalloc.rules.ledger import Account, next_orders


class Commitments:
    """The ledger of a run. No waiting: the controller calls it when something changed.

    Attributes:
        budget_bytes: The budget in force.
    """

    def __init__(
        self, guests: Sequence[Guest], sessions: Mapping[str, Session], journal: Journal, budget_bytes: int
    ) -> None:
        self._guests = guests
        self._sessions = sessions
        self._journal = journal
        self.budget_bytes = budget_bytes

    @property
    def committed_bytes(self) -> int:
        """What all guests together may occupy now."""
        return sum(guest.charge_bytes for guest in self._guests)

    def fit(self) -> bool:
        """Tell whether that is within the budget."""
        return self.committed_bytes <= self.budget_bytes

    def send_orders(self) -> bool:
        """Give the sessions what the ledger allows now; return whether that was anything."""
        if all(guest.size.desired_bytes == guest.size.target_bytes for guest in self._guests):
            return False
        now_s = self._journal.now_s()
        orders = next_orders([account_of(guest, now_s) for guest in self._guests], self.budget_bytes)
        for order in orders:
            self._sessions[order.name].resizer.give(order)
        return bool(orders)

    def check(self, *, in_control: bool) -> None:
        """Report that the budget is exceeded while there is control, and note when it is not any more."""
        if self.fit():
            self._journal.clear_fault(None, "budget")
        elif in_control:
            message = "the guests may occupy more than the budget; nothing is granted until they fit"
            hint = "a guest grew by itself (deflate-on-oom), was given memory, appeared, or does not shrink"
            self._journal.fault(None, "budget", message, hint, once=True)


def account_of(guest: Guest, now_s: float) -> Account:
    """Return the guest's entry in the ledger. A stuck one is left alone, unless it is in danger and may grow."""
    size, in_danger = guest.size, guest.danger.why(now_s) is not None
    occupied_bytes = guest.charge_bytes - guest.outside_bytes
    charge_bytes = size.granted_bytes if size.target_bytes else occupied_bytes
    alone = guest.progress.stuck(now_s) and not (in_danger and size.desired_bytes > size.target_bytes)
    return Account(
        name=guest.name,
        target_bytes=size.target_bytes,
        charge_bytes=charge_bytes,
        actual_bytes=size.actual_bytes,
        reserve_bytes=occupied_bytes - charge_bytes,
        outside_bytes=guest.outside_bytes,
        desired_bytes=size.target_bytes if alone else size.desired_bytes,
        commandable=guest.link is Link.UP and not guest.migrating,
        in_need=in_danger or size.target_bytes < guest.memory.floor_bytes,
        grid=guest.memory.grid,
    )
