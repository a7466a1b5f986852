"""A load in a real guest: what it reads is what collector and QEMU count, and a throttled disk costs what it should."""

from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from qmpalloc.errors import HostError
from qmpalloc.experiment.run.disk import set_throttle
from qmpalloc.experiment.run.load import PID_FILE, open_load
from qmpalloc.experiment.run.readings import Link, read_guest
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec import parsing
from qmpalloc.qmp import find_actuators, open_agent, open_monitor
from qmpalloc.units import PAGE_BYTES

READS = 40_000
OPEN_READS = 2_000
SPECIFICATION = f"""
[experiment]
name = "try"
budget = "1GiB"
[[guest]]
name = "one"
memory = "768MiB"
floor = "256MiB"
cap = "768MiB"
baseline = "512MiB"
[[guest.phase]]
file = "100MiB"
file_name = "exact.dat"
access = {{ distribution = "normal", deviation = 0.3 }}
reads = {READS // 10}
rounds = 10
[[guest.phase]]
file = "128MiB"
file_name = "load.dat"
access = {{ distribution = "uniform" }}
reads = {OPEN_READS}
rounds = 1
rate = 1000
[[arm]]
name = "static"
policy = "static"
"""
LOAD_LIMIT_S = 60
COUNTED_S = 2.5
"""After so long the collector has written what it saw."""

IOPS = 200


@pytest.fixture(scope="module")
def traces():
    return Traces(parsing.parse(SPECIFICATION, file=Path("/try.toml")))


@pytest.fixture
def linked(running_guest, traces):
    """A context manager: the guest with its load armed, its caches cold, its disk as fast as it is."""

    @asynccontextmanager
    async def linked():
        guest = parsing.parse(SPECIFICATION, file=Path("/try.toml")).guests[0]
        async with (
            open_monitor(str(running_guest.sockets.people)) as monitor,
            open_agent(str(running_guest.lab_socket)) as agent,
            open_load(agent, traces, guest) as load,
        ):
            [actuator] = await find_actuators(monitor)
            link = Link("one", monitor, actuator, agent, load, running_guest.config.counters_file)
            await set_throttle([link], 0)
            await load.drop_caches()
            yield link

    return linked


async def reading(link):
    await trio.sleep(COUNTED_S)
    return await read_guest(link, trial=0, t=0.0, target_bytes=0)


async def finished(load):
    """Return the progress of a load that has been told to go, once it is over, and what it had said on the way."""
    said = []
    with trio.fail_after(LOAD_LIMIT_S):
        while not said or not said[-1].finished:
            await load.raise_if_dead()
            said.append(await load.progress())
            await trio.sleep(0.2)
    return said


async def test_what_the_load_reads_is_what_collector_and_disk_count(linked, traces):
    async with linked() as link:
        before = await reading(link)
        await link.load.go()
        said = await finished(link.load)
        after = await reading(link)
        await link.load.raise_if_dead()
    closed, timed = said[-1].phases
    accesses, misses = after.accesses - before.accesses, after.misses - before.misses
    disk_pages = (after.disk_read_bytes - before.disk_read_bytes) / PAGE_BYTES
    distinct = sum(found.distinct_pages for found in traces.footprints()["one"].values())
    print(closed, timed, accesses, misses, disk_pages, distinct)
    assert (closed.reads, closed.errors, sum(closed.latency.values())) == (READS, 0, READS // 8)
    assert (timed.reads, timed.errors, sum(timed.latency.values())) == (OPEN_READS, 0, OPEN_READS)
    assert accesses == pytest.approx(READS + OPEN_READS, rel=0.01)
    assert misses == pytest.approx(distinct, rel=0.03)  # all that is read stays in the cache
    assert disk_pages == pytest.approx(misses, rel=0.03)
    assert after.events_lost == before.events_lost
    # The second phase keeps its rate, and progress came while the load ran.
    assert timed.seconds >= (OPEN_READS - 10) / 1000
    assert len({progress.sequence for progress in said}) > 2


async def test_a_throttle_makes_a_miss_cost_what_it_should(linked):
    async with linked() as link:
        await set_throttle([link], IOPS)
        service = await link.load.measure_service()
        await set_throttle([link], 0)
        print(service, service.ratio)
        assert 0.5 < service.miss_s * IOPS < 2
        assert service.ratio > 2


async def test_the_warm_up_brings_the_file_in(linked):
    async with linked() as link:
        before = await reading(link)
        await link.load.read_through()
        cold = await reading(link)
        await link.load.read_through()
        warm = await reading(link)
    pages = 100 * 1024 * 1024 // PAGE_BYTES
    assert cold.misses - before.misses == pytest.approx(pages, rel=0.05)
    assert warm.misses - cold.misses < pages * 0.01


async def test_a_load_that_is_killed_is_an_error_and_no_finished_load(linked):
    async with linked() as link:
        await link.load.go()
        assert (await link.channel.run(["/bin/sh", "-c", f"kill -KILL $(cat {PID_FILE})"])).exit_code == 0
        with pytest.raises(HostError, match="guest one: its load was killed by signal 9"):
            await finished(link.load)
