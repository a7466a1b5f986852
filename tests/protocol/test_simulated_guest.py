"""The simulated guest: its samples are valid, and its misses follow from the size the balloon gives it."""

from itertools import pairwise

import pytest
import trio

from qmpalloc.config import DEFAULT_COUNTERS_FILE
from qmpalloc.curves.samples import SampleIntake, unpack
from qmpalloc.errors import SampleError, SampleFault
from qmpalloc.experiment.spec.access import Uniform
from qmpalloc.qmp import open_agent, open_agent_on, open_monitor, open_monitor_on
from qmpalloc.sample import FILE_MAX_BYTES, SampleTracker, parse
from qmpalloc.sim import CacheModel, Load, ReplayGuest, uniform
from qmpalloc.testing import FakeBalloon, SimulatedGuest, open_simulated_guest
from qmpalloc.units import MIB, PAGE_BYTES

FILE_PAGES = 256 * MIB // PAGE_BYTES


def load(**changes):
    return Load(**({"file_pages": FILE_PAGES, "accesses_per_s": 10_000.0} | changes))


async def read(agent):
    return parse(await agent.read_file(DEFAULT_COUNTERS_FILE, FILE_MAX_BYTES))


async def test_samples_form_a_series_without_a_fault(autojump_clock):
    tracker = SampleTracker()
    async with (
        open_simulated_guest("web", load=load(), memory_bytes=512 * MIB) as guest,
        open_agent_on(guest.connect_agent(), address="web") as agent,
    ):
        await trio.sleep(1.5)
        assert tracker.accept(await read(agent), trio.current_time()).delta is None
        for _ in range(5):
            await trio.sleep(1)
            accepted = tracker.accept(await read(agent), trio.current_time())
            assert accepted.delta.accesses == 10_000
            assert accepted.delta.misses == 0
            assert accepted.delta.interval_s == 1.0


async def test_a_smaller_guest_misses_more_and_recovers(autojump_clock):
    async with (
        open_simulated_guest("web", load=load(), memory_bytes=512 * MIB) as guest,
        open_monitor_on(guest.connect_monitor(), address="web") as monitor,
        open_agent_on(guest.connect_agent(), address="web") as agent,
    ):
        await trio.sleep(0.5)

        async def misses_over(seconds):
            await trio.sleep(1)
            before = await read(agent)
            await trio.sleep(seconds)
            after = await read(agent)
            # deflate-on-oom: the balloon's pages count as used, MemTotal stays
            assert after.memory_bytes.total == before.memory_bytes.total
            return after.counters.inserts_read - before.counters.inserts_read

        assert await misses_over(10) == 0
        # 96 MiB are the guest's own, so half of the file fits.
        await monitor.balloon((96 + 128) * MIB)
        assert await misses_over(10) == pytest.approx(50_000, rel=0.01)
        await monitor.balloon(512 * MIB)
        # It comes back as fast as it is read: all of what was lost, not more.
        assert await misses_over(60) == pytest.approx(FILE_PAGES // 2, rel=0.2)
        assert await misses_over(10) == pytest.approx(0, abs=10)


async def test_evictions_balance_what_came_in(autojump_clock):
    cache = CacheModel(load())
    cache.warm(512 * MIB)
    for size_bytes in (512 * MIB, 200 * MIB, 300 * MIB, 100 * MIB, 400 * MIB):
        held = cache.cached_pages
        evictions, misses = cache.evictions, cache.misses
        cache.advance(3.0, size_bytes)
        balance = held + (cache.misses - misses) - (cache.evictions - evictions)
        assert balance == pytest.approx(cache.cached_pages)
        assert 0 <= cache.cached_pages <= cache.room_pages(size_bytes)


async def test_a_load_that_waits_for_the_disk_reads_more_slowly():
    cache = CacheModel(load(miss_cost=9.0), own_bytes=0)
    cache.advance(1.0, 0)
    assert cache.accesses == cache.misses == 1000


@pytest.mark.parametrize(("cached", "ratio"), [(0, 1.0), (50, 0.5), (100, 0.0), (200, 0.0)])
def test_uniform_reads_hit_what_is_cached(cached, ratio):
    assert Load(file_pages=100, accesses_per_s=1, hit_ratio=uniform(100)).miss_ratio(cached) == ratio


def test_any_hit_ratio_is_kept_between_0_and_1():
    assert load(hit_ratio=lambda pages: 7.0).miss_ratio(5) == 0.0
    assert load(hit_ratio=lambda pages: -1.0).miss_ratio(5) == 1.0


async def test_reboot_begins_a_new_series_with_an_empty_cache(autojump_clock):
    tracker = SampleTracker()
    async with (
        open_simulated_guest("web", load=load(), memory_bytes=512 * MIB) as guest,
        open_monitor_on(guest.connect_monitor(), address="web") as monitor,
        open_agent_on(guest.connect_agent(), address="web") as agent,
    ):
        await trio.sleep(1.5)
        tracker.accept(await read(agent), trio.current_time())
        with monitor.subscribe() as events:
            guest.reboot()
            assert (await events.receive()).name == "RESET"
        await trio.sleep(1)
        with pytest.raises(SampleError) as caught:
            tracker.accept(await read(agent), trio.current_time())
        assert caught.value.fault is SampleFault.RESET
        await trio.sleep(1)
        assert tracker.accept(await read(agent), trio.current_time()).delta.misses > 0


async def test_a_dead_collector_repeats_itself(autojump_clock):
    async with (
        open_simulated_guest("web", load=load(), memory_bytes=512 * MIB) as guest,
        open_agent_on(guest.connect_agent(), address="web") as agent,
    ):
        await trio.sleep(1.5)
        first = await read(agent)
        guest.collecting = False
        await trio.sleep(5)
        assert await read(agent) == first


async def test_a_stopped_guest_does_nothing(autojump_clock):
    async with (
        open_simulated_guest("web", load=load(), memory_bytes=512 * MIB) as guest,
        open_agent_on(guest.connect_agent(), address="web") as agent,
    ):
        await trio.sleep(1.5)
        first = await read(agent)
        guest.qemu.stop()
        await trio.sleep(5)
        assert await read(agent) == first


async def test_on_real_sockets(tmp_path):
    async with (
        open_simulated_guest("web", tmp_path, load=load(), memory_bytes=512 * MIB, interval_s=0.01) as guest,
        open_monitor(guest.monitor_path) as monitor,
        open_agent(guest.agent_path) as agent,
    ):
        assert await monitor.query_balloon() == 512 * MIB
        with trio.fail_after(10):
            while DEFAULT_COUNTERS_FILE not in guest.agent.files:
                await trio.lowlevel.checkpoint()
        assert (await read(agent)).counters.accesses > 0
    assert not list(tmp_path.iterdir())


async def test_it_must_run_before_it_can_be_connected_to(autojump_clock):
    with pytest.raises(RuntimeError, match="open_simulated_guest"):
        SimulatedGuest("web", load=load(), memory_bytes=MIB).connect_agent()


class TestBalloon:
    """The balloon's model alone."""

    async def test_rates_differ_by_direction(self, autojump_clock):
        balloon = FakeBalloon(512 * MIB, inflate_bytes_per_s=32 * MIB, deflate_bytes_per_s=128 * MIB)
        await trio.sleep(1)
        balloon.request(256 * MIB)
        await trio.sleep(4)
        assert balloon.actual_bytes == 384 * MIB
        balloon.request(512 * MIB)
        await trio.sleep(0.5)
        assert balloon.actual_bytes == 448 * MIB
        await trio.sleep(0.5)
        assert balloon.actual_bytes == 512 * MIB
        assert not balloon.moving

    async def test_more_than_all_memory_means_all(self, autojump_clock):
        balloon = FakeBalloon(512 * MIB)
        balloon.request(1024 * MIB)
        assert balloon.target_bytes == balloon.actual_bytes == 512 * MIB

    async def test_a_stall_holds_it_where_it_is_and_lets_go(self, autojump_clock):
        balloon = FakeBalloon(512 * MIB, inflate_bytes_per_s=32 * MIB)
        balloon.request(256 * MIB)
        await trio.sleep(1)
        balloon.stalled = True
        await trio.sleep(100)
        assert balloon.actual_bytes == 480 * MIB
        balloon.stalled = False
        await trio.sleep(1)
        assert balloon.actual_bytes == 448 * MIB

    async def test_after_a_reset_it_has_all_and_tells_the_size_before_until_its_driver_works(
        self, nursery, autojump_clock
    ):
        reports = []
        balloon = FakeBalloon(512 * MIB, inflate_bytes_per_s=64 * MIB)
        balloon.request(256 * MIB)
        await trio.sleep(10)
        nursery.start_soon(balloon.run_changes, reports.append)
        await trio.sleep(1)
        balloon.reset()
        await trio.sleep(balloon.boot_s)
        assert (balloon.actual_bytes, balloon.told_bytes, reports) == (512 * MIB, 256 * MIB, [])
        await trio.sleep(0.5)
        assert balloon.told_bytes == balloon.actual_bytes == 480 * MIB
        assert reports == [511 * MIB]
        await trio.sleep(10)
        assert reports[-1] == balloon.told_bytes == 256 * MIB
        balloon.stalled = True
        balloon.reset()
        await trio.sleep(100)
        assert (balloon.actual_bytes, balloon.told_bytes) == (512 * MIB, 256 * MIB)  # no driver

    async def test_a_guest_keeps_what_it_cannot_give(self, autojump_clock):
        balloon = FakeBalloon(512 * MIB, least_bytes=200 * MIB)
        balloon.request(1)
        assert balloon.actual_bytes == 200 * MIB
        balloon.least_bytes = 100 * MIB
        assert balloon.actual_bytes == 100 * MIB
        balloon.least_bytes = 200 * MIB
        assert balloon.actual_bytes == 100 * MIB

    async def test_taking_back_goes_above_the_target_until_the_next_request(self, autojump_clock):
        balloon = FakeBalloon(512 * MIB)
        balloon.request(256 * MIB)
        balloon.take_back(64 * MIB)
        await trio.sleep(10)
        assert balloon.actual_bytes == 320 * MIB
        balloon.request(256 * MIB)
        assert balloon.actual_bytes == 256 * MIB

    async def test_changes_are_reported_at_most_once_a_second_and_to_the_end(self, nursery, autojump_clock):
        reports = []
        balloon = FakeBalloon(512 * MIB, inflate_bytes_per_s=100 * MIB / 3)
        nursery.start_soon(balloon.run_changes, lambda actual: reports.append((trio.current_time(), actual)))
        await trio.sleep(1)
        balloon.request(512 * MIB - 100 * MIB)
        await trio.sleep(20)
        assert reports[-1][1] == 412 * MIB
        times = [time for time, _ in reports]
        assert all(later - earlier >= 1 for earlier, later in pairwise(times))
        assert len(reports) <= 5


async def test_a_replayed_load_has_samples_and_waits_for_its_misses(autojump_clock):
    """Sampled accesses are a 64th of all, series have no gap, and what misses was read from the disk."""
    replayed = ReplayGuest(
        "web", Uniform(), file_bytes=256 * MIB, accesses_per_s=10_000, size_bytes=512 * MIB, miss_s=200e-6,
        observed=False, scale=32,
    )  # fmt: skip
    intake, tracker = SampleIntake(), SampleTracker()
    sampled = accesses = 0
    async with (
        open_simulated_guest("web", load=replayed, memory_bytes=300 * MIB) as guest,
        open_agent_on(guest.connect_agent(), address="web") as agent,
    ):
        await trio.sleep(20.5)
        tracker.accept(await read(agent), trio.current_time())
        intake.accept(unpack(await agent.read_file("/run/qmpalloc/samples.bin", 10**6)))
        misses = 0
        for _ in range(20):
            await trio.sleep(1)
            delta = tracker.accept(await read(agent), trio.current_time()).delta
            window = intake.accept(unpack(await agent.read_file("/run/qmpalloc/samples.bin", 10**6)))
            assert window.lost == 0
            assert window.accesses == delta.accesses
            sampled, accesses = sampled + len(window.keys), accesses + window.accesses
            misses += delta.misses
        total = tracker.last.counters.inserts_read
        assert guest.qemu.blocks[0]["stats"]["rd_bytes"] == total * PAGE_BYTES
    assert sampled == pytest.approx(accesses / 64, rel=0.1)
    # 100 us of a hit and 200 us more of a miss, 20 s long
    assert accesses * 100e-6 + misses * 200e-6 == pytest.approx(20.0, rel=0.05)
    assert 0.3 < misses / accesses < 0.6
