"""A made-up experiment on disk: two guests in a model of a page cache, and troubles where a test wants them.

The model has no kernel in it. A guest reads as fast as its hits and misses let it; its hit ratio is the share of its
file that fits into its memory. The arm called static never moves memory, any other moves some each trial to the guest
that lacks more.
"""

from fractions import Fraction
from pathlib import Path
from random import Random

from msgspec import structs

from qmpalloc.events import Decided, Header
from qmpalloc.experiment.run.generator.tally import bucket
from qmpalloc.experiment.spec.parsing import parse
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.spec.scaling import scale
from qmpalloc.experiment.store.directory import ExperimentDirectory, chosen
from qmpalloc.experiment.store.records import (
    DiskCalibration,
    LoadProgress,
    Manifest,
    Outcome,
    PhaseFootprint,
    PhaseProgress,
    Reading,
    Service,
)
from qmpalloc.model import GuestSnapshot, GuestState, Snapshot, hold
from qmpalloc.record import RecordWriter
from qmpalloc.units import MIB, PAGE_BYTES

TEXT = """
[experiment]
name = "made-up"
budget = "6GiB"
interval = "15s"
repeats = {repeats}
"""
GUEST = """
[[guest]]
name = "{}"
memory = "5GiB"
floor = "1GiB"
cap = "5GiB"
baseline = "3GiB"
"""
PHASE = """
[[guest.phase]]
name = "{}"
file = "{}"
access = {{ distribution = "normal", deviation = 0.3 }}
reads = 8000
rounds = {}
"""
LARGE, SMALL = ("4GiB", 50), ("2GiB", 250)
GUESTS = "".join(
    GUEST.format(name) + PHASE.format("first", *first) + PHASE.format("second", *second)
    for name, first, second in (("g1", SMALL, LARGE), ("g2", LARGE, SMALL))
)
ARM = '[[arm]]\nname = "{name}"\npolicy = "{policy}"\n'
POLICIES = {"static", "curve", "oracle"}
HIT_S, MISS_S = 40e-6, 2e-3
SYSTEM_BYTES = 160 * MIB
STEP_BYTES = 24 * MIB
STEPS = {"curve": 3, "oracle": 20}
"""Moves in a trial."""

TICK_S = 0.5
BOOT_S = 60.0


class MadeUp:
    """An experiment in `path`; its runs are added one by one."""

    def __init__(self, path, *, arms=("static", "rule"), repeats=3, **manifest):
        tables = "\n".join(ARM.format(name=name, policy=name if name in POLICIES else "paper") for name in arms)
        text = TEXT.format(repeats=repeats) + GUESTS + tables
        spec = chosen(scale(parse(text, file=Path("/home/me/made-up.toml")), Fraction("1/4")), repeats=repeats)
        fields = {
            "name": "made-up", "file": "/home/me/made-up.toml", "scale": "1/4", "arms": tuple(arms),
            "repeats": repeats, "command": "qmpalloc experiment run made-up.toml --scale 1/4",
            "created_wall": 1_800_000_000.0, "accelerator": {"g1": "tcg", "g2": "tcg"},
            "images": {"g1": "6.12.48 0123abcd", "g2": "6.12.48 0123abcd"},
            "versions": {"qmpalloc": "0.1.0", "QEMU": "7.2.15"}, "host": {"processors": 2, "kernel": "6.1"},
            "footprints": {guest.name: {phase.name: footprint(phase) for phase in guest.phases}
                           for guest in spec.guests},
        } | manifest  # fmt: skip
        self.directory = ExperimentDirectory.create(path, spec, Manifest(**fields), text)
        self.directory.write_disk(DiskCalibration(model="ssd", hit_s=HIT_S, iops=500))

    def all_runs(self, **options):
        """Add every run there is."""
        for arm in self.directory.manifest.arms:
            for repeat in range(1, self.directory.manifest.repeats + 1):
                self.run(arm, repeat, **options)
        return self

    def run(self, arm, repeat, *, failed="", silent=(), until=10_000, restarted=(), ended=True, disk_lies=1.0):
        """Add a run.

        Args:
            arm: Its name.
            repeat: From 1.
            failed: Cause of a failure.
            silent: Pairs of guest and trial of which there is no reading.
            until: The last trial; the run is cut off there.
            restarted: Pairs of guest and trial in which the guest's counters began anew.
            ended: Whether the run got as far as writing its outcome.
            disk_lies: Bytes the disk says it read, per byte of misses.
        """
        spec, place = self.directory.specification, self.directory.run(ArmRun(repeat, arm))
        place.begin()
        guests = [Modelled(guest, Random(f"{arm} {repeat} {guest.name}"), disk_lies) for guest in spec.guests]
        place.append_readings([guest.reading(0, 0.0) for guest in guests if (guest.name, 0) not in silent])
        trial = 0
        while not all(guest.finished for guest in guests) and trial < until:
            trial += 1
            for _ in range(int(spec.interval / TICK_S)):
                for guest in guests:
                    guest.tick()
            for guest in guests:
                if (guest.name, trial) in restarted:
                    guest.restart()
            readings = [guest.reading(trial, trial * spec.interval) for guest in guests]
            place.append_readings([each for each in readings if (each.guest, trial) not in silent])
            for _ in range(STEPS.get(arm, 1) if arm != "static" else 0):
                move(guests)
        finished = all(guest.finished for guest in guests)
        for guest in guests if finished else ():
            place.write_load(guest.name, guest.progress())
        load_s = max(guest.now_s for guest in guests) if finished else None
        if ended:
            place.write_outcome(
                Outcome(
                    arm=arm, repeat=repeat, started_wall=1_800_000_000.0, total_s=400.0, load_s=load_s, failed=failed,
                    disk_iops=500, service={guest.name: SERVICE for guest in guests}, controller_cpu_s=3.0,
                    controller_wall_s=150.0,
                )
            )  # fmt: skip
        return self

    def record(self, arm, repeat, *, curve=lambda guest, trial: None, band=None, settings=None, carry=None):
        """Add the record of a run that was added: a decision at the end of each trial, with curves in it.

        Args:
            arm: Its name.
            repeat: From 1.
            curve: Returns the curve of a guest at the end of a trial.
            band: What each decision believes of each guest.
            settings: Of the policy.
            carry: What each decision carries.
        """
        spec, place = self.directory.specification, self.directory.run(ArmRun(repeat, arm))
        policy = next(each.policy for each in spec.arms if each.name == arm)
        with RecordWriter(place.record) as write:
            write(Header(t=0.0, wall=0.0, mode="run", policy=policy,
                         policy_settings=settings or {}, budget_bytes=spec.budget, interval_s=spec.interval, guests=(),
                         config={}, versions={}, host={}))  # fmt: skip
            for trial in range(1, 1 + max(reading.trial for reading in place.readings())):
                guests = tuple(
                    GuestSnapshot(name=guest.name, state=GuestState.FRESH, target_bytes=guest.baseline,
                                  actual_bytes=guest.baseline, charge_bytes=guest.baseline, floor_bytes=guest.floor,
                                  cap_bytes=guest.cap, baseline_bytes=guest.baseline, curve=curve(guest, trial))
                    for guest in spec.guests
                )  # fmt: skip
                snapshot = Snapshot(cycle=trial, time_s=trial * spec.interval, budget_bytes=spec.budget,
                                    interval_s=spec.interval, guests=guests)  # fmt: skip
                held = hold(snapshot, "made up")
                verdicts = tuple(structs.replace(verdict, band=band) for verdict in held.guests)
                decision = structs.replace(held, guests=verdicts, carry=carry)
                write(Decided(t=snapshot.time_s, wall=0.0, snapshot=snapshot, decision=decision, committed_bytes=0,
                              duration_s=0.0))  # fmt: skip
        return self


SERVICE = Service(hit_s=HIT_S, miss_s=MISS_S, hits=20000, misses=500)


def footprint(phase):
    return PhaseFootprint(
        reads=phase.total_reads, file_pages=phase.pages, distinct_pages=phase.pages * 9 // 10, busiest_tenth=0.13
    )


def move(guests):
    """Move a step from the guest that has most to spare to the one that lacks most, within floor and cap."""
    donor, receiver = sorted(guests, key=lambda guest: guest.lacks_bytes)
    if donor.lacks_bytes < receiver.lacks_bytes - STEP_BYTES:
        step = min(STEP_BYTES, donor.size - donor.guest.floor, receiver.guest.cap - receiver.size)
        donor.size, receiver.size = donor.size - step, receiver.size + step


class Modelled:
    """A guest of the model."""

    def __init__(self, guest, random, disk_lies):
        self.guest, self.name, self.size = guest, guest.name, guest.baseline
        self.accesses, self.misses, self.disk_bytes = 1000.0, 500.0, 3.0e6
        self.now_s = 0.0  # of its load, since that began
        self.clock_s = 0.0
        self.done = []  # phases that ended
        self.current = None  # name, start, reads
        self.speed = random.uniform(0.97, 1.03)
        self.disk_lies = disk_lies

    @property
    def phase(self):
        return self.guest.phases[min(len(self.done), len(self.guest.phases) - 1)]

    @property
    def finished(self):
        return len(self.done) == len(self.guest.phases)

    @property
    def lacks_bytes(self):
        return 0 if self.finished else self.phase.file + SYSTEM_BYTES - self.size

    def tick(self):
        self.clock_s += TICK_S
        left_s = TICK_S
        while left_s > 0 and not self.finished:
            hit_ratio = min(1.0, max(0.0, self.size - SYSTEM_BYTES) / self.phase.file) ** 0.7
            each_s = (hit_ratio * HIT_S + (1 - hit_ratio) * MISS_S) / self.speed
            started, reads = self.current or (self.now_s, 0)
            more = min(self.phase.total_reads - reads, max(1, int(left_s / each_s)))
            self.now_s += more * each_s
            left_s -= more * each_s
            self.accesses += more
            self.misses += more * (1 - hit_ratio)
            self.disk_bytes += more * (1 - hit_ratio) * PAGE_BYTES * self.disk_lies
            self.current = (started, reads + more)
            if reads + more == self.phase.total_reads:
                self.done.append(self.described(done=True))
                self.current = None
        if not self.finished:
            self.now_s = max(self.now_s, self.clock_s)

    def described(self, *, done):
        started, reads = self.current
        seconds = self.now_s - started
        timed = max(1, reads // 8)
        counts = {bucket(int(seconds / reads * 1e9 * factor)): timed // 2 for factor in (0.5, 1.5)}
        return PhaseProgress(name=self.phase.name, reads=reads, seconds=seconds, started_s=started + BOOT_S, done=done,
                             latency=counts)  # fmt: skip

    def progress(self):
        phases = [*self.done, *([self.described(done=False)] if self.current and self.current[1] else [])]
        return LoadProgress(sequence=int(self.clock_s / TICK_S), monotonic_s=self.clock_s + BOOT_S,
                            phases=tuple(phases), finished=self.finished)  # fmt: skip

    def restart(self):
        self.accesses = self.misses = 0.0

    def reading(self, trial, t):
        return Reading(
            trial=trial, t=t, guest=self.name, monotonic_ns=int((self.clock_s + BOOT_S) * 1e9),
            accesses=int(self.accesses), misses=int(self.misses), refaults=None, evictions=int(self.misses / 2),
            events_lost=0, target_bytes=self.size, actual_bytes=self.size, disk_read_bytes=int(self.disk_bytes),
            disk_reads=int(self.misses), disk_read_ns=int(self.misses * MISS_S * 1e9), load=self.progress(),
        )  # fmt: skip
