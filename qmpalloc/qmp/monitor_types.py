"""What a monitor answers, typed: the wire form of a reply, and the value the rest of qmpalloc sees."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from qmpalloc.qmp.replies import Count
from qmpalloc.units import PAGE_BYTES

UNKNOWN_STATS = (-1, 2**64 - 1)
"""How QEMU writes a statistic the guest did not give: -1 as a signed or, in newer versions, an unsigned number."""


class VmStatus(Struct, frozen=True, kw_only=True):
    """``query-status``.

    Attributes:
        status: For example ``running``, ``paused``, ``prelaunch``, ``guest-panicked``.
        running: True when the virtual CPUs run.
    """

    status: str
    running: bool


class BalloonActual(Struct, frozen=True, kw_only=True):
    """``query-balloon``: the guest's size in bytes."""

    actual: Count


class MemorySummary(Struct, frozen=True, kw_only=True, rename={"base_memory": "base-memory"}):
    """``query-memory-size-summary``: the RAM QEMU was started with (``-m``), without what was plugged."""

    base_memory: Annotated[int, Meta(gt=0, le=2**63 - 1)]


class MemoryDeviceData(
    Struct,
    frozen=True,
    kw_only=True,
    rename={"requested_size": "requested-size", "max_size": "max-size", "block_size": "block-size"},
):
    """``data`` of an entry of ``query-memory-devices``. Not every kind has all of it.

    Attributes:
        size: What it gives the guest now.
        requested_size: What a virtio-mem device was asked to give.
        max_size: What it can give at most.
        block_size: In steps of how much.
        memaddr: Where it begins in the guest's memory: no two begin at one place.
    """

    size: Count = 0
    requested_size: Count = 0
    max_size: Count = 0
    block_size: Annotated[int, Meta(gt=0, le=2**63 - 1)] = PAGE_BYTES
    memaddr: Count = 0


class MemoryDevice(Struct, frozen=True, kw_only=True):
    """An entry of ``query-memory-devices``: ``dimm``, ``nvdimm``, ``virtio-mem``, ``virtio-pmem`` and others."""

    type: str
    data: MemoryDeviceData

    @property
    def plugs(self) -> bool:
        """True for virtio-mem, which plugs more or less of itself."""
        return self.type == "virtio-mem"

    @property
    def most_bytes(self) -> int:
        """What the guest may take of it at any time, without another command."""
        return max(self.data.size, self.data.requested_size)


class QomProperty(Struct, frozen=True, kw_only=True):
    """One entry of ``qom-list``: a property of an object; children have the type ``child<…>``."""

    name: str
    type: str

    @property
    def child_type(self) -> str:
        """The type of a child; empty for other properties."""
        return self.type.removeprefix("child<").removesuffix(">") if self.type.startswith("child<") else ""


class BalloonStats(Struct, frozen=True, kw_only=True):
    """What the guest's balloon driver last reported. The guest chooses these numbers; None is unknown.

    Attributes:
        last_update: Host Unix time of the report in seconds; None when the guest never reported. QEMU asks again only
            after the guest has answered, so a guest that stops answering freezes these numbers without an error.
        total_bytes: RAM that the guest has.
        available_bytes: What its programs could have without swapping.
        oom_kills: Since the guest's boot. This and what follows only with QEMU 9.2 and Linux 6.12, or newer.
        alloc_stalls: Allocations that had to wait for reclaim, since the guest's boot.
    """

    last_update: int | None = None
    total_bytes: int | None = None
    available_bytes: int | None = None
    oom_kills: int | None = None
    alloc_stalls: int | None = None


class GuestStats(Struct, frozen=True, kw_only=True, rename={"last_update": "last-update"}):
    """The ``guest-stats`` property of a balloon device, as QEMU writes it."""

    stats: dict[str, int]
    last_update: Count

    def values(self) -> BalloonStats:
        """Return the statistics with the unknown ones None.

        Raises:
            ValueError: One is negative, or larger than the 64 bits it was sent in.
        """
        known = {
            name: self.stats[key] for name, key in STAT_KEYS.items() if self.stats.get(key, -1) not in UNKNOWN_STATS
        }
        for name, value in known.items():
            if not 0 <= value < 2**64:
                raise ValueError(f"{STAT_KEYS[name]} is out of range")
        return BalloonStats(last_update=self.last_update or None, **known)


STAT_KEYS = {
    "total_bytes": "stat-total-memory",
    "available_bytes": "stat-available-memory",
    "oom_kills": "stat-oom-kills",
    "alloc_stalls": "stat-alloc-stalls",
}


class BlockStats(Struct, frozen=True, kw_only=True):
    """Reads of one block device since QEMU started, as the host sees them.

    Attributes:
        name: The ``-drive`` id, else the device's id, else the block node's name.
        rd_bytes: Bytes read.
        rd_operations: Read requests.
        rd_total_time_ns: Time those requests took, summed.
    """

    name: str
    rd_bytes: int
    rd_operations: int
    rd_total_time_ns: int


class BlockCounters(Struct, frozen=True, kw_only=True):
    """``stats`` of an entry of ``query-blockstats``."""

    rd_bytes: Count
    rd_operations: Count
    rd_total_time_ns: Count


class BlockEntry(Struct, frozen=True, kw_only=True, rename={"node_name": "node-name"}):
    """An entry of ``query-blockstats``."""

    stats: BlockCounters
    device: str = ""
    qdev: str = ""
    node_name: str = ""

    @property
    def name(self) -> str:
        """What people call the device. ``qdev`` is a path such as ``/machine/peripheral/vd0/virtio-backend``."""
        prefix = "/machine/peripheral/"
        device_id = self.qdev.removeprefix(prefix).split("/")[0] if self.qdev.startswith(prefix) else ""
        return self.device or device_id or self.node_name or self.qdev

    def values(self) -> BlockStats:
        """Return the entry in the form the rest of qmpalloc sees."""
        fields: dict[str, Any] = msgspec.structs.asdict(self.stats)
        return BlockStats(name=self.name, **fields)


class VersionTriple(Struct, frozen=True):
    """QEMU's version in its greeting."""

    major: Count
    minor: Count
    micro: Count
