"""The guests of a run and their sessions: served until the end, added and removed while the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import trio

from qmpalloc.config import Config, ControlConfig, GuestConfig
from qmpalloc.control.guest import Guest
from qmpalloc.control.roster import boot_bytes
from qmpalloc.control.session import Session
from qmpalloc.curves.effort import Effort
from qmpalloc.rules.progress_deadline import ProgressDeadline

T = TypeVar("T")

EXPECTED_S = 300.0
"""How long room is kept for a guest that was added and does not start."""


class Fleet:
    """All guests.

    Attributes:
        guests: In the order of the configuration; those that leave are last.
        sessions: By name of the guest; filled by `open_sessions`.
    """

    def __init__(self, config: Config) -> None:
        self._effort = Effort()
        self.guests = [Guest(guest, config.control, self._effort) for guest in config.guests]
        self.sessions: dict[str, Session] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._leaving: dict[str, ProgressDeadline] = {}

    def open_sessions(self, make: Callable[[Guest], Session]) -> None:
        """Make a session for every guest; `run` serves them."""
        self._make = make
        self.sessions |= {guest.name: make(guest) for guest in self.guests}

    async def run(self) -> None:
        """Serve all sessions for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for name in self.sessions:
                    self._start(name)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def _start(self, name: str) -> None:
        scope, session = trio.CancelScope(), self.sessions[name]
        self._scopes[name] = scope

        async def serve() -> None:
            with scope:
                await session.run()

        if self._nursery is not None:
            self._nursery.start_soon(serve)

    def add(self, config: GuestConfig, control: ControlConfig, now_s: float) -> Guest:
        """Add a guest. If no QEMU is there yet, room is kept for it for some minutes."""
        guest = Guest(config, control, self._effort)
        guest.expect(boot_bytes(config), now_s + EXPECTED_S)
        self.guests.append(guest)
        self.sessions[guest.name] = self._make(guest)
        self._start(guest.name)
        return guest

    def change(self, configs: Mapping[str, GuestConfig]) -> None:
        """Give guests new limits or names, by the names they have. Their connections and sizes stay as they are."""
        for guest in self.guests:
            guest.config = configs.get(guest.name, guest.config)
        _rename(self.sessions, configs)
        _rename(self._scopes, configs)

    def leave(self, name: str, deadline: ProgressDeadline) -> None:
        """Begin to part with a guest: it goes to its baseline until the deadline, and takes part in nothing."""
        for guest in self.guests:
            if guest.name == name:
                guest.leaving = True
                self._leaving[name] = deadline

    def sort(self, names: list[str]) -> None:
        """Put the guests into that order, those not named last."""
        rank = {name: index for index, name in enumerate(names)}
        self.guests.sort(key=lambda guest: rank.get(guest.name, len(rank)))

    def drop_left(self, may_go: Callable[[Guest, ProgressDeadline], bool]) -> list[Guest]:
        """Drop those of the guests that leave of which `may_go` says that nothing is to be waited for; return them."""
        left = [guest for guest in self.guests if guest.leaving and may_go(guest, self._leaving[guest.name])]
        for guest in left:
            self.guests.remove(guest)
            if guest.name in self._scopes:
                self._scopes.pop(guest.name).cancel()
            del self.sessions[guest.name], self._leaving[guest.name]
        return left


def _rename(table: dict[str, T], configs: Mapping[str, GuestConfig]) -> None:
    """Keep what belongs to a guest under its new name; all at once, as two may have swapped theirs."""
    moved = {configs[name].name: table.pop(name) for name in configs if name in table}
    table.update(moved)
