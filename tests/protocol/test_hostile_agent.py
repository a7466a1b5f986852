"""A guest that does its worst through its agent: bounded memory, bounded time, and nobody else notices."""

import tracemalloc

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from qmpalloc.errors import NonsenseError
from qmpalloc.events import Decided, Faulted, Sampled
from qmpalloc.qmp.agent import open_agent_on
from qmpalloc.qmp.agent_channel import NOISE_MAX_BYTES, NOISE_MAX_LINES

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
