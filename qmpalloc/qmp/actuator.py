"""What moves a guest's memory: its balloon, or a virtio-mem device. One small interface, two of that kind.

A balloon takes pages of a guest's RAM away and gives them back. A virtio-mem device plugs memory on top of the RAM that
a guest was started with, block by block, and unplugs what the guest's kernel has emptied. QEMU's side of both:
hw/virtio/virtio-balloon.c, hw/virtio/virtio-mem.c.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

from qmpalloc.errors import RefusedError
from qmpalloc.model import MemorySizes
from qmpalloc.qmp.monitor import BALLOON_TYPE, Monitor
from qmpalloc.qmp.monitor_types import MemoryDevice
from qmpalloc.units import Grid

VIRTIO_MEM_TYPE = "virtio-mem-"
"""How the types of all virtio-mem devices begin: -pci, -ccw."""

ActuatorKind = Literal["balloon", "virtio-mem"]


class Actuator(Protocol):
    """What moves the memory of one guest, over one monitor connection. Sizes are of the whole guest, in bytes.

    Errors of all methods are those of `Monitor.execute`.

    Attributes:
        monitor: The connection.
        path: QOM path of the device.
        kind: What it is, for people and for a record.
        query: The command that tells the size, for errors.
        command: The command that asks for one.
        coordinated: QEMU tells devices that pin memory (vfio) what comes and goes, so that they do not keep it; and
            pages of any size come back.
        takes_back: The guest can take memory by itself that it was not granted.
        stuck_hint: What to look for when the size does not change.
    """

    monitor: Monitor
    path: str
    kind: ClassVar[ActuatorKind]
    query: ClassVar[str]
    command: ClassVar[str]
    coordinated: ClassVar[bool]
    takes_back: ClassVar[bool]
    stuck_hint: ClassVar[str]

    async def memory(self) -> MemorySizes:
        """Return the limits of the guest's size, the sizes that it can be set to, and what it has beside."""

    async def size_bytes(self) -> int:
        """Return the size that the guest has now."""

    async def order(self, target_bytes: int) -> None:
        """Ask for a size, one of `MemorySizes.grid`. Success means only that QEMU noted it; see `size_bytes`."""


class Balloon:
    """A virtio-balloon device: the guest's size is its RAM, less what its driver has handed over."""

    kind: ClassVar[ActuatorKind] = "balloon"
    query: ClassVar[str] = "query-balloon"
    command: ClassVar[str] = "balloon"
    coordinated: ClassVar[bool] = False
    takes_back: ClassVar[bool] = True
    stuck_hint: ClassVar[str] = "is the virtio_balloon driver loaded in the guest, and can it give that much?"

    def __init__(self, monitor: Monitor, path: str) -> None:
        self.monitor = monitor
        self.path = path

    async def memory(self) -> MemorySizes:
        """Return the sizes as the balloon counts them (``get_current_ram_size`` in hw/virtio/virtio-balloon.c)."""
        base_bytes = await self.monitor.base_memory()
        devices = await self.monitor.memory_devices()
        return MemorySizes(
            ram_bytes=base_bytes + _dimm_bytes(devices),
            outside_bytes=sum(device.most_bytes for device in devices if device.plugs),
            other_bytes=_other_bytes(devices),
        )

    async def size_bytes(self) -> int:
        """Return the size that the guest has now (``query-balloon``)."""
        return await self.monitor.query_balloon()

    async def order(self, target_bytes: int) -> None:
        """Ask for a size (``balloon``); QEMU takes more than all RAM for all of it."""
        await self.monitor.balloon(target_bytes)


class VirtioMem:
    """A virtio-mem device: the guest's size is the RAM that it always has, and what the device has plugged.

    Args:
        monitor: The connection.
        path: QOM path of the device.
        address: Where it begins in the guest's memory, by which QEMU's list of memory devices tells it from others.
    """

    kind: ClassVar[ActuatorKind] = "virtio-mem"
    query: ClassVar[str] = "query-memory-devices"
    command: ClassVar[str] = "qom-set requested-size"
    coordinated: ClassVar[bool] = True
    takes_back: ClassVar[bool] = False
    stuck_hint: ClassVar[str] = (
        "is the virtio_mem driver loaded in the guest? to give, it needs movable memory: "
        "memhp_default_state=online_movable on its kernel's command line (docs/guests.md)"
    )

    def __init__(self, monitor: Monitor, path: str, address: int) -> None:
        self.monitor = monitor
        self.path = path
        self._address = address
        self._base_bytes: int | None = None  # cannot change while QEMU runs

    async def memory(self) -> MemorySizes:
        """Return the limits by the device's own; other virtio-mem devices are beside it."""
        devices, device, start_bytes = await self._devices()
        others = [each for each in devices if each.plugs and each is not device]
        return MemorySizes(
            ram_bytes=start_bytes + device.data.max_size,
            outside_bytes=sum(each.most_bytes for each in others),
            other_bytes=_other_bytes(devices),
            grid=Grid(start_bytes, device.data.block_size),
        )

    async def size_bytes(self) -> int:
        """Return the RAM of the guest, its DIMMs, and what the device has plugged."""
        _, device, start_bytes = await self._devices()
        return start_bytes + device.data.size

    async def order(self, target_bytes: int) -> None:
        """Ask for a size by the device's ``requested-size``.

        Raises:
            RefusedError: It is not one of whole blocks, or more than the device's memory backend holds. Otherwise as
                `Monitor.execute`.
        """
        _, device, start_bytes = await self._devices()
        requested_bytes = max(target_bytes - start_bytes, 0)
        most_bytes = start_bytes + device.data.max_size
        hint = (
            f"give the memory backend of {self.path} more than its {most_bytes - start_bytes >> 20} MiB, or lower cap"
        )
        arguments = {"path": self.path, "property": "requested-size", "value": requested_bytes}
        try:
            await self.monitor.execute("qom-set", arguments)
        except RefusedError as error:
            if requested_bytes > device.data.max_size:
                error.hint = hint
            raise

    async def _devices(self) -> tuple[list[MemoryDevice], MemoryDevice, int]:
        """Return all memory devices, this one, and the least size: the RAM that is there whatever it has plugged.

        Raises:
            RefusedError: The device is not there any more.
        """
        if self._base_bytes is None:
            self._base_bytes = await self.monitor.base_memory()
        devices = await self.monitor.memory_devices()
        for device in devices:
            if device.plugs and device.data.memaddr == self._address:
                return devices, device, self._base_bytes + _dimm_bytes(devices)
        raise RefusedError(
            f"{self.monitor.address}: the virtio-mem device {self.path} is gone",
            command=self.query,
            error_class="DeviceNotFound",
            hint="plug it in again, or take the guest out of the configuration",
        )


async def find_actuators(monitor: Monitor) -> list[Actuator]:
    """Return what could move the guest's memory, what is to be preferred first; none if there is nothing.

    A balloon first: it gives any page, in steps of 4 KiB; virtio-mem only whole blocks that hold nothing but movable
    memory. Of several virtio-mem devices the one with most room.
    """
    devices = await monitor.devices()
    found: list[Actuator] = [Balloon(monitor, path) for path, kind in devices if kind.startswith(BALLOON_TYPE)]
    plugging = [path for path, kind in devices if kind.startswith(VIRTIO_MEM_TYPE)]
    if plugging:
        listed = await monitor.memory_devices()
        rooms = {device.data.memaddr: device.data.max_size for device in listed if device.plugs}
        places = {path: await monitor.memory_address(path) for path in plugging}
        path = max(places, key=lambda path: rooms.get(places[path], 0))
        found.append(VirtioMem(monitor, path, places[path]))
    return found


def nearest_order(memory: MemorySizes, target_bytes: int) -> int:
    """Return the largest size that can be ordered and is not above `target_bytes`; the least one if none is."""
    return memory.grid.fit(min(target_bytes, memory.ram_bytes))


def _dimm_bytes(devices: list[MemoryDevice]) -> int:
    return sum(device.data.size for device in devices if device.type == "dimm")


def _other_bytes(devices: list[MemoryDevice]) -> int:
    """Return the size of NVDIMM, virtio-pmem and the like: files that the guest sees as memory."""
    return sum(device.data.size for device in devices if device.type != "dimm" and not device.plugs)
