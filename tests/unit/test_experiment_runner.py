"""Which runs are run, what becomes of those that fail, and what people are told meanwhile."""

from pathlib import Path

import pytest
import trio

from qmpalloc.errors import HostError
from qmpalloc.experiment.run import runner
from qmpalloc.experiment.run.arm import Live
from qmpalloc.experiment.run.runner import Remaining, run_experiment
from qmpalloc.experiment.spec import parsing, plan
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.experiment.store.records import DiskCalibration, Manifest, Outcome, Service

SMOKE = Path(__file__).parents[2] / "examples" / "smoke.toml"
RUNS = (ArmRun(1, "a"), ArmRun(1, "b"), ArmRun(2, "a"), ArmRun(2, "b"))


def outcome(run, *, failed="", total_s=100.0, served=True):
    service = {"g1": Service(hit_s=2e-5, miss_s=1e-3, hits=1, misses=1)} if served else {}
    return Outcome(
        arm=run.arm, repeat=run.repeat, started_wall=0.0, total_s=total_s, load_s=None,
        failed=failed, service=service,
    )  # fmt: skip


class FakeArms:
    """Stands in for `ArmRunner`: every run ends as told, at once."""

    def __init__(self):
        self.ran = []
        self.disks = []
        self.ends = {}

    def __call__(self, specification, run, directory, *, disk, **rest):
        fakes = self

        class Run:
            disk = None

            async def run(self, run_dir):
                await trio.lowlevel.checkpoint()
                fakes.ran.append(run.name)
                fakes.disks.append(disk)
                self.disk = disk or DiskCalibration(model="ssd", hit_s=2e-5, iops=1000)
                end = fakes.ends.get(run.name, outcome(run))
                if isinstance(end, BaseException):
                    raise end
                return end

        return Run()


@pytest.fixture
def arms(monkeypatch):
    fakes = FakeArms()
    monkeypatch.setattr(runner, "ArmRunner", fakes)
    return fakes


@pytest.fixture
def directory(tmp_path):
    manifest = Manifest(
        name="smoke", file=str(SMOKE), scale="1", arms=("static", "rule"), repeats=2, command="", created_wall=0.0,
        accelerator={}, images={}, versions={}, host={}, footprints={},
    )  # fmt: skip
    ExperimentDirectory.create(tmp_path / "out", parsing.load(SMOKE), manifest, SMOKE.read_text())
    return ExperimentDirectory.open_existing(tmp_path / "out")


async def conduct(directory, said=None):
    lines = [] if said is None else said
    return await run_experiment(
        directory, None, None, make_live=lambda run, left: Live(lines.append, lambda share, words: None)
    )


PLAN = ["repeat1-rule", "repeat1-static", "repeat2-static", "repeat2-rule"]


async def test_every_run_is_run_once_and_the_first_measures_the_disk(arms, directory):
    assert await conduct(directory)
    assert arms.ran == PLAN
    measured = DiskCalibration(model="ssd", hit_s=2e-5, iops=1000)
    assert arms.disks == [None, measured, measured, measured]
    assert list(directory.outcomes()) == sorted(directory.outcomes())


async def test_what_is_finished_is_not_run_again(arms, directory):
    for name in ("repeat1-rule", "repeat2-static"):
        run = next(found for found in plan.planned(directory.specification) if found.name == name)
        directory.run(run).begin()
        directory.run(run).write_outcome(outcome(run))
    assert await conduct(directory)
    assert arms.ran == ["repeat1-static", "repeat2-rule"]


async def test_a_run_that_fails_is_written_down_and_the_others_go_on(arms, directory):
    run = ArmRun(1, "static")
    arms.ends[run.name] = outcome(run, failed="guest g1: its QEMU ended")
    said = []
    assert not await conduct(directory, said)
    assert arms.ran == PLAN
    assert directory.outcomes()[run].failed == "guest g1: its QEMU ended"
    assert "repeat1-static failed and does not count: guest g1: its QEMU ended" in said


async def test_a_failed_run_is_run_again_next_time(arms, directory):
    run = ArmRun(1, "static")
    arms.ends[run.name] = outcome(run, failed="it died")
    await conduct(directory)
    arms.ran.clear()
    arms.ends.clear()
    assert await conduct(directory)
    assert arms.ran == ["repeat1-static"]
    assert directory.run(run).path.with_name("repeat1-static.set-aside1").is_dir()


async def test_what_never_begins_ends_the_experiment(arms, directory):
    for run in plan.planned(directory.specification):
        arms.ends[run.name] = outcome(run, failed="no room", served=False)
    with pytest.raises(HostError, match="3 runs in a row failed before their loads began: no room") as caught:
        await conduct(directory)
    assert "experiment resume" in caught.value.hint
    assert len(arms.ran) == 3


async def test_an_interrupted_run_has_no_outcome(arms, directory):
    arms.ends["repeat1-static"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        await conduct(directory)
    assert [run.name for run in directory.outcomes()] == ["repeat1-rule"]


async def test_a_full_disk_is_noticed_before_a_run(arms, directory, monkeypatch):
    monkeypatch.setattr(ExperimentDirectory, "free_bytes", lambda self: 1)
    with pytest.raises(HostError, match="64 MiB"):
        await conduct(directory)
    assert arms.ran == []


def remaining_at(times, outcomes=None):
    ticks = iter(times)
    return Remaining(RUNS, outcomes or {}, clock=lambda: next(ticks))


def test_nothing_is_estimated_from_nothing():
    left = remaining_at([0.0, 30.0, 31.0])
    left.begin()
    assert left.seconds() is None
    assert left.seconds(0.001) is None


def test_the_first_run_estimates_from_its_own_pace_without_the_boot():
    left = remaining_at([0.0, 60.0, 80.0])
    left.begin()
    assert left.seconds(0.1) is None
    # a fifth in 20 s: 70 s more for this run, 150 s for each of the others
    assert left.seconds(0.3) == pytest.approx(70 + 3 * 150)


def test_later_runs_are_estimated_from_those_that_are_over():
    left = remaining_at([0.0, 200.0, 240.0], {ArmRun(1, "a"): outcome(ArmRun(1, "a"), total_s=100.0)})
    left.begin()
    left.note(outcome(ArmRun(1, "b"), total_s=140.0))
    left.note(outcome(ArmRun(1, "b"), total_s=9.0, failed="it died"))
    left.begin()
    assert left.seconds(0.5) == pytest.approx(120 - 40 + 2 * 120)


def test_a_run_that_takes_longer_than_the_others_is_about_to_end():
    left = remaining_at([0.0, 500.0], {ArmRun(1, "a"): outcome(ArmRun(1, "a"), total_s=100.0)})
    left.begin()
    assert left.seconds(0.9) == pytest.approx(3 * 100)
