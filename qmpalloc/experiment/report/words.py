"""Numbers and conditions, in words for the report."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from qmpalloc.experiment.analysis.results import Results

NOTHING = "-"
"""Stands where there is no value."""


def conditions(results: Results) -> str:
    """Return under which conditions all of it was measured: ``Scale 1/4, seed 1, n = 3.``."""
    counted = {arm.name: len(results.counted(arm.name)) for arm in results.arms}
    n = ", ".join(f"{number} ({arm})" for arm, number in counted.items())
    if len(set(counted.values())) == 1:
        n = str(max(counted.values()))
    return f"Scale {results.specification.scale}, seed {results.specification.seed}, n = {n}."


def spread(values: Sequence[float | None], show: Callable[[float], str]) -> str:
    """Return the median of those values that are known and, where they differ, the range: ``9 (8 to 11)``.

    A value that is missing in some repeats is said to be: ``9 (in 2 of 3)``.
    """
    found = [value for value in values if value is not None]
    if not found:
        return NOTHING
    text, low, high = show(statistics.median(found)), show(min(found)), show(max(found))
    notes = [] if low == high else [f"{low} to {high}"]
    if len(found) < len(values):
        notes.append(f"in {len(found)} of {len(values)}")
    return f"{text} ({'; '.join(notes)})" if notes else text


def known(value: float | None, show: Callable[[float], str], otherwise: str = NOTHING) -> str:
    """Return a value that may not be known."""
    return otherwise if value is None else show(value)


def rounded(value: float) -> str:
    """Return a number without its fraction: ``1,235``."""
    return f"{value:,.0f}"


def off_one(ratio: float) -> str:
    """Return by how much a ratio is above or below 1, in per cent."""
    return f"{(ratio - 1) * 100:+.1f} %"


def whole(value: float) -> str:
    """Return a count, with half a count where a median lies between two: ``1,234``, ``9.5``."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def figure(value: float) -> str:
    """Return a value of any size with four digits or more: ``12,345``, ``123.4``, ``0.01234``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def times(value: float) -> str:
    """Return a number of times: ``0.8``, ``12``."""
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def seconds(value: float) -> str:
    """Return a duration in seconds."""
    return f"{value:,.1f} s"


def percent(value: float) -> str:
    """Return a share in per cent."""
    return f"{value * 100:.1f} %"


def latency(value_s: float) -> str:
    """Return a latency in microseconds or milliseconds."""
    return f"{value_s * 1e6:,.0f} µs" if value_s < 0.01 else f"{value_s * 1e3:,.1f} ms"
