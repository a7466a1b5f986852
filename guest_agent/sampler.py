"""What the reader does about samples, every interval: ring and counters in, file out, rate set."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

from guest_agent import bpf
from guest_agent.counters_file import CountersFile, Series
from guest_agent.samples import NAME, Batches, Dominant, Rate, Ring, excluded

_ROUNDS = 3
_ACCESSES = ("accesses_read", "accesses_splice", "faults")
"""Counters whose sum is the exact number of what is sampled."""


class Sampler:
    """Writes the samples file.

    Args:
        directory: Where it lies.
        series: Of the counters file.
        slots: Names of the counters, in the order in which `read` will return them.
        ring: Where the events come from.
        mask_fd: Descriptor of the map that holds the rate.
        apart: Where events of dominant pages are counted.
        clock: Returns seconds.
    """

    def __init__(
        self,
        directory: str,
        series: Series,
        slots: tuple[str, ...],
        ring: Ring,
        mask_fd: int,
        apart: bpf.Table,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = CountersFile(directory, NAME)
        self._batches = Batches(series.boot_id, series.start_id)
        self._interval_s = series.interval_ms / 1000
        self._accesses = [slots.index(name) for name in _ACCESSES]
        self._lost = slots.index("samples_lost")
        self._ring, self._mask_fd = ring, mask_fd
        self._rate, self._dominant = Rate(), Dominant(apart)
        self._lost_before = self._before = self._unseen = self._unseen_lost = self._burst = 0
        self._paused = False
        self._clock, self._at_s = clock, clock()

    def step(self, counters: bpf.PerCpuCounters, *, sampling: bool = True) -> list[int]:
        """Write the file of this interval; return the counters that it was written with.

        Args:
            counters: Read with the events.
            sampling: False: this interval is no part of the sample, as if nothing had happened in it.

        Raises:
            OSError: The counters cannot be read, or the rate or what is dominant cannot be set.
        """
        everything, values = self._collect(counters)
        before_s, self._at_s = self._at_s, self._clock()
        counted, lost = sum(values[slot] for slot in self._accesses), values[self._lost]
        if not sampling:
            self._unseen += counted - self._before
            self._unseen_lost = lost - self._lost_before
            self._before, self._paused = counted, True
            return values
        self._burst += self._paused
        self._before, self._paused = counted, False
        accesses, lost = counted - self._unseen, lost - self._unseen_lost
        events = self._dominant.leave_out(everything)
        content = self._batches.add(events, accesses, lost, self._rate.shift, self._burst)
        self._replace(content)
        # What was lost had as many events of dominant pages as what was not.
        lost_more, self._lost_before = lost - self._lost_before, lost
        arrived = len(events) + lost_more * (len(events) + 1) / (len(everything) + 1)
        # A guest that stood still for some intervals has their events at once, and is no busier for that.
        if self._rate.adapt(arrived / max(self._interval_s, self._at_s - before_s)):
            bpf.set_element(self._mask_fd, excluded(self._rate.shift))
        return values

    def _collect(self, counters: bpf.PerCpuCounters) -> tuple[array[int], list[int]]:
        # An event that came between the two would be in the next interval, its access in this one. With little going on
        # that would be more sampled accesses than accesses; with much it cannot be helped and does not matter.
        events = self._ring.take()
        values = counters.read()
        for _ in range(_ROUNDS):
            if self._ring.is_empty:
                break
            events.extend(self._ring.take())
            values = counters.read()
        return events, values

    def _replace(self, content: bytes) -> None:
        try:
            self._file.replace(content)
        except OSError:
            return  # the host sees a gap in the numbers; the counters file says why

    def remove(self) -> None:
        """Remove the file: nobody samples any more."""
        self._file.remove()
