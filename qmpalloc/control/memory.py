"""The memory of one guest: what QEMU has given it, what its kernel cannot give up; floor, cap and baseline by that."""

from __future__ import annotations

from msgspec import Struct, structs

from qmpalloc.config import GuestConfig
from qmpalloc.idle import SWAP_STEP_BYTES, Touches, idle_anonymous_bytes, unused_mapped_bytes
from qmpalloc.model import MemorySizes
from qmpalloc.rules.danger import with_reserve
from qmpalloc.sample import Sample
from qmpalloc.units import Grid


class Facts(Struct, frozen=True, kw_only=True):
    """What a monitor tells about its guest when we connect. Of its memory it is asked again and again.

    Attributes:
        ram_bytes: The most that its size can be; this and the next three as in `MemorySizes`.
        outside_bytes: Memory beside what is moved, charged beside the guest's size.
        other_bytes: Other memory that was plugged, which nobody is charged with.
        grid: The sizes that it can be set to.
        actuator: What moves its memory, for people: ``balloon`` or ``virtio-mem``.
        takes_back: Whether the guest can take memory without having been granted it, as a balloon's driver can, and a
            system without one does after a reset. Else its size is what was plugged for it, and no more.
        balloon_path: QOM path of the balloon device, which tells statistics; empty where there is none.
        deflate_on_oom: The balloon's property; with it ``MemTotal`` does not follow the guest's size.
        qemu_version: For people.
        process_id: Of the QEMU that listens on the socket, to tell a new one from the one before; None if not known.
    """

    ram_bytes: int
    balloon_path: str = ""
    deflate_on_oom: bool
    qemu_version: str
    process_id: int | None = None
    outside_bytes: int = 0
    other_bytes: int = 0
    grid: Grid = Grid()
    actuator: str = "balloon"
    takes_back: bool = True

    def with_memory(self, memory: MemorySizes) -> Facts:
        """Return the facts with what was told of the memory."""
        return structs.replace(
            self,
            ram_bytes=memory.ram_bytes,
            outside_bytes=memory.outside_bytes,
            other_bytes=memory.other_bytes,
            grid=memory.grid,
        )

    @property
    def boot_bytes(self) -> int:
        """The most that it uses from a reset on until its driver works: what was plugged is gone with the reset."""
        return self.ram_bytes if self.takes_back else self.grid.start_bytes

    @property
    def visible_bytes(self) -> int:
        """The most that the guest's kernel can count as its memory; files that it sees as memory can be part of it."""
        return self.ram_bytes + self.outside_bytes + self.other_bytes


class GuestMemory:
    """What a guest has and needs, and the limits that follow for its size.

    Attributes:
        config: The configured floor, cap and baseline.
        facts: None until the monitor was asked.
        resident_bytes: Of its QEMU, when it was looked at last; None when not known.
    """

    def __init__(self, config: GuestConfig, reserve_bytes: int) -> None:
        self.config = config
        self.facts: Facts | None = None
        self._reserve_bytes = reserve_bytes
        self.forget()

    def forget(self) -> None:
        """Forget what the guest's kernel has told: another one may run now."""
        self._needed_bytes = self._held_bytes = self._gap_at_bytes = self._idle_bytes = 0
        self._gap_bytes: int | None = None
        self.resident_bytes: int | None = None

    def given(self, facts: Facts) -> None:
        """Take facts with the memory that QEMU gives the guest now.

        What was plugged is of no use to the guest before its kernel takes it. Until samples show that it has, the guest
        can neither give it up nor has it too much: it counts to the floor, and not to the cap.
        """
        grown_bytes = facts.ram_bytes - self.facts.ram_bytes if self.facts is not None else 0
        self.facts = facts
        if grown_bytes > 0 and self._gap_bytes is not None:
            self._gap_bytes += grown_bytes
            self._needed_bytes += grown_bytes
            self._held_bytes += grown_bytes
            self._idle_bytes += grown_bytes
        elif grown_bytes < 0:
            self._idle_bytes = max(self._idle_bytes + grown_bytes, 0)

    def claims_too_much(self, sample: Sample) -> bool:
        """Tell whether the guest counts more memory as its own than is known to have been given to it."""
        total = sample.memory_bytes.total
        return total is not None and self.facts is not None and total > self.facts.visible_bytes

    def learn_need(self, sample: Sample, actual_bytes: int, target_bytes: int) -> None:
        """Remember what the guest cannot give up, also for the time when it tells no more.

        The size QEMU counts includes what the guest's kernel took before it could account for it (RAM - MemTotal).
        Memory that the kernel uses outside of the balloon makes that difference smaller, or negative: so much less
        must be inside. What the kernel needs for itself must be, for such memory is often for programs only.
        Anonymous memory that nothing touches any more can be given up where swap has room for it.

        Of kinds that are known it gets what it lacks. What it holds besides, nobody takes; but some of that is cache
        that grows with the guest, so that it earns it no memory.

        Args:
            sample: What it tells.
            actual_bytes: Its size as QEMU reports it.
            target_bytes: The size that it is to have.
        """
        memory = sample.memory_bytes
        if memory.unreclaimable_bytes is None:
            return
        if memory.total is not None and self.facts is not None:
            self._learn_gap(self.facts.ram_bytes if self.facts.deflate_on_oom else actual_bytes, memory.total)
        least_bytes = memory.unreclaimable_bytes - (memory.anon or 0) - (memory.shmem or 0)
        beside_bytes = (self._gap_bytes or 0) - self._swapped_next(sample)
        needed_bytes = max(beside_bytes + memory.unreclaimable_bytes, least_bytes)
        self._needed_bytes = with_reserve(needed_bytes, self._reserve_bytes)
        held_bytes = with_reserve(max(beside_bytes + (memory.held_bytes or 0), 0), self._reserve_bytes)
        self._held_bytes = min(held_bytes, target_bytes)

    def _learn_gap(self, size_bytes: int, total_bytes: int) -> None:
        """Learn RAM - MemTotal. Where MemTotal follows the size, only while that rests from sample to sample."""
        at_rest, self._gap_at_bytes = size_bytes == self._gap_at_bytes, size_bytes
        if at_rest or self._gap_bytes is None:
            beside_bytes = self.facts.visible_bytes - self.facts.ram_bytes if self.facts else 0
            used_bytes = (self._gap_bytes or 0) - self._idle_bytes  # what the kernel kept of what it knew
            self._gap_bytes = max(size_bytes - total_bytes, -beside_bytes)
            self._idle_bytes = min(self._idle_bytes, max(self._gap_bytes - used_bytes, 0))

    @property
    def grid(self) -> Grid:
        """The sizes that it can be set to."""
        return self.facts.grid if self.facts is not None else Grid()

    @property
    def cap_bytes(self) -> int:
        """The configured cap, or the guest's RAM if that is less: QEMU clamps silently. On the guest's grid.

        RAM that was plugged and is not used yet comes on top: without it the guest would have less than its cap.
        """
        cap_bytes = self.config.cap + self._idle_bytes
        return self.grid.fit(min(cap_bytes, self.facts.ram_bytes) if self.facts else cap_bytes)

    @property
    def floor_bytes(self) -> int:
        """The largest of the configured floor, and what the guest needed and held when it last told, with the reserve.

        Never above the cap. On the guest's grid.
        """
        least_bytes = max(self.config.floor + self._idle_bytes, self._needed_bytes, self._held_bytes)
        return min(self.grid.fit_up(least_bytes), self.cap_bytes)

    @property
    def baseline_bytes(self) -> int:
        """The size it is returned to: the configured baseline, or its floor if that is higher. On its grid."""
        return max(self.grid.fit(min(self.config.baseline, self.cap_bytes)), self.floor_bytes)

    def in_use_bytes(self, sample: Sample | None, touches: Touches) -> int | None:
        """Return the size below which it loses what it cannot give up, or files that its programs map and use.

        Args:
            sample: Its newest; None if there is none.
            touches: How often its memory was touched again.

        Returns:
            Bytes; None if it does not tell.
        """
        in_use_bytes = sample.memory_bytes.in_use_bytes if sample else None
        if sample is None or in_use_bytes is None:
            return None
        in_use_bytes -= unused_mapped_bytes(sample, touches) + self._swapped_next(sample)
        return with_reserve((self._gap_bytes or 0) + in_use_bytes, self._reserve_bytes)

    def _swapped_next(self, sample: Sample) -> int:
        """Return how much anonymous memory the guest can be made to swap out now.

        What nothing touches is as good a reserve as what is free: a guest that has more of it needs none beside.
        """
        return min(self._reserve_bytes + SWAP_STEP_BYTES, idle_anonymous_bytes(sample))
