"""What a guest says it brought in, beside what QEMU saw its disks read: who forges page-ins has no reads for them."""

from __future__ import annotations

from msgspec import Struct

from qmpalloc.curves.tuning import TUNING


class Reads(Struct, frozen=True):
    """Disk reads of a guest since its QEMU started: pages, and the time they took, summed, in seconds."""

    pages: float
    time_s: float


class DiskCrossCheck:
    """One series of QEMU's counts, beside the guest's.

    Attributes:
        page_ins_lately: Pages that the guest says it brought in from its disks, for whatever cause; each counts half
            after a minute. An interval alone would allow a guest a few too many for ever.
        pages_lately: Pages that QEMU read from its disks, the same.
    """

    def __init__(self, first: Reads) -> None:
        """Begin with the first count."""
        self._last = self._at_window = first
        self._at_sample: Reads | None = None
        self.page_ins_lately = self.pages_lately = 0.0

    def take_reads(self, reads: Reads) -> bool:
        """Take what QEMU says now; return False if it went back and so belongs to another series."""
        if reads.pages < self._last.pages:
            return False
        self.pages_lately += reads.pages - self._last.pages
        self._last = reads
        return True

    def take_page_ins(self, from_disks: int, interval_s: float) -> None:
        """Take what the guest reports of an interval: `PageIns.from_disks`."""
        kept = 0.5 ** (max(0.0, interval_s) / TUNING.disks.half_life_s)
        self.page_ins_lately = self.page_ins_lately * kept + max(0, from_disks)
        self.pages_lately *= kept

    def since_sample(self) -> tuple[int | None, float | None]:
        """Begin a sample interval; return pages read in the last one, and the time of one if they were not too few."""
        before, self._at_sample = self._at_sample, self._last
        if before is None:
            return None, None
        pages, time_s = self._last.pages - before.pages, self._last.time_s - before.time_s
        return round(pages), time_s / pages if pages >= TUNING.disks.pages_least and time_s >= 0 else None

    def close_window(self) -> None:
        """Begin an interval of counting."""
        self._at_window = self._last

    @property
    def window_pages(self) -> int | None:
        """Pages read in this interval; None before anything was counted in it."""
        return None if self._last is self._at_window else round(self._last.pages - self._at_window.pages)
