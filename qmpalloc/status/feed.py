"""What a client that attaches late has to be told, out of the events of a run. Pure, and bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec
from msgspec import Struct, structs

from qmpalloc.events import (
    AnyEvent,
    CaughtUp,
    ControlChanged,
    CurveSeen,
    Decided,
    Faulted,
    Header,
    Reloaded,
    Sampled,
    SampleRejected,
    SizeChanged,
    StateChanged,
    Totals,
)
from qmpalloc.summary import Summarizer, Summary

NEWS = 60
"""So many of the rarer events are kept, the newest: what a screen can show."""

ROUTINE = 2000
"""So many samples, sizes and decisions, where a decision counts once for each guest: minutes of a few guests."""

_ROUTINE = (Sampled, SizeChanged, CurveSeen, Decided)
_Key = tuple[type, str | None]


class Now(Struct, frozen=True, kw_only=True):
    """A run at one moment.

    Attributes:
        header: Its header, with the guests and the budget as they are now.
        summary: Its sums.
        totals: What each guest got, gave, and told in vain.
        latest: The newest event by its type and guest (None: of the whole run).
    """

    header: Header
    summary: Summary
    totals: dict[str, Totals]
    latest: dict[tuple[type, str | None], AnyEvent]


class Feed:
    """A sink that keeps of a run what shows it as it is, whatever its length.

    Attributes:
        number: Of the last event, from 1.
        on_event: Called with each event and its number; set by who sends them on.
    """

    def __init__(self) -> None:
        self.number = 0
        self.on_event: Callable[[int, AnyEvent], None] | None = None
        self._header: Header | None = None
        self._latest: dict[_Key, tuple[int, AnyEvent]] = {}
        self._news: deque[tuple[int, AnyEvent]] = deque(maxlen=NEWS)
        self._routine: deque[tuple[int, AnyEvent]] = deque()
        self._weight = 0
        self._summarizer = Summarizer()
        self._totals: dict[str, Totals] = {}

    def __call__(self, event: AnyEvent) -> None:
        """Take the next event."""
        self.number += 1
        self._summarizer(event)
        if isinstance(event, Header):
            self._header = event
        else:
            self._keep(event)
        if self.on_event is not None:
            self.on_event(self.number, event)

    def now(self) -> Now | None:
        """Return the run as it is, none of which changes any more; None before the header."""
        if self._header is None:
            return None
        return Now(
            header=self._header,
            summary=structs.replace(self._summarizer.summary),
            totals=dict(self._totals),
            latest={key: event for key, (_, event) in self._latest.items()},
        )

    def so_far(self, pid: int) -> tuple[AnyEvent, ...]:
        """Return what shows the run as it is, in order of time; the last is a `CaughtUp`. Nothing before the header."""
        if self._header is None:
            return ()
        kept = dict(self._latest.values()) | dict(self._news) | dict(self._routine)
        ordered = [kept[number] for number in sorted(kept)]
        last = ordered[-1] if ordered else self._header
        summary = msgspec.to_builtins(self._summarizer.summary)
        end = CaughtUp(t=last.t, wall=last.wall, summary=summary, totals=dict(self._totals), pid=pid)
        return (self._header, *ordered, end)

    def _keep(self, event: AnyEvent) -> None:
        if isinstance(event, Reloaded):
            self._reload(event)
        if isinstance(event, (StateChanged, ControlChanged, Faulted, *_ROUTINE)):
            self._latest[type(event), getattr(event, "guest", None)] = (self.number, event)
        if isinstance(event, Decided):
            self._note_moves(event)
        if isinstance(event, SampleRejected):
            totals = self._totals.get(event.guest, Totals())
            rejected = totals.rejected | {event.fault: totals.rejected.get(event.fault, 0) + 1}
            self._totals[event.guest] = structs.replace(totals, rejected=rejected)
        if not isinstance(event, _ROUTINE):
            self._news.append((self.number, event))
            return
        self._routine.append((self.number, event))
        self._weight += _weight(event)
        while self._weight > ROUTINE and len(self._routine) > 1:
            self._weight -= _weight(self._routine.popleft()[1])

    def _note_moves(self, event: Decided) -> None:
        for move in event.decision.moves:
            donor, receiver = (self._totals.get(name, Totals()) for name in (move.donor, move.receiver))
            self._totals[move.donor] = structs.replace(
                donor, given_bytes=donor.given_bytes + move.size_bytes, moves_out=donor.moves_out + 1
            )
            self._totals[move.receiver] = structs.replace(
                receiver, received_bytes=receiver.received_bytes + move.size_bytes, moves_in=receiver.moves_in + 1
            )

    def _reload(self, event: Reloaded) -> None:
        """Take the new guests; where names changed, what is kept of the old ones would show guests that are not there.

        Then only the latest of the guests that stay is kept, under their new names.
        """
        assert self._header is not None
        before = {guest.name for guest in self._header.guests}
        self._header = structs.replace(self._header, budget_bytes=event.budget_bytes, guests=event.guests)
        names = {guest.name for guest in event.guests}
        if not event.renamed and before <= names:
            return
        latest, self._latest = self._latest, {}
        self._news.clear()
        self._routine.clear()
        self._weight = 0
        for (kind, guest), (number, each) in latest.items():
            if guest is None:
                if not isinstance(each, Decided):
                    self._latest[kind, None] = (number, each)
            elif (name := event.renamed.get(guest, guest)) in names:
                self._latest[kind, name] = (number, structs.replace(each, guest=name))
        self._totals = {event.renamed.get(name, name): totals for name, totals in self._totals.items()}


def _weight(event: AnyEvent) -> int:
    return len(event.snapshot.guests) if isinstance(event, Decided) else 1
