"""The QMP client against the fake QEMU, on memory streams and a virtual clock."""

import pytest
import trio
from trio.testing import memory_stream_pair

from qmpalloc.errors import (
    BusyError,
    DeadlineError,
    DisconnectedError,
    NonsenseError,
    RefusedError,
)
from qmpalloc.model import MemorySizes
from qmpalloc.qmp import BlockStats, VmStatus, deadline, find_actuators, open_monitor_on
from qmpalloc.qmp.actuator import Balloon
from qmpalloc.qmp.framing import MESSAGE_MAX_BYTES
from qmpalloc.testing import FakeAgent, FakeBalloon, FakeQemu, Refusal
from qmpalloc.units import MIB
from tests.protocol.clients import monitor_of


async def test_handshake_and_typed_queries(autojump_clock):
    async with monitor_of(FakeQemu(name="web", memory_bytes=512 * MIB)) as monitor:
        assert monitor.qemu_version == (7, 2, 22)
        assert await monitor.query_status() == VmStatus(status="running", running=True)
        assert await monitor.query_balloon() == 512 * MIB
        assert "0 pending" in repr(monitor)
    assert "closed" in repr(monitor)
    assert isinstance(monitor.cause, DisconnectedError)


async def test_balloon_moves_at_its_rate(autojump_clock):
    fake = FakeQemu(balloon=FakeBalloon(512 * MIB, inflate_bytes_per_s=64 * MIB))
    async with monitor_of(fake) as monitor:
        await monitor.balloon(256 * MIB)
        assert await monitor.query_balloon() == 512 * MIB
        await trio.sleep(2)
        assert await monitor.query_balloon() == 384 * MIB
        await trio.sleep(10)
        assert await monitor.query_balloon() == 256 * MIB


@pytest.mark.parametrize(
    ("balloon_id", "path"),
    [
        ("balloon0", "/machine/peripheral/balloon0"),
        ("", "/machine/peripheral-anon/device[0]"),
        (None, None),
    ],
)
async def test_balloon_is_found_with_and_without_id(autojump_clock, balloon_id, path):
    async with monitor_of(FakeQemu(balloon_id=balloon_id)) as monitor:
        assert await monitor.find_balloon() == path


async def test_no_balloon_is_refused_with_a_hint(autojump_clock):
    async with monitor_of(FakeQemu(balloon_id=None)) as monitor:
        with pytest.raises(RefusedError) as caught:
            await monitor.query_balloon()
        assert caught.value.error_class == "DeviceNotActive"
        assert caught.value.command == "query-balloon"
        assert "virtio-balloon" in caught.value.hint


@pytest.mark.parametrize("missing", [-1, 2**64 - 1])
async def test_missing_statistics_are_none_in_both_spellings(autojump_clock, missing):
    fake = FakeQemu()
    fake.stats |= {"stat-alloc-stalls": 5, "stat-oom-kills": missing, "stat-from-the-future": 3}
    fake.last_update = 1_700_000_000
    async with monitor_of(fake) as monitor:
        stats = await monitor.balloon_stats("/machine/peripheral/balloon0")
    assert (stats.alloc_stalls, stats.oom_kills) == (5, None)
    assert stats.last_update == 1_700_000_000


async def test_statistics_never_reported(autojump_clock):
    async with monitor_of(FakeQemu()) as monitor:
        assert (await monitor.balloon_stats("/machine/peripheral/balloon0")).last_update is None


async def test_stats_interval_is_set(autojump_clock):
    fake = FakeQemu()
    async with monitor_of(fake) as monitor:
        await monitor.set_stats_interval("/machine/peripheral/balloon0", 2)
    assert fake.stats_interval_s == 2


async def test_block_stats_names(autojump_clock):
    stats = {"rd_bytes": 4096, "rd_operations": 1, "rd_total_time_ns": 10, "wr_bytes": 3}
    fake = FakeQemu()
    fake.blocks = [
        {"device": "data", "stats": stats, "qdev": "/machine/peripheral/vd0/virtio-backend"},
        {"device": "", "stats": stats, "qdev": "/machine/peripheral/vd1/virtio-backend", "node-name": "n1"},
        {"stats": stats, "node-name": "n2", "qdev": "/machine/peripheral-anon/device[1]/virtio-backend"},
    ]
    async with monitor_of(fake) as monitor:
        found = await monitor.block_stats()
    assert [entry.name for entry in found] == ["data", "vd1", "n2"]
    assert found[0] == BlockStats(name="data", rd_bytes=4096, rd_operations=1, rd_total_time_ns=10)


async def test_throttle_is_set_and_removed(autojump_clock):
    fake = FakeQemu()
    fake.blocks = [{"device": "data", "stats": {"rd_bytes": 0, "rd_operations": 0, "rd_total_time_ns": 0}}]
    async with monitor_of(fake) as monitor:
        await monitor.set_io_throttle("data", 500)
        assert fake.throttles == {"data": 500}
        await monitor.set_io_throttle("data", 0)
        assert fake.throttles == {}
        with pytest.raises(RefusedError) as caught:
            await monitor.set_io_throttle("nowhere", 500)
        assert caught.value.error_class == "DeviceNotFound"
        with pytest.raises(RefusedError):
            await monitor.set_io_throttle("data", -1)


@pytest.mark.parametrize(
    ("command", "reply", "call"),
    [
        ("query-balloon", {"actual": True}, "query_balloon"),
        ("query-balloon", {"actual": -1}, "query_balloon"),
        ("query-balloon", {"actual": 1.5}, "query_balloon"),
        ("query-balloon", {"actual": 2**70}, "query_balloon"),
        ("query-balloon", {}, "query_balloon"),
        ("query-balloon", [], "query_balloon"),
        ("query-status", {"status": "running", "running": 1}, "query_status"),
        ("query-status", {"status": 7, "running": True}, "query_status"),
        ("query-blockstats", [{"stats": {}}], "block_stats"),
        ("query-blockstats", [{"stats": {"rd_bytes": -1, "rd_operations": 0, "rd_total_time_ns": 0}}], "block_stats"),
        ("qom-list", [{"name": 1, "type": "child<virtio-balloon-pci>"}], "find_balloon"),
    ],
)
async def test_reply_of_the_wrong_shape_is_nonsense(autojump_clock, command, reply, call):
    fake = FakeQemu()
    fake.commands[command] = lambda _: reply
    async with monitor_of(fake) as monitor:
        with pytest.raises(NonsenseError, match=command):
            await getattr(monitor, call)()
        assert not monitor.closed.is_set()


@pytest.mark.parametrize("value", [-2, 2**64, "5", True, 1.0, None])
async def test_statistic_of_the_wrong_shape_is_nonsense(autojump_clock, value):
    fake = FakeQemu()
    fake.stats["stat-oom-kills"] = value
    async with monitor_of(fake) as monitor:
        with pytest.raises(NonsenseError):
            await monitor.balloon_stats("/machine/peripheral/balloon0")


async def test_refusal_text_is_made_printable(autojump_clock):
    fake = FakeQemu()

    def refuse(_):
        raise Refusal("no\x1b[2J\n" + "x" * 1000, "Generic\x07Error")

    fake.commands["stop"] = refuse
    async with monitor_of(fake) as monitor:
        with pytest.raises(RefusedError) as caught:
            await monitor.execute("stop")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300
    assert caught.value.error_class == "Generic?Error"


async def test_many_commands_at_once_each_get_their_own_answer(autojump_clock):
    fake = FakeQemu()
    fake.commands["echo"] = lambda arguments: arguments["value"]
    answers = {}

    async def ask(monitor, value):
        answers[value] = await monitor.execute("echo", {"value": value})

    async with monitor_of(fake) as monitor, trio.open_nursery() as nursery:
        for value in range(100):
            nursery.start_soon(ask, monitor, value)
    assert answers == {value: value for value in range(100)}


@pytest.mark.parametrize("fault", [{"split": True}, {"strangers": True}, {"twice": True}, {"delay_s": 1.0}])
async def test_answers_arrive_in_spite_of(autojump_clock, fault):
    fake = FakeQemu()
    async with monitor_of(fake) as monitor:
        for name, value in fault.items():
            setattr(fake.faults, name, value)
        for _ in range(3):
            assert (await monitor.query_status()).running
        await trio.testing.wait_all_tasks_blocked()
        assert monitor.unexpected == (3 if "strangers" in fault or "twice" in fault else 0)


async def test_time_out_then_the_late_answer_is_dropped_and_the_next_command_works(autojump_clock):
    fake = FakeQemu()
    async with monitor_of(fake) as monitor:
        fake.faults.hang = True
        with pytest.raises(DeadlineError) as caught, deadline(3, "fake", "query-balloon"):
            await monitor.query_balloon()
        assert caught.value.address == "fake"
        assert "0 pending" in repr(monitor)
        fake.faults.hang = False
        assert (await monitor.query_status()).running
        assert monitor.unexpected == 1


async def test_cancelling_while_the_peer_does_not_read_leaves_no_half_line(autojump_clock):
    """A stream that takes a line byte by byte, and stops in the middle of it, sees every cancelled command whole."""
    client, server = memory_stream_pair()
    fake = FakeQemu()
    slow = SlowSending(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fake.serve, server)
        async with open_monitor_on(slow, address="fake") as monitor:
            for cancelled_after_s in (0, 0.001, 0.01, 0.02, 0.05, 1):
                with trio.move_on_after(cancelled_after_s):
                    await monitor.balloon(256 * MIB)
            with trio.fail_after(60):  # half a line would swallow this command
                assert await monitor.query_balloon() == 256 * MIB
            assert "0 pending" in repr(monitor)
        nursery.cancel_scope.cancel()
    assert {command for command, _ in fake.requests} == {"qmp_capabilities", "balloon", "query-balloon"}


class SlowSending(trio.abc.Stream):
    def __init__(self, stream):
        self._stream = stream

    async def send_all(self, data):
        for byte in data:
            await self._stream.send_all(bytes([byte]))
            await trio.sleep(0.001)

    async def wait_send_all_might_not_block(self):
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes=None):
        return await self._stream.receive_some(max_bytes)

    async def aclose(self):
        await self._stream.aclose()


async def test_end_of_connection_reaches_every_waiter_once(autojump_clock):
    fake = FakeQemu()
    errors = []

    async def ask(monitor):
        try:
            await monitor.query_balloon()
        except DisconnectedError as error:
            errors.append(error)

    async with monitor_of(fake) as monitor:
        fake.faults.drop.add("query-balloon")
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, monitor)
            await trio.testing.wait_all_tasks_blocked()
            fake.shut_down()
        assert len({id(error) for error in errors}) == 3
        assert all(error.__cause__ is monitor.cause for error in errors)
        assert monitor.closed.is_set()
        with pytest.raises(DisconnectedError):
            await monitor.query_balloon()


@pytest.mark.parametrize(
    "leftover",
    [
        b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RTC_CHANGE", "data": {"offset": 0}}\r\n',
        b'{\r\n    "timestamp": {\r\n        "seconds": 1\r\n    },\r\n    "event": "STOP"\r\n}\r\n',
        b'{"return": {}, "id": "qmpalloc-1"}\r\n{"error": {"class": "C", "desc": "d"}, "id": 7}\r\n',
    ],
)
async def test_what_was_meant_for_the_client_before_us_is_skipped(autojump_clock, leftover):
    client, server = memory_stream_pair()
    await server.send_all(leftover)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(FakeQemu().serve, server)
        async with open_monitor_on(client, address="fake") as monitor:
            assert (await monitor.query_status()).running
        nursery.cancel_scope.cancel()


async def test_a_socket_on_which_an_agent_answers(nursery, autojump_clock):
    client, server = memory_stream_pair()
    agent = FakeAgent()
    nursery.start_soon(agent.serve, server)
    started = trio.current_time()
    with pytest.raises(NonsenseError, match="a guest agent answers on this socket") as caught:
        async with open_monitor_on(client, address="fake"):
            pytest.fail("opened")
    assert "swapped" in caught.value.hint
    assert trio.current_time() - started == 2.5
    assert [command for command, _ in agent.requests] == ["guest-sync-delimited"]


async def test_a_qemu_that_greets_late_is_none_the_worse_for_having_been_asked(nursery, autojump_clock):
    client, server = memory_stream_pair()

    async def serve_late():
        await trio.sleep(4)
        await FakeQemu().serve(server)

    nursery.start_soon(serve_late)
    async with open_monitor_on(client, address="fake") as monitor:
        assert (await monitor.query_status()).running


async def test_an_answer_of_some_megabytes_is_taken(autojump_clock):
    fake = FakeQemu()
    stats = {"rd_bytes": 4096, "rd_operations": 1, "rd_total_time_ns": 10}
    fake.blocks = [{"device": f"disk{number}", "stats": stats, "qdev": "x" * 1000} for number in range(3000)]
    async with monitor_of(fake) as monitor:
        assert len(await monitor.block_stats()) == 3000


async def test_an_answer_that_is_too_long_costs_its_command_alone(autojump_clock):
    fake = FakeQemu()
    fake.commands["long"] = lambda _: "x" * MESSAGE_MAX_BYTES
    async with monitor_of(fake) as monitor:
        outcomes = []

        async def ask_long():
            with pytest.raises(NonsenseError, match="longer than 16 MiB") as caught:
                await monitor.execute("long")
            outcomes.append(caught.value)

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_long)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(monitor.query_status)
        assert len(outcomes) == 2
        assert not monitor.closed.is_set()


async def test_a_qemu_that_waits_before_it_has_a_machine(autojump_clock):
    fake = FakeQemu()

    def refuse(_):
        raise Refusal("The command 'query-balloon' is permitted only after machine initialization has completed")

    fake.commands["query-balloon"] = refuse
    async with monitor_of(fake) as monitor:
        with pytest.raises(RefusedError) as caught:
            await monitor.query_balloon()
        assert "x-exit-preconfig" in caught.value.hint


@pytest.mark.parametrize("garbage", [b"junk\n", b"[1]\n", b"\xff", b"{" * 5000 + b"\n", b"{\n"])
async def test_garbage_ends_the_connection_with_nonsense(autojump_clock, garbage):
    fake = FakeQemu()
    async with monitor_of(fake) as monitor:
        fake.faults.garbage = garbage
        with pytest.raises(NonsenseError):
            await monitor.query_balloon()
        await monitor.closed.wait()
        assert isinstance(monitor.cause, NonsenseError)


async def test_death_after_the_answer(autojump_clock):
    fake = FakeQemu()
    fake.faults.die_after = 2  # the first is to qmp_capabilities
    async with monitor_of(fake) as monitor:
        assert (await monitor.query_status()).running
        await monitor.closed.wait()


async def test_silent_socket_is_busy(nursery, autojump_clock):
    client, server = memory_stream_pair()
    nursery.start_soon(FakeQemu(greet=False).serve, server)
    started = trio.current_time()
    with pytest.raises(BusyError) as caught:
        async with open_monitor_on(client, address="fake"):
            pytest.fail("opened")
    assert trio.current_time() - started == 5.0
    assert "-qmp" in caught.value.hint


async def test_second_client_is_busy_until_the_first_has_gone(autojump_clock):
    fake = FakeQemu()
    streams = [memory_stream_pair() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for _, server in streams:
            nursery.start_soon(fake.serve, server)
            await trio.testing.wait_all_tasks_blocked()
        async with open_monitor_on(streams[0][0], address="fake") as first:
            with pytest.raises(BusyError):
                async with open_monitor_on(streams[1][0], address="fake"):
                    pytest.fail("opened")
            assert (await first.query_status()).running
        async with open_monitor_on(streams[2][0], address="fake") as third:
            assert (await third.query_status()).running
        nursery.cancel_scope.cancel()


async def test_greeted_but_not_answered(nursery, autojump_clock):
    client, server = memory_stream_pair()
    fake = FakeQemu()
    fake.faults.drop.add("qmp_capabilities")
    nursery.start_soon(fake.serve, server)
    with pytest.raises(DeadlineError):
        async with open_monitor_on(client, address="fake"):
            pytest.fail("opened")


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ",
        b"login: ",
        b'{"return": {}}\n',
        b'{"QMP": {"version": {}, "capabilities": []}}\n',
        b'{"QMP": {"version": {"qemu": {"major": "7", "minor": 2, "micro": 0}}, "capabilities": []}}\n',
        b'{"QMP": 3}\n',
        b"\xff\xff\xff",
        b"x" * 2_000_000,
    ],
)
async def test_what_is_not_qmp_is_nonsense(autojump_clock, said):
    client, server = memory_stream_pair()
    await server.send_all(said)
    with pytest.raises(NonsenseError) as caught:
        async with open_monitor_on(client, address="fake"):
            pytest.fail("opened")
    assert "-qmp" in caught.value.hint


async def test_closed_before_the_greeting(autojump_clock):
    client, server = memory_stream_pair()
    await server.aclose()
    with pytest.raises(DisconnectedError):
        async with open_monitor_on(client, address="fake"):
            pytest.fail("opened")


async def test_an_error_of_the_block_leaves_as_it_is(autojump_clock):
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(FakeQemu().serve, server)
        with pytest.raises(ZeroDivisionError):
            async with open_monitor_on(client, address="fake"):
                raise ZeroDivisionError
        nursery.cancel_scope.cancel()


async def test_an_exception_group_of_the_block_is_kept(autojump_clock):
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(FakeQemu().serve, server)
        with pytest.RaisesGroup(ZeroDivisionError, KeyError):
            async with open_monitor_on(client, address="fake"):
                raise ExceptionGroup("two", [ZeroDivisionError(), KeyError()])
        nursery.cancel_scope.cancel()


async def test_cancelling_the_block_closes_the_stream(autojump_clock):
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(FakeQemu().serve, server)
        with trio.move_on_after(1) as scope:
            async with open_monitor_on(client, address="fake") as monitor:
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert monitor.closed.is_set()
        with pytest.raises(trio.ClosedResourceError):
            await client.receive_some(1)
        nursery.cancel_scope.cancel()


async def test_shielded_clean_up_of_a_cancelled_block_can_still_send(nursery, autojump_clock):
    client, server = memory_stream_pair()
    fake = FakeQemu()
    nursery.start_soon(fake.serve, server)
    with trio.move_on_after(1):
        async with open_monitor_on(client, address="fake") as monitor:
            try:
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(5, shield=True):
                    await monitor.balloon(256 * MIB)
    assert fake.balloon.target_bytes == 256 * MIB


DIMM = {"type": "dimm", "data": {"id": "d1", "size": 256 << 20, "memdev": "/objects/m1", "hotplugged": True}}
VIRTIO_MEM = {"type": "virtio-mem", "data": {"size": 0, "requested-size": 1 << 30, "max-size": 2 << 30}}
SHRINKING = {"type": "virtio-mem", "data": {"size": 3 << 30, "requested-size": 0, "max-size": 4 << 30}}
NVDIMM = {"type": "nvdimm", "data": {"id": "nv0", "size": 512 << 20}}
PMEM = {"type": "virtio-pmem", "data": {"id": "vp0", "size": 128 << 20, "memaddr": 1 << 32}}
UNSIZED = {"type": "hv-balloon", "data": {"max-size": 1 << 30}}


@pytest.mark.parametrize(
    ("devices", "ram_mib", "outside_mib", "other_mib"),
    [
        ([], 1024, 0, 0),
        ([DIMM, DIMM], 1536, 0, 0),
        ([NVDIMM, PMEM], 1024, 0, 640),
        ([VIRTIO_MEM], 1024, 1024, 0),
        ([SHRINKING, VIRTIO_MEM], 1024, 4096, 0),
        ([DIMM, NVDIMM, VIRTIO_MEM, UNSIZED], 1280, 1024, 512),
    ],
)
async def test_memory_by_what_it_is_to_the_balloon(autojump_clock, devices, ram_mib, outside_mib, other_mib):
    fake = FakeQemu(memory_bytes=1 << 30)
    fake.commands["query-memory-devices"] = lambda _: devices
    async with monitor_of(fake) as monitor:
        [balloon, *_] = await find_actuators(monitor)
        sizes = await balloon.memory()
    assert sizes == MemorySizes(ram_bytes=ram_mib << 20, outside_bytes=outside_mib << 20, other_bytes=other_mib << 20)


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("query-memory-size-summary", {}),
        ("query-memory-size-summary", {"base-memory": 0}),
        ("query-memory-size-summary", {"base-memory": True}),
        ("query-memory-devices", {}),
        ("query-memory-devices", [{"type": "dimm"}]),
        ("query-memory-devices", [{"type": "dimm", "data": {"size": -1}}]),
        ("query-memory-devices", [{"type": "virtio-mem", "data": {"size": 1, "requested-size": "1G"}}]),
    ],
)
async def test_memory_of_the_wrong_shape_is_nonsense(autojump_clock, command, reply):
    fake = FakeQemu()
    fake.commands[command] = lambda _: reply
    async with monitor_of(fake) as monitor:
        with pytest.raises(NonsenseError, match=command):
            await Balloon(monitor, "/machine/peripheral/balloon0").memory()
