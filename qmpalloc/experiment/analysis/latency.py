"""Read latencies: the generator in the guest counts in buckets, the host subtracts and asks for percentiles.

What is in which bucket: `qmpalloc.experiment.run.generator.tally`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from qmpalloc.experiment.run.generator.tally import SUB_BITS
from qmpalloc.experiment.store.records import PhaseProgress


def lower_bound_ns(number: int) -> int:
    """Return the smallest latency that bucket `number` counts, in nanoseconds."""
    if number < 2 << SUB_BITS:
        return number
    octave = (number >> SUB_BITS) - 1
    return (number - (octave << SUB_BITS)) << octave


def read_times_s(
    parts: Iterable[PhaseProgress], open_loop: Collection[str]
) -> tuple[float | None, float | None, float | None]:
    """Return mean, median and 99th percentile of the reads of some phases; None where none is known.

    Args:
        parts: Of a guest.
        open_loop: Names of phases with a rate: all of their reads are timed, and their time per read is no latency.
    """
    timed: Counter[int] = Counter()
    read = [part for part in parts if part.reads > 0]
    for part in read:
        timed.update(part.latency)
    mean = mean_s(timed)
    if read and not any(part.name in open_loop for part in read):
        mean = sum(part.seconds for part in read) / sum(part.reads for part in read)
    return mean, percentile_s(timed, 0.5), percentile_s(timed, 0.99)


def mean_s(counts: Mapping[int, int]) -> float | None:
    """Return the mean of a histogram in seconds, from the middles of its buckets; None when it is empty."""
    total = sum(counts.values())
    return sum(_middle_ns(number) * count for number, count in counts.items()) / total / 1e9 if total else None


def percentile_s(counts: Mapping[int, int], share: float) -> float | None:
    """Return the latency that `share` of the reads did not exceed, as the middle of its bucket; None: no reads."""
    total = sum(counts.values())
    if not total:
        return None
    numbers = sorted(counts)
    seen = np.cumsum([counts[number] for number in numbers])
    return _middle_ns(numbers[int(np.searchsorted(seen, share * total))]) / 1e9


def difference(later: Mapping[int, int], earlier: Mapping[int, int]) -> dict[int, int]:
    """Return the reads counted between two cumulative histograms."""
    return {number: more for number, count in later.items() if (more := count - earlier.get(number, 0)) > 0}


def _middle_ns(number: int) -> float:
    return (lower_bound_ns(number) + lower_bound_ns(number + 1)) / 2
