"""Room in the budget for guests that were added to the configuration and are about to start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qmpalloc.control.commitments import Commitments
from qmpalloc.control.guest import Guest, Link
from qmpalloc.control.journal import Journal
from qmpalloc.control.roster import boot_bytes

EXPECTED_S = 300.0
"""How long room is kept for a guest that was added and does not start."""

RELOAD_HINT = "reload again when it is about to start"


class Room:
    """Keeps room for guests, tells when there is enough, and gives it up.

    Args:
        guests: All of the run.
        commitments: Tells whether all fit the budget.
        journal: For what is given up.
        on_room: Called when there is room for a guest, with it.
        on_change: Called when room was given up.
    """

    def __init__(
        self,
        guests: Sequence[Guest],
        commitments: Commitments,
        journal: Journal,
        *,
        on_room: Callable[[Guest], None],
        on_change: Callable[[], None],
    ) -> None:
        self._guests = guests
        self._commitments = commitments
        self._journal = journal
        self._on_room = on_room
        self._on_change = on_change
        self._until_s: dict[Guest, float] = {}
        self._told: set[str] = set()

    def keep_for(self, guest: Guest) -> None:
        """Charge a guest with what it will occupy at first, until it is there or some minutes are over."""
        guest.size.expected_bytes = boot_bytes(guest.config)
        self._until_s[guest] = self._journal.now_s() + EXPECTED_S

    def forget(self, name: str) -> None:
        """Forget what was told of a guest by that name."""
        self._told.discard(name)

    def look(self, *, in_control: bool) -> None:
        """Give up room that nobody may wait for any more, and tell for whom there is room now.

        Args:
            in_control: Decisions are made, so that others give for a guest in danger.
        """
        now_s = self._journal.now_s()
        self._until_s = {guest: until_s for guest, until_s in self._until_s.items() if guest.size.expected_bytes}
        if in_control:
            self._give_to_danger(now_s)
        for guest in self._guests:
            if not guest.size.expected_bytes:
                continue
            if now_s >= self._until_s[guest]:
                self._give_up(guest, "was added and has not started; the room kept for it is given back")
            elif guest.name not in self._told and self._commitments.fit():
                self._told.add(guest.name)
                self._on_room(guest)

    def _give_to_danger(self, now_s: float) -> None:
        """Keep no room while guests pay with their baselines for one in danger."""
        up = [guest for guest in self._guests if guest.link is Link.UP]
        starved = [guest.name for guest in up if guest.danger.why(now_s)]
        if not starved or all(guest.size.desired_bytes >= guest.memory.baseline_bytes for guest in up):
            return
        for guest in self._guests:
            if guest.size.expected_bytes:
                self._give_up(guest, f"the room kept for it is given up: {', '.join(starved)} is in danger")

    def _give_up(self, guest: Guest, message: str) -> None:
        guest.size.expected_bytes = 0
        self._journal.fault(guest.name, "room", message, RELOAD_HINT)
        self._on_change()
