"""Connecting to real Unix sockets, and every way that fails."""

import socket

import pytest
import trio

from qmpalloc.errors import BusyError, NonsenseError, UnreachableError
from qmpalloc.qmp import open_agent, open_monitor
from qmpalloc.qmp.connect import connect
from qmpalloc.testing import FakeAgent, FakeQemu
from qmpalloc.testing.serving import serve_unix


@pytest.fixture(params=[open_monitor, open_agent])
def open_client(request):
    return request.param


async def failure(open_client, path):
    with pytest.raises(UnreachableError) as caught:
        async with open_client(str(path)):
            pytest.fail("opened")
    assert caught.value.address == str(path)
    return caught.value


async def test_no_such_socket(open_client, tmp_path):
    error = await failure(open_client, tmp_path / "none.sock")
    assert error.absent
    assert "no such socket" in str(error)
    assert "server=on" in error.hint


async def test_socket_of_a_dead_process(open_client, tmp_path):
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(tmp_path / "dead.sock"))
    assert (await failure(open_client, tmp_path / "dead.sock")).absent


async def test_path_that_is_too_long(open_client, tmp_path):
    error = await failure(open_client, tmp_path / ("x" * 120))
    assert not error.absent
    assert "107" in str(error)


async def test_path_with_a_zero_byte(open_client):
    await failure(open_client, "a\0b")


async def test_path_through_a_file(open_client, tmp_path):
    (tmp_path / "file").write_text("")
    assert not (await failure(open_client, tmp_path / "file" / "x.sock")).absent


async def test_permission_denied_names_the_remedy(open_client, monkeypatch):
    async def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(trio, "open_unix_socket", refuse)
    error = await failure(open_client, "/run/qemu.sock")
    assert not error.absent
    assert "user that runs QEMU" in error.hint


async def connect_until_busy(path):
    streams = []
    while len(streams) < 5:
        try:
            streams.append(await connect(path, timeout_s=0.1))
        except BusyError:
            return streams
    pytest.fail("the kernel queues without limit")


async def test_full_backlog_is_busy(tmp_path):
    path = str(tmp_path / "full.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        waiting = [await connect(path, timeout_s=5)]
        waiting += await connect_until_busy(path)
        for stream in waiting:
            await stream.aclose()


async def test_clients_over_real_sockets_and_again(tmp_path, nursery):
    fake, agent = FakeQemu(), FakeAgent(files={"/f": b"x"})
    await nursery.start(fake.serve_path, str(tmp_path / "qmp"))
    await nursery.start(agent.serve_path, str(tmp_path / "agent"))
    for _ in range(3):
        async with open_monitor(str(tmp_path / "qmp")) as monitor:
            assert (await monitor.query_status()).running
        async with open_agent(str(tmp_path / "agent")) as client:
            assert await client.read_file("/f", 10) == b"x"


async def test_monitor_socket_taken_for_an_agent(tmp_path, nursery):
    fake = FakeQemu()
    await nursery.start(fake.serve_path, str(tmp_path / "qmp"))
    async with open_agent(str(tmp_path / "qmp")) as agent:
        for _ in range(2):
            with pytest.raises(NonsenseError, match="a QMP monitor answers") as caught:
                await agent.info()
            assert "swapped" in caught.value.hint
        assert not agent.closed.is_set()


async def test_quit_ends_the_server_and_removes_its_socket(tmp_path, nursery):
    fake = FakeQemu()
    path = str(tmp_path / "qmp")
    await nursery.start(fake.serve_path, path)
    async with open_monitor(path) as monitor:
        with monitor.subscribe() as events:
            await monitor.execute("quit")
            assert [event.name async for event in events] == ["SHUTDOWN"]
    with trio.fail_after(5):
        while await trio.Path(path).exists():
            await trio.lowlevel.checkpoint()
    assert (await failure(open_monitor, path)).absent


async def test_what_is_not_qmp_over_a_real_socket(tmp_path, nursery):
    async def greet(stream):
        await stream.send_all(b"220 mail.example ESMTP\r\n")
        await stream.receive_some()

    await nursery.start(serve_unix, str(tmp_path / "smtp"), greet)
    with pytest.raises(NonsenseError):
        async with open_monitor(str(tmp_path / "smtp")):
            pytest.fail("opened")
