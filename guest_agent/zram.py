"""Pages that come back from zram: swap in compressed memory, which touches no disk."""

from __future__ import annotations

from guest_agent import procfs


class Zram:
    """Adds up what the zram devices that are used as swap give back.

    The kernel counts swap-ins of all devices together (``pswpin``), and for each zram device what was read from it. A
    device may come, go and be reset at any time; what was read from it before it was first seen is left out.

    Args:
        page_size: Bytes of a page.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._read: dict[str, int] = {}  # by device, when it was last looked at
        self._pages = 0

    def pages(self, swap_bytes: int | None) -> int | None:
        """Return the pages that came back from zram since this was made; None where the kernel tells no devices.

        Args:
            swap_bytes: Room on all swap devices: most guests have none, and nothing to ask for; None if not known.
        """
        if swap_bytes == 0 and not self._read:
            return self._pages
        swaps = procfs.read("/proc/swaps")
        if swaps is None:
            return None
        used = procfs.zram_swaps(swaps)
        # One that is in use no more is asked once more: swapoff reads all of it.
        for name in {*used, *self._read}:
            directory = f"/sys/block/{name}"
            stat, bd_stat = procfs.read(f"{directory}/stat"), procfs.read(f"{directory}/bd_stat")
            now, before = procfs.zram_pages_read(stat, bd_stat, self._page_size), self._read.pop(name, None)
            if now is None:
                continue
            self._pages += max(0, now - (now if before is None else before))
            if name in used:
                self._read[name] = now
        return self._pages

    def held_bytes(self) -> int | None:
        """Return the memory in which the devices in use at the last call of `pages` keep what they took; None: none."""
        if not self._read:
            return None
        held = 0
        for name in self._read:
            # "mem_used_total" is the third number (Documentation/admin-guide/blockdev/zram.rst).
            words = (procfs.read(f"/sys/block/{name}/mm_stat") or "").split()
            held += int(words[2]) if len(words) > 2 and words[2].isdigit() else 0
        return held
