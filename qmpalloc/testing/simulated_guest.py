"""A whole guest without a guest: fake QEMU, fake agent, and a collector that counts the reads of a modelled load.

The misses depend on the size the balloon gives, so a controller or a policy sees its decisions take effect::

    load = Load(file_pages=100_000, accesses_per_s=5_000)
    async with open_simulated_guest("web", directory, load=load, memory_bytes=512 * MIB) as guest:
        async with open_monitor(guest.monitor_path) as monitor, open_agent(guest.agent_path) as agent:
            await monitor.balloon(256 * MIB)
            ...

With a `ReplayGuest` for a load, its page replacement is really simulated, and a samples file is written as well, so
that policies that need miss-ratio curves can be tried.

With no directory nothing listens; `connect_monitor` and `connect_agent` give memory streams, for tests on a virtual
clock.
"""

from __future__ import annotations

import hashlib
import posixpath
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio
import trio.testing

from qmpalloc.config import DEFAULT_COUNTERS_FILE
from qmpalloc.curves.samples import Batch, pack
from qmpalloc.sample import CollectorUse, Counters, Memory, Psi, Sample, SwapPages
from qmpalloc.sim.load import CacheModel, Load, MappedFile
from qmpalloc.sim.replay import ReplayGuest
from qmpalloc.sim.replay_cache import ReplayCache
from qmpalloc.testing.balloon import FakeBalloon, FakeVirtioMem
from qmpalloc.testing.fake_agent import FakeAgent
from qmpalloc.testing.fake_qemu import FakeQemu
from qmpalloc.units import MIB, PAGE_BYTES


class SimulatedGuest:
    """One guest. Make it with `open_simulated_guest`.

    Attributes:
        name: Of the guest.
        monitor_path: Socket of its monitor; empty without a directory.
        agent_path: Socket of its agent; empty without a directory.
        qemu: Its QEMU, to stop, reset or break.
        agent: Its agent, to stop, slow down or break.
        cache: Its load and counts. The cache is warm at first, and empty after `reboot`; a replayed one is empty first.
        collecting: False is a collector that has died: the counters file stays as it is.
        samples_file: Path in the guest of the sampled accesses.
        sequence: Number of the last counters file.
        offline_bytes: Memory that was plugged, and that its kernel has not taken into use.
        sampling: False is one that counts but does not sample accesses. Only replayed loads are sampled.
        mapped: A file that a program in it maps, beside what its load reads; None for none. Set it at any time.
    """

    def __init__(
        self,
        name: str,
        *,
        load: Load | ReplayGuest,
        memory_bytes: int,
        balloon: FakeBalloon | None = None,
        virtio_mem: FakeVirtioMem | None = None,
        interval_s: float = 1.0,
        counters_file: str = DEFAULT_COUNTERS_FILE,
    ) -> None:
        self.name = name
        self.monitor_path = ""
        self.agent_path = ""
        self.qemu = FakeQemu(name=name, memory_bytes=memory_bytes, balloon=balloon, virtio_mem=virtio_mem)
        self.agent = FakeAgent()
        self.cache: CacheModel | ReplayCache
        if isinstance(load, ReplayGuest):
            self.cache = ReplayCache(load)
        else:
            self.cache = CacheModel(load)
            self.cache.warm(memory_bytes)
        self.collecting = self.sampling = True
        self.mapped: MappedFile | None = None
        self._faults = 0.0  # of all mapped files since the boot
        self.offline_bytes = 0
        self._interval_s = interval_s
        self._counters_file = counters_file
        self.samples_file = posixpath.join(posixpath.dirname(counters_file), "samples.bin")
        self._boots = 0
        self.sequence = 0
        self._booted_s = 0.0
        self._nursery: trio.Nursery | None = None

    def connect_monitor(self) -> trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]:
        """Return a new connection to the monitor, in memory."""
        client, server = trio.testing.memory_stream_pair()
        self._require_nursery().start_soon(self.qemu.serve, server)
        return client

    def connect_agent(self) -> trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]:
        """Return a new connection to the agent, in memory."""
        client, server = trio.testing.memory_stream_pair()
        self._require_nursery().start_soon(self.agent.serve, server)
        return client

    def reboot(self) -> None:
        """Reset the guest: the cache is empty, all counts and ids begin anew, ``RESET`` is sent."""
        if isinstance(self.cache, ReplayCache):
            self.cache.guest.drop_cache()
            self.cache = ReplayCache(self.cache.guest)
        else:
            self.cache = CacheModel(self.cache.load, own_bytes=self.cache.own_bytes)
        self._boots += 1
        self.sequence, self._faults = 0, 0.0
        self._booted_s = trio.current_time()
        self.agent.stop()
        self.agent.start()
        self.agent.files.pop(self._counters_file, None)
        self.agent.files.pop(self.samples_file, None)
        self.qemu.reset()

    async def run(self) -> None:
        """Let the load run and the collector write its file every interval, for ever."""
        self._booted_s = trio.current_time()
        while True:
            await trio.sleep(self._interval_s)
            if self.qemu.status != "running" or self.qemu.actuator.booting:
                continue
            self.cache.advance(self._interval_s, self.qemu.actuator.actual_bytes)
            if self.mapped is not None:
                before = self.mapped.faults
                self.mapped.advance(self._interval_s, self._room_bytes() // PAGE_BYTES)
                self._faults += self.mapped.faults - before
            if self.collecting:
                self.sequence += 1
                self.agent.files[self._counters_file] = msgspec.json.encode(self.sample())
            if isinstance(self.cache, ReplayCache):
                self._read_disk(self.cache)
                if self.collecting and self.sampling:
                    self.agent.files[self.samples_file] = pack(self.batch(self.cache))

    def batch(self, cache: ReplayCache) -> Batch:
        """Return the sampled accesses that the collector would write now."""
        return cache.batch(bytes.fromhex(self._digest("boot")[:32]), bytes.fromhex(self._digest("start")[:16]))

    def _read_disk(self, cache: ReplayCache) -> None:
        """Have QEMU count what misses and page faults read from the disk; it takes the time that the load waits."""
        pages = int(cache.misses) + int(self._faults)
        time_ns = round(pages * cache.guest.miss_s * 1e9)
        stats = {"rd_bytes": pages * PAGE_BYTES, "rd_operations": pages, "rd_total_time_ns": time_ns}
        self.qemu.blocks = [{"device": "data", "stats": stats}]

    def sample(self) -> Sample:
        """Return what the collector would write now."""
        return Sample(
            format="qmpalloc-counters",
            version=1,
            boot_id=str(uuid.UUID(self._digest("boot")[:32])),
            start_id=self._digest("start")[:16],
            sequence=self.sequence,
            monotonic_ns=round((trio.current_time() - self._booted_s) * 1e9),
            interval_ms=max(10, round(self._interval_s * 1000)),
            kernel="6.12.0-simulated",
            page_size=4096,
            lru="lru_gen",
            counters=self._counters(),
            memory_bytes=self._memory(),
            swap_pages=SwapPages(in_=0, out=0),
            psi_memory=Psi(some_total_us=0, full_total_us=0, some_avg10=0.0, full_avg10=0.0),
            oom_kills=0,
            collector=CollectorUse(rss_bytes=10 * MIB, cpu_ns=self.sequence * 1_000_000),
        )

    def _counters(self) -> Counters:
        return Counters(
            accesses=int(self.cache.accesses),
            inserts_read=int(self.cache.misses),
            inserts_fault=int(self._faults),
            inserts_write=0,
            inserts_other=0,
            evictions=int(self.cache.evictions),
            refaults=max(0, int(self.cache.misses) - self.cache.file_pages),
            events_lost=0,
        )

    def _room_bytes(self) -> int:
        """Return what programs and the pages of what is read leave of the guest's memory."""
        size = self.qemu.actuator.actual_bytes
        return max(0, size - self.cache.own_bytes - self.cache.cached_pages * PAGE_BYTES)

    def _memory(self) -> Memory:
        size = self.qemu.actuator.actual_bytes
        # With deflate-on-oom a guest counts the balloon's pages as used; else only what it has counts at all.
        counts_all = self.qemu.virtio_mem is None and self.qemu.properties["deflate-on-oom"]
        total = self.qemu.actuator.memory_bytes if counts_all else size
        total += self.qemu.virtio_mem_bytes - self.offline_bytes
        own = min(self.cache.own_bytes, total)
        # Where it does not fit, what can be reclaimed has gone first.
        reclaimable = max(0, min(own, size) - own * 11 // 16)
        mapped = 0 if self.mapped is None else min(self.mapped.resident_pages * PAGE_BYTES, self._room_bytes())
        file = min(self.cache.cached_pages * PAGE_BYTES + mapped, max(size - own, 0))
        free = max(size + self.qemu.virtio_mem_bytes - self.offline_bytes - own - file, 0)
        return Memory(
            total=total,
            free=free,
            available=free + file,
            active_file=file // 2,
            inactive_file=file - file // 2,
            mapped=mapped,
            anon=own // 2,
            shmem=own // 32,
            tmpfs=own // 32,
            slab_unreclaimable=own // 8,
            kernel_stack=own // 64,
            page_tables=own // 64,
            kernel_reclaimable=reclaimable,
            balloon=self.qemu.actuator.memory_bytes - self.qemu.actuator.actual_bytes if counts_all else 0,
        )

    def _digest(self, what: str) -> str:
        return hashlib.sha256(f"{self.name} {what} {self._boots}".encode()).hexdigest()

    def _require_nursery(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("the simulated guest does not run; use open_simulated_guest")
        return self._nursery


@asynccontextmanager
async def open_simulated_guest(
    name: str,
    directory: Path | None = None,
    *,
    load: Load | ReplayGuest,
    memory_bytes: int,
    balloon: FakeBalloon | None = None,
    virtio_mem: FakeVirtioMem | None = None,
    interval_s: float = 1.0,
    counters_file: str = DEFAULT_COUNTERS_FILE,
) -> AsyncIterator[SimulatedGuest]:
    """Run a simulated guest for the time of a block.

    Args:
        name: Of the guest; also the stem of its sockets, ``NAME.qmp`` and ``NAME.agent``.
        directory: Where its sockets are made; None for memory streams only.
        load: What it reads.
        memory_bytes: Its RAM.
        balloon: The balloon's model, to set its rates; instant by default.
        virtio_mem: The model of a virtio-mem device to have in place of a balloon; `memory_bytes` is not used then.
        interval_s: Time between two writings of the counters file.
        counters_file: Path of that file inside the guest.
    """
    guest = SimulatedGuest(
        name,
        load=load,
        memory_bytes=memory_bytes,
        balloon=balloon,
        virtio_mem=virtio_mem,
        interval_s=interval_s,
        counters_file=counters_file,
    )
    async with trio.open_nursery() as nursery:
        guest._nursery = nursery
        nursery.start_soon(guest.run)
        if directory is not None:
            guest.monitor_path = str(directory / f"{name}.qmp")
            guest.agent_path = str(directory / f"{name}.agent")
            await nursery.start(guest.qemu.serve_path, guest.monitor_path)
            await nursery.start(guest.agent.serve_path, guest.agent_path)
        try:
            yield guest
        finally:
            nursery.cancel_scope.cancel()
