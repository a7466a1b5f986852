"""The disk model: what a hit takes here, and the throttle by which a miss takes so many times that.

A hit is a cached read, or a page that programs access, by their own commands, warm and cold: they do more with a page
than to read it, so their hits take longer. Warm: at its guest's cap, after its warm-up and a first run, without a
throttle. Cold: the caches are dropped, and the disk is as it will be in the experiment.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from qmpalloc.errors import HostError
from qmpalloc.experiment.run.readings import Link, in_parallel, wait_for_new_counters
from qmpalloc.experiment.spec.program import ProgramPhase
from qmpalloc.experiment.spec.schema import Disk
from qmpalloc.experiment.store.records import DiskCalibration, ProgramPace, ProgramService
from qmpalloc.qmp import deadline
from qmpalloc.qmp.actuator import nearest_order
from qmpalloc.units import format_size

THROTTLE_TIMEOUT_S = 10.0

EACH_S = 20.0
"""The longest that a program runs, each time."""


async def calibrate(disk: Disk, links: Sequence[Link]) -> DiskCalibration:
    """Measure cached reads in all guests at the same time, as they will be when the loads run, and derive the throttle.

    The disks are left without a throttle.

    Args:
        disk: What is wanted.
        links: To all guests, their loads armed but not started.

    Raises:
        QmpallocError: A guest does not answer, or its times make no sense.
    """
    await set_throttle(links, 0)
    services = await in_parallel([link.load.measure_service() for link in links])
    hit_s = sum(service.hit_s for service in services) / len(services)
    return DiskCalibration(model="iops" if disk.iops else disk.model, hit_s=hit_s, iops=disk.throttle_iops(hit_s))


async def set_throttle(links: Sequence[Link], iops: int) -> None:
    """Limit each disk that the loads of the guests read to so many requests per second; 0 is no limit.

    Raises:
        QmpallocError: A monitor does not answer, or refuses.
    """
    for link in links:
        with deadline(THROTTLE_TIMEOUT_S, link.monitor.address, "setting the disk's throttle"):
            for disk in link.disks:
                await link.monitor.set_io_throttle(disk, iops)


async def calibrate_by_programs(disk: Disk, links: Sequence[Link]) -> DiskCalibration:
    """Run all programs warm, derive the throttle, and run them cold; guests at the same time, phases in turn.

    Their loads are armed and their programs set up. What programs write stays written: these guests are for nothing
    else afterwards.

    Raises:
        HostError: A program failed, or a guest does not get its cap.
        QmpallocError: A guest does not answer, or its times make no sense.
    """
    reads = await calibrate(disk, links)
    await in_parallel([_grow(link) for link in links])
    warm = await in_parallel([_run_all(link, cold=False) for link in links])
    services = [ProgramService(warm=pace) for paces in warm for pace in paces.values()]
    hits_s = [service.hit_s for service in services if service.hit_s is not None]
    hit_s = sum(hits_s) / len(hits_s) if hits_s else reads.hit_s
    iops = disk.throttle_iops(hit_s)
    await set_throttle(links, iops)
    cold = await in_parallel([_run_all(link, cold=True) for link in links])
    programs = {
        link.name: {phase: ProgramService(warm=pace, cold=later[phase]) for phase, pace in paces.items()}
        for link, paces, later in zip(links, warm, cold, strict=True)
        if paces
    }
    return structs.replace(reads, hit_s=hit_s, iops=iops, by="programs" if hits_s else "reads", programs=programs)


async def _grow(link: Link) -> None:
    """Give a guest all that it may have, so that its caches hold what they can."""
    cap_bytes = link.load.guest.cap
    await link.actuator.order(nearest_order(await link.actuator.memory(), cap_bytes))
    if not await link.reaches(cap_bytes):
        raise HostError(
            f"guest {link.name}: its {link.actuator.kind} does not reach its cap of {format_size(cap_bytes)}"
        )


async def _run_all(link: Link, *, cold: bool) -> dict[str, ProgramPace]:
    """Run the programs of a guest one after the other; return phase to how it went."""
    paces = {}
    for number, phase in enumerate(link.load.guest.phases):
        if isinstance(phase, ProgramPhase):
            if not cold:
                await link.load.run_once(number, EACH_S, first="warm-up")  # it caches what it reads
            paces[phase.name] = await _paced(link, number, cold=cold)
    return paces


async def _paced(link: Link, number: int, *, cold: bool) -> ProgramPace:
    """Run a program, and return how it went with what was counted meanwhile."""
    await wait_for_new_counters(link)
    before, requests = (await link.sample()).counters, await _requests(link)
    pace = await link.load.run_once(number, EACH_S, first="cold" if cold else "")
    await wait_for_new_counters(link)
    after = (await link.sample()).counters

    def counted(name: str) -> int:
        return max(0, (getattr(after, name) or 0) - (getattr(before, name) or 0))

    return structs.replace(
        pace,
        accesses=counted("accesses"),
        misses=counted("inserts_read"),
        faults=counted("inserts_fault"),
        disk_reads=await _requests(link) - requests,
    )


async def _requests(link: Link) -> int:
    return sum(disk.rd_operations for disk in link.read_of(await link.monitor.block_stats()))
