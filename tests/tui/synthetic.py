"""A deterministic run of made-up guests: loads that wander, a rule that moves memory, and troubles at fixed times."""

from __future__ import annotations

import math
from collections.abc import Iterator

from qmpalloc.errors import SampleFault
from qmpalloc.events import (
    AnyEvent,
    Commanded,
    ControlChanged,
    Decided,
    Ended,
    Faulted,
    GuestHeader,
    Header,
    Sampled,
    SampleRejected,
    SizeChanged,
    StateChanged,
)
from qmpalloc.model import Curve, GuestSnapshot, GuestState, Snapshot
from qmpalloc.policy.curve.policy import CurvePolicy
from qmpalloc.policy.paper import PaperPolicy
from qmpalloc.sample import CollectorUse, Counters, Delta, Memory, Psi, Sample, SwapPages
from qmpalloc.units import GIB, MIB

WALL = 1_800_000_000.0
INTERVAL_S = 5.0
NAMES = ("web", "db", "mail", "cache", "build", "search", "files", "queue", "logs", "proxy", "batch", "spare")


class Run:
    """Makes the events of a run; same arguments, same events."""

    def __init__(
        self, guests: int = 2, *, mode: str = "run", gate: str = "dead-band", curves: tuple[str, ...] | None = None
    ) -> None:
        """`curves`: policy ``curve``; one entry for each guest: why its curve is weak, ``none``, ``idle``, or empty."""
        self.names = [NAMES[index % len(NAMES)] + ("" if index < len(NAMES) else str(index)) for index in range(guests)]
        self.mode = mode
        self.baseline = GIB
        self.budget = guests * GIB
        paper = PaperPolicy(PaperPolicy.Settings(gate=gate, threshold=20.0))
        self.policy = paper if curves is None else CurvePolicy()
        self.policy_settings = {} if curves is not None else {"gate": gate, "threshold": 20.0, "step": 100_000_000}
        self.curves = curves
        self.actual = dict.fromkeys(self.names, self.baseline)
        self.target = dict(self.actual)
        self.desired = dict(self.actual)
        self.state = dict.fromkeys(self.names, GuestState.CONNECTING)
        self.counts = dict.fromkeys(self.names, (0, 0))
        self.since = dict.fromkeys(self.names, (0, 0))
        self.sequence = 0
        self.cycle = 0
        self.t = 0.0

    def at(self, t: float) -> dict[str, float]:
        return {"t": round(t, 3), "wall": WALL + round(t, 3)}

    def events(self, seconds: int = 120, *, troubles: bool = False, end: bool = False) -> Iterator[AnyEvent]:
        yield self.header()
        yield ControlChanged(**self.at(0.1), control="settling", detail="adopting what is there")
        for name in self.names:
            yield from self.change(name, GuestState.WARMING, 0.2, "waiting for the collector")
            yield self.resized(name, 0.3)
        for second in range(1, seconds + 1):
            self.t = float(second)
            yield from self.second(second, troubles=troubles)
        if end:
            yield ControlChanged(**self.at(self.t + 0.5), control="returning", detail="the run ends")
            for name in self.names:
                before, self.target[name] = self.target[name], self.baseline
                yield Commanded(
                    **self.at(self.t + 0.6), guest=name, target_bytes=self.baseline, previous_bytes=before,
                    purpose="shrink" if self.baseline < before else "grant",
                )  # fmt: skip
                self.actual[name] = self.baseline
                yield self.resized(name, self.t + 1)
            yield ControlChanged(**self.at(self.t + 1.5), control="stopped")
            yield Ended(**self.at(self.t + 1.6), reason="quit by the user", clean=True)

    def header(self) -> Header:
        return Header(
            **self.at(0.0), mode=self.mode, policy="paper" if self.curves is None else "curve",
            policy_settings=self.policy_settings,
            budget_bytes=self.budget, interval_s=INTERVAL_S,
            guests=tuple(
                GuestHeader(name=name, floor_bytes=256 * MIB, cap_bytes=2 * GIB, baseline_bytes=self.baseline)
                for name in self.names
            ),
            config={}, versions={"qmpalloc": "0.1.0"}, host={},
        )  # fmt: skip

    def second(self, second: int, *, troubles: bool) -> Iterator[AnyEvent]:
        if second == 3:
            for name in self.names:
                yield from self.change(name, GuestState.FRESH, self.t)
            yield ControlChanged(**self.at(self.t), control="running")
        if troubles:
            yield from self.trouble(second)
        self.sequence += 1
        for index, name in enumerate(self.names):
            if self.state[name] in (GuestState.WARMING, GuestState.FRESH):
                yield self.sampled(index, name)
            yield from self.follow(name)
        yield from self.grant()
        if second % int(INTERVAL_S) == 0:
            yield from self.decided()

    def load(self, index: int) -> tuple[int, int]:
        """Pages hit and missed in a second: a smaller guest misses more, the more so the busier it is."""
        name = self.names[index]
        if self.curves is not None and self.curves[index] == "idle":
            return 0, 0
        busy = 12_000 * (1 + index % 3) * (1 + 0.35 * math.sin(self.t / 23 + index))
        wanted = (0.5 + 0.45 * ((index * 5) % 4)) * GIB
        ratio = min(0.995, 0.35 + 0.65 * (self.actual[name] - 200 * MIB) / wanted)
        wobble = 1 + 0.05 * math.sin(self.t * 1.7 + 3 * index)
        return int(busy * ratio * wobble), int(busy * (1 - ratio) * wobble)

    def sampled(self, index: int, name: str) -> Sampled:
        hits, misses = self.load(index)
        total_hits, total_misses = self.counts[name]
        self.counts[name] = (total_hits + hits, total_misses + misses)
        since_hits, since_misses = self.since[name]
        self.since[name] = (since_hits + hits, since_misses + misses)
        size = self.actual[name]
        sample = Sample(
            format="qmpalloc-counters", version=1, boot_id="0" * 8 + "-0000-0000-0000-" + "0" * 12, start_id="0" * 16,
            sequence=self.sequence, monotonic_ns=int(self.t * 1e9), interval_ms=1000,
            kernel="6.12.48+deb13-cloud-amd64", page_size=4096, lru="lru_gen",
            counters=Counters(accesses=sum(self.counts[name]), inserts_read=self.counts[name][1], events_lost=0),
            memory_bytes=Memory(
                total=size, free=70 * MIB, available=size // 2, active_file=size // 3, inactive_file=size // 4,
                anon=120 * MIB, shmem=2 * MIB, slab_unreclaimable=20 * MIB, kernel_stack=3 * MIB, page_tables=4 * MIB,
            ),
            swap_pages=SwapPages(in_=0, out=0), psi_memory=Psi(some_avg10=1.3, full_avg10=0.4), oom_kills=0,
            collector=CollectorUse(rss_bytes=9_900_000, cpu_ns=int(self.t * 4e6)),
        )  # fmt: skip
        delta = Delta(
            interval_s=1.0, accesses=hits + misses, misses=misses, refaults=misses // 3, evictions=misses,
            inserts_write=12, inserts_fault=3, swap_ins=0, events_lost=0,
        )  # fmt: skip
        counted = (delta, misses + 3) if self.sequence > 1 else (None, None)
        return Sampled(**self.at(self.t), guest=name, sample=sample, delta=counted[0], disk_read_pages=counted[1])

    def follow(self, name: str) -> Iterator[AnyEvent]:
        """The balloon: grows at once, shrinks at 40 MiB/s."""
        if self.actual[name] == self.target[name] or self.state[name] in (GuestState.HUNG, GuestState.GONE):
            return
        self.actual[name] = max(self.target[name], self.actual[name] - 40 * MIB)
        yield self.resized(name, self.t + 0.1)

    def committed(self) -> int:
        alive = [name for name in self.names if self.state[name] is not GuestState.GONE]
        return sum(max(self.target[name], self.actual[name]) for name in alive)

    def resized(self, name: str, t: float) -> SizeChanged:
        return SizeChanged(
            **self.at(t), guest=name, target_bytes=self.target[name], actual_bytes=self.actual[name],
            committed_bytes=self.committed(),
        )  # fmt: skip

    def change(self, name: str, state: GuestState, t: float, detail: str = "") -> Iterator[AnyEvent]:
        previous, self.state[name] = self.state[name], state
        yield StateChanged(**self.at(t), guest=name, state=state, previous=previous, detail=detail)

    def snapshot(self) -> Snapshot:
        guests = []
        for index, name in enumerate(self.names):
            fresh = self.state[name] is GuestState.FRESH
            hits, misses = self.since[name]
            target, actual = self.desired[name], self.actual[name]
            guests.append(
                GuestSnapshot(
                    name=name, state=self.state[name], target_bytes=target, actual_bytes=actual,
                    charge_bytes=max(self.target[name], actual), floor_bytes=320 * MIB, cap_bytes=2 * GIB,
                    baseline_bytes=self.baseline, hits=hits if fresh else None, misses=misses if fresh else None,
                    interval_s=INTERVAL_S, curve=self.curve(index, hits, misses), no_curve="accesses are not sampled",
                )
            )  # fmt: skip
            self.since[name] = (0, 0)
        return Snapshot(
            cycle=self.cycle, time_s=self.t, budget_bytes=self.budget, interval_s=INTERVAL_S, guests=tuple(guests)
        )

    def curve(self, index: int, hits: int, misses: int) -> Curve | None:
        """The curve of the load below: straight, until all fits."""
        if self.curves is None or self.curves[index] in ("none", "idle"):
            return None
        wanted = (0.5 + 0.45 * ((index * 5) % 4)) * GIB
        sizes = [round((320 + 27 * step) * MIB) for step in range(65)]
        ratios = [round(1 - min(0.995, 0.35 + 0.65 * (size - 200 * MIB) / wanted), 4) for size in sizes]
        weak = (self.curves[index],) if self.curves[index] else ()
        measured = round(misses / (hits + misses), 4) if hits + misses else None
        return Curve(
            sizes_bytes=tuple(sizes), miss_ratio=tuple(ratios), weak=weak, cached_bytes=600 * MIB,
            deviation=tuple(0.004 * ratio**0.5 for ratio in ratios),
            measured=measured, steady_accesses=2_345_678, pages_per_sampled=64, estimator="multi-generational",
        )  # fmt: skip

    def decided(self) -> Iterator[AnyEvent]:
        self.cycle += 1
        snapshot = self.snapshot()
        decision = self.policy.decide(snapshot)
        yield Decided(
            **self.at(self.t + 0.2), snapshot=snapshot, decision=decision, committed_bytes=self.committed(),
            duration_s=0.0002,
        )  # fmt: skip
        if self.mode != "run":
            return
        self.desired = {verdict.name: verdict.target_bytes for verdict in decision.guests}
        for name in self.names:
            if self.desired[name] < self.target[name]:
                yield from self.command(name, self.desired[name], "shrink")

    def grant(self) -> Iterator[AnyEvent]:
        """Give receivers what has come back from the donors."""
        for name in self.names:
            wish = min(self.desired[name] - self.target[name], self.budget - self.committed())
            if wish > 0 and self.state[name] is GuestState.FRESH:
                yield from self.command(name, self.target[name] + wish, "grant")

    def command(self, name: str, target: int, purpose: str) -> Iterator[AnyEvent]:
        before, self.target[name] = self.target[name], target
        yield Commanded(
            **self.at(self.t + 0.3), guest=name, target_bytes=target, previous_bytes=before, purpose=purpose
        )
        yield self.resized(name, self.t + 0.4)

    def trouble(self, second: int) -> Iterator[AnyEvent]:
        """One trouble per guest, from the last one on, at 20, 26, 32, … seconds."""
        plan = {
            20: (GuestState.LATE, "last sample 5.2 s ago: held"),
            26: (GuestState.LOST, "no sample for 20 s: back to baseline"),
            32: (GuestState.HUNG, "the monitor does not answer; its memory stays charged"),
            38: (GuestState.GONE, "QEMU has ended: signal 9"),
            44: (GuestState.PAUSED, "QEMU has stopped the virtual CPUs"),
            50: (GuestState.HELD, "no balloon device"),
        }
        if second in plan:
            state, detail = plan[second]
            index = list(plan).index(second)
            name = self.names[-1 - index % len(self.names)]
            yield SampleRejected(
                **self.at(self.t), guest=name, fault=SampleFault.TORN, message="the counters file is not complete JSON"
            )
            yield from self.change(name, state, self.t, detail)
            if state in (GuestState.LOST, GuestState.HUNG, GuestState.GONE):
                yield Faulted(
                    **self.at(self.t + 0.1), guest=name, kind="agent",
                    message=f"no answer from /run/qmpalloc/{name}.agent within 3 s",
                    hint="is qemu-guest-agent running in the guest?",
                )  # fmt: skip
        if second == 56:
            yield Faulted(
                **self.at(self.t), guest=None, kind="record", message="cannot write run.jsonl: no space left on device",
                hint="free some room; control goes on without a record",
            )  # fmt: skip


def run(guests: int = 2, seconds: int = 120, **options: object) -> list[AnyEvent]:
    """Return the events of a run. Options: ``mode``, ``gate`` (see `Run`), ``troubles``, ``end`` (see `Run.events`)."""
    settings = {name: options.pop(name) for name in ("mode", "gate", "curves") if name in options}
    return list(Run(guests, **settings).events(seconds, **options))  # type: ignore[arg-type]
