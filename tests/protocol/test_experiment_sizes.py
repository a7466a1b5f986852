"""A sweep of a simulated guest: what is learnt, measured and kept, and what ends it."""

import importlib.util
import json
import os
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from sizes import predictions, running
from sizes.measurement import Case, Shipped
from sizes.running import Wires, over_sizes, run_case

from qmpalloc.config import GuestConfig
from qmpalloc.curves.mapping import SYSTEM_PAGES
from qmpalloc.errors import HostError
from qmpalloc.experiment.run.failures import bare_errors
from qmpalloc.experiment.run.load import GO_FILE, PLAN_FILE, PROGRAM_FILE, PROGRESS_FILE
from qmpalloc.experiment.run.readings import Link
from qmpalloc.experiment.spec.access import Loop, Normal, Uniform
from qmpalloc.experiment.store.records import LoadProgress
from qmpalloc.policy import load as load_policy
from qmpalloc.qemu.accelerator import Accelerator
from qmpalloc.qemu.argv import Sockets
from qmpalloc.qmp import ExecResult, find_actuators, open_agent_on, open_monitor_on
from qmpalloc.sim.replay import ReplayGuest
from qmpalloc.testing import FakeAgent, FakeBalloon, open_simulated_guest
from qmpalloc.units import MIB

SIZES = tuple(size * MIB for size in (416, 352, 320, 288, 256, 224))


def case(access, **changes):
    fields = {
        "workload": "w", "access": access, "file": 200 * MIB, "lru": "lru_gen", "memory": 416 * MIB,
        "learn": 288 * MIB, "sizes": SIZES,
    } | changes  # fmt: skip
    return Case(**fields)


class FakeLoad:
    """A load of which only the beginning and the end are told: the simulated guest reads all the time."""

    def __init__(self):
        self.went = False
        self.dies_at = None
        self.filled = self.emptied = 0

    async def go(self):
        self.went = True

    async def read_through(self):
        self.filled += 1

    async def drop_caches(self):
        self.emptied += 1

    async def raise_if_dead(self):
        if self.dies_at is not None and trio.current_time() >= self.dies_at:
            raise HostError("guest g: its load was killed by signal 9")


class Bench:
    """A simulated guest and a sweep of it."""

    def __init__(self, the_case, **replay):
        self.case = the_case
        self.load = FakeLoad()
        self.kept, self.said = [], []
        self.replay = {"accesses_per_s": 20_000.0, "miss_s": 2e-4, "scale": 16, "own_bytes": 130 * MIB} | replay

    async def run(self, *, trouble=None):
        balloon = FakeBalloon(self.case.memory, inflate_bytes_per_s=100 * MIB, deflate_bytes_per_s=500 * MIB)
        balloon.request(self.case.learn)
        reader = ReplayGuest(
            "g", self.case.access, file_bytes=self.case.file, size_bytes=self.case.learn, observed=False, **self.replay
        )
        with bare_errors():
            async with open_simulated_guest("g", load=reader, memory_bytes=self.case.memory, balloon=balloon) as guest:
                await trio.sleep(5.0)
                async with (
                    open_monitor_on(guest.connect_monitor(), address="monitor") as monitor,
                    open_agent_on(guest.connect_agent(), address="agent") as agent,
                    trio.open_nursery() as nursery,
                ):
                    if trouble is not None:
                        nursery.start_soon(trouble, guest)
                    [actuator] = await find_actuators(monitor)
                    link = Link("g", monitor, actuator, agent, self.load, "/run/qmpalloc/counters.json")
                    wires = Wires(link, agent, "/run/qmpalloc/samples.bin")
                    result = await over_sizes(self.case, wires, keep=self.kept.append, report=self.said.append)
                    nursery.cancel_scope.cancel()
        return result


@pytest.mark.parametrize("access", [Normal(deviation=0.15), Uniform()], ids=["normal", "uniform"])
async def test_predictions_from_one_size_meet_what_is_measured_at_the_others(autojump_clock, access):
    bench = Bench(case(access))
    result = await bench.run()
    assert bench.load.went
    assert bench.load.filled == 2  # before it begins, and when it grew to the largest size
    assert result.weak == ()
    assert [point.target_bytes for point in result.points] == list(SIZES)
    assert all(point.steady and point.actual_bytes == point.target_bytes for point in result.points)
    ratios = [point.miss_ratio for point in result.points]
    assert ratios == pytest.approx(sorted(ratios), abs=0.01)
    assert ratios[0] < 0.02  # first reads: the simulated guest is not filled
    assert ratios[-1] > 0.15
    for point in result.points:
        assert point.accesses >= bench.case.pages
        assert point.witness is None or point.witness == pytest.approx(1.0, abs=0.01)
    made = {each.estimator: each for each in predictions.predict(result, bench.kept)}
    assert set(made) == {*predictions.ESTIMATORS, predictions.MIDPOINT}
    own = predictions.error(result, made["lru_gen"])
    assert own.sizes == len(SIZES) - 1
    assert own.at_sizes < 0.03
    assert own.at_cache < 0.03
    # The mapping from size to cache was learnt at one size; these caches are full.
    cached = [point.file_bytes / 4096 - SYSTEM_PAGES for point in result.points[-2:]]
    assert made["lru_gen"].cache_pages[-2:] == pytest.approx(cached, rel=0.12)


async def test_a_loop_is_measured_by_the_lap(autojump_clock):
    bench = Bench(case(Loop(share=1.0), file=100 * MIB, sizes=(288 * MIB, 192 * MIB)), miss_s=1e-4)
    result = await bench.run()
    fits, does_not = result.points
    assert fits.accesses % bench.case.lap == 0
    assert fits.miss_ratio == 0.0
    assert does_not.miss_ratio > 0.5


async def test_every_size_may_begin_with_a_cache_of_its_own(autojump_clock):
    bench = Bench(case(Normal(deviation=0.15), sizes=(288 * MIB, 224 * MIB), fresh=True))
    await bench.run()
    assert (bench.load.emptied, bench.load.filled) == (2, 3)


async def test_what_is_kept_is_enough_to_predict_again(autojump_clock):
    bench = Bench(case(Normal(deviation=0.15), sizes=(288 * MIB, 224 * MIB)))
    result = await bench.run()
    lines = [msgspec.json.decode(msgspec.json.encode(line), type=Shipped) for line in bench.kept]
    again = msgspec.json.decode(msgspec.json.encode(result), type=type(result))
    assert again == result
    made = predictions.predict(again, lines)
    assert made == predictions.predict(result, bench.kept)
    # What came after learning is not known to a prediction.
    assert made == predictions.predict(result, [line for line in bench.kept if line.t <= result.learnt_t])


async def test_a_cache_that_never_settles_is_measured_and_said_to_be(autojump_clock):
    bench = Bench(case(Uniform(), file=4096 * MIB, sizes=(416 * MIB,)), accesses_per_s=300.0, miss_s=0.0)
    result = await bench.run()
    assert not result.points[0].steady
    assert any("NOT STEADY" in line for line in bench.said)
    assert result.weak


async def test_a_load_that_dies_ends_the_sweep(autojump_clock):
    bench = Bench(case(Uniform()))
    bench.load.dies_at = trio.current_time() + 30.0
    with pytest.raises(HostError, match="killed by signal 9"):
        await bench.run()
    assert bench.kept


async def test_a_guest_that_says_nothing_new_ends_the_sweep(autojump_clock):
    async def stop(guest):
        await trio.sleep(20.0)
        guest.collecting = False

    with pytest.raises(HostError, match="nothing new was read of the guest for 60 s"):
        await Bench(case(Uniform())).run(trouble=stop)


async def test_a_balloon_that_stands_still_ends_the_sweep(autojump_clock):
    async def stall(guest):
        guest.qemu.balloon.stalled = True
        await trio.sleep_forever()

    with pytest.raises(HostError, match="its balloon does not reach 416M"):
        await Bench(case(Uniform())).run(trouble=stall)


async def test_a_guest_under_the_other_page_replacement_is_refused(autojump_clock):
    with pytest.raises(HostError, match="page replacement is lru_gen"):
        await Bench(case(Uniform(), lru="two_list")).run()


async def test_without_samples_the_sizes_are_measured_and_nothing_is_predicted(autojump_clock):
    async def silence(guest):
        guest.sampling = False
        guest.agent.files.pop("/run/qmpalloc/samples.bin", None)
        await trio.sleep_forever()

    bench = Bench(case(Uniform(), sizes=(256 * MIB,)))
    result = await bench.run(trouble=silence)
    assert result.weak == ("accesses are not sampled",)
    assert result.points[0].miss_ratio > 0.1


def benchmark():
    file = Path(__file__).parents[2] / "benchmarks" / "guest_curves.py"
    spec = importlib.util.spec_from_file_location("guest_curves", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_report_of_the_benchmark(autojump_clock, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    program = benchmark()
    bench = Bench(case(Normal(deviation=0.15), workload="normal", sizes=(352 * MIB, 288 * MIB, 224 * MIB)))
    result = await bench.run()
    place = tmp_path / "runs" / bench.case.name
    place.mkdir(parents=True)
    (place / "result.json").write_bytes(msgspec.json.encode(result))
    lines = b"".join(msgspec.json.encode(line) + b"\n" for line in bench.kept)
    (place / "recording.jsonl").write_bytes(lines + b'{"cut off')
    output = tmp_path / "results.md"
    output.write_text("# Ours\n\nSaid by us.\n\n## Result\n\noutdated\n")
    program.report(tmp_path / "runs", output)
    program.report(tmp_path / "runs", output)  # again: what was said by us stays, the rest is made anew
    text = output.read_text()
    assert text.startswith("# Ours\n\nSaid by us.\n\n## Result\n\nMean absolute error")
    assert text.count("## Every size") == 1
    assert "outdated" not in text
    assert "learnt here" in text
    assert (tmp_path / "results.svg").exists()
    assert (tmp_path / "results.png").exists()
    # The measured curves are what the policy oracle takes.
    policy = load_policy("oracle", {"file": "curves.json", "names": {"g": "normal-lru_gen"}},
                         file=str(tmp_path / "runs" / "qmpalloc.toml"))  # fmt: skip
    assert [len(curve.sizes) for curve in policy.settings.curves["g"]] == [3]


def test_the_cases_of_the_benchmark_can_be_run():
    program = benchmark()
    cases = [*program.all_cases(), program.smoke_case()]
    assert len({each.name for each in cases[:-1]}) == len(cases) - 1
    for each in cases:
        assert each.learn in each.sizes
        again = msgspec.json.decode(msgspec.json.encode(each), type=Case)
        assert again == each
        spec = each.specification
        assert spec.guests[0].phases[0].total_reads * 4 < spec.guests[0].floor / 4
    assert [each.name for each in cases if each.suite == "trixie" and not each.fresh][:2] == [
        "normal-two_list",
        "normal-lru_gen",
    ]
    scan = next(each for each in cases if each.workload == "zipf-scan")
    assert scan.window == scan.lap == round(scan.pages / 4 / 0.3)


class Booted:
    """What the launcher would start: a simulated guest behind the sockets of a real one, and a lab agent."""

    def __init__(self, directory, the_case):
        self.name, self.pid = "guest", os.getpid()
        self.sockets = Sockets(directory, directory / "monitor.sock", directory / "agent.sock")
        self.lab_socket = self.sockets.lab
        self.config = GuestConfig(name="guest", floor=1, cap=1, baseline=1)
        self.accelerator = Accelerator(name="tcg", reason="")
        self.scripts = []
        self._case = the_case

    def program(self, argv, _data):
        line = " ".join(argv)
        self.scripts.append(line)
        runs = f"{PROGRAM_FILE} run" in line
        self.lab.program_s = 1e9 if runs else 0.0
        if runs:
            self.lab.files[PROGRESS_FILE] = msgspec.json.encode(LoadProgress(sequence=0, monotonic_s=1.0))
        return ExecResult(exit_code=0, signal=None, out=b"0x0007\n" if "lru_gen" in line else b"", err=b"")

    @asynccontextmanager
    async def open(self, config, *, prepared, report):
        self.baseline = config.guests[0].baseline
        balloon = FakeBalloon(self._case.memory)
        balloon.request(self.baseline)
        reader = ReplayGuest(
            "g", self._case.access, file_bytes=self._case.file, size_bytes=self.baseline, observed=False,
            accesses_per_s=20_000.0, miss_s=2e-4, scale=16, own_bytes=130 * MIB,
        )  # fmt: skip
        self.lab = FakeAgent(program=self.program)
        async with (
            open_simulated_guest("g", load=reader, memory_bytes=self._case.memory, balloon=balloon) as guest,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(guest.qemu.serve_path, str(self.sockets.people))
            await nursery.start(guest.agent.serve_path, str(self.sockets.agent))
            await nursery.start(self.lab.serve_path, str(self.sockets.lab))
            await trio.sleep(5.0)
            yield (self,)
            nursery.cancel_scope.cancel()


@pytest.fixture
def booted(monkeypatch, tmp_path):
    guest = Booted(tmp_path, case(Uniform(), file=128 * MIB, sizes=(288 * MIB, 224 * MIB)))

    async def never_ends(guests):
        await trio.sleep_forever()

    monkeypatch.setattr(running, "open_guests", guest.open)
    monkeypatch.setattr(running, "wait_for_end", never_ends)
    return guest


async def test_a_whole_case_from_boot_to_result(autojump_clock, booted, tmp_path):
    kept = []
    result = await run_case(booted._case, prepared=None, run_dir=tmp_path, keep=kept.append, report=lambda line: None)
    assert booted.baseline == booted._case.learn
    assert result.accelerator == "tcg"
    assert [point.target_bytes for point in result.points] == [288 * MIB, 224 * MIB]
    assert result.kernel == "6.12.0-simulated"
    assert kept[-1].t > result.learnt_t
    # The guest was switched before its load was shipped, which began with an empty cache and a file read through.
    order = ("echo y > /sys", "mkdir -m 700", "generator.pyz run", "drop_caches", "read-through")
    found = [next(number for number, line in enumerate(booted.scripts) if words in line) for words in order]
    assert found == sorted(found)
    assert GO_FILE in booted.lab.files
    plan = json.loads(booted.lab.files[PLAN_FILE])
    assert plan["phases"][0]["duration"] > running.CASE_MOST_S
    assert len(booted.lab.files[plan["phases"][0]["trace"]]) == 4 * 16 * booted._case.pages


async def test_a_guest_that_ends_fails_its_case(autojump_clock, booted, tmp_path, monkeypatch):
    async def ends(guests):
        await trio.sleep(40.0)
        return guests[0]

    monkeypatch.setattr(running, "wait_for_end", ends)
    with pytest.raises(HostError, match="the guest's QEMU ended"):
        await run_case(booted._case, prepared=None, run_dir=tmp_path, keep=lambda line: None, report=lambda line: None)


async def test_a_case_that_takes_too_long_is_given_up(autojump_clock, booted, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "CASE_MOST_S", 20.0)
    with pytest.raises(HostError, match="not finished after 20 s"):
        await run_case(booted._case, prepared=None, run_dir=tmp_path, keep=lambda line: None, report=lambda line: None)
