"""The host side of a load that runs programs: what they bring, what they say of their metrics, and how they fail."""

import json

import pytest

from qmpalloc.errors import HostError, NonsenseError
from qmpalloc.experiment.run.load import PLAN_FILE, PROGRAM_FILE
from qmpalloc.experiment.store.records import LoadProgress
from tests.protocol.clients import result
from tests.protocol.loaded_guest import FakeGuest, with_programs


@pytest.fixture
def guest():
    return FakeGuest()


@pytest.fixture
def programs(tmp_path):
    return with_programs(tmp_path)


async def test_programs_are_shipped_with_what_they_bring(autojump_clock, guest, programs):
    async with guest.loaded(programs) as load:
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
    async with guest.loaded(programs) as load:
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
    async with guest.loaded(programs) as load:
        guest.agent.files[json.loads(guest.agent.files[PLAN_FILE])["phases"][0]["series"]] = line
        with pytest.raises(NonsenseError, match="series of a metric") as caught:
            await load.series()
        assert "\x1b" not in str(caught.value)


async def test_a_step_that_fails_is_told_with_the_experiments_file(autojump_clock, guest, programs):
    async with guest.loaded(programs) as load:
        guest.fails = result(code=1, err=b"guest[0].phase[0].setup: apt ended with 100\x1b; it said: no")
        with pytest.raises(HostError) as caught:
            await load.prepare()
    assert str(caught.value).startswith(f"{programs.file}: guest g1: guest[0].phase[0].setup: apt ended with 100")
    assert "\x1b" not in str(caught.value)


async def test_a_program_that_fails_is_told_with_the_experiments_file(autojump_clock, guest, programs):
    guest.ends = result(code=1)
    guest.armed = LoadProgress(sequence=1, monotonic_s=100.0, error="guest[0].phase[0].command: work ended with 3")
    async with guest.loaded(programs) as load:
        with pytest.raises(HostError) as caught:
            await load.raise_if_dead()
    said = "guest g1: its load ended with 1: guest[0].phase[0].command: work ended with 3"
    assert caught.value.message == f"{programs.file}: {said}"
    assert caught.value.hint == "what its programs printed is kept: output-g1-PHASE.txt"


def program_progress(**changed):
    said = {"name": "phase1", "reads": 0, "seconds": 2.0, "started_s": 101.0, "done": False} | changed
    return json.dumps({"sequence": 1, "monotonic_s": 104.0, "phases": [said]}).encode()


async def test_what_a_program_says_of_its_metrics_is_taken(autojump_clock, guest, programs):
    async with guest.loaded(programs) as load:
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
    async with guest.loaded(programs) as load:
        guest.say(program_progress(**changed))
        with pytest.raises(NonsenseError):
            await load.progress()
