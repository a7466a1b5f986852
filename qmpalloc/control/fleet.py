"""The guests of a run and their sessions: served until the end, added and removed while the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import trio

from qmpalloc.config import Config
from qmpalloc.control.guest import Guest
from qmpalloc.control.journal import Journal
from qmpalloc.control.restore import is_restored, missing_bytes, want_baselines
from qmpalloc.control.roster import Changes, compare, sockets
from qmpalloc.control.session import Session
from qmpalloc.curves.cpu_budget import CpuBudget
from qmpalloc.errors import QmpallocError
from qmpalloc.events import Reloaded
from qmpalloc.host.facts import guest_headers
from qmpalloc.rules.progress_deadline import ProgressDeadline

T = TypeVar("T")


class Fleet:
    """All guests.

    Attributes:
        guests: In the order of the configuration; those that leave are last.
        sessions: By name of the guest; filled by `open_sessions`.
    """

    def __init__(self, config: Config) -> None:
        self._control = config.control
        self._effort = CpuBudget()
        self.guests = [Guest(guest, config.control, self._effort) for guest in config.guests]
        self.sessions: dict[str, Session] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._leaving: dict[str, ProgressDeadline] = {}

    def open_sessions(
        self,
        journal: Journal,
        *,
        may_command: bool,
        on_change: Callable[[], None],
        on_order: Callable[[], None],
        on_reset: Callable[[Guest], None],
    ) -> None:
        """Make a session for every guest; `run` serves them. The arguments are those of `Session`."""
        self._journal = journal
        self._make = partial(
            Session,
            journal=journal,
            control=self._control,
            may_command=may_command,
            on_change=on_change,
            on_order=on_order,
            on_reset=on_reset,
        )
        self.sessions |= {guest.name: self._make(guest) for guest in self.guests}

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

    def compare(self, old: Config, new: Config) -> Changes:
        """Return what a new configuration changes of the guests.

        Raises:
            QmpallocError: It changes what a run cannot change, or a guest comes with the name, or a socket, of one that
                is still on its way out.
        """
        changes = compare(old, new)
        names = {guest.name for guest in changes.added} | set(changes.renamed.values())
        places = {place for guest in changes.added for place in sockets(guest)}
        back = [
            guest.name
            for guest in self.guests
            if guest.leaving and (guest.name in names or not places.isdisjoint(sockets(guest.config)))
        ]
        if back:
            raise QmpallocError(f"{', '.join(sorted(back))} is still on its way out", hint="try again in a moment")
        return changes

    def change(self, changes: Changes, new: Config) -> list[Guest]:
        """Carry out what a new configuration changes; return the guests that were added.

        Guests with new limits or names keep their connections and sizes. Those removed begin to leave: they go to their
        baselines while they come closer to them, and take part in nothing.
        """
        for guest in self.guests:
            if guest.name in changes.removed:
                guest.leaving = True
                self._leaving[guest.name] = ProgressDeadline(float(self._control.exit_timeout), self._journal.now_s())
            guest.reconfigured(changes.changed.get(guest.name, guest.config))
        _rename(self.sessions, changes.renamed)
        _rename(self._scopes, changes.renamed)
        added = [Guest(config, self._control, self._effort) for config in changes.added]
        for guest in added:
            self.guests.append(guest)
            self.sessions[guest.name] = self._make(guest)
            self._start(guest.name)
        rank = {guest.name: index for index, guest in enumerate(new.guests)}
        self.guests.sort(key=lambda guest: rank.get(guest.name, len(rank)))
        return added

    def drop_left(self, *, restoring: bool) -> list[str]:
        """Drop the guests that leave, and return their names.

        Args:
            restoring: They go to their baselines first, and only those are dropped that are there, or do not come
                closer any more, which is told.
        """
        now_s, leaving = self._journal.now_s(), [guest for guest in self.guests if guest.leaving]
        if restoring:
            want_baselines(leaving)
        left = [guest for guest in leaving if not restoring or self._has_left(guest, now_s)]
        for guest in left:
            self.guests.remove(guest)
            if restoring and not is_restored(guest):
                self._journal.fault(guest.name, "exit", "left the run and is not back at its baseline")
            if guest.name in self._scopes:
                self._scopes.pop(guest.name).cancel()
            del self.sessions[guest.name], self._leaving[guest.name]
        return [guest.name for guest in left]

    def _has_left(self, guest: Guest, now_s: float) -> bool:
        return is_restored(guest) or self._leaving[guest.name].passed(missing_bytes(guest), now_s)

    def report(self, budget_bytes: int, renamed: Mapping[str, str] | None = None) -> None:
        """Report which guests there are now."""
        self._journal.emit(
            Reloaded,
            budget_bytes=budget_bytes,
            guests=guest_headers(guest.config for guest in self.guests),
            leaving=tuple(guest.name for guest in self.guests if guest.leaving),
            renamed=dict(renamed or {}),
        )


def _rename(table: dict[str, T], renamed: Mapping[str, str]) -> None:
    """Keep what belongs to a guest under its new name; all at once, as two may have swapped theirs."""
    moved = {new: table.pop(old) for old, new in renamed.items() if old in table}
    table.update(moved)
