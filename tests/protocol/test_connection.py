"""How connections end, and replies that are neither result nor error."""

import socket

import pytest
import trio
from trio.testing import memory_stream_pair

from qmpalloc.errors import DisconnectedError, NonsenseError
from qmpalloc.qmp import open_agent_on, open_monitor_on
from qmpalloc.qmp.agent_channel import ABANDONED_MAX
from qmpalloc.qmp.connection import Connection, running
from qmpalloc.qmp.framing import Framer, decode, encode
from qmpalloc.testing import FakeAgent, FakeQemu

GREETING = encode(
    {"QMP": {"version": {"qemu": {"major": 9, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}
)


class Collector:
    """Takes what a connection delivers."""

    def __init__(self):
        self.frames = []
        self.ended = False

    def on_frame(self, frame):
        self.frames.append(frame)

    def on_bytes(self, count):
        pass

    def on_end(self):
        self.ended = True


async def test_lines_in_both_directions(autojump_clock):
    client, server = memory_stream_pair()
    connection, collector = Connection(client, "there"), Collector()
    async with running(connection, collector):
        await connection.send(b"ping\n")
        assert await server.receive_some() == b"ping\n"
        await server.send_all(b"pong\n")
        await trio.testing.wait_all_tasks_blocked()
        assert collector.frames == [b"pong"]
    assert collector.ended
    assert "closed by us" in str(connection.cause)
    with pytest.raises(DisconnectedError, match="there"):
        await connection.send(b"late\n")


async def test_peer_that_stops_reading_ends_the_connection(autojump_clock):
    client, server = memory_stream_pair()
    connection, collector = Connection(client, "there"), Collector()
    async with running(connection, collector):
        server.receive_stream.close()
        await connection.send(b"ping\n")
        await connection.closed.wait()
        assert "stopped reading" in str(connection.cause)


@pytest.fixture
def sockets():
    """Both ends of a real socket, the first with little room for what its peer does not read."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return [trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in (ours, theirs)]


async def test_a_socket_has_a_line_at_once(sockets):
    client, server = sockets
    async with running(connection := Connection(client, "there"), Collector()), server:
        await trio.testing.wait_all_tasks_blocked()
        sending = connection.send(b"ping\n")
        with pytest.raises(StopIteration):  # it is done without another task's turn
            sending.send(None)
        assert await server.receive_some() == b"ping\n"


async def test_lines_that_a_socket_does_not_take_at_once_come_whole_and_in_order(sockets):
    client, server = sockets
    lines = [bytes([letter]) * 50_000 + b"\n" for letter in b"abcd"]
    async with running(connection := Connection(client, "there"), Collector()), server:
        await trio.testing.wait_all_tasks_blocked()
        await connection.send(lines[0])  # half of it is on the wire: the writer has the rest
        with trio.move_on_after(0.01) as scope:
            await connection.send(lines[1])
        assert scope.cancelled_caught
        received = bytearray()

        async def send():
            for line in lines[2:]:
                await connection.send(line)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while len(received) < 3 * len(lines[0]):
                received += await server.receive_some()
        assert bytes(received) == lines[0] + lines[2] + lines[3]


async def test_a_socket_whose_peer_has_gone_says_so(sockets):
    client, server = sockets
    connection = Connection(client, "there")
    async with running(connection, Collector()):
        await trio.testing.wait_all_tasks_blocked()
        server.socket.close()
        await connection.send(b"ping\n")  # the kernel refuses it; the reader, or the writer, finds the end
        await connection.closed.wait()
        assert isinstance(connection.cause, DisconnectedError)


async def test_broken_stream_gives_its_reason(autojump_clock):
    client, _ = memory_stream_pair()

    async def reset(max_bytes=None):
        raise trio.BrokenResourceError from ConnectionResetError(104, "Connection reset by peer")

    client.receive_stream.receive_some = reset
    connection = Connection(client, "there")
    async with running(connection, Collector()):
        await connection.closed.wait()
        assert isinstance(connection.cause, DisconnectedError)
        assert "reset by peer" in str(connection.cause)


async def test_sender_blocked_behind_a_peer_that_does_not_read_is_woken_by_the_end(autojump_clock):
    client, server = memory_stream_pair()

    async def never(data):
        await trio.sleep_forever()

    client.send_stream.send_all = never
    connection = Connection(client, "there")
    async with running(connection, Collector()), trio.open_nursery() as nursery:
        await connection.send(b"taken by the writer\n")

        async def send():
            with pytest.raises(DisconnectedError, match="closed the connection"):
                await connection.send(b"waits for the writer\n")

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await server.send_stream.aclose()


async def test_handler_with_a_bug_is_not_hidden(autojump_clock):
    client, server = memory_stream_pair()
    collector = Collector()
    collector.on_frame = lambda frame: 1 / 0

    async def use():
        async with running(Connection(client, "there"), collector):
            await server.send_all(b"x\n")
            await trio.sleep_forever()

    with pytest.RaisesGroup(ZeroDivisionError):
        await use()


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"result": 1},
        {"error": "text"},
        {"error": {"class": "GenericError"}},
        {"error": {"class": 5, "desc": "x"}},
        {"error": {"class": "x", "desc": None}},
        {"error": None},
    ],
)
async def test_reply_that_is_neither_result_nor_error(nursery, autojump_clock, reply):
    client, server = memory_stream_pair()

    async def serve():
        await server.send_all(GREETING)
        framer = Framer()
        while data := await server.receive_some():
            for frame in framer.feed(data):
                request = decode(frame)
                body = {"return": {}} if request["execute"] == "qmp_capabilities" else reply
                await server.send_all(encode({**body, "id": request["id"]}))

    nursery.start_soon(serve)
    async with open_monitor_on(client, address="there") as monitor:
        assert monitor.qemu_version == (9, 2, 0)
        with pytest.raises(NonsenseError, match="query-status"):
            await monitor.query_status()
        assert not monitor.closed.is_set()


@pytest.mark.parametrize("reply_id", [None, 1, True, [], {"a": 1}, "qmpalloc-999"])
async def test_replies_with_foreign_ids_are_counted(nursery, autojump_clock, reply_id):
    client, server = memory_stream_pair()
    fake = FakeQemu()
    nursery.start_soon(fake.serve, server)
    async with open_monitor_on(client, address="there") as monitor:
        fake.faults.garbage = encode({"return": {}, "id": reply_id}) + encode({"return": {}})
        assert (await monitor.query_status()).running
        assert monitor.unexpected == 2


async def test_machine_without_device_containers_has_no_balloon(nursery, autojump_clock):
    client, server = memory_stream_pair()
    fake = FakeQemu()
    del fake.commands["qom-list"]
    nursery.start_soon(fake.serve, server)
    async with open_monitor_on(client, address="there") as monitor:
        assert await monitor.find_balloon() is None


async def test_what_is_remembered_of_a_hung_agent_is_bounded(nursery, autojump_clock):
    """Openings that were never answered, and the handles of those answered late."""
    client, server = memory_stream_pair()
    fake = FakeAgent(files={"/f": b"x"})
    nursery.start_soon(fake.serve, server)
    async with open_agent_on(client, address="there") as agent:
        for _ in range(2 * ABANDONED_MAX):
            await agent.sync()
            fake.faults.drop.add("guest-file-open")
            with trio.move_on_after(0.1):
                await agent.read_file("/f", 10)
        fake.faults.drop.clear()
        assert len(agent._channel._abandoned_opens) <= ABANDONED_MAX
        assert await agent.read_file("/f", 10) == b"x"


async def test_nonsense_in_place_of_the_answer_to_close_spoils_nothing(nursery, autojump_clock):
    client, server = memory_stream_pair()
    fake = FakeAgent(files={"/f": b"x"})
    close = fake._close

    def noisy_close(arguments):
        fake.faults.garbage = b"junk\n"
        return close(arguments)

    fake._close = noisy_close
    nursery.start_soon(fake.serve, server)
    async with open_agent_on(client, address="there") as agent:
        assert await agent.read_file("/f", 10) == b"x"
        fake.faults.garbage = b""
        assert await agent.read_file("/f", 10) == b"x"
    assert not fake.handles
