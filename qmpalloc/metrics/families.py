"""Which metrics there are. Pure.

Names follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` for counters. The labels are guests,
policies and words of our own, as the configuration has them: no text of a guest, and no more series than 40 for each.
Counters of a guest go back to 0 when its collector starts again. What is not known is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TypeVar, get_args, get_type_hints

from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from qmpalloc.events import ControlChanged, Decided, GuestHeader, Sampled, SizeChanged, StateChanged, Totals
from qmpalloc.model import GuestDecision, GuestSnapshot, GuestState, Limiter
from qmpalloc.sample import Sample
from qmpalloc.status.feed import Now

PREFIX = "qmpalloc"
CONTROL = get_args(get_type_hints(ControlChanged)["control"])
Kind = Literal["gauge", "counter"]
T = TypeVar("T")


class _Guest(Struct, frozen=True, kw_only=True):
    """All that is known of one guest."""

    header: GuestHeader
    state: GuestState
    totals: Totals
    size: SizeChanged | None = None
    sampled: Sampled | None = None
    snapshot: GuestSnapshot | None = None
    decision: GuestDecision | None = None

    @property
    def sample(self) -> Sample | None:
        """Its last sample."""
        return self.sampled.sample if self.sampled is not None else None


class _OfGuest(Struct, frozen=True):
    """A metric with a value for each guest: from all that is known of it, or from its last sample."""

    name: str
    help: str
    of: Callable[[_Guest], float | None]
    kind: Kind = "gauge"


def _if(part: Callable[[_Guest], T | None], of: Callable[[T], float | None]) -> Callable[[_Guest], float | None]:
    """Return what gives a value of a part of a guest; None where that part is not known."""

    def value(guest: _Guest) -> float | None:
        known = part(guest)
        return of(known) if known is not None else None

    return value


def _size(of: Callable[[SizeChanged], int]) -> Callable[[_Guest], float | None]:
    return _if(lambda guest: guest.size, of)


def _sampled(name: str, text: str, of: Callable[[Sample], float | None], kind: Kind = "gauge") -> _OfGuest:
    return _OfGuest(name, text, _if(lambda guest: guest.sample, of), kind)


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


OF_GUESTS = (
    _OfGuest("size_bytes", "Memory it has, as QEMU tells.", _size(lambda size: size.actual_bytes)),
    _OfGuest("target_bytes", "Memory last decided for it.", _size(lambda size: size.target_bytes)),
    _OfGuest("outside_bytes", "Memory it has besides, which is not moved.", _size(lambda size: size.outside_bytes)),
    _OfGuest(
        "floor_bytes",
        "The least it may have now: its floor, or what it cannot give up.",
        lambda guest: guest.snapshot.floor_bytes if guest.snapshot else guest.header.floor_bytes,
    ),
    _OfGuest("cap_bytes", "The most it may have.", lambda guest: guest.header.cap_bytes),
    _OfGuest("baseline_bytes", "What it has when control ends.", lambda guest: guest.header.baseline_bytes),
    _OfGuest(
        "resident_bytes",
        "Memory of its QEMU that the host has.",
        _if(lambda guest: guest.snapshot, lambda snapshot: snapshot.resident_bytes),
    ),
    _OfGuest(
        "in_danger",
        "1 when the last decision helped it out of danger.",
        _if(lambda guest: guest.decision, lambda decision: float(decision.limiter is Limiter.DANGER)),
    ),
    _OfGuest(
        "sample_timestamp_seconds",
        "When it last told its counters.",
        _if(lambda guest: guest.sampled, lambda sampled: sampled.wall),
    ),
    _OfGuest("received_bytes", "Memory it got by decisions.", lambda guest: guest.totals.received_bytes, "counter"),
    _OfGuest("given_bytes", "Memory it gave by decisions.", lambda guest: guest.totals.given_bytes, "counter"),
    _OfGuest(
        "rejected_samples",
        "Readings of its counters that were not used.",
        lambda guest: sum(guest.totals.rejected.values()),
        "counter",
    ),
    _sampled("accesses", "Pages touched by reads.", lambda sample: sample.counters.accesses, "counter"),
    _sampled("evictions", "Pages thrown out of its cache.", lambda sample: sample.counters.evictions, "counter"),
    _sampled("refaults", "Evicted pages that came back.", lambda sample: sample.counters.refaults, "counter"),
    _sampled("page_size_bytes", "Size of its pages.", lambda sample: sample.page_size),
    _sampled(
        "memory_available_bytes", "What its programs could still have.", lambda sample: sample.memory_bytes.available
    ),
    _sampled(
        "memory_cache_bytes", "Its page cache that can be dropped.", lambda sample: sample.memory_bytes.file_bytes
    ),
    _sampled(
        "memory_needed_bytes",
        "What it cannot give up: anonymous, shared and unreclaimable kernel memory.",
        lambda sample: sample.memory_bytes.unreclaimable_bytes,
    ),
    _sampled("oom_kills", "Processes killed for lack of memory.", lambda sample: sample.oom_kills, "counter"),
)

PAGE_INS: dict[str, Callable[[Sample], int | None]] = {
    "read": lambda sample: sample.counters.inserts_read,
    "fault": lambda sample: sample.counters.inserts_fault,
    "swap": lambda sample: sample.swap_pages.in_,
}
STALLS: dict[str, Callable[[Sample], float | None]] = {
    "some": lambda sample: _scaled(sample.psi_memory.some_total_us, 1e-6),
    "full": lambda sample: _scaled(sample.psi_memory.full_total_us, 1e-6),
}


def families(now: Now | None) -> Iterator[Metric]:
    """Yield all metrics of a run; none before it has begun."""
    if now is None:
        return
    yield from _of_run(now)
    yield from _of_host(now)
    yield from _of_guests(list(_guests(now)))


def _of_run(now: Now) -> Iterator[Metric]:
    header, summary = now.header, now.summary
    facts = {"version": header.versions.get("qmpalloc", ""), "mode": header.mode, "policy": header.policy}
    yield InfoMetricFamily(f"{PREFIX}_run", "What runs.", value=facts)
    control = now.latest.get((ControlChanged, None))
    if isinstance(control, ControlChanged):
        doing = GaugeMetricFamily(f"{PREFIX}_control_state", "1 for what control does.", labels=["state"])
        for state in CONTROL:
            doing.add_metric([state], float(state == control.control))
        yield doing
    decided = now.latest.get((Decided, None))
    seconds = decided.duration_s if isinstance(decided, Decided) else None
    at = decided.wall if isinstance(decided, Decided) else None
    committed = decided.committed_bytes if isinstance(decided, Decided) else None
    for name, text, value in (
        ("budget_bytes", "What all guests may have together.", header.budget_bytes),
        ("committed_bytes", "What of it is committed.", committed),
        ("decision_duration_seconds", "How long the last decision took.", seconds),
        ("decision_timestamp_seconds", "When it was made.", at),
    ):
        if value is not None:
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)
    for name, text, count in (
        ("decisions", "Decisions made.", summary.decisions),
        ("moves", "Transfers decided.", summary.moves),
        ("commands", "Sizes asked of QEMUs.", summary.commands),
        ("samples", "Readings of counters that were used.", summary.samples),
    ):
        yield CounterMetricFamily(f"{PREFIX}_{name}", text, value=count)


def _of_host(now: Now) -> Iterator[Metric]:
    decided = now.latest.get((Decided, None))
    host = decided.snapshot.host if isinstance(decided, Decided) else None
    if host is None:
        return
    for name, text, value in (
        ("memory_bytes", "RAM of the host.", host.total_bytes),
        ("memory_available_bytes", "What of it can be had without swapping.", host.available_bytes),
        ("memory_stalled_seconds", "Time for which all tasks waited for memory.", _scaled(host.stalled_us, 1e-6)),
    ):
        family = CounterMetricFamily if name == "memory_stalled_seconds" else GaugeMetricFamily
        if value is not None:
            yield family(f"{PREFIX}_host_{name}", text, value=value)


def _of_guests(guests: list[_Guest]) -> Iterator[Metric]:
    states = GaugeMetricFamily(f"{PREFIX}_guest_state", "1 for its state.", labels=["guest", "state"])
    for guest in guests:
        for state in GuestState:
            states.add_metric([guest.header.name, state.value], float(state is guest.state))
    yield states
    for metric in OF_GUESTS:
        family = _family(metric.kind, metric.name, metric.help, "guest")
        for guest in guests:
            value = metric.of(guest)
            if value is not None:
                family.add_metric([guest.header.name], value)
        yield family
    yield _by("page_ins", "Pages brought in, by cause.", "cause", PAGE_INS, guests)
    yield _by(
        "memory_stalled_seconds", "Time for which some, or all, tasks waited for memory.", "tasks", STALLS, guests
    )


def _by(
    name: str, text: str, label: str, parts: Mapping[str, Callable[[Sample], float | None]], guests: list[_Guest]
) -> Metric:
    family = _family("counter", name, text, "guest", label)
    for guest in guests:
        for part, of in parts.items():
            value = of(guest.sample) if guest.sample is not None else None
            if value is not None:
                family.add_metric([guest.header.name, part], value)
    return family


def _family(kind: Kind, name: str, text: str, *labels: str) -> GaugeMetricFamily | CounterMetricFamily:
    family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
    return family(f"{PREFIX}_guest_{name}", text, labels=labels)


def _guests(now: Now) -> Iterator[_Guest]:
    decided = now.latest.get((Decided, None))
    snapshots, decisions = {}, {}
    if isinstance(decided, Decided):
        snapshots = {guest.name: guest for guest in decided.snapshot.guests}
        decisions = {guest.name: guest for guest in decided.decision.guests}
    for header in now.header.guests:
        name = header.name
        state, size, sampled = (now.latest.get((kind, name)) for kind in (StateChanged, SizeChanged, Sampled))
        yield _Guest(
            header=header,
            state=state.state if isinstance(state, StateChanged) else GuestState.CONNECTING,
            totals=now.totals.get(name, Totals()),
            size=size if isinstance(size, SizeChanged) else None,
            sampled=sampled if isinstance(sampled, Sampled) else None,
            snapshot=snapshots.get(name),
            decision=decisions.get(name),
        )
