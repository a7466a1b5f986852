"""Whether one guest is in danger, for how long, and what it is to have then."""

from __future__ import annotations

import math

from qmpalloc.control.memory import GuestMemory
from qmpalloc.control.size import GuestSize
from qmpalloc.rules.danger import FREEZE_S, NEED_STEP_BYTES, Level, find_danger, find_stalls, growth_bytes, needed_bytes
from qmpalloc.sample import Sample
from qmpalloc.units import format_size


class Danger:
    """What a guest's samples, its balloon's statistics and its size tell of danger.

    Attributes:
        stopped_s: Since when its virtual CPUs do not run; infinity while they do. Nothing grows old meanwhile.
    """

    def __init__(self, memory: GuestMemory, size: GuestSize) -> None:
        self._memory = memory
        self._size = size
        self._stats: tuple[int, int, int] | None = None
        self._waited = False
        self._grew_itself = False
        self.stopped_s = math.inf
        self.forget()

    def forget(self) -> None:
        """Forget all but the last statistics: another system may run now."""
        self._why, self._until_s, self._sampled_s = "", -math.inf, -math.inf
        self._decided_bytes = self._rescue_bytes = self._sampled_bytes = 0
        self._thrash = Level()
        self._waits = Level()  # allocations that wait: by the guest's own account, and by its balloon's
        self._stalls = Level()

    def forget_stats(self) -> None:
        """Forget the last statistics: they begin anew."""
        self._stats = None

    def take_sample(self, earlier: Sample | None, sample: Sample, outside_bytes: int, now_s: float) -> None:
        """Look for danger in an accepted sample, and learn what the guest needs.

        Args:
            earlier: The accepted sample before.
            sample: The newest.
            outside_bytes: Memory it has beside its size.
            now_s: The time.
        """
        # What it tells is of the size it had then: it may have been granted more a moment ago.
        actual_bytes = self._size.actual_bytes
        size_bytes = min(actual_bytes, self._sampled_bytes or actual_bytes)
        self._sampled_bytes, self._sampled_s = actual_bytes, now_s
        sign = find_danger(earlier, sample, size_bytes, self._thrash, self._waits)
        if sign:
            self.begin(sign, now_s)
        # As soon as it has memory to spare again it needs no more than that.
        growth = growth_bytes(earlier, sample)
        needed = needed_bytes(sample, size_bytes + outside_bytes, short=bool(sign), growth_bytes=growth) - outside_bytes
        if not 0 < self._rescue_bytes - needed <= NEED_STEP_BYTES:  # else it would be moved to and fro for a trifle
            self._rescue_bytes = needed

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
        # Else it was killed within the limit of a control group: see `qmpalloc.rules.danger._find_kills`.
        killed = kills if stalls or self._waited else 0
        self._waited = stalls > 0
        if sign := find_stalls(stalls, killed, float(seconds), self._stalls):
            self.begin(sign, now_s)

    def grew_itself(self, now_s: float) -> None:
        """Note that the guest grew above its target by itself (``deflate-on-oom``): it was about to kill processes.

        What it took is charged. What it needs its next sample tells: a driver that begins anew (kexec, a module that is
        loaded again) takes all for a moment, and needs none of it.
        """
        grown = format_size(self._size.actual_bytes - self._size.target_bytes)
        self.begin(f"danger: took {grown} back by itself (deflate-on-oom)", now_s)
        self._grew_itself = True

    def fell_asleep(self) -> None:
        """Note that the guest has gone to sleep: that its driver emptied the balloon before was no sign of danger."""
        if self._grew_itself:
            self._until_s = -math.inf

    def stood_still(self, seconds: float) -> None:
        """Note that for so long nothing grew old."""
        self._until_s += seconds
        self._sampled_s += seconds

    def begin(self, why: str, now_s: float) -> None:
        """Note that the guest is in danger, and why; one that was already stays so for longer."""
        if self.why(now_s) is None:
            self._decided_bytes = self._size.desired_bytes
        self._why, self._until_s, self._grew_itself = why, now_s + FREEZE_S, False

    def why(self, now_s: float) -> str | None:
        """Return why the guest may not give memory now, or None.

        That lasts for a minute, and for as long as it needs more than it would have had without, by what it told in
        the last minute.
        """
        now_s = min(now_s, self.stopped_s)
        if now_s < self._until_s:
            return self._why
        if self._why and self._needs_more and now_s < self._sampled_s + FREEZE_S:
            return f"needs {format_size(self._rescue_bytes)}: {self._why.removeprefix('danger: ')} earlier"
        self._why = ""  # what it is given from now on is a policy's doing
        return None

    @property
    def _needs_more(self) -> bool:
        """Whether it was given more in danger than it would have had, and has not given it back."""
        return self._size.target_bytes > max(self._memory.baseline_bytes, self._decided_bytes)

    def rescue_bytes(self, now_s: float) -> int:
        """Return the size it is to have while it is in danger, 0 when it is not.

        Its baseline, what had been decided before, or what it needs, whichever is most; no more than its cap. What it
        got beyond that is asked back as soon as it is free.
        """
        if self.why(now_s) is None:
            return 0
        wanted = max(self._memory.baseline_bytes, self._decided_bytes, self._memory.grid.fit_up(self._rescue_bytes))
        return min(wanted, self._size.most_bytes)
