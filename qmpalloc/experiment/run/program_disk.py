"""The disk model by what programs do: their own commands, warm and cold, tell what a hit and a miss take.

A program does more with a page than to read it, so its hits take longer than those of the built-in reads, by which the
disk is throttled otherwise. Warm: at its cap, after its warm-up and a first run, without a throttle. Cold: the caches
are dropped, and the disk is as it will be in the experiment.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from qmpalloc.errors import HostError
from qmpalloc.experiment.run import balloon
from qmpalloc.experiment.run.disk import calibrate, set_throttle
from qmpalloc.experiment.run.readings import Link, in_parallel, wait_for_new_counters
from qmpalloc.experiment.spec.program import ProgramPhase
from qmpalloc.experiment.spec.schema import Disk
from qmpalloc.experiment.store.records import DiskCalibration, ProgramPace, ProgramService
from qmpalloc.qmp.actuator import nearest_order
from qmpalloc.units import format_size

EACH_S = 20.0
"""The longest that a program runs, each time."""


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
    if not await balloon.reaches(link.actuator, cap_bytes):
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
