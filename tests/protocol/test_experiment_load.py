"""The host side of a load, against the fake agent: what is shipped, what is believed, and what an end means."""

import json
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import memory_stream_pair

from qmpalloc.errors import DeadlineError, HostError, NonsenseError
from qmpalloc.experiment.run.disk import calibrate, set_throttle
from qmpalloc.experiment.run.failures import leaves
from qmpalloc.experiment.run.load import (
    DIRECTORY,
    END,
    GO_FILE,
    LOG_FILE,
    PLAN_FILE,
    PROGRAM_FILE,
    PROGRESS_FILE,
    open_load,
)
from qmpalloc.experiment.run.program_disk import EACH_S, calibrate_by_programs
from qmpalloc.experiment.run.readings import Link, read_guest
from qmpalloc.experiment.run.shipping import packed_generator
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec import parsing
from qmpalloc.experiment.spec.schema import Disk
from qmpalloc.experiment.store.records import DiskCalibration, LoadProgress, PhaseProgress, ProgramPace, Service
from qmpalloc.qmp import ExecResult, find_actuators, open_agent_on, open_monitor_on
from qmpalloc.sim import Load as SimulatedLoad
from qmpalloc.testing import FakeAgent, FakeQemu, SimulatedGuest

TEXT = """
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
rounds = 10
[[guest.phase]]
file = "2MiB"
access = { distribution = "sequential" }
reads = 10
rounds = 1
rate = 50
[[arm]]
name = "static"
policy = "static"
"""
SPECIFICATION = parsing.parse(TEXT, file=Path("/try.toml"))
GUEST = SPECIFICATION.guests[0]
PROGRAM = packed_generator()
TRACES = Traces(SPECIFICATION)
SERVICE = Service(hit_s=40e-6, miss_s=400e-6, hits=1000, misses=100)
ARMED = LoadProgress(sequence=0, monotonic_s=100.0)
FIRST = PhaseProgress(name="phase1", reads=10_000, seconds=2.0, started_s=101.0, done=True, latency={50: 1_250})
SECOND = PhaseProgress(name="phase2", reads=10, seconds=0.2, started_s=103.0, done=True, latency={50: 10})
FINISHED = LoadProgress(sequence=9, monotonic_s=104.0, phases=(FIRST, SECOND), finished=True)


class FakeGuest:
    """A guest whose Python is this class: it does what the generator would, as seen from outside."""

    def __init__(self):
        self.agent = FakeAgent(program=self.program)
        self.programs = []
        self.armed = ARMED
        self.ends = None
        self.fails = None
        self.service = SERVICE

    def program(self, argv, _data):
        self.programs.append(argv)
        line = " ".join(argv)
        if f"{PROGRAM_FILE} run" in line:
            self.agent.program_s = 1e9 if self.ends is None else 0.0
            if self.armed is not None:
                self.say(self.armed)
            return self.ends or result()
        self.agent.program_s = 0.0
        if self.fails is not None:
            return self.fails
        return result(msgspec.json.encode(self.service)) if f"{PROGRAM_FILE} service" in line else result()

    def say(self, progress):
        self.agent.files[PROGRESS_FILE] = progress if isinstance(progress, bytes) else msgspec.json.encode(progress)

    @asynccontextmanager
    async def connected(self):
        client, server = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.agent.serve, server)
            async with open_agent_on(client, address="lab") as agent:
                yield agent
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def loaded(self):
        async with self.connected() as agent, open_load(agent, TRACES, GUEST) as load:
            yield load


def result(out=b"", *, code=0, signal=None, err=b""):
    return ExecResult(exit_code=code if signal is None else None, signal=signal, out=out, err=err)


@pytest.fixture
def guest():
    return FakeGuest()


async def test_everything_is_shipped_before_the_load_waits_for_go(autojump_clock, guest):
    async with guest.loaded() as load:
        files = guest.agent.files
        assert files[PROGRAM_FILE] == PROGRAM
        plan = json.loads(files[PLAN_FILE])
        assert (plan["progress"], plan["go"]) == (PROGRESS_FILE, GO_FILE)
        first, second = plan["phases"]
        assert (first["name"], first["file"], first["trace"]) == ("phase1", "/data/file-1M.dat", f"{DIRECTORY}/trace0")
        assert (first["readahead"], first["rate"]) == (False, 0.0)
        assert (second["file"], second["readahead"], second["rate"]) == ("/data/file-2M.dat", True, 50.0)
        for described, phase in zip(plan["phases"], GUEST.phases, strict=True):
            assert files[described["trace"]] == TRACES.trace(GUEST, phase)
        assert await load.progress() == ARMED
        assert GO_FILE not in files
        await load.go()
        assert GO_FILE in files
        await load.raise_if_dead()
    # At the end of the block it is ended.
    assert guest.programs[-1] == ["/bin/sh", "-c", END]


async def test_progress_is_what_the_generator_wrote(autojump_clock, guest):
    async with guest.loaded() as load:
        guest.say(FINISHED)
        assert await load.progress() == FINISHED
        del guest.agent.files[PROGRESS_FILE]
        assert await load.progress() is None


def changed(first):
    return msgspec.structs.replace(FINISHED, phases=(first, SECOND))


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 10_000,
        b"null",
        b'{"sequence": 1}',
        b'{"sequence": true, "monotonic_s": 1}',
        b" " * 1_000_000,
        msgspec.structs.replace(ARMED, sequence=-1),
        msgspec.structs.replace(ARMED, monotonic_s=-1.0),
        msgspec.structs.replace(ARMED, finished=True),
        msgspec.structs.replace(FINISHED, phases=(FIRST, SECOND, SECOND)),
        msgspec.structs.replace(FINISHED, phases=(SECOND,)),
        changed(msgspec.structs.replace(FIRST, reads=-1)),
        changed(msgspec.structs.replace(FIRST, reads=10_001)),
        changed(msgspec.structs.replace(FIRST, reads=9_999)),
        changed(msgspec.structs.replace(FIRST, errors=10_001)),
        changed(msgspec.structs.replace(FIRST, seconds=-1.0)),
        changed(msgspec.structs.replace(FIRST, seconds=1e300)),
        changed(msgspec.structs.replace(FIRST, started_s=-1.0)),
        changed(msgspec.structs.replace(FIRST, latency={50: -1})),
        changed(msgspec.structs.replace(FIRST, latency={50: 10**7})),
        changed(msgspec.structs.replace(FIRST, latency={10**9: 1})),
        changed(msgspec.structs.replace(FIRST, name="\x1b[31m" + "x" * 5000)),
    ],
)
async def test_progress_that_no_generator_writes_is_nonsense(autojump_clock, guest, said):
    async with guest.loaded() as load:
        guest.say(said)
        with pytest.raises(NonsenseError, match="guest g1") as caught:
            await load.progress()
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 400


async def test_the_generators_complaint_is_printable(autojump_clock, guest):
    async with guest.loaded() as load:
        guest.say(msgspec.structs.replace(ARMED, error="\x1b[2Jno " + "x" * 5000))
        error = (await load.progress()).error
    assert error.startswith("?[2Jno x")
    assert len(error) == 200


async def until_dead(agent):
    async with open_load(agent, TRACES, GUEST) as load:
        await load.raise_if_dead()


@pytest.mark.parametrize(
    ("end", "progress", "log", "says"),
    [
        (result(signal=9), ARMED, b"", "was killed by signal 9: no output"),
        (result(code=1), ARMED, b"Traceback\n  ...\n    x = y\nMemoryError\n", "ended with 1: .*MemoryError"),
        (result(code=1), msgspec.structs.replace(ARMED, error="no read works"), b"", "ended with 1: no read works"),
        (result(code=0), ARMED, b"", "ended with 0"),
        (result(code=127), None, b"sh: python3: not found\n", "ended with 127: sh: python3: not found"),
        (result(code=1), None, None, "ended with 1: its log cannot be read"),
    ],
)
async def test_a_load_that_ends_before_it_has_finished_is_an_error(autojump_clock, guest, end, progress, log, says):
    guest.ends = end
    guest.armed = progress
    if log is not None:
        guest.agent.files[LOG_FILE] = log
    async with guest.connected() as agent:
        with pytest.raises(HostError, match=f"guest g1: its load {says}"):
            await until_dead(agent)


async def test_a_load_that_has_finished_may_end(autojump_clock, guest):
    guest.ends = result()
    async with guest.loaded() as load:
        guest.say(FINISHED)
        for _ in range(3):  # the agent tells the end once
            await load.raise_if_dead()
    assert not any(argv[-1] == END for argv in guest.programs)


async def test_a_load_that_is_never_ready_is_an_error(autojump_clock, guest):
    guest.armed = None
    async with guest.connected() as agent:
        with pytest.raises(HostError, match="not ready"):
            await until_dead(agent)


async def test_a_hung_agent_is_a_deadline_that_names_what_was_done(autojump_clock, guest):
    async with guest.loaded() as load:
        guest.agent.faults.hang = True
        with pytest.raises(DeadlineError, match="progress of the load"):
            await load.progress()
        with pytest.raises(DeadlineError, match="start of the load"):
            await load.go()
        started = trio.current_time()
    assert trio.current_time() - started <= 10


async def test_warm_up_caches_and_service(autojump_clock, guest):
    async with guest.loaded() as load:
        await load.read_through()
        assert guest.programs[-1] == ["python3", PROGRAM_FILE, "read-through", "/data/file-1M.dat"]
        await load.read_through(["file-2M.dat", "file-1M.dat"])
        assert guest.programs[-1][-2:] == ["/data/file-2M.dat", "/data/file-1M.dat"]
        await load.drop_caches()
        assert "drop_caches" in guest.programs[-1][-1]
        assert await load.measure_service() == SERVICE


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"hit_s": 0.0}, NonsenseError),
        ({"miss_s": 1e300}, NonsenseError),
        ({"hit_s": -1.0}, NonsenseError),
        ({"hits": 0}, HostError),
        ({"misses": 0}, HostError),
    ],
)
async def test_service_times_that_make_no_sense(autojump_clock, guest, change, kind):
    guest.service = msgspec.structs.replace(SERVICE, **change)
    async with guest.loaded() as load:
        with pytest.raises(kind, match="guest g1"):
            await load.measure_service()


async def test_a_program_that_fails_in_the_guest_is_quoted(autojump_clock, guest):
    async with guest.loaded() as load:
        guest.fails = result(code=1, err=b"\x1b[31mNo such file: '/data/x'\n")
        with pytest.raises(HostError, match="No such file") as caught:
            await load.read_through(["x"])
        assert caught.value.message.isprintable()


# --- the disk model -------------------------------------------------------------------------------------


@asynccontextmanager
async def link_to(guest, qemu):
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(qemu.serve, server)
        async with (
            guest.connected() as agent,
            open_load(agent, TRACES, GUEST) as load,
            open_monitor_on(client, address="people") as monitor,
        ):
            [actuator] = await find_actuators(monitor)
            yield Link("g1", monitor, actuator, agent, load, "/run/qmpalloc/counters.json")
        nursery.cancel_scope.cancel()


@pytest.fixture
def qemu():
    fake = FakeQemu()
    fake.blocks = [{"device": "data", "stats": {"rd_bytes": 0, "rd_operations": 0, "rd_total_time_ns": 0}}]
    return fake


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        (Disk(), DiskCalibration(model="ssd", hit_s=30e-6, iops=667)),
        (Disk(model="hdd"), DiskCalibration(model="hdd", hit_s=30e-6, iops=7)),
        (Disk(model="raw"), DiskCalibration(model="raw", hit_s=30e-6, iops=0)),
        (Disk(iops=123), DiskCalibration(model="iops", hit_s=30e-6, iops=123)),
    ],
)
async def test_the_throttle_follows_from_cached_reads_in_all_guests(autojump_clock, qemu, disk, expected):
    quick, slow, other = FakeGuest(), FakeGuest(), FakeQemu()
    other.blocks = qemu.blocks
    quick.service = msgspec.structs.replace(SERVICE, hit_s=20e-6)
    qemu.throttles["data"] = 5  # of before: the measurement must not see it
    async with link_to(quick, qemu) as first, link_to(slow, other) as second:
        found = await calibrate(disk, [first, second])
        assert found == msgspec.structs.replace(expected, hit_s=pytest.approx(30e-6))
        assert qemu.throttles == {}
        await set_throttle([first, second], found.iops)
        assert qemu.throttles == other.throttles == ({"data": found.iops} if found.iops else {})


async def test_a_load_may_read_its_references_more_than_once(autojump_clock, guest):
    closed = msgspec.structs.replace(GUEST, phases=GUEST.phases[:1])
    twice = msgspec.structs.replace(FIRST, reads=20_000)
    async with guest.connected() as agent, open_load(agent, TRACES, closed, laps=2) as load:
        assert json.loads(guest.agent.files[PLAN_FILE])["phases"][0]["laps"] == 2
        guest.say(LoadProgress(sequence=9, monotonic_s=104.0, phases=(twice,), finished=True))
        assert (await load.progress()).finished
        guest.say(LoadProgress(sequence=9, monotonic_s=104.0, phases=(FIRST,), finished=True))
        with pytest.raises(NonsenseError, match="impossible numbers in phase phase1"):
            await load.progress()


# --- readings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("finished", "counted"), [(True, 10_010), (False, 9_000)])
async def test_the_reading_of_a_finished_load_has_all_its_reads(autojump_clock, guest, qemu, finished, counted):
    sample = SimulatedGuest("g1", load=SimulatedLoad(file_pages=1, accesses_per_s=1.0), memory_bytes=2**28).sample()

    def collector_writes(accesses, monotonic_s):
        counters = msgspec.structs.replace(sample.counters, accesses=accesses, inserts_read=0)
        written = msgspec.structs.replace(sample, counters=counters, monotonic_ns=round(monotonic_s * 1e9))
        guest.agent.files["/run/qmpalloc/counters.json"] = msgspec.json.encode(written)

    async with link_to(guest, qemu) as link, trio.open_nursery() as nursery:
        collector_writes(9_000, 103.6)
        guest.say(msgspec.structs.replace(FINISHED, finished=finished))

        async def later():
            await trio.sleep(0.6)
            collector_writes(10_010, 104.6)

        nursery.start_soon(later)
        reading = await read_guest(link, trial=1, t=15.0, target_bytes=2**28)
        assert reading.accesses == counted


# --- programs -------------------------------------------------------------------------------------------

PROGRAMS = """
[[guest.phase]]
command = ["work", "{seed}", "{guest}"]
environment = { A = "{scale}" }
duration = "20s"
copy = ["work.py", "work"]
[[guest.phase.metric]]
name = "rate"
unit = "1/s"
better = "higher"
pattern = "([0-9]+)"
[[guest.phase.metric]]
name = "every"
unit = "1/s"
better = "higher"
pattern = "([0-9]+)"
series = true
[[guest.phase.metric]]
name = "written"
unit = "1"
better = "higher"
json = { file = "{guest}-{seed}.json", path = "a.0" }
[[guest.phase]]
file = "1MiB"
access = { distribution = "uniform" }
reads = 1000
duration = "10s"
[[arm]]
name = "static"
policy = "static"
"""


@pytest.fixture
def programs(tmp_path):
    (tmp_path / "work.py").write_bytes(b"print(1)")
    (tmp_path / "work").write_bytes(b"\x7fELF")
    (tmp_path / "work").chmod(0o700)
    return parsing.parse(TEXT.split("[[guest.phase]]")[0] + PROGRAMS, file=tmp_path / "try.toml")


@asynccontextmanager
async def with_programs(guest, specification):
    async with (
        guest.connected() as agent,
        open_load(agent, Traces(specification), specification.guests[0]) as load,
    ):
        yield load


async def test_programs_are_shipped_with_what_they_bring(autojump_clock, guest, programs):
    async with with_programs(guest, programs) as load:
        work, reads = json.loads(guest.agent.files[PLAN_FILE])["phases"]
        assert (work["command"], work["environment"]) == (["work", "1", "g1"], {"A": "1"})
        assert (work["key"], work["duration"], work["user"]) == ("guest[0].phase[0]", 20.0, "root")
        assert work["metrics"][0]["pattern"] == "([0-9]+)"
        assert guest.agent.files[f"{work['directory']}/work.py"] == b"print(1)"
        assert work["metrics"][2]["json"] == {"file": "g1-1.json", "path": "a.0"}
        assert ["mkdir", "-p", work["directory"]] in guest.programs
        assert [argv[2] for argv in guest.programs if argv[0] == "chmod"] == [f"{work['directory']}/work"]
        assert reads["duration"] == 10.0
        await load.prepare()
        await load.warm_up(reads=True)
        steps = [argv[3] for argv in guest.programs if argv[1:3] == [PROGRAM_FILE, "prepare"]]
        assert steps == ["setup", "ready", "warm_up"]
        guest.agent.files[work["output"]] = b"x" * 10
        assert await load.outputs() == {"phase1": b"x" * 10}
        del guest.agent.files[work["output"]]
        assert await load.outputs() == {}


async def test_the_values_of_a_series_are_taken_with_their_times(autojump_clock, guest, programs):
    async with with_programs(guest, programs) as load:
        file = json.loads(guest.agent.files[PLAN_FILE])["phases"][0]["series"]
        assert await load.series() == {}  # the program has not ended
        guest.agent.files[file] = b"every,0.500,10,1\nevery,1.500,20.5,2\n"
        first, second = (await load.series())["phase1"]
        assert (first.metric, first.seconds, first.value, first.matches) == ("every", 0.5, 10.0, 1)
        assert (second.seconds, second.value, second.matches) == (1.5, 20.5, 2)


@pytest.mark.parametrize(
    "line",
    [
        b"rate,0.5,10,1",  # it is no series
        b"every,0.5,10",
        b"every,0.5,nan,1",
        b"every,-1,10,1",
        b"every,inf,10,1",
        b"every,0.5,10,0",
        b"every,0.5,10,x",
        b"\xff\x1b",
        b"every,0.5,10,1\n" * 100_000,
    ],
)
async def test_a_series_that_no_generator_writes_is_nonsense(autojump_clock, guest, programs, line):
    async with with_programs(guest, programs) as load:
        guest.agent.files[json.loads(guest.agent.files[PLAN_FILE])["phases"][0]["series"]] = line
        with pytest.raises(NonsenseError, match="series of a metric") as caught:
            await load.series()
        assert "\x1b" not in str(caught.value)


async def test_a_step_that_fails_is_told_with_the_experiments_file(autojump_clock, guest, programs):
    async with with_programs(guest, programs) as load:
        guest.fails = result(code=1, err=b"guest[0].phase[0].setup: apt ended with 100\x1b; it said: no")
        with pytest.raises(HostError) as caught:
            await load.prepare()
    assert str(caught.value).startswith(f"{programs.file}: guest g1: guest[0].phase[0].setup: apt ended with 100")
    assert "\x1b" not in str(caught.value)


async def test_a_program_that_fails_is_told_with_the_experiments_file(autojump_clock, guest, programs):
    guest.ends = result(code=1)
    guest.armed = LoadProgress(sequence=1, monotonic_s=100.0, error="guest[0].phase[0].command: work ended with 3")
    async with with_programs(guest, programs) as load:
        with pytest.raises(HostError) as caught:
            await load.raise_if_dead()
    said = "guest g1: its load ended with 1: guest[0].phase[0].command: work ended with 3"
    assert caught.value.message == f"{programs.file}: {said}"
    assert caught.value.hint == "what its programs printed is kept: output-g1-PHASE.txt"


def program_progress(**changed):
    said = {"name": "phase1", "reads": 0, "seconds": 2.0, "started_s": 101.0, "done": False} | changed
    return json.dumps({"sequence": 1, "monotonic_s": 104.0, "phases": [said]}).encode()


async def test_what_a_program_says_of_its_metrics_is_taken(autojump_clock, guest, programs):
    async with with_programs(guest, programs) as load:
        guest.say(program_progress(metrics={"rate": {"count": 2, "total": 6.0, "last": 4.0}}))
        (phase,) = (await load.progress()).phases
        assert (phase.metrics["rate"].total, phase.metrics["rate"].last) == (6.0, 4.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"reads": 1},
        {"metrics": {"other": {"count": 1, "total": 1.0, "last": 1.0}}},
        {"metrics": {"rate": {"count": 0, "total": 1.0, "last": 1.0}}},
        {"metrics": {"rate": {"count": 2**60, "total": 1.0, "last": 1.0}}},
        {"metrics": {"rate": {"count": 1, "total": float("nan"), "last": 1.0}}},
        {"metrics": {"rate": {"count": 1, "total": 1.0, "last": float("inf")}}},
        {"metrics": {"rate": {"count": 1, "total": 1.0, "last": 1e999}}},
        {"metrics": [1]},
    ],
)
async def test_what_no_program_of_the_plan_can_have_said_is_nonsense(autojump_clock, guest, programs, changed):
    async with with_programs(guest, programs) as load:
        guest.say(program_progress(**changed))
        with pytest.raises(NonsenseError):
            await load.progress()


async def test_programs_read_from_the_root_disk_as_well(autojump_clock, guest, programs, qemu):
    qemu.blocks.append({"device": "root", "stats": {"rd_bytes": 4096, "rd_operations": 1, "rd_total_time_ns": 7}})
    async with link_to(guest, qemu) as link:
        both = msgspec.structs.replace(link, disks=("data", "root"))
        await set_throttle([both], 50)
        assert qemu.throttles == {"data": 50, "root": 50}


# --- the disk by what programs do -----------------------------------------------------------------------


class WorkingGuest(FakeGuest):
    """A guest whose program accesses pages: all from the cache, or from the disk when it is cold."""

    def __init__(self, qemu, *, accesses=100_000):
        super().__init__()
        self.qemu, self.accesses = qemu, accesses
        self.load = SimulatedLoad(file_pages=1, accesses_per_s=1.0)
        self.sample = SimulatedGuest("g1", load=self.load, memory_bytes=2**28).sample()
        self.count = {"accesses": 5, "inserts_read": 5, "inserts_fault": 5}
        self.sequence, self.runs, self.breaks = 0, [], None
        self.write()

    def write(self):
        self.sequence += 1
        counters = msgspec.structs.replace(self.sample.counters, **self.count)
        written = msgspec.structs.replace(self.sample, counters=counters, sequence=self.sequence)
        self.agent.files["/run/qmpalloc/counters.json"] = msgspec.json.encode(written)

    async def collect(self):
        while True:
            await trio.sleep(1.0)
            self.write()

    def program(self, argv, data):
        if argv[2:3] != ["once"]:
            return super().program(argv, data)
        if self.breaks is not None:
            return self.breaks
        self.agent.program_s = EACH_S
        self.runs.append((argv[3:], self.qemu.throttles.get("data", 0), self.qemu.balloon.target_bytes))
        if "--cold" in argv:
            self.add(20_000, 10_000, 800, 1_800)
            return result(msgspec.json.encode({"seconds": 10.0, "metrics": {"rate": 5.0}}))
        self.add(self.accesses, 10, 0, 10)
        return result(msgspec.json.encode({"seconds": 10.0, "metrics": {"rate": 50.0}}))

    def add(self, accesses, misses, faults, requests):
        for name, more in zip(self.count, (accesses, misses, faults), strict=True):
            self.count[name] += more
        self.qemu.blocks[0]["stats"]["rd_operations"] += requests


async def calibrated(specification, qemu, guest, disk):
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(qemu.serve, server)
        nursery.start_soon(guest.collect)
        async with (
            guest.connected() as agent,
            open_load(agent, Traces(specification), specification.guests[0]) as load,
            open_monitor_on(client, address="people") as monitor,
        ):
            [actuator] = await find_actuators(monitor)
            link = Link("g1", monitor, actuator, agent, load, "/run/qmpalloc/counters.json")
            found = await calibrate_by_programs(disk, [link])
        nursery.cancel_scope.cancel()
    return found


async def test_the_throttle_follows_from_what_programs_do(autojump_clock, qemu, programs):
    guest = WorkingGuest(qemu)
    found = await calibrated(programs, qemu, guest, Disk(by="programs"))
    assert (found.by, found.hit_s, found.iops) == ("programs", pytest.approx(100e-6), 200)
    service = found.programs["g1"]["phase1"]
    assert service.warm == ProgramPace(seconds=10.0, metrics={"rate": 50.0}, accesses=100_000, misses=10, disk_reads=10)
    assert (service.cold.misses, service.cold.faults, service.cold.disk_reads) == (10_000, 800, 1_800)
    assert service.ratio == pytest.approx(50)
    # Filled and warm at the cap, without a throttle; cold with it.
    words = [PLAN_FILE, "0", str(EACH_S)]
    cap = programs.guests[0].cap
    assert guest.runs == [([*words, "--warm-up"], 0, cap), (words, 0, cap), ([*words, "--cold"], 200, cap)]


async def test_a_program_of_mapped_files_leaves_the_throttle_to_reads(autojump_clock, qemu, programs):
    found = await calibrated(programs, qemu, WorkingGuest(qemu, accesses=20), Disk(by="programs"))
    assert (found.by, found.hit_s, found.iops) == ("reads", SERVICE.hit_s, 500)
    assert found.programs["g1"]["phase1"].ratio is None


async def test_a_program_that_fails_when_it_is_measured_is_told_with_its_key(autojump_clock, qemu, programs):
    guest = WorkingGuest(qemu)
    guest.breaks = result(code=1, err=b"guest[0].phase[0].command: work ended with 3")
    with pytest.raises(BaseExceptionGroup) as caught:
        await calibrated(programs, qemu, guest, Disk(by="programs"))
    (error,) = leaves(caught.value)
    assert str(error).startswith(f"{programs.file}: guest g1: guest[0].phase[0].command: work ended with 3")
