"""The disk model: what a cached read takes here, and the throttle by which a miss takes so many times that."""

from __future__ import annotations

from collections.abc import Sequence

from qmpalloc.experiment.run.readings import Link, in_parallel
from qmpalloc.experiment.spec.schema import Disk
from qmpalloc.experiment.store.records import DiskCalibration
from qmpalloc.qmp import deadline

THROTTLE_TIMEOUT_S = 10.0


async def calibrate(disk: Disk, links: Sequence[Link]) -> DiskCalibration:
    """Measure cached reads in all guests at the same time, as they will be when the loads run, and derive the throttle.

    The loads are armed, but not started. The disks are left without a throttle.

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
