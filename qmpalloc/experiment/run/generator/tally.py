"""What is counted of reads: how many, how many failed, and how long they took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SUB_BITS = 3
"""Buckets per octave, as a power of two: an eighth of an octave wide, so that no percentile is off by over 12 %."""

BUCKETS = 65 << SUB_BITS
"""More than the longest latency of 64 bits needs."""


def bucket(latency_ns: int) -> int:
    """Return the number of the bucket that counts a latency."""
    octave = latency_ns.bit_length() - SUB_BITS - 1
    return latency_ns if octave <= 0 else (octave << SUB_BITS) + (latency_ns >> octave)


class Tally:
    """What one thread has read.

    Attributes:
        reads: How many, failed ones included.
        errors: How many failed or were short.
        buckets: Timed reads by bucket.
        last_error: Why the last one failed.
    """

    def __init__(self) -> None:
        self.reads = 0
        self.errors = 0
        self.buckets = [0] * BUCKETS
        self.last_error = ""

    def count(self, latency_ns: int, failure: str) -> None:
        """Count a read that was timed; `failure` is empty when it worked."""
        self.buckets[bucket(latency_ns)] += 1
        self.reads += 1
        if failure:
            self.errors += 1
            self.last_error = failure


def totals(tallies: Sequence[Tally]) -> dict[str, Any]:
    """Return the sums over threads, which may be counting meanwhile, as the host reads them in ``PhaseProgress``."""
    histograms = [list(tally.buckets) for tally in tallies]  # a copy is taken whole
    counts = map(sum, zip(*histograms))  # noqa: B905 - Python 3.9 knows no strict
    return {
        "reads": sum(tally.reads for tally in tallies),
        "errors": sum(tally.errors for tally in tallies),
        "latency": {str(number): count for number, count in enumerate(counts) if count},
    }
