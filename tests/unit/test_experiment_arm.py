"""What ends a run of an arm, what does not, and what is kept of it; guests and controller are stand-ins."""

import math
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from msgspec import Struct

from qmpalloc.errors import DeadlineError, HostError
from qmpalloc.events import ControlChanged, Faulted
from qmpalloc.experiment.run import arm
from qmpalloc.experiment.run.arm import ArmRunner, Live
from qmpalloc.experiment.run.readings import Link
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec import parsing
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.spec.schema import Disk
from qmpalloc.experiment.store.directory import RunDirectory
from qmpalloc.experiment.store.records import (
    DiskCalibration,
    LoadProgress,
    PhaseProgress,
    ProgramPace,
    ProgramService,
    Reading,
    SeriesPoint,
    Service,
)
from qmpalloc.model import MemorySizes
from qmpalloc.policy import load as load_policy

SMOKE = parsing.load(Path(__file__).parents[2] / "examples" / "smoke.toml")
TOTAL = {guest.name: guest.phases[0].total_reads for guest in SMOKE.guests}
TRIALS = 5


DISK = DiskCalibration(model="ssd", hit_s=2e-5, iops=1000)


class Process(Struct):
    name: str
    pid: int


class FakeLoad:
    """A load that does a fifth of its reads in each trial."""

    def __init__(self, bench, name):
        self.bench, self.name = bench, name
        self.went = False

    async def measure_service(self):
        return Service(hit_s=2e-5, miss_s=1e-3, hits=1, misses=1)

    async def drop_caches(self):
        await trio.lowlevel.checkpoint()

    async def warm_up(self, *, reads):
        self.warm = reads
        await trio.lowlevel.checkpoint()

    async def outputs(self):
        await trio.sleep_forever() if self.name == self.bench.silent else await trio.lowlevel.checkpoint()
        return self.bench.outputs

    async def series(self):
        await trio.lowlevel.checkpoint()
        return self.bench.series

    async def go(self):
        self.went = True

    async def raise_if_dead(self):
        if self.bench.clock.trials in self.bench.busy.get(self.name, ()):
            raise DeadlineError("no answer", address="agent")
        if self.bench.clock.trials == self.bench.dies_in:
            raise HostError(f"guest {self.name}: its load was killed by signal 9")

    def progress(self):
        trials = 0 if self.name in self.bench.hung else self.bench.clock.trials * self.went
        reads = min(TOTAL[self.name], TOTAL[self.name] * trials // TRIALS)
        done = reads == TOTAL[self.name]
        phase = PhaseProgress(name="phase1", reads=reads, seconds=float(trials), started_s=100.0, done=done)
        return LoadProgress(sequence=trials, monotonic_s=100.0 + trials, phases=(phase,), finished=done)


class FakeActuator:
    async def memory(self):
        return MemorySizes(ram_bytes=SMOKE.guests[0].baseline)

    async def size_bytes(self):
        return SMOKE.guests[0].baseline


class Bench:
    """Everything around an `ArmRunner`, and what goes wrong in it."""

    def __init__(self, monkeypatch, directory, run_dir):
        self.clock = None
        self.busy, self.hung, self.dies_in, self.silent = {}, set(), None, None
        self.controller = None
        self.boots = 0
        self.said, self.states, self.outputs, self.series = [], [], {}, {}
        self.directory, self.run_dir = RunDirectory(directory), run_dir
        self.directory.begin()
        bench = self

        @asynccontextmanager
        async def open_guests(config, **_):
            for guest in config.guests:
                (run_dir / guest.name).mkdir(exist_ok=True)
                (run_dir / guest.name / "console.log").write_bytes(b"Kernel panic")
            bench.boots += 1
            yield tuple(Process(guest.name, os.getpid()) for guest in config.guests)

        @asynccontextmanager
        async def open_link(guest, traces):
            yield Link(guest.name, None, FakeActuator(), None, FakeLoad(bench, guest.name), "/counters")

        async def read_guest(link, *, trial, t, target_bytes):
            return Reading(
                trial=trial, t=t, guest=link.name, monotonic_ns=1, accesses=1, misses=1, refaults=None, evictions=None,
                events_lost=0, target_bytes=target_bytes, actual_bytes=1, disk_read_bytes=0, disk_reads=0,
                disk_read_ns=0, load=link.load.progress(),
            )  # fmt: skip

        async def nothing(*_):
            await trio.lowlevel.checkpoint()

        class Controller:
            """Ends a trial every interval until told to quit."""

            def __init__(self, config, policy, writer, clock, note, *sinks, read_host):
                bench.clock, bench.controller = clock, self
                self.writer, self.clock, self.note = writer, clock, note
                self.reason = ""
                self.stopped = trio.Event()
                self.interval_s = config.control.interval

            def quit(self, reason):
                self.reason = reason
                self.stopped.set()

            async def run(self):
                self.clock(ControlChanged(t=0.0, wall=0.0, control="running"))
                while not self.stopped.is_set():
                    with trio.move_on_after(self.interval_s):
                        await self.stopped.wait()
                    self.clock.trials += 1
                    self.clock._over.set()
                    self.clock._over = trio.Event()
                    await bench.after_trial(self, self.clock.trials)

        monkeypatch.setattr(arm, "open_guests", open_guests)
        monkeypatch.setattr(arm, "wait_for_end", self.wait_for_end)
        monkeypatch.setattr(arm, "open_link", open_link)
        monkeypatch.setattr(arm, "read_guest", read_guest)
        monkeypatch.setattr(arm, "set_throttle", nothing)
        monkeypatch.setattr(arm, "wait_for_new_counters", nothing)
        monkeypatch.setattr(arm, "Controller", Controller)

    async def wait_for_end(self, guests):
        await trio.sleep_forever()

    async def after_trial(self, controller, trial):
        await trio.lowlevel.checkpoint()

    async def run(self, specification=SMOKE, disk=DISK):
        live = Live(self.said.append, lambda share, words: self.states.append(share))
        self.runner = runner = ArmRunner(
            specification, ArmRun(1, "rule"), self.directory, prepared=None, traces=None, disk=disk, live=live
        )  # fmt: skip
        with trio.fail_after(3600):
            return await runner.run(self.run_dir)


@pytest.fixture
def bench(monkeypatch, tmp_path):
    (tmp_path / "sockets").mkdir()
    return Bench(monkeypatch, tmp_path / "repeat1-rule", tmp_path / "sockets")


async def test_a_run_ends_with_the_trial_in_which_the_last_load_does(bench, autojump_clock):
    outcome = await bench.run()
    assert outcome.failed == ""
    assert outcome.load_s == TRIALS
    assert {reading.trial for reading in bench.directory.readings()} == set(range(TRIALS + 1))
    assert {name: bench.directory.load(name).finished for name in TOTAL} == {"g1": True, "g2": True}
    assert bench.states == [pytest.approx(trial / TRIALS) for trial in range(1, TRIALS)]
    assert bench.controller.reason == "the loads are done"
    assert not (bench.directory.path / "console-g1.log").exists()


async def test_a_guest_too_busy_to_answer_has_no_reading_and_the_run_goes_on(bench, autojump_clock):
    bench.busy["g2"] = {2, 3}
    outcome = await bench.run()
    assert outcome.failed == ""
    trials = {name: [r.trial for r in bench.directory.readings() if r.guest == name] for name in TOTAL}
    assert trials == {"g1": [0, 1, 2, 3, 4, 5], "g2": [0, 1, 4, 5]}
    assert "g2: no reading at the end of trial 2: no answer" in bench.said


async def test_what_programs_print_is_kept_also_of_a_run_that_fails(bench, autojump_clock):
    bench.outputs = {"phase1": b"rate 10\n"}
    bench.series = {"phase1": (SeriesPoint(metric="rate", seconds=1.25, value=10.0),)}
    bench.dies_in = 2
    assert "killed by signal 9" in (await bench.run()).failed
    assert (bench.directory.path / "output-g2-phase1.txt").read_bytes() == b"rate 10\n"
    assert bench.directory.series("g2", "phase1") == bench.series["phase1"]


BY_PROGRAMS = msgspec.structs.replace(SMOKE, disk=Disk(by="programs"))


async def test_programs_are_measured_in_guests_of_their_own(bench, autojump_clock, monkeypatch):
    service = ProgramService(warm=ProgramPace(seconds=10.0, accesses=100_000))
    measured = DiskCalibration(model="ssd", hit_s=1e-4, iops=200, by="programs", programs={"g1": {"phase1": service}})

    async def calibrate(disk, links):
        assert (disk, [link.name for link in links], bench.boots) == (BY_PROGRAMS.disk, ["g1", "g2"], 1)
        return measured

    monkeypatch.setattr(arm, "calibrate_by_programs", calibrate)
    outcome = await bench.run(BY_PROGRAMS, disk=None)
    assert (outcome.failed, outcome.disk_iops, bench.boots) == ("", 200, 2)
    assert bench.runner.disk == measured
    assert "disk: a hit of the programs takes 100.0 µs here; model ssd: 200 reads per second" in bench.said
    assert "disk: g1, phase1: a miss is not known" in bench.said


async def test_programs_are_measured_once_in_an_experiment(bench, autojump_clock):
    assert (await bench.run(BY_PROGRAMS)).failed == ""
    assert bench.boots == 1


async def test_a_program_that_fails_when_it_is_measured_fails_the_run(bench, autojump_clock, monkeypatch):
    async def calibrate(disk, links):
        raise HostError("/try.toml: guest g1: guest[0].phase[0].command: work ended with 3")

    monkeypatch.setattr(arm, "calibrate_by_programs", calibrate)
    outcome = await bench.run(BY_PROGRAMS, disk=None)
    assert "guest[0].phase[0].command: work ended with 3" in outcome.failed
    assert bench.runner.disk is None


@pytest.mark.parametrize("why", ["busy", "hung"])
async def test_one_load_that_hangs_ends_the_run_also_when_the_others_go_on(bench, autojump_clock, why):
    bench.busy["g2"] = range(1, 10_000) if why == "busy" else ()
    bench.hung = {"g2"} if why == "hung" else set()
    outcome = await bench.run()
    assert "guest g2: its load has come no further" in outcome.failed
    assert outcome.load_s is None
    assert bench.clock.trials * SMOKE.interval == pytest.approx(120, abs=10)


async def test_what_a_guest_printed_does_not_wait_for_another_guest(bench, autojump_clock):
    bench.outputs, bench.silent = {"phase1": b"rate 10"}, "g1"
    await bench.run()
    kept = [path.name for path in bench.directory.path.glob("output-*")]
    assert kept == ["output-g2-phase1.txt"]


async def test_a_load_that_dies_ends_the_run_and_the_consoles_are_kept(bench, autojump_clock):
    bench.dies_in = 3
    outcome = await bench.run()
    assert outcome.failed.endswith("its load was killed by signal 9")
    assert (bench.directory.path / "console-g1.log").read_bytes() == b"Kernel panic"


async def test_a_controller_that_ends_by_itself_ends_the_run(bench, autojump_clock):
    async def after_trial(controller, trial):
        if trial == 2:
            controller.quit("no output is left")

    bench.after_trial = after_trial
    assert (await bench.run()).failed == "the controller ended by itself: no output is left"


async def test_a_controller_that_stands_still_ends_the_run(bench, autojump_clock):
    async def after_trial(controller, trial):
        await trio.sleep_forever()

    bench.after_trial = after_trial
    assert (await bench.run()).failed == "the controller has decided nothing for 63 s"


@pytest.mark.parametrize(
    ("kind", "guest", "message"),
    [
        ("policy", None, "policy own:Own failed: ZeroDivisionError: division by zero"),
        ("host", None, "the host has 100M left, below 491M"),
        ("interference", "g2", "its size fell to 300M without a command of this run"),
    ],
)
async def test_a_run_whose_policy_failed_or_was_overruled_does_not_count(bench, autojump_clock, kind, guest, message):
    async def after_trial(controller, trial):
        controller.note(Faulted(t=0.0, wall=0.0, guest=guest, kind=kind, message=message, hint=""))

    bench.after_trial = after_trial
    outcome = await bench.run()
    assert outcome.failed == (f"guest {guest}: {message}" if guest else message)
    assert bench.clock.trials < TRIALS


async def test_a_full_disk_ends_the_run_at_once(bench, autojump_clock):
    async def after_trial(controller, trial):
        controller.writer.failure = OSError(28, "No space left on device")

    bench.after_trial = after_trial
    outcome = await bench.run()
    assert outcome.failed.endswith("record.jsonl cannot be written: No space left on device")
    assert bench.clock.trials < TRIALS


async def test_a_defect_of_ours_fails_this_run_only_and_is_kept(bench, autojump_clock):
    async def after_trial(controller, trial):
        raise LookupError("a defect")

    bench.after_trial = after_trial
    assert (await bench.run()).failed == "qmpalloc itself failed, see traceback.txt: LookupError: a defect"
    assert "in after_trial" in (bench.directory.path / "traceback.txt").read_text()


@pytest.fixture
def killed():
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process.pid


async def test_who_kills_a_guest_is_told(bench, autojump_clock, monkeypatch, killed):
    async def wait_for_end(guests):
        await trio.sleep(SMOKE.interval * 2)
        return Process("g1", killed)

    monkeypatch.setattr(arm, "wait_for_end", wait_for_end)
    assert (await bench.run()).failed == f"guest g1: its QEMU (process {killed}) was killed by signal 9 during the run"


async def test_cancelling_leaves_no_outcome(bench, autojump_clock):
    async def after_trial(controller, trial):
        scope.cancel()
        await trio.lowlevel.checkpoint()

    bench.after_trial = after_trial
    outcome = math.nan
    with trio.CancelScope() as scope:
        outcome = await bench.run()
    assert scope.cancelled_caught
    assert outcome is math.nan


@pytest.mark.parametrize(("arm_name", "computed"), [("best", True), ("given", False), ("static", False)])
async def test_an_oracle_without_curves_gets_those_of_the_references(tmp_path, arm_name, computed):
    text = """
        [experiment]
        name = "try"
        budget = "256MiB"
        [[guest]]
        name = "g1"
        memory = "256MiB"
        floor = "128MiB"
        cap = "256MiB"
        baseline = "128MiB"
        [[guest.phase]]
        file = "1MiB"
        access = { distribution = "uniform" }
        reads = 1000
        rounds = 2
        [[arm]]
        name = "static"
        policy = "static"
        [[arm]]
        name = "best"
        policy = "oracle"
        settings = { objective = "misses" }
        [[arm]]
        name = "given"
        policy = "oracle"
        settings = { curves = { g1 = [{ sizes = ["1MiB"], miss_ratio = [0.5] }] } }
    """
    spec = parsing.parse(text, file=tmp_path / "try.toml")
    said = []
    runner = ArmRunner(
        spec, ArmRun(1, arm_name), RunDirectory(tmp_path), prepared=None, traces=Traces(spec), disk=None,
        live=Live(said.append, lambda share, words: None),
    )  # fmt: skip
    config = await runner._configuration(tmp_path)
    settings = config.policy_settings
    assert (said != []) is computed
    if computed:
        assert settings["objective"] == "misses"
        (curve,) = settings["curves"]["g1"]
        assert curve["miss_ratio"][-1] == 0.0
    elif arm_name == "given":
        assert settings == spec.arms[2].settings
    load_policy(config.policy, settings, file=config.file)
