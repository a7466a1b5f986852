"""What happens in a run, one struct per kind: the lines of the record, and all that the TUI and the summary see.

The controller emits these to a `Sink`. Recording, painting and summing up are reductions of the same stream, so the
screen cannot show what a recording lacks, and a recording replays through the screen.

Each event carries ``t`` (monotonic seconds since the run began) and ``wall`` (Unix time, seconds).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from qmpalloc.errors import SampleFault
from qmpalloc.model import Curve, Decision, GuestState, Snapshot
from qmpalloc.sample import Delta, Sample

FORMAT = "qmpalloc-record"
VERSION = 1

Mode = Literal["run", "watch", "dry-run"]


class Event(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all events."""

    t: float
    wall: float


class GuestHeader(Struct, frozen=True, kw_only=True):
    """A guest's fixed facts. Sizes in bytes."""

    name: str
    floor_bytes: int
    cap_bytes: int
    baseline_bytes: int


class Header(Event, frozen=True, kw_only=True, tag="header"):
    """First line of a record: everything needed to understand and to repeat the run."""

    format: Literal["qmpalloc-record"] = "qmpalloc-record"
    version: Literal[1] = 1
    mode: Mode
    policy: str
    policy_settings: dict[str, Any]
    budget_bytes: int
    interval_s: float
    guests: tuple[GuestHeader, ...]
    config: dict[str, Any]
    versions: dict[str, str]
    host: dict[str, Any]


class StateChanged(Event, frozen=True, kw_only=True, tag="state"):
    """A guest's state changed. `detail` says why, for people; guest-supplied text in it is already printable."""

    guest: str
    state: GuestState
    previous: GuestState | None
    detail: str = ""


class Sampled(Event, frozen=True, kw_only=True, tag="sample"):
    """A guest's counters file was read and accepted. `delta` is the difference to the previous accepted sample.

    `disk_read_pages` is what QEMU read from the guest's disks in the interval before, as it is asked after a sample;
    None if not known.
    """

    guest: str
    sample: Sample
    delta: Delta | None
    disk_read_pages: int | None = None


class SampleRejected(Event, frozen=True, kw_only=True, tag="rejected"):
    """A reading was not used. REPEATED readings are not reported one by one; the sample's age shows them."""

    guest: str
    fault: SampleFault
    message: str


class SamplesDropped(Event, frozen=True, kw_only=True, tag="samples"):
    """Sampled accesses of a guest did not arrive or were not used: its curve is the weaker for it.

    `events` is how many were lost on the way, 0 for a batch that was refused or not read; `message` says why.
    """

    guest: str
    events: int
    message: str


class CurveSeen(Event, frozen=True, kw_only=True, tag="curve"):
    """A guest's miss-ratio curve in a run that decides nothing, once an interval; else it is in each `Decided`.

    `curve` is None where there is none, and `no_curve` says why.
    """

    guest: str
    curve: Curve | None
    no_curve: str = ""


class SizeChanged(Event, frozen=True, kw_only=True, tag="size"):
    """A guest's target or actual size changed, and what is committed in all.

    That is the sum of max(target, actual), and of the memory the guests have beside it (virtio-mem beside a balloon).
    """

    guest: str
    target_bytes: int
    actual_bytes: int
    committed_bytes: int
    outside_bytes: int = 0


class Decided(Event, frozen=True, kw_only=True, tag="decision"):
    """One policy call: the snapshot it saw, its decision, and how long the call took (seconds of CPU and wall)."""

    snapshot: Snapshot
    decision: Decision
    committed_bytes: int
    duration_s: float


class Commanded(Event, frozen=True, kw_only=True, tag="command"):
    """A command for a size was answered; `error` is empty when QEMU accepted it.

    ``adopt`` pins a guest at the size it was found with, so that its target is known. ``repeat`` asks again for a
    target beside which the guest stands still, ``accept`` sets the target of a stuck one to what it has achieved.
    """

    guest: str
    target_bytes: int
    previous_bytes: int
    purpose: Literal["adopt", "shrink", "grant", "repeat", "accept"]
    error: str = ""


class Faulted(Event, frozen=True, kw_only=True, tag="fault"):
    """Something went wrong; for one guest, or for the whole run when `guest` is None."""

    guest: str | None
    kind: str
    message: str
    hint: str = ""


class ControlChanged(Event, frozen=True, kw_only=True, tag="control"):
    """Control was started, paused, resumed, or all guests are being returned to baseline."""

    control: Literal["settling", "running", "paused", "returning", "watching", "stopped"]
    detail: str = ""


Verb = Literal["set", "hold", "release", "pause", "resume"]


class Request(Struct, frozen=True, kw_only=True):
    """What a person asks of a run.

    Attributes:
        verb: What to do.
        guest: With which guest; None for the whole run.
        size_bytes: The size, for ``set``.
        for_s: For how long, seconds; None: until the run ends.
    """

    verb: Verb
    guest: str | None = None
    size_bytes: int | None = None
    for_s: float | None = None


class Answer(Struct, frozen=True, kw_only=True):
    """What became of a request: `message` for people, and a hint. `done` is False when it was refused."""

    done: bool
    message: str
    hint: str = ""


class Asked(Event, frozen=True, kw_only=True, tag="asked"):
    """A person asked something of the run from outside of its terminal, or the time of what was asked is over.

    `error` says why it was refused; empty when it was not. `guest` is None where the whole run is meant. `for_s` is how
    long it is to last, in seconds, None as long as the run. `by` says who asked, empty when nobody did.
    """

    verb: Verb
    guest: str | None = None
    size_bytes: int | None = None
    for_s: float | None = None
    by: str = ""
    detail: str = ""
    error: str = ""


class Totals(Struct, frozen=True, kw_only=True):
    """What a guest got and gave in a run, in bytes and moves, and its readings that were not used, by kind."""

    received_bytes: int = 0
    given_bytes: int = 0
    moves_in: int = 0
    moves_out: int = 0
    rejected: dict[SampleFault, int] = {}


class CaughtUp(Event, frozen=True, kw_only=True, tag="caught-up"):
    """Only on a status socket: what comes from here on happens now.

    Before it stand the header and of what happened so far the latest, and some of the rest: enough to show the run as
    it is, and not enough to sum it up. So it has the sums: `summary` as `qmpalloc.summary` has them, `totals` by guest.
    `pid` is the controller's process id.
    """

    summary: dict[str, Any]
    totals: dict[str, Totals] = {}
    pid: int = 0


class Reloaded(Event, frozen=True, kw_only=True, tag="reload"):
    """The guests or the budget have changed: all guests as they are from now on, those that leave included.

    `renamed` holds the old and the new name of each guest that is called otherwise from now on.
    """

    budget_bytes: int
    guests: tuple[GuestHeader, ...]
    leaving: tuple[str, ...] = ()
    renamed: dict[str, str] = {}


class Ended(Event, frozen=True, kw_only=True, tag="end"):
    """Last line of a record. `clean` is True when every guest is where it was meant to be left."""

    reason: str
    clean: bool


AnyEvent = (
    Header
    | StateChanged
    | Sampled
    | SampleRejected
    | SamplesDropped
    | CurveSeen
    | SizeChanged
    | Decided
    | Commanded
    | Faulted
    | ControlChanged
    | Asked
    | CaughtUp
    | Reloaded
    | Ended
)

Sink = Callable[[AnyEvent], None]
"""Takes events in order. Must return at once. One that raises is not called again (see `qmpalloc.control.journal`)."""


def plain(value: Any) -> Any:
    """Return a configuration's quantity (`Size`, `Duration`) as the plain number it is; msgspec asks for what it lacks.

    Raises:
        NotImplementedError: It is something else.
    """
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    raise NotImplementedError(type(value))


encoder = msgspec.json.Encoder(enc_hook=plain)


def encode(event: AnyEvent) -> bytes:
    """Return an event as a line of a record, without its end.

    Linux allows any bytes in a path, JSON only text: what is no UTF-8 is written as a backslash and ``udcXX``.
    """
    try:
        return encoder.encode(event)
    except UnicodeEncodeError:
        return encoder.encode(_textual(msgspec.to_builtins(event, enc_hook=plain)))


def _textual(value: Any) -> Any:
    """Return plain data with half surrogate pairs, which stand for such bytes, spelt out."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        case dict():
            return {_textual(key): _textual(each) for key, each in value.items()}
        case list() | tuple():
            return [_textual(each) for each in value]
        case _:
            return value


decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
