"""One guest's life as the host knows it: connection, size, samples, state. No I/O; `session` feeds it."""

from __future__ import annotations

import math
from enum import StrEnum

from msgspec import Struct, structs

from qmpalloc.config import ControlConfig, GuestConfig
from qmpalloc.curves.effort import Effort
from qmpalloc.curves.observer import CurveObserver
from qmpalloc.errors import SampleError, SampleFault
from qmpalloc.model import GuestSnapshot, GuestState, MemorySizes
from qmpalloc.rules.balloon_progress import BalloonProgress
from qmpalloc.rules.danger import FREEZE_S, NEED_STEP_BYTES, Level, find_danger, find_stalls, needed_bytes, with_reserve
from qmpalloc.rules.ledger import Account
from qmpalloc.sample import Accepted, Delta, Sample, SampleTracker, difference
from qmpalloc.units import MIB, align_down, format_size


class Link(StrEnum):
    """The monitor connection."""

    CONNECTING = "connecting"
    UP = "up"
    HUNG = "hung"
    GONE = "gone"
    HELD = "held"


class Facts(Struct, frozen=True, kw_only=True):
    """What a monitor tells about its guest when we connect. Of its memory it is asked again and again.

    Attributes:
        ram_bytes: RAM that the balloon is measured against; this and the next two as in `MemorySizes`.
        outside_bytes: Memory outside of the balloon (virtio-mem), charged beside the guest's size.
        other_bytes: Other memory that was plugged, which nobody is charged with.
        balloon_path: QOM path of the balloon device.
        deflate_on_oom: The device's property; with it ``MemTotal`` does not shrink with the balloon.
        qemu_version: For people.
        process_id: Of the QEMU that listens on the socket, to tell a new one from the one before; None if not known.
    """

    ram_bytes: int
    balloon_path: str
    deflate_on_oom: bool
    qemu_version: str
    process_id: int | None = None
    outside_bytes: int = 0
    other_bytes: int = 0

    def with_memory(self, memory: MemorySizes) -> Facts:
        """Return the facts with what was told of the memory."""
        return structs.replace(
            self, ram_bytes=memory.ram_bytes, outside_bytes=memory.outside_bytes, other_bytes=memory.other_bytes
        )

    @property
    def visible_bytes(self) -> int:
        """The most that the guest's kernel can count as its memory; files that it sees as memory can be part of it."""
        return self.ram_bytes + self.outside_bytes + self.other_bytes


GREW_BYTES = 4 * MIB
"""A guest that is this much above its target without having been granted more has taken memory back by itself."""

RESET_GRACE_S = 120.0
"""How long a reset guest that does not report stays charged with all it may have."""


class Guest:
    """Everything known of one guest.

    Attributes:
        config: Its configuration.
        link: State of the monitor connection; `detail` says why.
        paused: QEMU has stopped the virtual CPUs.
        migrating: Somebody migrates it, so no command may be sent.
        leaving: It was taken out of the configuration: it takes part in nothing.
        expected: It was added and is about to start, so that its memory is charged already.
        progress: Whether its balloon does what it is asked.
        facts: None until the monitor was asked.
        target_bytes: Size last asked of QEMU, or its size when we found it. 0 while it is not known.
        actual_bytes: Size QEMU reported last.
        desired_bytes: Size last decided.
        moved_unasked: The last measurement showed a settled guest to have become smaller, which only a command that is
            not ours, or the guest's own doing, explains.
        commanded: We have asked this QEMU for another size than it was found with.
        sample: Newest accepted sample; `received_s` is when it came.
        curves: What is learnt of its miss-ratio curve.
    """

    def __init__(self, config: GuestConfig, control: ControlConfig, effort: Effort | None = None) -> None:
        self.config = config
        self._control = control
        self.link = Link.CONNECTING
        self.detail = ""
        self.paused = False
        self._paused_since_s = 0.0
        self.migrating = False
        self.leaving = False
        self.expected = False
        self._expected_bytes = 0
        self._expected_until_s = -math.inf
        self.progress = BalloonProgress()
        self.facts: Facts | None = None
        self.target_bytes = 0
        self.actual_bytes = 0
        self.desired_bytes = 0
        self.commanded = False
        self.moved_unasked = False
        self._unconfirmed_bytes = 0
        self._needed_bytes = self._gap_at_bytes = 0
        self._gap_bytes: int | None = None
        self._idle_bytes = 0
        self._known_since_s = 0.0
        self._reset = False
        self._rebooting_bytes = 0
        self._grace_until_s = -math.inf
        self._tracker = SampleTracker()
        self.curves = CurveObserver(effort)
        self.sample: Sample | None = None
        self.received_s = -math.inf
        self._counted = self._unseen = False
        self._base: Sample | None = None
        self._thrash = Level()
        self._waits = Level()  # allocations that wait: by the guest's own account, and by its balloon's
        self._stalls = Level()
        self._stats: tuple[int, int, int] | None = None
        self._danger = ""
        self._danger_until_s = -math.inf
        self._decided_bytes = self._rescue_bytes = self._sampled_bytes = 0
        self._grew_itself = False

    @property
    def name(self) -> str:
        """The configured name."""
        return self.config.name

    # --- connection -------------------------------------------------------------------------------------------------

    def met(self, process_id: int | None) -> None:
        """Note which QEMU answers: of another one than before nothing is known until it has told."""
        if self.facts is not None and self.facts.process_id != process_id:
            self._forget_size()
            self.facts = None

    def connected(self, facts: Facts, actual_bytes: int, now_s: float, *, paused: bool) -> None:
        """Note a monitor connection. A QEMU met for the first time is adopted at the size its guest has."""
        before = self.facts
        same_qemu = self.target_bytes and before is not None and before.process_id == facts.process_id
        self.facts = facts
        self.link, self.detail = Link.UP, ""
        if not same_qemu:
            self._forget_size()
            self.target_bytes = self.desired_bytes = actual_bytes
        elif before is not None and before.ram_bytes != facts.ram_bytes:
            self.adopted(actual_bytes)
        self.expected = False
        self.actual_bytes = actual_bytes
        self.paused, self._paused_since_s = paused, now_s
        self._known_since_s = now_s

    def adopted(self, actual_bytes: int) -> None:
        """Note that the guest has another size without a command, or its own doing, and is to keep it.

        As when memory was plugged: QEMU leaves the balloon as it is, so that the guest's size and target change by as
        much. What it was to get is still wanted on top; to shrink is for the next decision, which knows more. Until a
        command for the new size is confirmed it may still grow to the target before, which may have moved with the RAM.
        """
        if self.target_bytes and self.facts is not None:
            grown_bytes = max(0, actual_bytes - self.actual_bytes)
            doubt_bytes = min(self.target_bytes + grown_bytes, self.facts.ram_bytes)
            self._unconfirmed_bytes = max(self._unconfirmed_bytes, doubt_bytes)
        wanted_bytes = actual_bytes + max(self.desired_bytes - self.target_bytes, 0)
        self.target_bytes = self.actual_bytes = actual_bytes
        self.desired_bytes = max(actual_bytes, min(wanted_bytes, self.cap_bytes))

    def answered(self) -> None:
        """Note that a monitor that hung, or a guest that was held, is as it should be again."""
        self.link, self.detail = Link.UP, ""

    def hung(self, detail: str) -> None:
        """Note that the monitor does not answer. What the guest has stays charged."""
        self.link, self.detail = Link.HUNG, detail

    def held(self, detail: str) -> None:
        """Note that the guest must not be controlled."""
        self.link, self.detail = Link.HELD, detail

    def gone(self, detail: str) -> None:
        """Note that no QEMU listens: its memory is free. One that was never there is still expected."""
        if self.link is not Link.CONNECTING or self.target_bytes:
            self.link = Link.GONE
        self.detail = detail
        self._forget_size()

    def expect(self, boot_bytes: int, until_s: float) -> None:
        """Charge a guest that is about to start with what it will occupy at first, until it is there or time is up."""
        self.expected, self._expected_bytes, self._expected_until_s = True, boot_bytes, until_s

    def end_expectation(self, now_s: float) -> bool:
        """End the waiting for a guest that does not start, if time is up; return whether."""
        if not self.expected or now_s < self._expected_until_s:
            return False
        self.expected = False
        return True

    def disconnected(self) -> None:
        """Note that the monitor connection ended: counters may begin anew behind it, so the series ends here."""
        self._forget_samples()
        self.curves.forget_series()
        self.migrating = False

    def was_reset(self, now_s: float) -> None:
        """Note a reset of the machine: nothing is known of the new system until it reports.

        Until its driver works again it may use all of its RAM, while QEMU goes on reporting the size from before.
        """
        self._forget_samples()
        self.curves.was_reset()
        self._forget_danger()
        self._needed_bytes = self._gap_at_bytes = self._idle_bytes = 0
        self._gap_bytes = None
        self._reset = True
        self._rebooting_bytes = self.facts.ram_bytes if self.facts else self.cap_bytes
        self._grace_until_s = now_s + RESET_GRACE_S

    def end_grace(self, now_s: float) -> bool:
        """End the time after a reset in which it is charged with all of its RAM, if it is over; return whether."""
        if not self._rebooting_bytes or (self._reset and now_s < self._grace_until_s):
            return False
        self._rebooting_bytes = 0
        return True

    def given(self, facts: Facts) -> None:
        """Take facts with the memory that QEMU gives the guest now.

        What was plugged is of no use to the guest before its kernel takes it. Until samples show that it has, the guest
        can neither give it up nor has it too much: it counts to the floor, and not to the cap.
        """
        grown_bytes = facts.ram_bytes - self.facts.ram_bytes if self.facts is not None else 0
        self.facts = facts
        if grown_bytes > 0 and self._gap_bytes is not None:
            self._gap_bytes += grown_bytes
            self._needed_bytes += grown_bytes
            self._idle_bytes += grown_bytes
        elif grown_bytes < 0:
            self._idle_bytes = max(self._idle_bytes + grown_bytes, 0)

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
            self.desired_bytes = self.target_bytes  # it neither gives nor takes: others may have what it was to get
        self.detail = detail
        if asleep and self._grew_itself:
            self._danger_until_s = -math.inf

    def resumed(self, now_s: float) -> None:
        """Note that its virtual CPUs run again: nothing grew old while they did not."""
        if self.paused:
            self.paused, self.detail = False, ""
            self._stood_still(now_s - self._paused_since_s)

    def host_was_away(self, seconds: float) -> None:
        """Note that this process did not run for a while, so that nothing grew old in that time.

        What is known of the guest is from before, though: it is late until it reports again.
        """
        self._unseen = True
        if not self.paused:  # else all of its pause counts, when it is over
            self._stood_still(seconds)

    def _stood_still(self, seconds: float) -> None:
        self._unseen = True
        self.received_s += seconds
        self._known_since_s += seconds
        self._danger_until_s += seconds
        self._grace_until_s += seconds
        self.progress.host_was_away(seconds)

    def _forget_size(self) -> None:
        self.target_bytes = self.actual_bytes = self.desired_bytes = 0
        self._unconfirmed_bytes = self._needed_bytes = self._rebooting_bytes = 0
        self._gap_bytes, self._gap_at_bytes, self._idle_bytes = None, 0, 0
        self.commanded = self.migrating = self._reset = False
        self._forget_danger()

    def _forget_samples(self) -> None:
        self._tracker.forget()
        self.sample = self._base = self._stats = None
        self._counted = False

    # --- size -------------------------------------------------------------------------------------------------------

    @property
    def outside_bytes(self) -> int:
        """Memory it has, or may take at any time, outside of the balloon (virtio-mem). No command of ours moves it."""
        return self.facts.outside_bytes if self.facts is not None and self.link is not Link.GONE else 0

    @property
    def charge_bytes(self) -> int:
        """What the guest may occupy now, for the budget: in the balloon's reckoning, and outside of it."""
        return self._size_charge_bytes + self.outside_bytes

    @property
    def _size_charge_bytes(self) -> int:
        """What its size may be now. A QEMU that runs unmeasured is charged with its most."""
        if self.target_bytes == 0:
            unmeasured = self.cap_bytes if self.link in {Link.HUNG, Link.HELD} else 0
            return max(unmeasured, self._expected_bytes if self.expected else 0)
        return max(self._granted_bytes, self._rebooting_bytes)

    @property
    def _granted_bytes(self) -> int:
        return max(self.target_bytes, self.actual_bytes, self._unconfirmed_bytes)

    @property
    def settled(self) -> bool:
        """True when the guest has the size that was asked for and nothing is in doubt."""
        return self.actual_bytes == self.target_bytes and not self._unconfirmed_bytes

    def measured(self, actual_bytes: int, now_s: float) -> bool:
        """Note the size that QEMU reports; return whether it changed.

        A guest that grows above its target by itself (``deflate-on-oom``) was about to kill processes.
        """
        before, self.moved_unasked = self.actual_bytes, self._fell(actual_bytes)
        grew, self.actual_bytes = self._grew(actual_bytes), actual_bytes
        if grew and not self.paused:  # one that is stopped did so before: it emptied its balloon to fall asleep
            grown = format_size(actual_bytes - self.target_bytes)
            self._endanger(f"danger: took {grown} back by itself (deflate-on-oom)", now_s)
            self._rescue_bytes = max(self._rescue_bytes, actual_bytes)
            self._grew_itself = True
        return actual_bytes != before

    def explains(self, actual_bytes: int) -> bool:
        """Tell whether commands and RAM that are known of explain that size; if not, memory may have been plugged."""
        possible = self.facts is None or actual_bytes <= self.facts.ram_bytes
        return possible and not self._grew(actual_bytes) and not self._fell(actual_bytes)

    def _grew(self, actual_bytes: int) -> bool:
        entitled_bytes = max(self.target_bytes, self._unconfirmed_bytes)
        return actual_bytes > max(self.actual_bytes, entitled_bytes) + GREW_BYTES

    def _fell(self, actual_bytes: int) -> bool:
        return self.settled and actual_bytes < self.actual_bytes - GREW_BYTES

    def observed(self, actual_bytes: int) -> bool:
        """Note the size in a run that only observes, and so has no target of its own; return whether it changed."""
        changed = actual_bytes != self.actual_bytes
        self.target_bytes = self.desired_bytes = self.actual_bytes = actual_bytes
        self._unconfirmed_bytes = 0
        return changed

    def ordered(self, target_bytes: int) -> None:
        """Note that a ``balloon`` command is about to be sent; the old size stays charged until it is confirmed."""
        self._unconfirmed_bytes = max(
            self._granted_bytes if self.target_bytes else self._size_charge_bytes, target_bytes
        )
        self.commanded = self.commanded or target_bytes != self.target_bytes
        self.target_bytes = target_bytes

    @property
    def doubt_bytes(self) -> int:
        """What it may occupy by commands whose outcome is not known yet; 0 when none is in doubt."""
        return self._unconfirmed_bytes

    def refused(self, previous_bytes: int, doubt_bytes: int = 0) -> None:
        """Note that QEMU refused the last command, so that target and `doubt_bytes` from before it still hold."""
        self.target_bytes = previous_bytes
        self._unconfirmed_bytes = doubt_bytes

    def confirmed(self) -> None:
        """Note that the size was queried well after QEMU took the last command."""
        self._unconfirmed_bytes = 0

    def account(self, now_s: float) -> Account:
        """Return the guest's entry in the ledger. A stuck one is left alone, unless it is in danger and may grow."""
        in_danger = self.danger(now_s) is not None
        charge_bytes = self._granted_bytes if self.target_bytes else self._size_charge_bytes
        alone = self.progress.stuck(now_s) and not (in_danger and self.desired_bytes > self.target_bytes)
        return Account(
            name=self.name,
            target_bytes=self.target_bytes,
            charge_bytes=charge_bytes,
            actual_bytes=self.actual_bytes,
            reserve_bytes=self._size_charge_bytes - charge_bytes,
            outside_bytes=self.outside_bytes,
            desired_bytes=self.target_bytes if alone else self.desired_bytes,
            commandable=self.link is Link.UP and not self.migrating,
            in_need=in_danger or self.target_bytes < self.floor_bytes,
        )

    def is_stuck(self, now_s: float) -> bool:
        """Tell whether the size measured last shows that the balloon does not do what it was asked."""
        excused = (
            self.link is not Link.UP
            or self.paused
            or self.migrating
            or self._rebooting_bytes > 0
            or self.danger(now_s) is not None
        )
        return self.progress.see(self.actual_bytes, self.target_bytes, now_s, excused=excused)

    def achieved_bytes(self) -> int:
        """Return the target that admits what a stuck balloon has achieved; never a new one below the floor."""
        return min(max(align_down(self.actual_bytes), min(self.target_bytes, self.floor_bytes)), self._most_bytes)

    @property
    def _most_bytes(self) -> int:
        """The most that may be asked for: the cap, or what it has been given above it, as when the cap was lowered."""
        return max(self.cap_bytes, self.target_bytes)

    @property
    def cap_bytes(self) -> int:
        """The configured cap, or the guest's RAM if that is less: QEMU clamps silently. In whole pages.

        RAM that was plugged and is not used yet comes on top: without it the guest would have less than its cap.
        """
        cap_bytes = self.config.cap + self._idle_bytes
        return align_down(min(cap_bytes, self.facts.ram_bytes) if self.facts else cap_bytes)

    @property
    def floor_bytes(self) -> int:
        """The larger of the configured floor and what the guest could not give up when it last told, plus the reserve.

        Never above the cap. In whole pages.
        """
        return min(-align_down(-max(self.config.floor + self._idle_bytes, self._needed_bytes)), self.cap_bytes)

    @property
    def baseline_bytes(self) -> int:
        """The size it is returned to: the configured baseline, or its floor if that is higher. In whole pages."""
        return max(align_down(min(self.config.baseline, self.cap_bytes)), self.floor_bytes)

    @property
    def in_use_bytes(self) -> int | None:
        """The size below which it loses what it cannot give up, or files that its programs map; None if not told."""
        memory = self.sample.memory_bytes if self.sample else None
        if memory is None or memory.in_use_bytes is None:
            return None
        return with_reserve((self._gap_bytes or 0) + memory.in_use_bytes, self._control.reserve)

    def learn_need(self, sample: Sample) -> None:
        """Remember what the guest cannot give up, also for the time when it tells no more.

        The size QEMU counts includes what the guest's kernel took before it could account for it (RAM - MemTotal).
        Memory that the kernel uses outside of the balloon makes that difference smaller, or negative: so much less
        must be inside. What the kernel needs for itself must be, for such memory is often for programs only.
        """
        memory = sample.memory_bytes
        if memory.unreclaimable_bytes is None:
            return
        if memory.total is not None and self.facts is not None:
            self._learn_gap(self.facts.ram_bytes if self.facts.deflate_on_oom else self.actual_bytes, memory.total)
        least_bytes = memory.unreclaimable_bytes - (memory.anon or 0) - (memory.shmem or 0)
        needed_bytes = max((self._gap_bytes or 0) + memory.unreclaimable_bytes, least_bytes)
        self._needed_bytes = with_reserve(needed_bytes, self._control.reserve)

    def _learn_gap(self, size_bytes: int, total_bytes: int) -> None:
        """Learn RAM - MemTotal. Where MemTotal follows the balloon, only while the size rests from sample to sample."""
        at_rest, self._gap_at_bytes = size_bytes == self._gap_at_bytes, size_bytes
        if at_rest or self._gap_bytes is None:
            beside_bytes = self.facts.visible_bytes - self.facts.ram_bytes if self.facts else 0
            used_bytes = (self._gap_bytes or 0) - self._idle_bytes  # what the kernel kept of what it knew
            self._gap_bytes = max(size_bytes - total_bytes, -beside_bytes)
            self._idle_bytes = min(self._idle_bytes, max(self._gap_bytes - used_bytes, 0))

    def claims_too_much(self, sample: Sample) -> bool:
        """Tell whether the guest counts more memory as its own than is known to have been given to it."""
        total = sample.memory_bytes.total
        return total is not None and self.facts is not None and total > self.facts.visible_bytes

    # --- samples ----------------------------------------------------------------------------------------------------

    def take_sample(self, sample: Sample, now_s: float) -> Accepted:
        """Accept a parsed sample.

        Raises:
            SampleError: It cannot be used; see `SampleTracker.accept`. Also when it claims more memory than QEMU gave.
        """
        if self.claims_too_much(sample):
            raise SampleError(SampleFault.ABSURD, "the guest claims more memory than its QEMU gives it")
        earlier = self._tracker.last
        try:
            accepted = self._tracker.accept(sample, now_s)
        except SampleError as error:
            if error.fault is not SampleFault.REPEATED:
                self.sample = self._base = None
                self._counted = False
            raise
        self.sample = sample
        if self._base is None:
            self._base = sample
        if accepted.delta is None:
            return accepted  # the file may be of any age: only a second one shows that somebody writes it
        self.received_s, self._counted, self._reset, self._unseen = now_s, True, False, False
        self.learn_need(sample)
        self.curves.take_sample(sample, accepted.delta, self.actual_bytes, self.floor_bytes, self.cap_bytes)
        # What it tells is of the size it had then: it may have been granted more a moment ago.
        size_bytes = min(self.actual_bytes, self._sampled_bytes or self.actual_bytes)
        self._sampled_bytes = self.actual_bytes
        danger = find_danger(earlier, sample, size_bytes, self._thrash, self._waits)
        if danger:
            self._endanger(danger, now_s)
        # As soon as it has memory to spare again it needs no more than that.
        occupied_bytes = size_bytes + self.outside_bytes
        needed = needed_bytes(sample, occupied_bytes, short=bool(danger)) - self.outside_bytes
        if not 0 < self._rescue_bytes - needed <= NEED_STEP_BYTES:  # else it would be moved to and fro for a trifle
            self._rescue_bytes = needed
        return accepted

    def take_stats(self, last_update: int, alloc_stalls: int, oom_kills: int, now_s: float) -> None:
        """Take what the balloon driver reported, as QEMU passes it on.

        Counts that went back begin a new series: the guest was rebooted, or lies.

        Args:
            last_update: Host Unix time of the report, seconds.
            alloc_stalls: Allocations that had to wait for reclaim, since the guest's boot.
            oom_kills: Processes killed, since the guest's boot.
            now_s: The time.
        """
        earlier = self._stats
        if earlier is not None and last_update == earlier[0]:
            return
        self._stats = (last_update, alloc_stalls, oom_kills)
        if earlier is None or any(new < old for new, old in zip(self._stats, earlier, strict=True)):
            return
        seconds, stalls, kills = (new - old for new, old in zip(self._stats, earlier, strict=True))
        if danger := find_stalls(stalls, kills, float(seconds), self._stalls):
            self._endanger(danger, now_s)

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
        self.curves.close_window()

    def danger(self, now_s: float) -> str | None:
        """Return why the guest may not give memory now, or None.

        That lasts for a minute, and for as long as it needs more than it would have had without.
        """
        if now_s < self._danger_until_s:
            return self._danger
        if self._danger and self._needs_more:
            return f"needs {format_size(self._rescue_bytes)}: {self._danger.removeprefix('danger: ')} earlier"
        self._danger = ""  # what it is given from now on is a policy's doing
        return None

    @property
    def _needs_more(self) -> bool:
        """Whether it was given more in danger than it would have had, and has not given it back."""
        return self.target_bytes > max(self.baseline_bytes, self._decided_bytes)

    def _forget_danger(self) -> None:
        self._danger, self._danger_until_s = "", -math.inf
        self._decided_bytes = self._rescue_bytes = self._sampled_bytes = 0
        self._thrash, self._waits, self._stalls = Level(), Level(), Level()

    def rescue_bytes(self, now_s: float) -> int:
        """Return the size it is to have while it is in danger, 0 when it is not.

        Its baseline, what had been decided before, or what it needs, whichever is most; no more than its cap. What it
        got beyond that is asked back as soon as it is free.
        """
        if self.danger(now_s) is None:
            return 0
        wanted = max(self.baseline_bytes, self._decided_bytes, align_down(self._rescue_bytes))
        return min(wanted, self._most_bytes)

    def _endanger(self, why: str, now_s: float) -> None:
        if self.danger(now_s) is None:
            self._decided_bytes = self.desired_bytes
        self._danger, self._danger_until_s, self._grew_itself = why, now_s + FREEZE_S, False

    # --- state ------------------------------------------------------------------------------------------------------

    def state(self, now_s: float) -> GuestState:
        """Return the state at `now_s`."""
        if self.link is not Link.UP:
            return GuestState(self.link.value)
        if self.migrating or self.leaving:
            return GuestState.HELD
        if self.paused:
            return GuestState.PAUSED
        if self._reset:
            return GuestState.LOST
        if not self._counted:
            warming = now_s - self._known_since_s < self._control.lost_after
            return GuestState.WARMING if warming else GuestState.LOST
        age_s = now_s - self.received_s
        if age_s < self._control.late_after and not self._unseen:
            return GuestState.FRESH
        return GuestState.LATE if age_s < self._control.lost_after else GuestState.LOST

    def snapshot(self, now_s: float) -> GuestSnapshot:
        """Return what a policy sees of this guest."""
        delta = self.window()
        rate = delta.accesses / delta.interval_s if delta and delta.accesses is not None else None
        known = self.curves.facts(self.floor_bytes, self.cap_bytes, rate)
        return GuestSnapshot(
            name=self.name,
            state=self.state(now_s),
            target_bytes=self.desired_bytes,
            actual_bytes=self.actual_bytes,
            charge_bytes=self.charge_bytes,
            floor_bytes=self.floor_bytes,
            cap_bytes=self.cap_bytes,
            baseline_bytes=self.baseline_bytes,
            outside_bytes=self.outside_bytes,
            weight=self.config.weight,
            hits=delta.hits if delta else None,
            misses=delta.misses if delta else None,
            interval_s=delta.interval_s if delta else None,
            refaults=delta.refaults if delta else None,
            faults=delta.inserts_fault if delta else None,
            swap_ins=delta.swap_ins if delta else None,
            memory=self.sample.memory_bytes if self.sample else None,
            in_use_bytes=self.in_use_bytes,
            rescue_bytes=self.rescue_bytes(now_s),
            psi_some_avg10=self.sample.psi_memory.some_avg10 if self.sample else None,
            frozen=self.danger(now_s) or self.progress.stuck(now_s),
            curve=known.curve,
            no_curve=known.no_curve,
            ghost_gain=known.ghost_gain,
            ghost_loss=known.ghost_loss,
            hit_s=known.hit_s,
            miss_s=known.miss_s,
            waits=known.waits,
            disk_read_pages=known.disk_read_pages,
            misses_lately=known.misses_lately,
            disk_read_pages_lately=known.disk_read_pages_lately,
        )
