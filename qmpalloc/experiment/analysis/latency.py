"""Read latencies, counted in buckets an eighth of an octave wide: few numbers, and no percentile off by over 12 %.

The generator in the guest counts (it cannot import this: see ``run/generator.py``, which a test holds against it), the
host subtracts two cumulative histograms and asks for percentiles.
"""

from __future__ import annotations

from collections.abc import Mapping

SUB_BITS = 3
"""Buckets per octave, as a power of two."""


def bucket(latency_ns: int) -> int:
    """Return the number of the bucket that counts a latency of this many nanoseconds."""
    octave = latency_ns.bit_length() - SUB_BITS - 1
    return latency_ns if octave <= 0 else (octave << SUB_BITS) + (latency_ns >> octave)


def lower_bound_ns(number: int) -> int:
    """Return the smallest latency that bucket `number` counts, in nanoseconds."""
    if number < 2 << SUB_BITS:
        return number
    octave = (number >> SUB_BITS) - 1
    return (number - (octave << SUB_BITS)) << octave


def percentile_ns(counts: Mapping[int, int], share: float) -> float | None:
    """Return the latency that `share` (0 to 1) of the reads did not exceed: the middle of its bucket; None: no reads.

    Args:
        counts: Bucket number to reads.
        share: For example 0.99.
    """
    total = sum(counts.values())
    if not total:
        return None
    seen, wanted = 0, share * total
    for number in sorted(counts):
        seen += counts[number]
        if seen >= wanted:
            return (lower_bound_ns(number) + lower_bound_ns(number + 1)) / 2
    raise AssertionError("unreachable: the last bucket holds all reads")


def difference(later: Mapping[int, int], earlier: Mapping[int, int]) -> dict[int, int]:
    """Return the reads counted between two cumulative histograms."""
    return {number: more for number, count in later.items() if (more := count - earlier.get(number, 0)) > 0}
