"""A guest that does its worst through its agent: bounded memory, bounded time, and nobody else notices."""

import itertools
import tracemalloc

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from qmpalloc.control.sampling import FLOOD_RETRY_MOST_S
from qmpalloc.errors import FloodError, NonsenseError
from qmpalloc.events import Decided, Faulted, Sampled
from qmpalloc.qmp import Agent, ExecResult
from qmpalloc.qmp.agent import SHORT_READS_MAX, open_agent_on
from qmpalloc.qmp.agent_channel import NOISE_BYTES_PER_S, NOISE_MAX_BYTES, NOISE_MAX_LINES, NoiseAllowance
from qmpalloc.qmp.connection import PAUSE_S, PIECES_AT_ONCE, PIECES_PER_S
from qmpalloc.testing import FakeAgent

TROUBLES = {
    "a flood of lines": b"{}\n" * 20_000,
    "a flood of garbage": b"x\n" * 20_000,
    "an endless line": b"x" * 65_536,
    "endless sentinels": b"\xff" * 65_536,
    "endless nesting": b"[" * 65_536,
    "not UTF-8": b"\xfe\xfd\n" * 20_000,
    "terminal escapes": b'{"return":"\x1b]0;owned\x07\x1b[2J[bold]"}\n' * 2000,
}


@pytest.fixture
def flooding(tmp_path):
    """A function: replace a guest's agent by one that sends this for ever and reads nothing."""

    async def serve(path, data, *, task_status):
        async def talk(stream):
            try:
                while True:
                    await stream.send_all(data)
                    await trio.sleep(0.1)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        with trio.socket.socket(trio.socket.AF_UNIX) as sock:
            await sock.bind(path)
            sock.listen(4)
            await trio.serve_listeners(talk, [trio.SocketListener(sock)], task_status=task_status)

    return serve


@pytest.mark.timeout(300)
@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_flood_ends_in_a_fault_and_the_others_decide_on_time(
    lab, autojump_clock, flooding, nursery, tmp_path, trouble
):
    await lab.two()
    path = str(tmp_path / "flood.agent")
    await nursery.start(lambda task_status: flooding(path, TROUBLES[trouble], task_status=task_status))
    own_config = lab.config

    def config(*arguments, **settings):
        loaded = own_config(*arguments, **settings)
        small, large = loaded.guests
        return replace(loaded, guests=(replace(small, agent=path), large))

    lab.config = config
    tracemalloc.start()
    try:
        await lab.run(9.0)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert any(event.kind == "agent" for event in lab.of(Faulted, "small"))
    assert all(event.message.isprintable() for event in lab.of(Faulted))
    assert not lab.of(Sampled, "small")
    assert len(lab.of(Sampled, "large")) >= 6
    assert not any(event.decision.moves for event in lab.of(Decided))
    assert [round(event.t) for event in lab.of(Decided)] == pytest.approx([2, 4, 6, 8], abs=0.6)
    assert most_bytes < 32 << 20


@pytest.mark.parametrize(
    "data",
    [b"\n", b" ", b"x", b"[" + b"{}," * 300_000 + b"{}]\n", b'{"id":"qmpalloc-2"}' + b" " * 9999 + b"\n"],
)
async def test_a_flood_ends_the_connection_after_so_many_bytes_whatever_they_are(autojump_clock, nursery, data):
    client, server = trio.testing.memory_stream_pair()

    async def flood():
        for _ in range(0, 2 * NOISE_MAX_BYTES, 1 << 20):
            await server.send_all(data * ((1 << 20) // len(data) + 1))

    async with open_agent_on(client, address="flood") as agent:
        nursery.start_soon(flood)
        with pytest.raises(NonsenseError, match="floods"):
            await agent.info()


async def test_a_flood_ends_the_connection_after_so_many_lines(autojump_clock):
    client, server = trio.testing.memory_stream_pair()
    async with open_agent_on(client, address="flood") as agent:
        await server.send_all(b"{}\n" * (3 * NOISE_MAX_LINES))
        with pytest.raises(NonsenseError, match="floods"):
            await agent.info()
        assert agent.skipped == NOISE_MAX_LINES


async def test_answers_in_between_do_not_make_a_flood_harmless(autojump_clock, nursery):
    client, server = trio.testing.memory_stream_pair()
    fake = FakeAgent(program=lambda argv, data: ExecResult(exit_code=0, signal=None, out=b"", err=b""))
    fake.program_s = 1e6
    fake.faults.garbage = b"{}\n" * 90
    nursery.start_soon(fake.serve, server)
    async with open_agent_on(client, address="flood") as agent:
        await agent.execute("guest-ping")
        with pytest.raises(FloodError):
            await agent.run(["a program that never ends"])
    assert 3 < len(fake.requests) <= NOISE_MAX_LINES // 90


async def test_many_and_long_answers_are_no_flood(autojump_clock, nursery):
    client, server = trio.testing.memory_stream_pair()
    content = bytes(3 * NOISE_MAX_BYTES)
    nursery.start_soon(FakeAgent(files={"/large": content}).serve, server)
    async with open_agent_on(client, address="fake") as agent:
        assert await agent.read_file("/large", len(content)) == content
        for _ in range(2 * NOISE_MAX_LINES):
            await agent.execute("guest-ping")


async def test_connecting_again_gives_a_flooding_guest_nothing(autojump_clock, nursery):
    noise, came = NoiseAllowance(), 0

    async def flood(server):
        nonlocal came
        try:
            while True:
                await server.send_all(b" " * 65_536)
                came += 65_536
                await trio.sleep(0.01)
        except trio.BrokenResourceError:
            pass

    began_s = trio.current_time()
    for _ in range(50):
        client, server = trio.testing.memory_stream_pair()
        nursery.start_soon(flood, server)
        async with open_agent_on(client, address="flood", noise=noise) as agent:
            with pytest.raises(FloodError):
                await agent.info()
    lasted_s = trio.current_time() - began_s
    assert came <= NOISE_MAX_BYTES + lasted_s * NOISE_BYTES_PER_S + 50 * 3 * 65_536


async def test_crumbs_are_joined(autojump_clock, nursery, monkeypatch):
    client, server = trio.testing.memory_stream_pair()
    receives = 0
    receive_some = client.receive_some

    async def counted(count):
        nonlocal receives
        receives += 1
        return await receive_some(count)

    monkeypatch.setattr(client, "receive_some", counted)

    async def crumble():
        for _ in range(20_000):
            await server.send_all(b" ")
            await trio.sleep(0.001)

    async with open_agent_on(client, address="crumbs") as agent:
        await crumble()
        assert not agent.closed.is_set()
    assert receives <= PIECES_AT_ONCE + 20 * (PIECES_PER_S + 1 / PAUSE_S)


async def test_a_file_that_comes_in_crumbs_is_nonsense(autojump_clock, nursery):
    client, server = trio.testing.memory_stream_pair()
    fake = FakeAgent(files={"/counters": b"x" * 4_000})
    fake._lies = lambda length, count: {"count": 1, "buf-b64": "eA==", "eof": False}
    nursery.start_soon(fake.serve, server)
    async with open_agent_on(client, address="fake") as agent:
        with pytest.raises(NonsenseError, match="crumbs"):
            await agent.read_file("/counters", 4_096)
    assert sum(command == "guest-file-read" for command, _ in fake.requests) == SHORT_READS_MAX + 1
    assert not fake.handles


async def test_a_guest_that_floods_is_left_alone_for_longer_each_time(lab, autojump_clock, monkeypatch):
    await lab.two()
    began_s = trio.current_time()
    made_s = []
    make = Agent.__init__

    def made(self, stream, address, noise=None):
        make(self, stream, address, noise)
        if "small" in address:
            made_s.append(trio.current_time() - began_s)

    monkeypatch.setattr(Agent, "__init__", made)
    faults = lab.guests["small"].agent.faults
    faults.garbage = b"{}\n" * (NOISE_MAX_LINES + 1)
    await lab.run(500.0, actions=[(400.0, lambda _: setattr(faults, "garbage", b""))])
    waits_s = [after - before for before, after in itertools.pairwise(made_s)]
    assert waits_s[:6] == pytest.approx([1, 2, 4, 8, 16, 32], rel=0.2)
    assert waits_s[6:] == pytest.approx([FLOOD_RETRY_MOST_S] * len(waits_s[6:]), rel=0.05)
    told = [event.message for event in lab.of(Faulted, "small") if event.kind == "agent"]
    assert len(told) == 7  # once for each length of time
    assert all("floods" in message for message in told)
    assert lab.states("small")[-1] == "fresh"
    assert len(lab.of(Sampled, "large")) > 480
