"""What a guest reports that it missed, beside what QEMU saw its disks read: who forges misses has no reads for them."""

from __future__ import annotations

_HALF_LIFE_S = 60.0


class Witness:
    """Both sums over the last minutes; an interval alone would allow a guest a few misses too many for ever.

    Attributes:
        misses: Pages that the guest says it brought in; each counts half after a minute.
        pages: Pages that QEMU read from its disks, the same.
    """

    def __init__(self) -> None:
        self.misses = self.pages = 0.0

    def report(self, misses: int, interval_s: float) -> None:
        """Take what the guest reports of an interval."""
        kept = 0.5 ** (max(0.0, interval_s) / _HALF_LIFE_S)
        self.misses = self.misses * kept + max(0, misses)
        self.pages *= kept

    def see(self, pages: float) -> None:
        """Take what QEMU has read since it was asked last."""
        self.pages += max(0.0, pages)
