"""Decisions: what the policy wants, what the limits leave of it, and what neither may wait for: danger and the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from qmpalloc.config import Config
from qmpalloc.control.commitments import Commitments
from qmpalloc.control.guest import Guest
from qmpalloc.control.journal import Journal
from qmpalloc.control.snapshot import snapshot_of
from qmpalloc.errors import QmpallocError
from qmpalloc.events import Decided, plain
from qmpalloc.model import Decision, GuestState, HostMemory, Limiter, Policy, Snapshot, hold
from qmpalloc.rules.budget import UNCONTROLLED
from qmpalloc.rules.hostguard import BLIND_MOST_S, Emergency, HostGuard, relieve
from qmpalloc.rules.limits import apply_limits
from qmpalloc.rules.loans import Loans
from qmpalloc.rules.pins import bound, unpinned

ReadHost = Callable[[], HostMemory | None]
"""Tells how the host's memory is. None: nothing of it could be read."""

DANGER_HINT = "it gets its baseline, or what it needs if that is more, and gives nothing for a minute"
SLOW_S = 1.0
"""A policy that takes longer is told: until it returns nobody reads answers, and no danger is noticed."""

HOST_HINT = "every guest gives; end what else uses the host's memory, or lower the budget"
UNREAD_HINT = "the guests are not protected from a host that runs short of it; see qmpalloc doctor"
UNREAD_IN_EMERGENCY_HINT = f"no guest grows until it can, for at most {BLIND_MOST_S:.0f} s"


class Decider:
    """Takes decisions and reports them; carrying them out is the controller's business.

    Attributes:
        config: The configuration in force.
        cycle: Number of the last decision of the loop.
        paused: A person has paused control: nothing but danger and the host are answered.
    """

    def __init__(
        self,
        guests: Sequence[Guest],
        config: Config,
        policy: Policy,
        journal: Journal,
        commitments: Commitments,
        read_host: ReadHost | None,
    ) -> None:
        self.config = config
        self.cycle = 0
        self.paused = False
        self._guests = guests
        self._policy = policy
        self._journal = journal
        self._commitments = commitments
        self._read_host = read_host
        self._guard = HostGuard()
        self._host: HostMemory | None = None
        self._emergency: Emergency | None = None
        self._carry: Any = None
        self._rescued: dict[str, int] = {}
        self._loans = Loans()

    def snapshot(self) -> Snapshot:
        """Return what a policy would see now."""
        now_s = self._journal.now_s()
        return Snapshot(
            cycle=self.cycle,
            time_s=now_s,
            budget_bytes=self.config.host.budget,
            interval_s=float(self.config.control.interval),
            guests=tuple(snapshot_of(guest, now_s) for guest in self._guests),
            host=self._host,
            carry=self._carry,
        )

    @property
    def host_is_short(self) -> str:
        """Why the host can give no memory now; empty when it can."""
        return self._emergency.reason if self._emergency is not None else ""

    @property
    def is_urgent(self) -> bool:
        """Whether a guest is in danger, or the host short of memory."""
        return self._emergency is not None or bool(self._dangers())

    def decide(self) -> Decision:
        """Take the decision of a cycle, within all limits."""
        self.cycle += 1
        return self._take(self._ask_policy)

    def guests_renamed(self) -> None:
        """Forget what is known by name, of which a guest may have another's now."""
        self._carry, self._rescued, self._loans = None, {}, Loans()

    def sizes_set(self) -> None:
        """Note that sizes were wanted without a decision: danger and loss that last are to be answered again."""
        self._rescued = dict.fromkeys(self._rescued, -1)

    def rescue(self) -> Decision | None:
        """Answer danger and loss that are new, or that have grown, at once: a decision that holds all others.

        None when there is nothing new.
        """
        now_s = self._journal.now_s()
        dangers = self._dangers()
        lost = {guest.name for guest in self._guests if guest.state(now_s) is GuestState.LOST}
        before, self._rescued = (
            self._rescued,
            {
                guest.name: guest.danger.rescue_bytes(now_s)
                for guest in self._guests
                if guest.state(now_s) not in {*UNCONTROLLED, GuestState.GONE} and guest.name in dangers.keys() | lost
            },
        )
        for name in sorted(self._rescued.keys() & dangers.keys() - before.keys()):
            self._journal.fault(name, "danger", dangers[name], DANGER_HINT, again=True)
        news = {name for name, size_bytes in self._rescued.items() if size_bytes > before.get(name, -1)}
        if not news:
            return None
        return self.at_once(f"at once, for {', '.join(sorted(news))}")

    def at_once(self, why: str) -> Decision:
        """Decide between two cycles: nothing but what the limits ask for."""
        return self._take(lambda snapshot, dangers: self._limited(snapshot, hold(snapshot, why), dangers))

    def look_at_host(self) -> Decision | None:
        """Read the host's memory; return the decision that answers an emergency when it begins."""
        if self._read_host is None:
            return None
        memory = self._host = self._memory_of_host(self._read_host)
        before, self._emergency = self._emergency, self._guard.look(memory, self._journal.now_s())
        self._tell_unread(memory)
        if self._emergency is None:
            self._journal.clear_fault(None, "host")
            return None
        if before is not None:
            return None
        self._journal.fault(None, "host", self._emergency.reason, HOST_HINT)
        return self._take(self._ask_policy)

    def _memory_of_host(self, read: ReadHost) -> HostMemory:
        try:
            memory = read()
        except Exception as error:  # a defect of the reader must not end the run
            return HostMemory(unread=(f"{type(error).__name__}: {error}",))
        return memory or HostMemory(unread=("this host does not tell it",))

    def _tell_unread(self, memory: HostMemory) -> None:
        if not memory.unread:
            self._journal.clear_fault(None, "guard")
            return
        message = f"the host's memory cannot be read: {'; '.join(memory.unread)}"
        hint = UNREAD_HINT if self._emergency is None else UNREAD_IN_EMERGENCY_HINT
        self._journal.fault(None, "guard", message, hint, once=True)

    def _take(self, ask: Callable[[Snapshot, dict[str, str]], Decision]) -> Decision:
        dangers = self._dangers()
        snapshot = self.snapshot() if self._emergency is None else unpinned(self.snapshot())
        started_s = time.perf_counter()
        decision = ask(snapshot, dangers)
        duration_s = round(time.perf_counter() - started_s, 6)
        if duration_s < SLOW_S:
            self._journal.clear_fault(None, "slow")
        else:
            took = f"policy {self.config.policy} took {duration_s:.1f} s to decide"
            hint = "nothing else is done meanwhile, and answers seem late after it"
            self._journal.fault(None, "slow", took, hint, once=True)
        self._carry = decision.carry
        self._loans.note(snapshot, decision)
        committed = self._commitments.committed_bytes
        self._journal.emit(
            Decided, snapshot=bound(snapshot), decision=decision, committed_bytes=committed, duration_s=duration_s
        )
        return decision

    def _dangers(self) -> dict[str, str]:
        now_s = self._journal.now_s()
        return {guest.name: why for guest in self._guests if (why := guest.danger.why(now_s))}

    def _limited(self, snapshot: Snapshot, decision: Decision, dangers: dict[str, str]) -> Decision:
        return apply_limits(snapshot, decision, dangers, emergency=self._emergency is not None)

    def _ask_policy(self, snapshot: Snapshot, dangers: dict[str, str]) -> Decision:
        """Return the policy's decision within limits; a policy that fails changes nothing, visibly."""
        if self._emergency is not None:
            return self._limited(snapshot, relieve(snapshot, self._emergency), dangers)
        if self.paused:
            return apply_limits(snapshot, hold(snapshot, "paused", Limiter.PAUSE), dangers)
        try:
            decision = apply_limits(snapshot, self._policy.decide(_copy_of(bound(snapshot))), dangers)
        except KeyboardInterrupt:
            raise  # a person's wish, whoever passes it on: the run ends in order
        except BaseException as error:  # whatever else a user's policy raises, SystemExit too, must not end the run
            text = error.message if isinstance(error, QmpallocError) else f"{type(error).__name__}: {error}"
            message = f"policy {self.config.policy} failed: {text}"
            self._journal.fault(None, "policy", message, "all guests are held")
            return apply_limits(snapshot, hold(snapshot, "policy failed"), dangers)
        self._journal.clear_fault(None, "policy")
        repaid = self._loans.repay(snapshot, decision)
        return decision if repaid is decision else apply_limits(snapshot, repaid, dangers)


def _copy_of(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot that shares nothing with `snapshot`: Python lets a policy write into whatever it is shown.

    The limits hold for what is, and the record has it. By msgspec, for ``copy.deepcopy`` takes a hundred times as long.
    """
    return msgspec.convert(msgspec.to_builtins(snapshot, enc_hook=plain), Snapshot)
