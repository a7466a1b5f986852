"""One guest's life as the host knows it: connection, size, samples, state. No I/O; `qmpalloc.session` feeds it."""

from __future__ import annotations

import math
from enum import StrEnum

from msgspec import Struct

from qmpalloc.config import ControlConfig, GuestConfig
from qmpalloc.danger import FREEZE_S, find_danger
from qmpalloc.errors import SampleError, SampleFault
from qmpalloc.ledger import Account
from qmpalloc.model import GuestSnapshot, GuestState
from qmpalloc.sample import Accepted, Delta, Sample, SampleTracker, difference
from qmpalloc.units import align_down


class Link(StrEnum):
    """The monitor connection."""

    CONNECTING = "connecting"
    UP = "up"
    HUNG = "hung"
    GONE = "gone"
    HELD = "held"


class Facts(Struct, frozen=True, kw_only=True):
    """What a monitor tells about its guest when we connect.

    Attributes:
        ram_bytes: RAM that QEMU was started with (``query-memory-size-summary``).
        balloon_path: QOM path of the balloon device.
        deflate_on_oom: The device's property; with it ``MemTotal`` does not shrink with the balloon.
        qemu_version: For people.
    """

    ram_bytes: int
    balloon_path: str
    deflate_on_oom: bool
    qemu_version: str


class Guest:
    """Everything known of one guest.

    Attributes:
        config: Its configuration.
        link: State of the monitor connection; `detail` says why.
        paused: QEMU has stopped the virtual CPUs.
        facts: None until the monitor was asked.
        target_bytes: Size last asked of QEMU, or its size when we found it. 0 before the first connection.
        actual_bytes: Size QEMU reported last.
        desired_bytes: Size last decided.
        sample: Newest accepted sample; `received_s` is when it came.
    """

    def __init__(self, config: GuestConfig, control: ControlConfig) -> None:
        self.config = config
        self._control = control
        self.link = Link.CONNECTING
        self.detail = ""
        self.paused = False
        self.facts: Facts | None = None
        self.target_bytes = 0
        self.actual_bytes = 0
        self.desired_bytes = 0
        self._unconfirmed_bytes = 0
        self._known_since_s = 0.0
        self._reset = False
        self._tracker = SampleTracker()
        self.sample: Sample | None = None
        self.received_s = -math.inf
        self._base: Sample | None = None
        self._danger = ""
        self._danger_until_s = -math.inf

    @property
    def name(self) -> str:
        """The configured name."""
        return self.config.name

    # --- connection -------------------------------------------------------------------------------------------------

    def connected(self, facts: Facts, actual_bytes: int, now_s: float, *, paused: bool) -> None:
        """Note a monitor connection. A guest met for the first time is adopted at the size it has."""
        if self.target_bytes == 0 or self.link is Link.GONE:
            self.target_bytes = self.desired_bytes = actual_bytes
            self._unconfirmed_bytes = 0
        self.facts = facts
        self.actual_bytes = actual_bytes
        self.link, self.detail = Link.UP, ""
        self.paused = paused
        self._known_since_s = now_s

    def disconnected(self, link: Link, detail: str) -> None:
        """Note that the monitor is not usable. Counters may begin anew behind it, so the series ends here."""
        if link is Link.GONE:
            self.target_bytes = self.actual_bytes = self.desired_bytes = self._unconfirmed_bytes = 0
        self.link, self.detail = link, detail
        self._tracker.forget()
        self.sample = self._base = None
        self.received_s = -math.inf
        self._reset = False

    def was_reset(self) -> None:
        """Note a reset of the machine: nothing is known of the new system until it reports."""
        self._tracker.forget()
        self.sample = self._base = None
        self.received_s = -math.inf
        self._reset = True

    # --- size -------------------------------------------------------------------------------------------------------

    @property
    def charge_bytes(self) -> int:
        """What the guest may occupy now, for the budget."""
        return max(self.target_bytes, self.actual_bytes, self._unconfirmed_bytes)

    @property
    def settled(self) -> bool:
        """True when the guest has the size that was asked for and nothing is in doubt."""
        return self.actual_bytes == self.target_bytes and not self._unconfirmed_bytes

    def ordered(self, target_bytes: int) -> None:
        """Note that a ``balloon`` command is about to be sent; the old size stays charged until it is confirmed."""
        self._unconfirmed_bytes = max(self.charge_bytes, target_bytes)
        self.target_bytes = target_bytes

    def refused(self, previous_bytes: int) -> None:
        """Note that QEMU refused the last command, so that the target before still holds."""
        self.target_bytes = previous_bytes
        self._unconfirmed_bytes = 0

    def confirmed(self) -> None:
        """Note that the size was queried well after QEMU took the last command."""
        self._unconfirmed_bytes = 0

    def account(self) -> Account:
        """Return the guest's entry in the ledger."""
        return Account(
            name=self.name,
            target_bytes=self.target_bytes,
            charge_bytes=self.charge_bytes,
            desired_bytes=self.desired_bytes,
            commandable=self.link is Link.UP,
        )

    @property
    def cap_bytes(self) -> int:
        """The configured cap, or the guest's RAM if that is less: QEMU clamps silently."""
        return min(self.config.cap, self.facts.ram_bytes) if self.facts else self.config.cap

    @property
    def baseline_bytes(self) -> int:
        """The configured baseline within the guest's RAM, in whole pages."""
        return align_down(min(self.config.baseline, self.cap_bytes))

    @property
    def floor_bytes(self) -> int:
        """The larger of the configured floor and what the guest cannot give up, plus the reserve.

        The size QEMU counts includes what the guest's kernel took before it could account for it (``ram - MemTotal``).
        """
        floor = int(self.config.floor)
        memory = self.sample.memory_bytes if self.sample else None
        if memory is not None and memory.unreclaimable_bytes is not None:
            gap = 0
            if memory.total is not None and self.facts is not None:
                size = self.facts.ram_bytes if self.facts.deflate_on_oom else self.actual_bytes
                gap = max(size - memory.total, 0)
            floor = max(floor, gap + memory.unreclaimable_bytes + self._control.reserve)
        return -align_down(-floor)

    # --- samples ----------------------------------------------------------------------------------------------------

    def take_sample(self, sample: Sample, now_s: float) -> Accepted:
        """Accept a parsed sample.

        Raises:
            SampleError: It cannot be used; see `SampleTracker.accept`.
        """
        earlier = self._tracker.last
        try:
            accepted = self._tracker.accept(sample, now_s)
        except SampleError as error:
            if error.fault is not SampleFault.REPEATED:
                self._base = None
            raise
        self.sample, self.received_s, self._reset = sample, now_s, False
        if self._base is None:
            self._base = sample
        danger = find_danger(earlier if accepted.delta else None, sample, self.actual_bytes)
        if danger:
            self._danger, self._danger_until_s = danger, now_s + FREEZE_S
        return accepted

    def window(self) -> Delta | None:
        """Return what happened since `close_window`, or None when that is not known."""
        if self._base is None or self.sample is None or self._base.sequence == self.sample.sequence:
            return None
        try:
            return difference(self._base, self.sample)
        except SampleError:
            return None

    def close_window(self) -> None:
        """Begin a new interval of counting: a decision was made."""
        self._base = self.sample

    def danger(self, now_s: float) -> str | None:
        """Return why the guest may not give memory now, or None."""
        return self._danger if now_s < self._danger_until_s else None

    # --- state ------------------------------------------------------------------------------------------------------

    def state(self, now_s: float) -> GuestState:
        """Return the state at `now_s`."""
        if self.link is not Link.UP:
            return GuestState(self.link.value)
        if self.paused:
            return GuestState.PAUSED
        if self._reset:
            return GuestState.LOST
        if self.sample is None:
            warming = now_s - self._known_since_s < self._control.lost_after
            return GuestState.WARMING if warming else GuestState.LOST
        age_s = now_s - self.received_s
        if age_s < self._control.late_after:
            return GuestState.FRESH
        return GuestState.LATE if age_s < self._control.lost_after else GuestState.LOST

    def snapshot(self, now_s: float) -> GuestSnapshot:
        """Return what a policy sees of this guest."""
        delta = self.window()
        return GuestSnapshot(
            name=self.name,
            state=self.state(now_s),
            target_bytes=self.desired_bytes,
            actual_bytes=self.actual_bytes,
            charge_bytes=self.charge_bytes,
            floor_bytes=min(self.floor_bytes, self.cap_bytes),
            cap_bytes=self.cap_bytes,
            baseline_bytes=self.baseline_bytes,
            weight=self.config.weight,
            hits=delta.hits if delta else None,
            misses=delta.misses if delta else None,
            interval_s=delta.interval_s if delta else None,
            refaults=delta.refaults if delta else None,
            memory=self.sample.memory_bytes if self.sample else None,
            psi_some_avg10=self.sample.psi_memory.some_avg10 if self.sample else None,
        )
