"""A monitor's events: bounded, for several subscribers, and ended with the connection."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from qmpalloc.qmp.framing import encode
from qmpalloc.qmp.subscriptions import BUFFER_EVENTS
from qmpalloc.testing import FakeBalloon, FakeQemu
from qmpalloc.units import MIB
from tests.protocol.clients import monitor_of


async def test_every_subscriber_gets_every_event(autojump_clock):
    fake = FakeQemu()
    async with monitor_of(fake) as monitor:
        with monitor.subscribe() as one, monitor.subscribe() as two:
            fake.emit("RESET", {"guest": True})
            for channel in (one, two):
                event = await channel.receive()
                assert (event.name, event.data) == ("RESET", {"guest": True})


async def test_overflow_drops_the_oldest_and_counts(autojump_clock):
    fake = FakeQemu()
    async with monitor_of(fake) as monitor:
        with monitor.subscribe() as events:
            for number in range(BUFFER_EVENTS + 10):
                fake.emit("BALLOON_CHANGE", {"actual": number})
            await wait_all_tasks_blocked()
            first = await events.receive()
            assert first.data["actual"] == 10
            assert monitor.events_dropped == 10
            assert events.statistics().current_buffer_used == BUFFER_EVENTS - 1
        assert (await monitor.query_status()).running


async def test_iteration_ends_with_the_connection_after_what_was_sent(autojump_clock):
    fake = FakeQemu()
    async with monitor_of(fake) as monitor:
        with monitor.subscribe() as events:
            fake.emit("POWERDOWN")
            fake.shut_down()
            assert [event.name async for event in events] == ["POWERDOWN", "SHUTDOWN"]
        assert monitor.closed.is_set()


async def test_subscribing_after_the_end_ends_at_once(autojump_clock):
    fake = FakeQemu()
    async with monitor_of(fake) as monitor:
        fake.shut_down()
        await monitor.closed.wait()
        with monitor.subscribe() as events:
            assert [event async for event in events] == []


async def test_leaving_the_block_ends_the_subscription(autojump_clock):
    fake = FakeQemu()
    async with monitor_of(fake) as monitor:
        with monitor.subscribe() as events:
            pass
        with pytest.raises(trio.ClosedResourceError):
            await events.receive()
        fake.emit("RESET")
        assert (await monitor.query_status()).running
        assert monitor.events_dropped == 0


async def test_subscriber_that_closed_its_channel_disturbs_nobody(autojump_clock):
    fake = FakeQemu()
    async with monitor_of(fake) as monitor:
        with monitor.subscribe() as closed, monitor.subscribe() as events:
            closed.close()
            for _ in range(BUFFER_EVENTS + 1):
                fake.emit("RESET")
            assert (await events.receive()).name == "RESET"
        assert (await monitor.query_status()).running


@pytest.mark.parametrize(
    "message",
    [
        {"event": 5},
        {"event": ""},
        {"event": "X", "data": []},
        {"event": {"a": 1}, "id": []},
    ],
)
async def test_event_of_unknown_shape_is_counted_and_dropped(autojump_clock, message):
    fake = FakeQemu()
    async with monitor_of(fake) as monitor:
        fake.faults.garbage = encode(message)
        with monitor.subscribe() as events:
            assert (await monitor.query_status()).running
            assert monitor.unexpected == 1
            assert events.statistics().current_buffer_used == 0


async def test_event_without_data(autojump_clock):
    fake = FakeQemu()
    async with monitor_of(fake) as monitor:
        fake.faults.garbage = b'{"event": "X", "timestamp": {"seconds": -1, "microseconds": -1}, "later": 1}\n'
        with monitor.subscribe() as events:
            await monitor.query_status()
            event = await events.receive()
    assert (event.name, event.data) == ("X", {})


async def test_balloon_change_comes_at_most_once_a_second_and_last_with_the_final_size(autojump_clock):
    fake = FakeQemu(balloon=FakeBalloon(512 * MIB, inflate_bytes_per_s=100 * MIB))
    async with monitor_of(fake) as monitor:
        with monitor.subscribe() as events:
            await monitor.balloon(256 * MIB)
            await trio.sleep(10)
            assert events.statistics().current_buffer_used == 3
            sizes = [(await events.receive()).data["actual"] for _ in range(3)]
    assert sizes == [412 * MIB, 312 * MIB, 256 * MIB]


async def test_stop_and_cont_report_and_hold_the_balloon(autojump_clock):
    fake = FakeQemu()
    async with monitor_of(fake) as monitor:
        with monitor.subscribe() as events:
            await monitor.execute("stop")
            assert (await events.receive()).name == "STOP"
            assert not (await monitor.query_status()).running
            await monitor.balloon(512 * MIB)
            assert await monitor.query_balloon() == 1024 * MIB
            await monitor.execute("cont")
            assert (await events.receive()).name == "RESUME"
            assert await monitor.query_balloon() == 512 * MIB
