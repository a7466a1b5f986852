"""Reports what changed of the guests: states, sizes, curves."""

from __future__ import annotations

from collections.abc import Sequence

from qmpalloc.control.guest import Guest
from qmpalloc.control.journal import Journal
from qmpalloc.control.snapshot import snapshot_of
from qmpalloc.events import CurveSeen, SizeChanged, StateChanged
from qmpalloc.model import GuestState


class Reporter:
    """Knows what was reported last of each guest."""

    def __init__(self, guests: Sequence[Guest], journal: Journal) -> None:
        self._guests = guests
        self._journal = journal
        self._states: dict[str, GuestState] = {}
        self._sizes: dict[str, tuple[int, int, int, int]] = {}
        self._without_curve: dict[str, str] = {}

    def forget(self, name: str) -> None:
        """Forget what was reported of a guest that has left, or has another name."""
        self._states.pop(name, None)
        self._sizes.pop(name, None)

    def show(self) -> None:
        """Report every state and size that changed."""
        self.show_states()
        self.show_sizes()

    def show_states(self) -> None:
        """Report every state that changed, be it by time alone."""
        now_s = self._journal.now_s()
        for guest in self._guests:
            state = guest.state(now_s)
            previous = self._states.get(guest.name)
            if state is not previous:
                self._states[guest.name] = state
                self._journal.emit(StateChanged, guest=guest.name, state=state, previous=previous, detail=guest.detail)

    def show_sizes(self, *, again: bool = False) -> None:
        """Report every size that changed, or with `again` all that are known."""
        charges = [guest.charge_bytes for guest in self._guests]
        committed = sum(charges)
        for guest, charge_bytes in zip(self._guests, charges, strict=True):
            size, shown = guest.size, self._sizes.get(guest.name)
            now = (size.target_bytes, size.actual_bytes, charge_bytes, guest.outside_bytes)
            if (now != shown or again) and (size.target_bytes or shown):
                self._sizes[guest.name] = now
                self._journal.emit(
                    SizeChanged,
                    guest=guest.name,
                    target_bytes=size.target_bytes,
                    actual_bytes=size.actual_bytes,
                    committed_bytes=committed,
                    outside_bytes=guest.outside_bytes,
                )

    def show_curves(self) -> None:
        """Report the curves of all guests, which no decision shows, and those that have none once."""
        for guest in self._guests:
            seen = snapshot_of(guest, self._journal.now_s())
            if seen.curve is not None or self._without_curve.get(guest.name) != seen.no_curve:
                self._journal.emit(CurveSeen, guest=guest.name, curve=seen.curve, no_curve=seen.no_curve)
            self._without_curve[guest.name] = "" if seen.curve is not None else seen.no_curve
