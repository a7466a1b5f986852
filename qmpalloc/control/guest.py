"""One guest's life as the host knows it: connection, pauses, resets, state. No I/O; `session` feeds it.

What is known of its memory, size, danger and samples is in parts of their own, which forget and keep what each event of
its life leaves of them.
"""

from __future__ import annotations

import math
from enum import StrEnum

from qmpalloc.config import ControlConfig, GuestConfig
from qmpalloc.control.danger import Danger
from qmpalloc.control.memory import Facts, GuestMemory
from qmpalloc.control.samples import Samples
from qmpalloc.control.size import GuestSize
from qmpalloc.curves.cpu_budget import CpuBudget
from qmpalloc.errors import SampleError, SampleFault
from qmpalloc.model import GuestState
from qmpalloc.rules.balloon_progress import BalloonProgress
from qmpalloc.rules.pins import Choice
from qmpalloc.sample import Accepted, Sample


class Link(StrEnum):
    """The monitor connection."""

    CONNECTING = "connecting"
    UP = "up"
    HUNG = "hung"
    GONE = "gone"
    HELD = "held"


class Guest:
    """Everything known of one guest.

    Attributes:
        config: Its configuration.
        link: State of the monitor connection; `detail` says why.
        paused: QEMU has stopped the virtual CPUs.
        migrating: Somebody migrates it, so no command may be sent.
        leaving: It was taken out of the configuration: it takes part in nothing.
        choice: The size that a person chose for it; None where nobody did.
        memory: What it has and needs; floor, cap and baseline.
        size: What was asked for, told, decided; what it is charged with.
        progress: Whether its size does what it is asked.
        danger: Whether it is short of memory that it cannot do without.
        samples: What its collector tells, and its curve.
    """

    def __init__(self, config: GuestConfig, control: ControlConfig, effort: CpuBudget | None = None) -> None:
        self.config = config
        self.link = Link.CONNECTING
        self.detail = ""
        self._lost_connections = 0  # connections that ended, or did not come about, since the last one that did
        self.paused = False
        self._paused_since_s = 0.0
        self.migrating = False
        self.leaving = False
        self.choice: Choice | None = None
        self.memory = GuestMemory(config, control.reserve)
        self.size = GuestSize(self.memory)
        self.progress = BalloonProgress()
        self.danger = Danger(self.memory, self.size)
        self.samples = Samples(control, effort)

    @property
    def name(self) -> str:
        """The configured name."""
        return self.config.name

    def reconfigured(self, config: GuestConfig) -> None:
        """Take a new configuration; connection and size stay as they are."""
        self.config = self.memory.config = config

    # --- connection -------------------------------------------------------------------------------------------------

    def met(self, process_id: int | None) -> None:
        """Note which QEMU answers: of another one than before nothing is known until it has told."""
        facts = self.memory.facts
        if facts is not None and facts.process_id != process_id:
            self._forget_system()
            self.memory.facts = None

    def connected(self, facts: Facts, actual_bytes: int, now_s: float, *, paused: bool) -> None:
        """Note a monitor connection. A QEMU met for the first time is adopted at the size its guest has."""
        before, self.memory.facts = self.memory.facts, facts
        self.note_link(Link.UP)
        if not self.size.target_bytes or before is None or before.process_id != facts.process_id:
            self._forget_system()
            self.size.found(actual_bytes)
        elif before.ram_bytes != facts.ram_bytes:
            self.size.adopted(actual_bytes)
        self.size.actual_bytes = actual_bytes
        self.size.expected_bytes = 0
        self._lost_connections = 0
        self.paused, self._paused_since_s = paused, now_s
        self.danger.stopped_s = now_s if paused else math.inf
        self.samples.connected(now_s)

    def note_link(self, link: Link, detail: str = "") -> None:
        """Note the state of the connection. While a monitor hangs or is held, what the guest has stays charged."""
        self.link, self.detail = link, detail

    def gone(self, detail: str) -> None:
        """Note that no QEMU listens: its memory is free. One that was never there is still expected."""
        never_there = self.link is Link.CONNECTING and not self.size.target_bytes
        self.note_link(Link.CONNECTING if never_there else Link.GONE, detail)
        self._forget_system()

    def disconnected(self) -> None:
        """Note that the monitor connection ended, or that none came about.

        What was counted over it may begin anew behind it. While none comes about nobody knows what others ask of QEMU.
        """
        self._lost_connections += 1
        self.samples.disconnected()
        self.danger.forget_stats()
        self.migrating = False

    def _forget_system(self) -> None:
        """Forget what was known of the system that ran: its QEMU has ended, or another one is there."""
        self.size.forget()
        self.memory.forget()
        self.danger.forget()
        self.samples.forget_reset()
        self.migrating = False

    # --- life -------------------------------------------------------------------------------------------------------

    def was_reset(self, now_s: float) -> None:
        """Note a reset of the machine: nothing is known of the new system until it reports."""
        self.samples.was_reset()
        self.danger.forget()
        self.danger.forget_stats()
        self.memory.forget()
        self.size.was_reset(now_s)

    def stopped(self, detail: str, now_s: float, *, asleep: bool = False) -> None:
        """Note that its virtual CPUs do not run, and why.

        Args:
            detail: Why, for people.
            now_s: The time.
            asleep: The guest itself has gone to sleep. Its driver empties the balloon first (``virtballoon_freeze`` in
                Linux), which is no sign of danger.
        """
        if not self.paused:
            self.paused, self._paused_since_s = True, now_s
            self.danger.stopped_s = now_s
            self.size.desired_bytes = self.size.target_bytes  # others may have what it was to get
        self.detail = detail
        if asleep:
            self.danger.fell_asleep()

    def resumed(self, now_s: float) -> None:
        """Note that its virtual CPUs run again: nothing grew old while they did not."""
        if self.paused:
            self.paused, self.detail = False, ""
            self.danger.stopped_s = math.inf
            self.stood_still(now_s - self._paused_since_s)

    def stood_still(self, seconds: float) -> None:
        """Note that it, or this process, did not run for a while, so that nothing grew old in that time.

        What is known of the guest is from before, though: it is late until it reports again.
        """
        self.samples.mark_late()
        if self.paused:
            return  # all of its pause counts, when it is over
        self.samples.stood_still(seconds)
        self.danger.stood_still(seconds)
        self.size.booting_until_s += seconds
        self.progress.stood_still(seconds)

    # --- what it tells ----------------------------------------------------------------------------------------------

    def measured(self, actual_bytes: int, now_s: float) -> bool:
        """Note the size that QEMU reports; return whether it changed."""
        grew, changed, facts = self.size.grew(actual_bytes), self.size.measured(actual_bytes), self.memory.facts
        takes_back = facts is None or facts.takes_back
        if (
            grew and takes_back and not self.paused
        ):  # one that is stopped did so before: it emptied its balloon to fall asleep
            self.danger.grew_itself(now_s)
        return changed

    def take_sample(self, sample: Sample, now_s: float) -> Accepted:
        """Accept a parsed sample.

        Raises:
            SampleError: It cannot be used; see `SampleTracker.accept`. Also when it claims more memory than QEMU gave.
        """
        if self.memory.claims_too_much(sample):
            raise SampleError(SampleFault.ABSURD, "the guest claims more memory than its QEMU gives it")
        earlier = self.samples.last
        accepted = self.samples.take(sample, now_s)
        if accepted.delta is not None:
            memory, actual_bytes = self.memory, self.size.actual_bytes
            self.size.booting_until_s = -math.inf  # it has booted
            memory.learn_need(sample, actual_bytes, self.size.target_bytes)
            self.samples.curves.take_sample(sample, accepted.delta, actual_bytes, memory.floor_bytes, memory.cap_bytes)
            self.danger.take_sample(earlier, sample, self.outside_bytes, now_s)
        return accepted

    # --- what it is -------------------------------------------------------------------------------------------------

    def state(self, now_s: float) -> GuestState:
        """Return the state at `now_s`."""
        if self.link is not Link.UP:
            return GuestState(self.link.value)
        if self.migrating or self.leaving:
            return GuestState.HELD
        if self.paused:
            return GuestState.PAUSED
        return self.samples.freshness(now_s)

    @property
    def outside_bytes(self) -> int:
        """Memory it has, or may take at any time, beside what is moved. No command of ours moves it."""
        facts = self.memory.facts
        return facts.outside_bytes if facts is not None and self.link is not Link.GONE else 0

    @property
    def charge_bytes(self) -> int:
        """What it may occupy now, for the budget. A QEMU that runs unmeasured is charged with its most."""
        # 1 is a connection that has just ended: the next may come about at once.
        unmeasured = self._lost_connections > 1 or not self.size.target_bytes
        most_bytes = self.memory.cap_bytes if unmeasured and self.link in {Link.HUNG, Link.HELD} else 0
        return max(self.size.charge_bytes, most_bytes) + self.outside_bytes
