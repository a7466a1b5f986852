"""What people ask of the guests of a run while it goes on: a size, for a time. Checked, told, ended in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qmpalloc.control.guest import Guest
from qmpalloc.control.journal import Journal
from qmpalloc.events import Answer, Asked, Request
from qmpalloc.model import GuestState, Snapshot
from qmpalloc.rules.pins import Choice, Refusal, why_not
from qmpalloc.text import printable
from qmpalloc.units import format_duration, format_size

LONGEST_S = 365 * 24 * 3600.0


class Requests:
    """The sizes that people chose, and what is told of them.

    Args:
        guests: All guests.
        journal: Where it is told.
        snapshot: Returns the guests as they are now.
    """

    def __init__(self, guests: Sequence[Guest], journal: Journal, snapshot: Callable[[], Snapshot]) -> None:
        self._guests = guests
        self._journal = journal
        self._snapshot = snapshot

    def refused(self, request: Request, refusal: Refusal, by: str) -> Answer:
        """Tell that a request was refused."""
        self._tell(request, by, error=refusal.message)
        return Answer(done=False, message=refusal.message, hint=refusal.hint)

    def accepted(self, request: Request, message: str, by: str) -> Answer:
        """Tell that a request was accepted."""
        self._tell(request, by, detail=message)
        return Answer(done=True, message=message)

    def choose(self, request: Request, by: str, *, short: str) -> Answer:
        """Choose a guest's size (``set``), keep the one it has (``hold``), or leave it to the policy (``release``).

        Args:
            request: One of these.
            by: Who asks.
            short: Why the host can give nothing now; empty when it can.
        """
        guest = next((each for each in self._guests if each.name == request.guest), None)
        if guest is None:
            known = ", ".join(each.name for each in self._guests)
            name = printable(request.guest or "")
            return self.refused(request, Refusal(f"no guest is called {name!r}", f"known are {known}"), by)
        if request.verb == "release":
            return self._release(guest, request, by)
        refusal = self._malformed(request) or self._unfit(guest, request, short)
        if refusal is not None:
            return self.refused(request, refusal, by)
        held = request.verb == "hold"
        size_bytes = guest.size.desired_bytes if held else guest.memory.grid.fit(request.size_bytes or 0)
        until_s = None if request.for_s is None else self._journal.now_s() + request.for_s
        guest.choice = Choice(size_bytes=size_bytes, until_s=until_s, held=held)
        how_long = "until the run ends" if request.for_s is None else f"for {format_duration(request.for_s)}"
        words = f"{guest.name} is {'held at' if held else 'to have'} {format_size(size_bytes)} {how_long}"
        state = guest.state(self._journal.now_s())
        later = "" if state is GuestState.FRESH else f"; it is {state}: that begins when its samples come in time"
        return self.accepted(request, words + later, by)

    def _release(self, guest: Guest, request: Request, by: str) -> Answer:
        was, guest.choice = guest.choice, None
        words = "is the policy's again" if was else "was the policy's already"
        return self.accepted(request, f"{guest.name} {words}", by)

    def _malformed(self, request: Request) -> Refusal | None:
        if request.verb == "set" and (request.size_bytes is None or request.size_bytes <= 0):
            return Refusal("set needs a size above 0", "for example: qmpalloc set web 1GiB")
        if request.for_s is not None and not 0 < request.for_s <= LONGEST_S:
            return Refusal("the time must be above 0, and no more than a year", "leave it out: until the run ends")
        return None

    def _unfit(self, guest: Guest, request: Request, short: str) -> Refusal | None:
        """Return why the guest cannot have the size; one that is held keeps what it has, so that it can."""
        if guest.leaving:
            return Refusal(f"{guest.name} leaves the run", "it goes to its baseline")
        if request.verb == "hold":
            if guest.size.desired_bytes:
                return None
            return Refusal(f"the size of {guest.name} is not known yet", "try again when it is connected")
        size_bytes = guest.memory.grid.down(request.size_bytes or 0)
        if short and size_bytes > guest.size.desired_bytes:
            return Refusal(f"nobody grows while the host is short of memory: {short}", "try again when that is over")
        return why_not(self._snapshot(), guest.name, size_bytes, guest.config.floor)

    def release_all(self, why: str) -> None:
        """End all that people chose."""
        for guest in self._guests:
            if guest.choice is not None:
                self._end(guest, why)

    def end_those_over(self) -> str:
        """End what was chosen for a time that is over; return whose, for people."""
        now_s = self._journal.now_s()
        over = [
            guest
            for guest in self._guests
            if guest.choice is not None and guest.choice.until_s is not None and guest.choice.until_s <= now_s
        ]
        for guest in over:
            self._end(guest, "its time is over")
        return ", ".join(guest.name for guest in over)

    def _end(self, guest: Guest, why: str) -> None:
        guest.choice = None
        self._tell(Request(verb="release", guest=guest.name), "", detail=f"{guest.name} is the policy's again: {why}")

    def _tell(self, request: Request, by: str, *, detail: str = "", error: str = "") -> None:
        self._journal.emit(
            Asked,
            verb=request.verb,
            guest=None if request.guest is None else printable(request.guest),
            size_bytes=request.size_bytes,
            for_s=request.for_s,
            by=by,
            detail=detail,
            error=error,
        )
