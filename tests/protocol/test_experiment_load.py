"""The host side of a load, against the fake agent: what is shipped, what is believed, and what an end means."""

import json

import msgspec
import pytest
import trio

from qmpalloc.errors import DeadlineError, HostError, NonsenseError
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
from qmpalloc.experiment.run.shipping import packed_generator
from qmpalloc.experiment.run.traces import Traces
from tests.protocol.clients import result
from tests.protocol.loaded_guest import (
    ARMED,
    FINISHED,
    FIRST,
    SECOND,
    SERVICE,
    SPECIFICATION,
    FakeGuest,
)

GUEST = SPECIFICATION.guests[0]
PROGRAM = packed_generator()
TRACES = Traces(SPECIFICATION)


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
            await load.read_through()
        assert caught.value.message.isprintable()
