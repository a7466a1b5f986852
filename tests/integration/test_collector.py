"""A real collector in trouble: whatever happens to its clock, its file or its guest, no difference is ever wrong."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress

import pytest
import trio

from qmpalloc import open_guest
from qmpalloc.errors import RefusedError, SampleError, SampleFault
from qmpalloc.qmp import open_agent
from qmpalloc.units import MIB, format_size

FILE_PAGES = 25_600
TOLERANCE = FILE_PAGES * 2 // 100  # the shell and what it starts are read as well
MOUNT = "nsenter -t $(systemctl show -P MainPID qmpalloc-collector) -m mount -o bind,remount,{} /run/qmpalloc"


class Guest:
    """A guest, its shell, and what the host sees of its counters."""

    def __init__(self, handle, lab):
        self.handle, self.lab = handle, lab
        self.deltas = []

    async def sh(self, script):
        result = await self.lab.run(["sh", "-c", script])
        assert result.exit_code == 0, result.err
        return result.out.decode()

    async def observe(self, seconds):
        """Wait, then add what happened since the last observation."""
        await trio.sleep(seconds)
        self.deltas.append((await self.handle.next_delta(0.0)).delta)

    async def fault(self):
        """Return why the file cannot be used now; None if the agent does not even open it."""
        with suppress(SampleError, RefusedError):
            await self.observe(1.5)  # written before the trouble began
        await trio.sleep(1.5)
        with pytest.raises((SampleError, RefusedError)) as caught:
            await self.handle.next_delta(0.0)
        return caught.value.fault if isinstance(caught.value, SampleError) else None


@pytest.fixture
async def guest(running_guest):
    async with (
        open_guest(str(running_guest.sockets.monitor), str(running_guest.sockets.agent)) as handle,
        open_agent(str(running_guest.lab_socket)) as lab,
    ):
        yield Guest(handle, lab)


@asynccontextmanager
async def clock_set_back(guest):
    await guest.sh("date -s @$(($(date +%s) - 7200))")
    yield
    await guest.sh("date -s @$(($(date +%s) + 7200))")


@asynccontextmanager
async def stopped_for_a_while(guest):
    yield
    await guest.handle.monitor.execute("stop")
    await trio.sleep(3)
    await guest.handle.monitor.execute("cont")


@asynccontextmanager
async def directory_read_only(guest):
    await guest.sh(MOUNT.format("ro"))
    yield
    assert await guest.fault() is SampleFault.REPEATED
    await guest.sh(MOUNT.format("rw"))


@asynccontextmanager
async def tmpfs_full(guest):
    await guest.sh("cat /dev/zero >/run/filler 2>/dev/null || true")
    yield
    # qemu-ga opens no file without writing down its handle, in /run as well.
    assert await guest.fault() in (SampleFault.COLLECTOR, None)
    assert (await guest.sh("grep -c 'No space left on device' /run/qmpalloc/counters.json")).strip() == "1"
    await guest.sh("rm /run/filler")


@asynccontextmanager
async def suspended_to_memory(guest):
    yield
    monitor = guest.handle.monitor
    await guest.lab.start(["/bin/sh", "-c", "sleep 0.5; echo deep >/sys/power/mem_sleep; echo mem >/sys/power/state"])
    with trio.fail_after(30):
        while (await monitor.query_status()).status != "suspended":  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(0.2)
        await trio.sleep(2)
        await monitor.execute("system_wakeup")
        while (await monitor.query_status()).status != "running":  # noqa: ASYNC110
            await trio.sleep(0.2)


TROUBLES = (clock_set_back, stopped_for_a_while, suspended_to_memory, directory_read_only, tmpfs_full)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
async def test_no_difference_is_wrong(guest, trouble):
    await guest.sh("cat /data/exact.dat >/dev/null")  # so that cat itself, and the file, are in memory
    await guest.handle.next_delta(1.5)
    began = trio.current_time()
    async with trouble(guest):
        await guest.sh("cat /data/exact.dat >/dev/null")
    await guest.observe(2.5)
    print(trouble.__name__, guest.deltas)
    assert abs(sum(delta.accesses for delta in guest.deltas) - FILE_PAGES) <= TOLERANCE
    assert sum(delta.misses for delta in guest.deltas) <= TOLERANCE
    assert 0 < sum(delta.interval_s for delta in guest.deltas) < trio.current_time() - began + 1.5
    assert all(delta.events_lost == 0 for delta in guest.deltas)


async def test_a_second_collector_refuses(guest):
    before = (await guest.handle.read_sample()).start_id
    result = await guest.lab.run(["python3", "-IB", "/usr/local/lib/qmpalloc/guest_agent"])
    assert result.exit_code == 1
    assert b"another collector is running" in result.err
    await guest.handle.next_delta(1.5)
    assert (await guest.handle.read_sample()).start_id == before


async def test_what_the_guest_cannot_give_up_is_told_whatever_its_size(guest):
    """The balloon changes nothing of it, and huge pages are in it, though no program uses them."""
    monitor = guest.handle.monitor
    size_bytes = await monitor.query_balloon()

    async def told(at_bytes):
        await monitor.balloon(at_bytes)
        while abs(await monitor.query_balloon() - at_bytes) > MIB:  # noqa: ASYNC110 - not every step is told
            await trio.sleep(0.2)
        await trio.sleep(2.5)
        memory = (await guest.handle.read_sample()).memory_bytes
        print(format_size(at_bytes), memory)
        return memory

    with trio.fail_after(300):
        before, squeezed = await told(size_bytes), await told(size_bytes - 128 * MIB)
        assert squeezed.balloon - before.balloon == pytest.approx(128 * MIB, abs=MIB)
        assert squeezed.held_bytes == pytest.approx(before.held_bytes, abs=12 * MIB)
        await guest.sh("echo 24 >/proc/sys/vm/nr_hugepages; test $(cat /proc/sys/vm/nr_hugepages) = 24")
        held = await told(size_bytes)
        assert held.held_bytes - squeezed.held_bytes == pytest.approx(48 * MIB, abs=12 * MIB)
        await guest.sh("echo 0 >/proc/sys/vm/nr_hugepages")
