"""Models of what moves a guest's memory on trio's clock: a balloon, and a virtio-mem device."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from qmpalloc.units import MIB, PAGE_BYTES, Grid, align_down

FIRST_BYTES = MIB
"""What a balloon's driver hands over before it tells its size for the first time (``fill_balloon`` in Linux)."""


class FakeBalloon:
    """The guest's size moves from where it is to the target, at a rate for each direction.

    Attributes:
        memory_bytes: RAM of the guest, the largest size.
        target_bytes: Size last asked for.
        inflate_bytes_per_s: How fast the guest gives memory up.
        deflate_bytes_per_s: How fast it takes memory back.
        boot_s: How long a new system takes until its driver works.
        grid: The sizes it can have.
    """

    boot_s = 0.5
    grid = Grid()

    def __init__(
        self,
        memory_bytes: int,
        *,
        inflate_bytes_per_s: float = math.inf,
        deflate_bytes_per_s: float = math.inf,
        least_bytes: int = 0,
    ) -> None:
        self.memory_bytes = memory_bytes
        self.target_bytes = memory_bytes
        self.inflate_bytes_per_s = inflate_bytes_per_s
        self.deflate_bytes_per_s = deflate_bytes_per_s
        self._least_bytes = least_bytes
        self._halts: set[str] = set()
        self._took_back = False
        self._start_bytes = memory_bytes
        self._start_s = self._driver_from_s = -math.inf
        self._stale_bytes: int | None = None
        self._nudge = trio.Event()

    @property
    def actual_bytes(self) -> int:
        """The guest's size now, one of the grid."""
        goal = self._goal_bytes
        change = goal - self._start_bytes
        if self._halts or change == 0 or self.booting:
            return self._start_bytes
        rate = self.deflate_bytes_per_s if change > 0 else self.inflate_bytes_per_s
        elapsed_s = trio.current_time() - self._start_s
        if rate == math.inf or rate * elapsed_s >= abs(change):
            return goal
        moved = round(rate * elapsed_s / self.grid.unit_bytes) * self.grid.unit_bytes
        return self._start_bytes + int(math.copysign(moved, change))

    @property
    def told_bytes(self) -> int:
        """The size that QEMU tells: after a reset the one before, until the new driver has handed something over."""
        actual = self.actual_bytes
        return actual if self._stale_bytes is None or actual < self.memory_bytes else self._stale_bytes

    @property
    def booting(self) -> bool:
        """True from a reset until the driver of the new system works."""
        return trio.current_time() < self._driver_from_s

    @property
    def moving(self) -> bool:
        """True while the size changes by itself."""
        return not self._halts and self.actual_bytes != self._goal_bytes

    @property
    def stalled(self) -> bool:
        """True while the guest does not work on its balloon: no driver, or no memory that it could give."""
        return "stalled" in self._halts

    @stalled.setter
    def stalled(self, on: bool) -> None:
        self._halt("stalled", on=on)

    @property
    def paused(self) -> bool:
        """True while the virtual CPUs are stopped."""
        return "paused" in self._halts

    @paused.setter
    def paused(self, on: bool) -> None:
        self._halt("paused", on=on)

    @property
    def least_bytes(self) -> int:
        """The guest gives up no more than what is above this."""
        return self._least_bytes

    @least_bytes.setter
    def least_bytes(self, size_bytes: int) -> None:
        self._settle()
        self._least_bytes = size_bytes

    def request(self, target_bytes: int) -> None:
        """Ask for a size, as the ``balloon`` command does; more than all memory means all."""
        self._settle()
        self._took_back = False
        # QEMU counts whole pages of the balloon, so what is left to the guest is rounded up.
        self.target_bytes = min(-align_down(-target_bytes), self.memory_bytes)

    def plug(self, size_bytes: int) -> None:
        """Give the guest that much more RAM, or less: the balloon itself stays as it is."""
        self._settle()
        self.memory_bytes += size_bytes
        self.target_bytes += size_bytes
        self._start_bytes += size_bytes
        if self._stale_bytes is not None:
            self._stale_bytes += size_bytes

    def take_back(self, size_bytes: int) -> None:
        """Let the guest free that much of its balloon by itself (``deflate-on-oom``), above the target.

        The size then stays until the next request, as nothing asks a real driver to inflate again before.
        """
        self._settle()
        if self.booting:  # no driver has taken anything from it yet
            return
        self._start_bytes = min(self.memory_bytes, self._start_bytes + align_down(size_bytes))
        self._took_back = True

    async def run_changes(self, report: Callable[[int], None]) -> None:
        """Call `report` with the size when it has changed, at most once a second, for ever."""
        reported = self.told_bytes
        while True:
            told = self.told_bytes
            if told != reported:
                reported = told
                report(told)
                await trio.sleep(1.0)
            elif self.booting:
                await trio.sleep(self._start_s - trio.current_time() + FIRST_BYTES / self.inflate_bytes_per_s)
            elif self.moving:
                await trio.sleep(min(1.0, self._remaining_s()))
            else:
                self._nudge = trio.Event()
                await self._nudge.wait()

    @property
    def _goal_bytes(self) -> int:
        if self._took_back:
            return self._start_bytes
        # What the guest cannot give up only stops it from shrinking; it never makes it grow.
        return max(self.target_bytes, min(self._start_bytes, self.grid.fit(self._least_bytes)))

    def _halt(self, reason: str, *, on: bool) -> None:
        self._settle()
        if on:
            self._halts.add(reason)
        else:
            self._halts.discard(reason)

    def _settle(self) -> None:
        self._start_bytes = self.actual_bytes
        self._start_s = max(trio.current_time(), self._driver_from_s)
        if self._start_bytes < self.memory_bytes:
            self._stale_bytes = None
        self._nudge.set()

    def _remaining_s(self) -> float:
        change = self._goal_bytes - self._start_bytes
        rate = self.deflate_bytes_per_s if change > 0 else self.inflate_bytes_per_s
        # The last page is where rounding up to it takes us, so never less than the time of a page.
        return max(self._start_s + abs(change) / rate - trio.current_time(), PAGE_BYTES / rate)

    def reset(self) -> None:
        """Begin another system: it has all of the RAM, and QEMU tells the size before, until its driver works."""
        self._settle()
        self._stale_bytes = self.told_bytes
        self._begin(self.memory_bytes)

    def _begin(self, size_bytes: int) -> None:
        self._took_back = False
        self._start_bytes = size_bytes
        self._start_s = self._driver_from_s = trio.current_time() + self.boot_s


class FakeVirtioMem(FakeBalloon):
    """A virtio-mem device, as `FakeBalloon` in whole blocks: RAM that is always there, and what is plugged on top.

    Args:
        base_bytes: The RAM.
        most_bytes: What the device's memory backend holds.
        block_bytes: Its block size.
        rates: How fast blocks are unplugged (``inflate_bytes_per_s``) and plugged, as of a balloon.

    It plugs no more than it was asked to, so that `take_back` does nothing. `stalled` is a guest without the driver, or
    one whose blocks all hold something that cannot be moved.
    """

    def __init__(self, base_bytes: int, most_bytes: int, *, block_bytes: int = 2 * MIB, **rates: float) -> None:
        super().__init__(base_bytes + most_bytes, **rates)  # type: ignore[arg-type]
        self.grid = Grid(base_bytes, block_bytes)
        self.target_bytes = self._start_bytes = base_bytes

    @property
    def requested_bytes(self) -> int:
        """What it was asked to have plugged."""
        return self.target_bytes - self.grid.start_bytes

    @property
    def plugged_bytes(self) -> int:
        """What it has plugged."""
        return self.actual_bytes - self.grid.start_bytes

    @property
    def most_bytes(self) -> int:
        """What its memory backend holds."""
        return self.memory_bytes - self.grid.start_bytes

    def request(self, target_bytes: int) -> None:
        """Ask for a size of the guest; what is not one of whole blocks is rounded down, and its RAM always stays."""
        self._settle()
        self.target_bytes = min(self.grid.fit(target_bytes), self.memory_bytes)

    def plug(self, size_bytes: int) -> None:
        """Give the guest that much more RAM (a DIMM), or less."""
        super().plug(size_bytes)
        self.grid = Grid(self.grid.start_bytes + size_bytes, self.grid.unit_bytes)

    def take_back(self, size_bytes: int) -> None:
        """Do nothing: QEMU refuses a guest that wants to plug more than was asked for."""

    def reset(self) -> None:
        """Begin another system: QEMU unplugs all, and its driver plugs up to what is asked for."""
        self._settle()
        self._begin(self.grid.start_bytes)
