"""The size of one guest: asked for, told by QEMU, in doubt, wanted; and what it is charged with."""

from __future__ import annotations

import math

from qmpalloc.control.memory import GuestMemory
from qmpalloc.units import MIB

GREW_BYTES = 4 * MIB
"""A guest that is this much above its target without having been granted more has taken memory back by itself."""

BOOT_GRACE_S = 120.0
"""How long nothing is expected of the size of a guest that was reset and does not report."""


class GuestSize:
    """What is known of a guest's size, in the reckoning of what moves its memory. Bytes.

    Attributes:
        target_bytes: Size last asked of QEMU, or its size when we found it. 0 while it is not known.
        actual_bytes: Size QEMU reported last.
        doubt_bytes: What it may occupy by commands whose outcome is not known yet; 0 when none is in doubt.
        commanded: We have asked this QEMU for another size than it was found with.
        moved_unasked: The last measurement showed a settled guest to have become smaller, or one that takes nothing by
            itself to have become larger, which only a command that is not ours, or the guest's own doing, explains.
        expected_bytes: What it will occupy at first, if it was added and is about to start: charged already. Else 0.
        booting_bytes: What it may use after a reset until something shows that its driver works again; else 0.
        booting_until_s: Until when nothing is expected of its size after a reset; minus infinity once it has reported.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.expected_bytes = 0
        self.moved_unasked = False
        self.forget()

    def forget(self) -> None:
        """Forget all: its QEMU has ended, or another one is there."""
        self.target_bytes = self.actual_bytes = self.desired_bytes = 0
        self.doubt_bytes = self.booting_bytes = 0
        self.booting_until_s = self._reset_s = -math.inf
        self._stale_bytes: int | None = None
        self.commanded = False

    # --- what QEMU reports ------------------------------------------------------------------------------------------

    def found(self, actual_bytes: int) -> None:
        """Take the guest as it is, without a target of our own: one met for the first time, or only observed."""
        self.target_bytes = self.desired_bytes = self.actual_bytes = actual_bytes
        self.doubt_bytes = 0

    def adopted(self, actual_bytes: int) -> None:
        """Note that the guest has another size without a command, or its own doing, and is to keep it.

        As when memory was plugged: QEMU leaves the balloon as it is, so that the guest's size and target change by as
        much. What it was to get is still wanted on top; to shrink is for the next decision, which knows more. Until a
        command for the new size is confirmed it may still grow to the target before, which may have moved with the RAM.
        """
        facts = self._memory.facts
        if self.target_bytes and facts is not None:
            grown_bytes = max(0, actual_bytes - self.actual_bytes)
            self.doubt_bytes = max(self.doubt_bytes, min(self.target_bytes + grown_bytes, facts.ram_bytes))
        wanted_bytes = actual_bytes + max(self.desired_bytes - self.target_bytes, 0)
        self.target_bytes = self.actual_bytes = actual_bytes
        self._stale_bytes = None
        self.desired_bytes = max(actual_bytes, min(wanted_bytes, self._memory.cap_bytes))

    def measured(self, actual_bytes: int) -> bool:
        """Note the size that QEMU reports; return whether it changed."""
        changed, facts = actual_bytes != self.actual_bytes, self._memory.facts
        plugged_more = facts is not None and not facts.takes_back and self.settled and self.grew(actual_bytes)
        self.moved_unasked, self.actual_bytes = plugged_more or self._fell(actual_bytes), actual_bytes
        return changed

    def explains(self, actual_bytes: int) -> bool:
        """Tell whether commands and RAM that are known of explain that size; if not, memory may have been plugged."""
        facts = self._memory.facts
        possible = facts is None or actual_bytes <= facts.ram_bytes
        return possible and not self.grew(actual_bytes) and not self._fell(actual_bytes)

    def grew(self, actual_bytes: int) -> bool:
        """Tell whether that size, which is not noted yet, is more than any command or a reset allows."""
        entitled_bytes = max(self.target_bytes, self.doubt_bytes, self.booting_bytes)
        return actual_bytes > max(self.actual_bytes, entitled_bytes) + GREW_BYTES

    def _fell(self, actual_bytes: int) -> bool:
        return self.settled and not self.booting_bytes and actual_bytes < self.actual_bytes - GREW_BYTES

    @property
    def desired_bytes(self) -> int:
        """Size last decided, rounded down to one that the guest can be set to; 0 while nothing is."""
        return self._desired_bytes

    @desired_bytes.setter
    def desired_bytes(self, size_bytes: int) -> None:
        self._desired_bytes = self._memory.grid.fit(size_bytes) if size_bytes else 0

    @property
    def settled(self) -> bool:
        """True when the guest has the size that was asked for and nothing is in doubt."""
        return self.actual_bytes == self.target_bytes and not self.doubt_bytes

    # --- what is asked of it ----------------------------------------------------------------------------------------

    def ordered(self, target_bytes: int) -> None:
        """Note that a command for that size is about to be sent; the old size stays charged until it is confirmed."""
        self.doubt_bytes = max(self.granted_bytes if self.target_bytes else self.charge_bytes, target_bytes)
        self.commanded = self.commanded or target_bytes != self.target_bytes
        self.target_bytes = target_bytes

    def refused(self, previous_bytes: int, doubt_bytes: int = 0) -> None:
        """Note that QEMU refused the last command, so that target and `doubt_bytes` from before it still hold."""
        self.target_bytes = previous_bytes
        self.doubt_bytes = doubt_bytes

    def confirmed(self) -> None:
        """Note that the size was queried well after QEMU took the last command."""
        self.doubt_bytes = 0

    def achieved_bytes(self) -> int:
        """Return the target that admits what a stuck guest has achieved; never a new one below the floor."""
        least_bytes = min(self.target_bytes, self._memory.floor_bytes)
        return min(max(self._memory.grid.fit(self.actual_bytes), least_bytes), self.most_bytes)

    @property
    def most_bytes(self) -> int:
        """The most that may be asked for: the cap, or what it has been given above it, as when the cap was lowered."""
        return max(self._memory.cap_bytes, self.target_bytes)

    # --- what it is charged with ------------------------------------------------------------------------------------

    @property
    def granted_bytes(self) -> int:
        """What it may occupy by commands."""
        return max(self.target_bytes, self.actual_bytes, self.doubt_bytes)

    @property
    def charge_bytes(self) -> int:
        """What it may occupy now, with what nobody has granted: while it boots, or before it starts."""
        return max(self.granted_bytes, self.booting_bytes) if self.target_bytes else self.expected_bytes

    def was_reset(self, now_s: float) -> None:
        """Note a reset: until its driver works again it may use all of its RAM, while QEMU tells the size before.

        What virtio-mem had plugged is gone with it, and comes back up to the target.
        """
        facts = self._memory.facts
        self.booting_bytes = facts.boot_bytes if facts else self._memory.cap_bytes
        self.booting_until_s = now_s + BOOT_GRACE_S
        self._reset_s, self._stale_bytes = now_s, None

    def end_boot(self, actual_bytes: int, asked_s: float) -> bool:
        """End the time after a reset in which it may use what nobody has granted, if it is over; return whether.

        It has reported, or its driver has told another size than QEMU does since the reset. Time shows nothing: a
        rescue shell may wait for days. What was asked before the reset may tell a size on its way to the stale one.
        """
        if not self.booting_bytes:
            return False
        if self._stale_bytes is None and asked_s > self._reset_s:
            self._stale_bytes = actual_bytes
        reported = self.booting_until_s == -math.inf
        if self._stale_bytes in {None, actual_bytes} and not reported:
            return False
        self.booting_bytes = 0
        return True
