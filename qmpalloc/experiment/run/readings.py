"""One guest at the end of a trial, read around the controller: its sockets are its own, so these are the others.

The guest's size and the disk's statistics come from the monitor for people, the counters file and the progress of
the load from the lab agent. So the numbers of a report depend on nothing the controller believes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
from msgspec import Struct

from qmpalloc.channel import Channel
from qmpalloc.errors import NonsenseError
from qmpalloc.experiment.run.load import Load, open_load
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.store.records import LoadProgress, Reading
from qmpalloc.qemu.launcher import RunningGuest
from qmpalloc.qmp import Actuator, BlockStats, Monitor, deadline, find_actuators, open_agent, open_monitor
from qmpalloc.qmp.actuator import nearest_order
from qmpalloc.sample import FILE_MAX_BYTES, Sample, parse

T = TypeVar("T")

DATA_DISK, ROOT_DISK = "data", "root"
"""The ``-drive`` ids of a guest's disks, see `qmpalloc.qemu.argv`."""

SIZE_TIMEOUT_S = 120.0
SIZE_SLACK_BYTES = 1024**2
SIZE_POLL_S = 0.25

NEW_COUNTERS_POLL_S = 0.1

READING_TIMEOUT_S = 10.0

STALE_S = 10.0
"""Counters so much older than the progress of the load mean that the collector does not write them any more."""


class Link(Struct, frozen=True):
    """The connections to one guest that an experiment uses beside the controller's.

    Attributes:
        name: Of the guest.
        monitor: QMP, the socket for people.
        actuator: What moves its memory, over the same socket.
        channel: How programs are run in it.
        load: Its load.
        counters_file: Path of the counters file in the guest.
        disks: That its load reads, and that are throttled: built-in reads the data disk alone, programs also the
            guest's own. Empty where they are not known: all count, none is throttled.
    """

    name: str
    monitor: Monitor
    actuator: Actuator
    channel: Channel
    load: Load
    counters_file: str
    disks: tuple[str, ...] = (DATA_DISK,)

    async def sample(self) -> Sample:
        """Return what the collector in the guest has written last.

        Raises:
            QmpallocError: The guest does not answer, or what is there makes no sense; or hits are estimated only.
        """
        sample = parse(await self.channel.read_file(self.counters_file, FILE_MAX_BYTES))
        if sample.duty is not None:
            hint = "take --duty out of OPTIONS in the guest's /etc/default/qmpalloc-collector, and restart the service"
            raise NonsenseError(f"{self.name}: its collector estimates hits (--duty {sample.duty.share:g})", hint=hint)
        return sample

    async def reaches(self, target_bytes: int) -> bool:
        """Wait until it has a size that it was asked to have; False when that takes longer than `SIZE_TIMEOUT_S`.

        Raises:
            QmpallocError: Its QEMU does not answer.
        """
        with trio.move_on_after(SIZE_TIMEOUT_S):
            target_bytes = nearest_order(await self.actuator.memory(), target_bytes)
            while True:
                if abs(await self.actuator.size_bytes() - target_bytes) <= SIZE_SLACK_BYTES:
                    return True
                await trio.sleep(SIZE_POLL_S)
        return False

    def read_of(self, disks: Iterable[BlockStats]) -> list[BlockStats]:
        """Return those of the guest's disks that its load reads."""
        return [disk for disk in disks if not self.disks or disk.name in self.disks]


@asynccontextmanager
async def open_link(guest: RunningGuest, traces: Traces) -> AsyncIterator[Link]:
    """Connect to a guest beside the controller, switch it to its page replacement, and arm its load, as `open_load`.

    Raises:
        HostError: Its kernel cannot switch, or its load cannot be armed.
        QmpallocError: It does not answer.
    """
    assert guest.lab_socket is not None  # the profile is ours
    described = next(found for found in traces.specification.guests if found.name == guest.name)
    disks = (DATA_DISK, ROOT_DISK) if described.programs else (DATA_DISK,)
    async with open_monitor(str(guest.sockets.people)) as monitor, open_agent(str(guest.lab_socket)) as agent:
        [actuator, *_] = await find_actuators(monitor)
        async with open_load(agent, traces, described) as load:
            yield Link(guest.name, monitor, actuator, agent, load, guest.config.counters_file, disks)


async def in_parallel(jobs: Sequence[Awaitable[T]]) -> list[T]:
    """Do something with several guests at the same time, until all is done; return what came out, in order."""
    found: dict[int, T] = {}

    async def run(number: int, job: Awaitable[T]) -> None:
        found[number] = await job

    async with trio.open_nursery() as nursery:
        for number, job in enumerate(jobs):
            nursery.start_soon(run, number, job)
    return [found[number] for number in range(len(jobs))]


async def wait_for_new_counters(link: Link) -> None:
    """Return when the collector has written since now, so that what was read before this is in no later difference.

    Raises:
        QmpallocError: The guest or its collector does not answer in time, or answers nonsense.
    """
    with deadline(READING_TIMEOUT_S, link.channel.address, f"new counters of {link.name}"):
        before = (await link.sample()).sequence
        while True:
            await trio.sleep(NEW_COUNTERS_POLL_S)
            if (await link.sample()).sequence > before:
                return


async def read_guest(link: Link, *, trial: int, t: float, target_bytes: int) -> Reading:
    """Return a guest's reading.

    Raises:
        QmpallocError: The guest, its collector or its QEMU does not answer in time, or answers nonsense.
    """
    with deadline(READING_TIMEOUT_S, link.channel.address, f"the reading of {link.name}"):
        sample = await link.sample()
        progress: LoadProgress | None = await link.load.progress()
        # After its end no later reading would count the reads since the collector last wrote.
        while progress is not None and progress.finished and sample.monotonic_ns < progress.monotonic_s * 1e9:
            await trio.sleep(NEW_COUNTERS_POLL_S)
            sample = await link.sample()
        actual_bytes = await link.actuator.size_bytes()
        disks = {disk.name: disk for disk in await link.monitor.block_stats()}
    accesses, misses = sample.counters.accesses, sample.counters.inserts_read
    if accesses is None or misses is None:
        raise NonsenseError(f"{link.name}: its collector counts no {'accesses' if accesses is None else 'misses'}")
    age_s = progress.monotonic_s - sample.monotonic_ns / 1e9 if progress is not None else 0.0
    if age_s > STALE_S:
        raise NonsenseError(f"{link.name}: its collector has written nothing for {age_s:.0f} s")
    if missing := set(link.disks) - disks.keys():
        raise NonsenseError(f"{link.name}: its QEMU has no drive with the id {min(missing)}")
    read = link.read_of(disks.values())
    return Reading(
        trial=trial,
        t=round(t, 3),
        guest=link.name,
        monotonic_ns=sample.monotonic_ns,
        accesses=accesses,
        misses=misses,
        refaults=sample.counters.refaults,
        evictions=sample.counters.evictions,
        events_lost=sample.counters.events_lost,
        target_bytes=target_bytes,
        actual_bytes=actual_bytes,
        disk_read_bytes=sum(disk.rd_bytes for disk in read),
        disk_reads=sum(disk.rd_operations for disk in read),
        disk_read_ns=sum(disk.rd_total_time_ns for disk in read),
        load=progress,
        faults=sample.counters.inserts_fault,
        swap_ins=sample.swap_pages.in_,
        swap_ins_zram=sample.swap_pages.in_zram,
    )
