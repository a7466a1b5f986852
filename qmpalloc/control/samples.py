"""The samples of one guest: how old the newest is, what was counted since the last decision, and the curve."""

from __future__ import annotations

import math

from qmpalloc.config import ControlConfig
from qmpalloc.curves.cpu_budget import CpuBudget
from qmpalloc.curves.observer import CurveObserver
from qmpalloc.errors import SampleError, SampleFault
from qmpalloc.idle import Touches
from qmpalloc.model import GuestState
from qmpalloc.sample import Accepted, Delta, Sample, SampleTracker, difference


class Samples:
    """What a guest's collector tells.

    Attributes:
        newest: Newest accepted sample.
        curves: What is learnt of its miss-ratio curve.
        touches: How often memory of each age was touched again.
    """

    def __init__(self, control: ControlConfig, effort: CpuBudget | None) -> None:
        self.newest: Sample | None = None
        self.curves, self.touches = CurveObserver(effort), Touches()
        self._control = control
        self._tracker = SampleTracker()
        self._base: Sample | None = None
        self._awaited_since_s = 0.0
        self._received_s = -math.inf
        self._counted = self._unseen = self._reset = False

    @property
    def last(self) -> Sample | None:
        """The sample that the next one is compared with."""
        return self._tracker.last

    def connected(self, now_s: float) -> None:
        """Note a monitor connection: from now on samples are waited for."""
        self._awaited_since_s = now_s

    def disconnected(self) -> None:
        """Note that the monitor connection ended: counters may begin anew behind it, so the series ends here."""
        self._end_series()
        self.curves.forget_series()

    def was_reset(self) -> None:
        """Note a reset of the machine: nothing is known of the new system until it reports."""
        self._end_series()
        self.curves.was_reset()
        self._reset = True

    def forget_reset(self) -> None:
        """Forget that there was a reset: another QEMU is there, or none."""
        self._reset = False

    def _end_series(self) -> None:
        self._tracker.forget()
        self.newest = self._base = None
        self._counted = False

    def mark_late(self) -> None:
        """Note that what is known is from before: the guest is late until it reports again."""
        self._unseen = True

    def stood_still(self, seconds: float) -> None:
        """Note that for so long nothing grew old."""
        self._received_s += seconds
        self._awaited_since_s += seconds

    def take(self, sample: Sample, now_s: float) -> Accepted:
        """Accept a parsed sample.

        Raises:
            SampleError: It cannot be used; see `SampleTracker.accept`.
        """
        try:
            accepted = self._tracker.accept(sample, now_s)
        except SampleError as error:
            if error.fault is not SampleFault.REPEATED:
                # Late, and lost only by age: one bad sample, or a collector that was restarted, moves no memory.
                self.newest, self._base, self._unseen = None, None, True
                self.touches.observe(None, None)
            raise
        self.newest = sample
        self.touches.observe(sample.ages, accepted.delta.interval_s if accepted.delta is not None else None)
        if self._base is None:
            self._base = sample
        if accepted.delta is not None:  # else the file may be of any age: a second one shows that somebody writes it
            self._received_s, self._counted, self._reset, self._unseen = now_s, True, False, False
        return accepted

    def window(self) -> Delta | None:
        """Return what happened since `close_window`, or None when that is not known."""
        if self._base is None or self.newest is None or self._base.sequence == self.newest.sequence:
            return None
        try:
            return difference(self._base, self.newest)
        except SampleError:
            return None

    def close_window(self) -> None:
        """Begin a new interval of counting: a decision was made."""
        self._base = self.newest
        self.curves.close_window()

    def freshness(self, now_s: float) -> GuestState:
        """Return what the age of the newest sample makes of the guest."""
        if self._reset:
            return GuestState.LOST
        if not self._counted:
            warming = now_s - self._awaited_since_s < self._control.lost_after
            return GuestState.WARMING if warming else GuestState.LOST
        age_s = now_s - self._received_s
        if age_s < self._control.late_after and not self._unseen:
            return GuestState.FRESH
        return GuestState.LATE if age_s < self._control.lost_after else GuestState.LOST
