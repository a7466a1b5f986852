"""What a guest brings in again that it had to drop, and how much more memory would have kept it. Pure.

A page of a file that comes back after n others were evicted would still have been there with n pages more: its refault
distance (mm/workingset.c of Linux). Summed up it is how many page-ins a second less each growth costs, for pages of
mapped files as well, of whose accesses nothing else is heard.

A page that came back meanwhile and was evicted again would have needed no more room than once. If F(n) of all pages
that are brought in had been gone for less than n, that leaves the integral of 1 - F from 0 to n: the same step as from
reuse times to sizes (Hu et al., "Kinetic modeling of data eviction in cache", USENIX ATC 2016). Of a fault, the page
that was asked for is told, and stands for all that the fault brings in.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qmpalloc.sample import GHOST_BINS, Delta
from qmpalloc.units import MIB, PAGE_BYTES

_HALF_LIFE_S = 30.0
_KNOWN_S = 4.0
"""Seen for less than that, weighted, returns are not told."""

_SAME_BYTES = 4 * MIB
"""A size that differs by more is another: the distances belong to one."""


EDGES = (0.0, *((4 + step % 4) * 2.0 ** (step // 4 - 2) for step in range(GHOST_BINS - 1)))
"""Upper ends of all bins but the last, by that of the first; and 0."""


class Returns(Struct, frozen=True, kw_only=True):
    """What more memory would keep, by how much more. Between two sizes it is no more than at the smaller one.

    Attributes:
        bytes: How much more, rising; the first is 0.
        reads_per_s: Page-ins by reads that this saves a second, at least; never falling. To be seen only: reads have
            curves, and where these are weak, the load is too new for distances as well.
        faults_per_s: The same by page faults.
    """

    bytes: tuple[int, ...]
    reads_per_s: tuple[float, ...]
    faults_per_s: tuple[float, ...]

    def saved_by_reads(self, more_bytes: NDArray[np.float64], most_per_s: float) -> NDArray[np.float64]:
        """Return the page-ins by reads that so much more memory saves a second, of at most so many."""
        return self._saved(self.reads_per_s, more_bytes, most_per_s)

    def saved_by_faults(self, more_bytes: NDArray[np.float64], most_per_s: float) -> NDArray[np.float64]:
        """Return the same by page faults."""
        return self._saved(self.faults_per_s, more_bytes, most_per_s)

    def _saved(
        self, per_s: tuple[float, ...], more_bytes: NDArray[np.float64], most_per_s: float
    ) -> NDArray[np.float64]:
        at = np.searchsorted(self.bytes, np.maximum(0.0, more_bytes), side="right") - 1
        return np.asarray(np.minimum(np.array(per_s)[at], most_per_s))


class ReturnsTracker:
    """Sums up refault distances for as long as the guest has one size. What is older counts less."""

    def __init__(self) -> None:
        self._forget(0)

    def _forget(self, size_bytes: int) -> None:
        self._size_bytes, self._seconds = size_bytes, 0.0
        self._read_in = self._faulted_in = self._faults = 0.0
        self._counts = np.zeros((2, GHOST_BINS))
        self._scale: tuple[int, int] | None = None

    def observe(self, delta: Delta, size_bytes: int) -> None:
        """Take what was told of an interval.

        Args:
            delta: What happened in it.
            size_bytes: The guest's size.
        """
        told = delta.refault_distances
        scale = None if told is None else (told.pages_each, told.pages_first * PAGE_BYTES)
        if abs(size_bytes - self._size_bytes) > _SAME_BYTES or scale != self._scale:
            self._forget(size_bytes)
        self._scale = scale
        if told is None:
            return
        kept = 0.5 ** (delta.interval_s / _HALF_LIFE_S)
        self._seconds = self._seconds * kept + delta.interval_s
        self._read_in = self._read_in * kept + (delta.misses or 0)
        self._faulted_in = self._faulted_in * kept + (delta.inserts_fault or 0)
        faults = delta.inserts_fault if delta.faults_major is None else delta.faults_major
        self._faults = self._faults * kept + (faults or 0)
        self._counts = self._counts * kept + np.array([told.read, told.fault])

    @property
    def returns(self) -> Returns | None:
        """What is known; None where that is too little. A standard deviation less than was seen."""
        if self._scale is None or self._seconds < _KNOWN_S:
            return None
        each, first_bytes = self._scale
        within = np.cumsum(self._counts[:, :-1], axis=1)
        pages = np.array([[each], [each * max(1.0, self._faulted_in / max(1.0, self._faults))]])
        less = np.append(0.0, (within * pages).sum(axis=0)) / max(1.0, self._read_in + self._faulted_in)
        gone_less = np.minimum(1.0, less)
        edges = first_bytes * np.array(EDGES)
        room = np.cumsum(np.diff(edges) * (1.0 - (gone_less[1:] + gone_less[:-1]) / 2))
        per_s = np.maximum.accumulate(np.maximum(0.0, within - np.sqrt(within)), axis=1) * (pages / self._seconds)
        rises = np.flatnonzero(np.diff(per_s, prepend=0.0, axis=1).any(axis=0))
        reads, faults = ([0.0, *(round(float(rate), 2) for rate in kind[rises])] for kind in per_s)
        return Returns(
            bytes=(0, *(round(float(size)) for size in room[rises])),
            reads_per_s=tuple(reads),
            faults_per_s=tuple(faults),
        )
