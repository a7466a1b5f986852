"""What is known of one guest of a run, and the entries of its log. Filled by `qmpalloc.tui.dashboard`."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from qmpalloc.errors import SampleFault
from qmpalloc.events import Asked, GuestHeader
from qmpalloc.model import Band, Curve, GuestDecision, GuestState, Pin
from qmpalloc.sample import Delta, PageIns, Sample
from qmpalloc.tui.text import clean, number

HISTORY = 240

Kind = Literal["decision", "fault", "state", "rejected", "command", "control", "end"]
History = deque[float | None]


def _history() -> History:
    return deque(maxlen=HISTORY)


@dataclass(slots=True)
class LogEntry:
    """A line of the log. Texts are clean. `t` is the time of the last occurrence of `count`."""

    t: float
    kind: Kind
    guest: str | None
    text: str
    hint: str = ""
    count: int = 1

    def same_as(self, other: LogEntry) -> bool:
        """Tell whether both say the same, at whatever time."""
        return (self.kind, self.guest, self.text, self.hint) == (other.kind, other.guest, other.text, other.hint)


@dataclass(slots=True)
class GuestFacts:
    """What is known of one guest. Sizes in bytes, rates per second of guest time, histories one entry per sample.

    Attributes:
        floor_bytes: The least it may be set to now; the configured floor until the first decision.
        decision: What the last decision meant for it; its change of target is `change_bytes`. None before the first,
            and when its size is no longer the policy's; `reason` says why then.
        terms: The policy's numbers of the last decision.
        pin: The size that a person has chosen for it, as the last decision saw it.
        fault: The last fault while it has not been fresh since.
        curve: Its miss-ratio curve as the last decision saw it, or as it was last watched; `no_curve` says why there is
            none.
        cpu: Share of one CPU that the collector takes.
    """

    name: str
    floor_bytes: int
    cap_bytes: int
    baseline_bytes: int
    state: GuestState = GuestState.CONNECTING
    detail: str = ""
    target_bytes: int | None = None
    actual_bytes: int | None = None
    outside_bytes: int = 0
    decision: GuestDecision | None = None
    reason: str = ""
    change_bytes: int = 0
    pin: Pin | None = None
    terms: dict[str, float] = field(default_factory=dict)
    curve: Curve | None = None
    no_curve: str = ""
    sample: Sample | None = None
    sample_t: float | None = None
    delta: Delta | None = None
    disk_read_pages: int | None = None
    cpu: float | None = None
    hits_s: History = field(default_factory=_history)
    misses_s: History = field(default_factory=_history)
    ratio: History = field(default_factory=_history)
    actual: History = field(default_factory=_history)
    received_bytes: int = 0
    given_bytes: int = 0
    moves_in: int = 0
    moves_out: int = 0
    rejected: Counter[SampleFault] = field(default_factory=Counter)
    fault: LogEntry | None = None

    @classmethod
    def of(cls, header: GuestHeader) -> GuestFacts:
        """Return what the header of a run says of a guest."""
        return cls(clean(header.name), header.floor_bytes, header.cap_bytes, header.baseline_bytes)

    @property
    def charged_bytes(self) -> int:
        """Its part of the committed memory: max(target, actual) and virtio-mem; nothing once QEMU has ended."""
        return max(self.target_bytes or 0, self.actual_bytes or 0) + self.outside_bytes

    @property
    def band(self) -> Band | None:
        """What the last decision believes of it; None when that is not told."""
        band = self.decision.band if self.decision else None
        return band if band and band.sizes_bytes else None

    @property
    def kinds(self) -> list[str]:
        """The causes beside reads for which it brings pages in now."""
        found = self.delta.page_ins if self.delta is not None else PageIns()
        return [name for name in ("faults", "swap_ins") if getattr(found, name)]

    @property
    def page_ins_s(self) -> float | None:
        """Pages of all causes that it brings in by the second; None when not known."""
        total = self.delta.page_ins.total if self.delta is not None and self.rate_known else None
        return None if total is None or self.delta is None else total / self.delta.interval_s

    @property
    def rate_known(self) -> bool:
        """True when the last sample is of the current series and the guest is still heard of."""
        return self.delta is not None and self.state in (GuestState.FRESH, GuestState.LATE, GuestState.HELD)


def asked_text(event: Asked) -> str:
    """Return what a person asked, and what became of it."""
    who = clean(event.by) or "by itself"
    if event.error:
        what = " ".join(part for part in (event.verb, clean(event.guest or "")) if part)
        return f"{who}: {what} refused: {clean(event.error)}"
    return f"{who}: {clean(event.detail)}"


def page_in_text(page_ins: PageIns, disk: int | None, seconds: float) -> str:
    """Return what a guest brings in by the second, by cause: ``misses 12/s faults 1.2k/s disk 1.2k/s``.

    Faults and swap-ins where there are any; what is not known is left out.
    """
    parts = [
        ("misses", page_ins.reads),
        ("faults", page_ins.faults or None),
        ("swap-ins", page_ins.swap_ins or None),
        ("zram", page_ins.swap_ins_zram or None),
        ("disk", disk),
    ]
    return " ".join(f"{name} {number(count / seconds)}/s" for name, count in parts if count is not None and seconds)


def hit_ratio(hits: int | None, misses: int | None) -> float | None:
    """Return hits / accesses between 0 and 1; None when a part is unknown or there was no access.

    Hits can be slightly negative in one interval (see `qmpalloc.sample.Delta`), a ratio shown to people cannot.
    """
    if hits is None or misses is None or hits + misses <= 0:
        return None
    return min(max(hits / (hits + misses), 0.0), 1.0)


def term_text(terms: dict[str, float]) -> str:
    """Return terms as ``e -12.5  gain 3.1k``; what a decision makes of the misses first, as ``3.1k→163 misses/s``."""
    before, after = terms.get("misses_s"), terms.get("misses_s_then")
    texts = []
    if before is not None and after is not None:
        texts = [f"{number(before)}→{number(after)} misses/s"]
        terms = {name: value for name, value in terms.items() if name not in ("misses_s", "misses_s_then")}
    return "  ".join([*texts, *(f"{name} {number(value)}" for name, value in terms.items())])


def collector_cpu(earlier: Sample | None, later: Sample) -> float | None:
    """Return the share of one CPU the collector took between two samples of one start."""
    if earlier is None or earlier.start_id != later.start_id:
        return None
    before, after = earlier.collector.cpu_ns, later.collector.cpu_ns
    elapsed_ns = later.monotonic_ns - earlier.monotonic_ns
    return None if before is None or after is None or elapsed_ns <= 0 else max(after - before, 0) / elapsed_ns
