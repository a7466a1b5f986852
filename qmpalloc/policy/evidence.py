"""What is known of guests whatever their curves: what they can lose at most, what contradicts them."""

from __future__ import annotations

from qmpalloc.curves.mapping import unused_bytes
from qmpalloc.model import GuestSnapshot
from qmpalloc.units import format_count

_DISK_TOLERANCE, _DISK_SLACK_PAGES = 1.25, 2_000
"""Page-ins by page that the disks read, and pages beside that: both are not read at the same moment."""

_HITS_NOTHING = 0.95
"""Of a guest's accesses that miss, from which on it is said to hit nothing. A slow guest that hits more has few hits by
number, but perhaps because it is starved: then it goes slower for it, and learns its curve the slower."""


_OTHERS_COUNT = 2.0

_HOW = ("by page faults (mmap)", "from swap", "neither by reads nor by page faults (metadata)")
"""Pages are brought in otherwise than by reads, in words."""

_FEW_FAULTS = 25
"""Of which each brings in one page: so many are taken to have been seen beside those that were."""

_UNCOUNTED_SHARE, _UNCOUNTED_LEAST, _UNCOUNTED_PER_S = 0.3, 0.01, 25.0
"""Pages brought in by other means than reads, of all that were brought in, of all accesses, and per second, above which
a guest is thought to need its cache for what nobody counts."""


def accesses_per_s(guest: GuestSnapshot) -> float:
    """Return the guest's accesses per second; 0 when they are not known."""
    return guest.accesses_per_s or 0.0


def missed_per_s(guest: GuestSnapshot) -> float:
    """Return the guest's misses per second; 0 when they are not known."""
    return max(0, guest.misses or 0) / guest.interval_s if guest.interval_s else 0.0


def page_ins_most(guest: GuestSnapshot, misses_per_s: float) -> float:
    """Return what to promise of a guest that is to miss so much: it brings in the rest as it does now."""
    return misses_per_s + (guest.page_ins.beside_reads / guest.interval_s if guest.interval_s else 0.0)


def counted_per_s(changed: float, everyone: float) -> float:
    """Return the accesses per second of which a move must gain a share, so that it is worth the trouble.

    Those of all guests, for each is disturbed in some way; but at most twice those of the guests that change: one that
    reads a million pages a second, or claims to, says nothing about what two others gain.
    """
    return min(everyone, _OTHERS_COUNT * changed)


def missed_anyway(guest: GuestSnapshot) -> float:
    """Return the share of its accesses that a guest misses for no passing reason, and so cannot lose.

    0 unless that is nearly all, its disks confirm it, and its cache has turned over: one that is still being filled
    misses what it will hit.
    """
    if guest.curve is None or not guest.curve.turned_over or guest.curve.measured is None or unconfirmed(guest):
        return 0.0
    lost = min(guest.curve.measured, guest.miss_ratio)
    return lost if lost >= _HITS_NOTHING else 0.0


def hits_nothing(guest: GuestSnapshot) -> bool:
    """Return whether all but one in twenty of the guest's accesses missed in the last interval."""
    return guest.miss_ratio >= _HITS_NOTHING


def uncounted_per_s(guest: GuestSnapshot) -> float:
    """Return the pages per second that the guest brings in otherwise than by reads: at least so often it uses them."""
    return sum(_uncounted(guest)) / guest.interval_s if guest.interval_s else 0.0


def _uncounted(guest: GuestSnapshot) -> tuple[int, int, int]:
    """Return the pages brought in by page faults, from swap, and by neither of them nor reads.

    The last are pages that came back to the cache though no read missed them and no page fault asked for them:
    directories and other metadata of a file system, or pages that are written.
    """
    faults, swapped, misses = (max(0, count or 0) for count in (guest.faults, guest.swap_ins, guest.misses))
    return faults, swapped, max(0, (guest.refaults or 0) - faults - misses)


def returned_per_s(guest: GuestSnapshot) -> tuple[float, float]:
    """Return the pages per second that came back after the guest had to drop them, by faults and from swap."""
    if not guest.interval_s:
        return 0.0, 0.0
    faulted = min(max(0, guest.faults or 0), max(0, guest.refaults or 0))
    return faulted / guest.interval_s, max(0, guest.swap_ins or 0) / guest.interval_s


def pages_per_fault(guest: GuestSnapshot) -> float:
    """Return how many pages a page fault brings in, with the neighbours that the kernel reads ahead.

    A few faults say little: as if some that bring in a page each had been seen as well. 1 if they are not counted.
    """
    if guest.faults_major is None:
        return 1.0
    return max(1.0, (max(0, guest.faults or 0) + _FEW_FAULTS) / (max(0, guest.faults_major) + _FEW_FAULTS))


def spare_bytes(guest: GuestSnapshot) -> int:
    """Return what the guest would have free at its target beyond what a kernel keeps free: taking that costs nothing.

    What it still has above its target is as good as gone: it comes from what is free now.
    """
    unused = unused_bytes(guest.memory) if guest.memory is not None else 0
    return max(0, unused - max(0, guest.actual_bytes - guest.target_bytes))


def losable_per_s(guest: GuestSnapshot) -> float:
    """Return the hits per second that the guest can lose, at most."""
    return accesses_per_s(guest) * (1.0 - missed_anyway(guest)) + uncounted_per_s(guest)


def uncounted(guest: GuestSnapshot) -> str:
    """Return that a guest uses its memory for what nobody counts, mmap above all; empty when it does not, or hardly."""
    brought_in = dict(zip(_HOW, _uncounted(guest), strict=True))
    pages, accesses = sum(brought_in.values()), max(0, guest.accesses)
    share = pages / max(1, pages + max(0, guest.misses or 0))
    if share <= _UNCOUNTED_SHARE or pages <= _UNCOUNTED_LEAST * accesses or uncounted_per_s(guest) < _UNCOUNTED_PER_S:
        return ""
    how = max(brought_in, key=brought_in.__getitem__)
    return f"{share:.0%} of what it brings in is {how}, of which no hits are counted"


def unconfirmed(guest: GuestSnapshot) -> str:
    """Return in which way the guest's disks contradict its page-ins; empty when they do not, or are not known.

    Its memory is worth at most what it brings in, and that must have come from the disks that QEMU serves, but for
    zram's: in the last interval, and in the last minutes, or a few pages too many would be free in each interval.
    """
    for claimed, pages, when in (
        (guest.page_ins.from_disks, guest.disk_read_pages, ""),
        (guest.page_ins_lately, guest.disk_read_pages_lately, " lately"),
    ):
        if claimed is not None and pages is not None and claimed > pages * _DISK_TOLERANCE + _DISK_SLACK_PAGES:
            return f"reports {format_count(claimed)} page-ins{when}, but its disks read {format_count(pages)} pages"
    return ""
