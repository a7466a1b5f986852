"""Signs that a guest is short of memory it cannot do without, as opposed to cache it would like. Pure.

Memory pressure as PSI reports it is not among them: waiting for a cached page to come back counts as a memory stall, so
a guest whose cache is too small shows high pressure without being in danger. What is meant here is the loss of memory
that no policy may take: programs swapped or killed, or nothing left to allocate.
"""

from __future__ import annotations

from qmpalloc.sample import Sample
from qmpalloc.units import MIB, format_size

AVAILABLE_MIN_BYTES = 24 * MIB
AVAILABLE_MIN_SHARE = 0.04
SWAP_IN_PAGES_PER_S = 50.0

FREEZE_S = 60.0
"""How long a guest that was in danger gives nothing."""


def find_danger(earlier: Sample | None, later: Sample, actual_bytes: int) -> str | None:
    """Return why the guest is in danger, with the numbers, or None.

    Args:
        earlier: The accepted sample before, of the same series; None if there is none.
        later: The newest sample.
        actual_bytes: Its size as QEMU reports it.
    """
    available = later.memory_bytes.available
    least = max(AVAILABLE_MIN_BYTES, int(actual_bytes * AVAILABLE_MIN_SHARE))
    if available is not None and available < least:
        return f"danger: {format_size(available)} available, below {format_size(least)}"
    if earlier is None:
        return None
    if earlier.oom_kills is not None and later.oom_kills is not None and later.oom_kills > earlier.oom_kills:
        return f"danger: {later.oom_kills - earlier.oom_kills} processes killed for lack of memory"
    swapped_in = _change(earlier.swap_pages.in_, later.swap_pages.in_)
    seconds = (later.monotonic_ns - earlier.monotonic_ns) / 1e9
    if swapped_in is not None and seconds > 0 and swapped_in / seconds > SWAP_IN_PAGES_PER_S:
        return f"danger: {swapped_in / seconds:.0f} pages/s come back from swap"
    return None


def _change(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before
