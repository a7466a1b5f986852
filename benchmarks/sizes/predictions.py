"""What curve estimators predicted in a sweep, and how far they were off. By the code that the controller runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from qmpalloc.curves.disk_check import Reads
from qmpalloc.curves.observer import CurveFacts, CurveObserver
from qmpalloc.errors import SampleError
from qmpalloc.sample import Memory, SampleTracker
from qmpalloc.units import PAGE_BYTES
from sizes.measurement import CACHE_ALIKE, Case, Shipped, SizesResult

OWN = "own"
"""The estimator that the controller chooses: the simulation of the guest's own page replacement."""

ESTIMATORS: dict[str, str | None] = {
    "two_list": "two_list",
    "lru_gen": "lru_gen",
    "fifo": "fifo",
    "shards": None,
}
"""Estimator to what it simulates; see `qmpalloc.curves.tracker.CurveTracker`."""

MIDPOINT = "midpoint"
"""The mean of LRU (``shards``) and FIFO: what a model of the multi-generational LRU has to beat."""


class Learner:
    """Learns a curve from what was shipped, as a session of the controller does.

    Args:
        case: Its sizes are the range of the curve.
        estimator: A name in `ESTIMATORS`, or `OWN`.

    Attributes:
        refused: Why the last sample or batch was not used; empty when it was.
    """

    def __init__(self, case: Case, estimator: str = OWN) -> None:
        self.observer = CurveObserver()
        self.refused = ""
        self._estimator = estimator
        self._range = min(case.sizes), max(case.sizes)
        self._series = SampleTracker()

    def take(self, line: Shipped) -> None:
        """Learn from a line; what cannot be used is left out, as the controller does."""
        self.refused = ""
        sample = line.counters
        if self._estimator != OWN:  # not what the counters file may say, but what a tracker may simulate
            sample = structs.replace(sample, lru=ESTIMATORS[self._estimator])
        try:
            accepted = self._series.accept(sample, line.t)
            if accepted.delta is not None:
                self.observer.take_sample(sample, accepted.delta, line.actual_bytes, *self._range)
            self.observer.take_reads(Reads(line.disk_read_bytes / PAGE_BYTES, line.disk_read_ns / 1e9))
            if line.batch:
                self.observer.take_batch(line.batch, line.t)
        except SampleError as error:
            self.refused = error.message

    @property
    def facts(self) -> CurveFacts:
        """The curve now, anchored, or why there is none."""
        return self.observer.facts(*self._range, None)


class Prediction(Struct, frozen=True, kw_only=True):
    """What an estimator predicted.

    Attributes:
        estimator: Its name.
        weak: Why the controller would not have acted on it; empty when it would.
        sizes_bytes: Of the curve.
        miss_ratio: The curve as a controller with this estimator would have had it: over sizes, anchored.
        at_sizes: That curve at the sizes measured.
        at_cache: What it predicts for the caches that were then seen: neither anchored, nor with the mapping from size
            to cache.
        cache_pages: Cache for the load that the mapping predicts at the sizes measured.
    """

    estimator: str
    weak: tuple[str, ...] = ()
    sizes_bytes: tuple[int, ...]
    miss_ratio: tuple[float, ...]
    at_sizes: tuple[float, ...]
    at_cache: tuple[float, ...]
    cache_pages: tuple[float, ...] = ()


def predict(
    result: SizesResult, recording: Iterable[Shipped], estimators: Iterable[str] = ESTIMATORS
) -> tuple[Prediction, ...]:
    """Return what estimators predicted from what was shipped while the curve was learnt.

    One without a curve is left out. The midpoint is added where its two are there.

    Args:
        result: Of the sweep.
        recording: Of the same.
        estimators: Names in `ESTIMATORS`.
    """
    lines = [line for line in recording if line.t <= result.learnt_t]
    found = {}
    for estimator in estimators:
        learner = Learner(result.case, estimator)
        for line in lines:
            learner.take(line)
        curve, tracker = learner.facts.curve, learner.observer.tracker
        if curve is None or tracker is None:
            continue
        mapping = learner.observer.mapping
        sizes = [point.actual_bytes for point in result.points]
        memories = [Memory(active_file=0, inactive_file=round(point.file_bytes)) for point in result.points]
        seen = [mapping.cached_pages(memory) or 0.0 for memory in memories]
        order = np.argsort(seen, kind="stable")  # estimators want sizes that rise
        ratios = np.empty(len(seen))
        ratios[order] = tracker.miss_ratios(np.array(seen)[order])
        found[estimator] = Prediction(
            estimator=estimator,
            weak=curve.weak,
            sizes_bytes=curve.sizes_bytes,
            miss_ratio=curve.miss_ratio,
            at_sizes=_rounded(np.interp(sizes, curve.sizes_bytes, curve.miss_ratio)),
            at_cache=_rounded(ratios),
            cache_pages=tuple(round(mapping.cache_pages(size)) for size in sizes),
        )
    if "shards" in found and "fifo" in found:
        found[MIDPOINT] = _midpoint(found["shards"], found["fifo"])
    return tuple(found.values())


class Error(Struct, frozen=True, kw_only=True):
    """How far an estimator was off, in miss ratio, over the steady sizes other than the one it learnt at.

    Attributes:
        estimator: Its name.
        at_sizes: Mean absolute error of the anchored curve over sizes; None when there is no such size.
        at_cache: The same of the estimate for the cache that was seen.
        worst: The largest absolute error of the first.
        sizes: How many sizes.
    """

    estimator: str
    at_sizes: float | None
    at_cache: float | None
    worst: float | None
    sizes: int


def error(result: SizesResult, prediction: Prediction) -> Error:
    """Return how far `prediction` was off."""
    chosen = [
        index
        for index, point in enumerate(result.points)
        if point.steady and abs(point.actual_bytes - result.case.learn) > CACHE_ALIKE * result.case.learn
    ]
    if not chosen:
        return Error(estimator=prediction.estimator, at_sizes=None, at_cache=None, worst=None, sizes=0)
    truth = np.array([result.points[index].miss_ratio for index in chosen])
    sized = np.abs(np.array(prediction.at_sizes)[chosen] - truth)
    cached = np.abs(np.array(prediction.at_cache)[chosen] - truth)
    return Error(
        estimator=prediction.estimator,
        at_sizes=float(sized.mean()),
        at_cache=float(cached.mean()),
        worst=float(sized.max()),
        sizes=len(chosen),
    )


def _midpoint(lru: Prediction, fifo: Prediction) -> Prediction:
    sizes = np.linspace(lru.sizes_bytes[0], lru.sizes_bytes[-1], 64).astype(np.int64)
    both = [np.interp(sizes, each.sizes_bytes, each.miss_ratio) for each in (lru, fifo)]
    return Prediction(
        estimator=MIDPOINT,
        weak=lru.weak,
        sizes_bytes=tuple(sizes.tolist()),
        miss_ratio=_rounded((both[0] + both[1]) / 2),
        at_sizes=_rounded((np.array(lru.at_sizes) + np.array(fifo.at_sizes)) / 2),
        at_cache=_rounded((np.array(lru.at_cache) + np.array(fifo.at_cache)) / 2),
        cache_pages=lru.cache_pages,
    )


def _rounded(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(np.round(values, 5).tolist())
