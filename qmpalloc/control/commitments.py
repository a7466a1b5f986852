"""What every guest has, what is committed of the budget, what may be sent now; and showing all that changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qmpalloc.control.guest import Guest
from qmpalloc.control.journal import Journal
from qmpalloc.control.session import Session
from qmpalloc.events import SizeChanged, StateChanged
from qmpalloc.model import GuestState
from qmpalloc.rules.ledger import committed_bytes, next_orders


class Commitments:
    """Keeps guests, ledger and journal in step. No waiting: the controller calls it when something changed.

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
        self._shown_states: dict[str, GuestState] = {}
        self._shown_sizes: dict[str, tuple[int, int, int, int]] = {}

    def forget(self, name: str) -> None:
        """Forget what was reported of a guest that has left."""
        self._shown_states.pop(name, None)
        self._shown_sizes.pop(name, None)

    @property
    def committed_bytes(self) -> int:
        """What all guests together may occupy now."""
        return sum(guest.charge_bytes for guest in self._guests)

    def send_orders(self) -> None:
        """Give the sessions what the ledger allows now."""
        now_s = self._journal.now_s()
        accounts = [guest.account(now_s) for guest in self._guests]
        assert committed_bytes(accounts) == self.committed_bytes
        orders = next_orders(accounts, self.budget_bytes)
        for order in orders:
            self._sessions[order.name].give(order)
        if orders:
            self.show_sizes()

    def show(self) -> None:
        """Report every state and size that changed."""
        self.show_states()
        self.show_sizes()

    def show_states(self) -> None:
        """Report every state that changed, be it by time alone."""
        now_s = self._journal.now_s()
        for guest in self._guests:
            state = guest.state(now_s)
            previous = self._shown_states.get(guest.name)
            if state is not previous:
                self._shown_states[guest.name] = state
                self._journal.emit(StateChanged, guest=guest.name, state=state, previous=previous, detail=guest.detail)

    def show_sizes(self, *, again: bool = False) -> None:
        """Report every size that changed, or with `again` all that are known."""
        committed = self.committed_bytes
        for guest in self._guests:
            size = (guest.target_bytes, guest.actual_bytes, guest.charge_bytes, guest.outside_bytes)
            shown = self._shown_sizes.get(guest.name)
            if (size != shown or again) and (guest.target_bytes or shown):
                self._shown_sizes[guest.name] = size
                self._journal.emit(
                    SizeChanged,
                    guest=guest.name,
                    target_bytes=guest.target_bytes,
                    actual_bytes=guest.actual_bytes,
                    committed_bytes=committed,
                    outside_bytes=guest.outside_bytes,
                )
