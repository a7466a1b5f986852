"""What a guest's last sample says of its inside: memory, pressure, and what observing it costs."""

from __future__ import annotations

from rich.text import Text

from qmpalloc.idle import IDLE_S, idle_memory
from qmpalloc.sample import Memory, PageIns
from qmpalloc.tui import palette, parts
from qmpalloc.tui.facts import GuestFacts
from qmpalloc.tui.text import UNKNOWN, clean, number, percent, size

_LOSSES = ("not counted", "hits estimated", "events lost", "intervals missed")
_LRU = {"lru_gen": "multi-gen", "two_list": "two lists", None: UNKNOWN}


def summary(guest: GuestFacts) -> Text:
    """Return the most telling facts as one line."""
    facts = [*_losses(guest), *_page_ins(guest), *_memory(guest)[:3], *_pressure(guest)[:2], *_refused(guest)]
    return _list(facts) if guest.sample is not None else Text("no sample yet", palette.FAINT)


def lines(guest: GuestFacts) -> list[Text]:
    """Return three lines: memory, pressure and the collector; a fault and its hint take the place of the last ones."""
    trouble = parts.trouble(guest)
    if guest.sample is None:
        facts = [Text("no sample yet", palette.FAINT), _list(_refused(guest)), Text()]
    else:
        facts = [
            _list(_memory(guest)),
            _list([*_page_ins(guest), *_pressure(guest)]),
            _list([*_losses(guest), *_refused(guest), *_cost(guest)]),
        ]
    return facts[: 3 - len(trouble)] + trouble


def _memory(guest: GuestFacts) -> list[tuple[str, str]]:
    if guest.sample is None:
        return []
    memory = guest.sample.memory_bytes
    idle = idle_memory(guest.sample)
    untouched = [] if idle is None else [("idle 1 min", size(idle.bytes_for(IDLE_S)))]
    outside = [("virtio-mem", size(guest.outside_bytes))] if guest.outside_bytes else []
    return [
        *outside,
        ("file cache", size(memory.file_bytes)),
        ("anon", size(memory.anon)),
        ("free", size(memory.free)),
        *untouched,
        ("active file", size(memory.active_file)),
        ("fixed", size(memory.unreclaimable_bytes)),
        *_swap(memory),
    ]


def _swap(memory: Memory) -> list[tuple[str, str]]:
    """Return how much of its swap is used; nothing where it has none, or does not tell."""
    total, free = memory.swap_total, memory.swap_free
    return [("swap", f"{size(max(0, total - free))} of {size(total)}")] if total and free is not None else []


def _rate(guest: GuestFacts, count: float | None) -> str:
    return number(None if guest.delta is None or count is None else count / guest.delta.interval_s) + "/s"


def _page_ins(guest: GuestFacts) -> list[tuple[str, str]]:
    """Return the page-ins beside misses by cause, where there are any, and what the disks read, if that is known."""
    found = guest.delta.page_ins if guest.delta else PageIns()
    causes = [("faults", found.faults), ("swap-ins", found.swap_ins), ("zram", found.swap_ins_zram)]
    facts = [*((name, count or None) for name, count in causes), ("disk", guest.disk_read_pages)]
    return [(name, _rate(guest, count)) for name, count in facts if count is not None]


def _pressure(guest: GuestFacts) -> list[tuple[str, str]]:
    if guest.sample is None:
        return []
    psi, delta = guest.sample.psi_memory, guest.delta
    return [
        ("psi", percent(None if psi.some_avg10 is None else psi.some_avg10 / 100)),
        ("refaults", _rate(guest, delta.refaults if delta else None)),
        ("evictions", _rate(guest, delta.evictions if delta else None)),
        ("oom", number(guest.sample.oom_kills)),
    ]


def _cost(guest: GuestFacts) -> list[tuple[str, str]]:
    """Return what observing the guest costs, that nothing was lost, and what it runs."""
    if guest.sample is None:
        return []
    used, lost = guest.sample.collector, guest.sample.counters.events_lost
    return [
        ("collector", f"{size(used.rss_bytes)} {percent(guest.cpu)} cpu"),
        *([] if lost else [("lost", number(lost))]),
        ("lru", _LRU[guest.sample.lru]),
        ("kernel", clean(guest.sample.kernel)),
    ]


def _losses(guest: GuestFacts) -> list[tuple[str, str]]:
    """Return what was not counted since the collector started, in events and intervals, and what it cannot count."""
    if guest.sample is None:
        return []
    counters, missed = guest.sample.counters, guest.sample.collector.intervals_missed
    absent = [
        title for title, count in (("reads", counters.accesses), ("misses", counters.inserts_read)) if count is None
    ]
    facts = [("not counted", ", ".join(absent))] if absent else []
    if guest.sample.duty is not None:
        error = guest.delta.accesses_error if guest.delta else None
        counted = f"counted {percent(guest.sample.duty.share)} of the time, ±{_rate(guest, error)}"
        facts.append(("hits estimated", counted))
    if counters.events_lost:
        facts.append(("events lost", number(counters.events_lost)))
    if missed:
        facts.append(("intervals missed", number(missed)))
    return facts


def _refused(guest: GuestFacts) -> list[tuple[str, str]]:
    """Return how many samples were refused, by kind."""
    if not guest.rejected:
        return []
    return [("refused", ", ".join(f"{count} {fault}" for fault, count in sorted(guest.rejected.items())))]


def _list(facts: list[tuple[str, str]]) -> Text:
    text = Text()
    for label, value in facts:
        text.append("  " if text else "")
        text.append(f"{label} ", palette.WARN if label in _LOSSES else palette.LABEL)
        text.append(value)
    return text
