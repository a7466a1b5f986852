"""The loop: sample, decide, actuate. The heart of a run.

Life of a run: *settling* (only while the guests found exceed the budget: all go to their baselines), *running* (a
decision every interval), *paused* (by a person), *returning* (to baseline, at the end), *stopped*. A run that only
observes is *watching* from beginning to end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Literal

import trio

from qmpalloc.books import Books
from qmpalloc.config import Config
from qmpalloc.errors import QmpallocError
from qmpalloc.events import ControlChanged, Decided, Ended, Mode, Sink
from qmpalloc.guest import Guest, Link
from qmpalloc.hostfacts import header
from qmpalloc.journal import Journal
from qmpalloc.limits import apply_limits
from qmpalloc.model import Decision, GuestState, Limiter, Policy, Snapshot, hold
from qmpalloc.session import Session, send_once

STATE_TICK_S = 0.5
"""How often ages are looked at: a state that depends on time changes at most this late."""

ABSENT_S = 2.0
"""A tick that comes this much too late means that the whole process stood still (Ctrl-Z, a suspended host)."""

FIRST_CONTACT_S = 5.0
"""How long the run waits for all monitors to answer before it goes on without the rest."""

SETTLE_MOST_S = 60.0
"""How long guests found above the budget may take to their baselines before decisions begin all the same."""

Control = Literal["settling", "running", "paused", "returning", "watching", "stopped"]


class Controller:
    """A run: its guests, its policy and what people ask of it while it goes on.

    Start it with `run`, once. `quit`, `hurry`, `toggle_pause` and `return_to_baseline` may be called at any time from
    the same trio loop; they return at once.

    Attributes:
        guests: In the order of the configuration.
        control: What the run is doing.
        reason: Why it ends; empty while it goes on.
        clean: Whether every guest was left where it was meant to be; only meaningful at the end.
    """

    def __init__(self, config: Config, policy: Policy, *sinks: Sink, mode: Mode = "run") -> None:
        self.config = config
        self.mode: Mode = mode
        self.guests = [Guest(guest, config.control) for guest in config.guests]
        self.control: Control = "settling" if mode == "run" else "watching"
        self.reason = ""
        self.clean = True
        self._policy = policy
        self._sinks = sinks
        self._changed = trio.Event()
        self._stop = trio.Event()
        self._ending = trio.CancelScope()
        self._serving = True
        self._cycle = 0
        self._carry: Any = None
        self._rescued: frozenset[str] = frozenset()
        self._alive_s = 0.0

    # --- what people may ask ----------------------------------------------------------------------------------------

    def quit(self, reason: str = "quit") -> None:
        """End the run: guests return to baseline (unless configured to keep), then `run` returns."""
        self.reason = self.reason or reason
        self._stop.set()

    def hurry(self) -> None:
        """Do not wait for the guests to come back to their baselines: leave them on their way."""
        self.quit("hurried")
        self._ending.cancel()

    def toggle_pause(self) -> None:
        """Pause control, leaving all guests where they are, or resume it. Danger is answered also while paused."""
        if self._stop.is_set():
            return
        if self.control == "running":
            for guest in self.guests:
                guest.desired_bytes = guest.target_bytes
            self._set_control("paused", "by request")
        elif self.control == "paused":
            self._close_windows()
            self._set_control("running", "resumed")

    def return_to_baseline(self) -> None:
        """Return all guests to their baselines and pause there."""
        if self.control in {"running", "paused"} and not self._stop.is_set():
            self._want_baseline()
            self._set_control("paused", "all guests go back to baseline")
            self._note_change()

    # --- the run ----------------------------------------------------------------------------------------------------

    async def run(
        self, *, duration_s: float = math.inf, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run until `quit`, until `duration_s` of control have passed, or until cancelled.

        Cancellation: the guests are still returned to baseline, within the configured time limit; the connections
        live until that is done.
        """
        self._journal = Journal(self._sinks, on_deaf=lambda: self.quit("no output is left"))
        self._sessions = {
            guest.name: Session(
                guest,
                self._journal,
                self.config.control,
                may_command=self.mode == "run",
                on_change=self._note_change,
                on_reset=self._guest_reset,
            )
            for guest in self.guests
        }
        self._books = Books(self.guests, self._sessions, self._journal, self.config.host.budget)
        self._alive_s = trio.current_time()
        self._journal.pass_on(header(self.config, self.mode, self._policy))
        reason = "failed"  # what it is if no line below says otherwise
        try:
            async with trio.open_nursery() as nursery:
                service = trio.CancelScope(shield=True)
                nursery.start_soon(self._serve, service)
                try:
                    task_status.started()
                    await self._control_until_stopped(duration_s)
                    reason = self.reason or "duration reached"
                except trio.Cancelled:
                    reason = self.reason or "cancelled" if self._serving else reason
                    raise
                finally:
                    self._stop.set()
                    if reason == "failed":
                        self._journal.fault(None, "controller", "control is lost: the controller failed")
                    with trio.CancelScope(shield=True):
                        await self._finish()
                    service.cancel()
        finally:
            # After the nursery, so that nothing is reported behind the end.
            self.clean = self.clean and reason != "failed"
            self._set_control("stopped", reason)
            self._journal.emit(Ended, reason=reason, clean=self.clean)

    async def _serve(self, service: trio.CancelScope) -> None:
        """Keep sessions and books going; shielded, so that they outlive a cancelled controller."""
        try:
            with service:
                async with trio.open_nursery() as nursery:
                    for session in self._sessions.values():
                        nursery.start_soon(session.run)
                    nursery.start_soon(self._keep_books)
                    nursery.start_soon(self._watch_time)
        finally:
            self._serving = False

    async def _control_until_stopped(self, duration_s: float) -> None:
        await self._wait_for_contact()
        if self.mode == "run":
            await self._settle()
        if self._stop.is_set():
            return
        self._close_windows()
        if self.mode == "run":
            self._set_control("running", f"policy {self.config.policy}")
        else:
            self._set_control("watching", "no balloon command is sent")
        self._books.show_sizes(again=True)  # what is committed now belongs to the time of control
        interval_s = float(self.config.control.interval)
        start_s = next_s = trio.current_time()
        end_s = start_s + duration_s
        while not self._stop.is_set():
            # A schedule without drift: after a delay the next tick of the same grid, never one that has passed.
            now_s = trio.current_time()
            next_s = max(next_s + interval_s, start_s + interval_s * math.ceil((now_s - start_s) / interval_s))
            with trio.move_on_at(min(next_s, end_s)):
                await self._stop.wait()
            if self._stop.is_set() or next_s >= end_s:
                return
            if not self._was_away() and self.mode != "watch":
                self._cycle += 1
                self._decide(self._ask_policy)
                self._close_windows()

    async def _wait_for_contact(self) -> None:
        """Wait until every monitor has answered in some way, within a limit."""
        with trio.move_on_after(FIRST_CONTACT_S):
            while any(guest.link is Link.CONNECTING and not guest.detail for guest in self.guests):
                if self._stop.is_set():
                    return
                await self._changed.wait()
        self._books.show_sizes()  # what was found, before anything is asked

    async def _settle(self) -> None:
        """Bring guests that were found above the budget to their baselines before anything is decided."""
        budget_bytes = self.config.host.budget
        if self._books.committed_bytes <= budget_bytes:
            return
        self._set_control("settling", "the guests found exceed the budget: all go to baseline")
        with trio.move_on_after(SETTLE_MOST_S):
            while self._books.committed_bytes > budget_bytes and not self._stop.is_set():
                self._want_baseline()  # every time, as guests may appear meanwhile
                self._note_change()
                if all(_is_home(guest) for guest in self.guests):
                    break  # what is left belongs to guests that cannot be measured
                with trio.move_on_after(STATE_TICK_S):
                    await self._stop.wait()
        self._check_budget()

    def _want_baseline(self) -> None:
        for guest in self.guests:
            if guest.target_bytes:
                guest.desired_bytes = guest.baseline_bytes

    def _guest_reset(self, guest: Guest) -> None:
        if self.mode == "run" and not self._stop.is_set():
            guest.desired_bytes = guest.baseline_bytes

    def _close_windows(self) -> None:
        for guest in self.guests:
            guest.close_window()

    # --- decisions --------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return what a policy would see now."""
        now_s = self._journal.now_s()
        return Snapshot(
            cycle=self._cycle,
            time_s=now_s,
            budget_bytes=self.config.host.budget,
            interval_s=float(self.config.control.interval),
            guests=tuple(guest.snapshot(now_s) for guest in self.guests),
            carry=self._carry,
        )

    def _decide(self, ask: Callable[[Snapshot, dict[str, str]], Decision]) -> None:
        """Take a decision within all limits, report it, and want what it says."""
        now_s = self._journal.now_s()
        dangers = {guest.name: why for guest in self.guests if (why := guest.danger(now_s))}
        snapshot = self.snapshot()
        started_s = time.perf_counter()
        decision = ask(snapshot, dangers)
        duration_s = round(time.perf_counter() - started_s, 6)
        self._carry = decision.carry
        committed = self._books.committed_bytes
        self._journal.emit(
            Decided, snapshot=snapshot, decision=decision, committed_bytes=committed, duration_s=duration_s
        )
        if self.mode == "run" and self.control in {"running", "paused"}:
            for guest, verdict in zip(self.guests, decision.guests, strict=True):
                guest.desired_bytes = verdict.target_bytes
            self._note_change()

    def _ask_policy(self, snapshot: Snapshot, dangers: dict[str, str]) -> Decision:
        """Return the policy's decision within limits; a policy that fails changes nothing, visibly."""
        if self.control == "paused":
            return apply_limits(snapshot, hold(snapshot, "paused", Limiter.PAUSE), dangers)
        try:
            decision = apply_limits(snapshot, self._policy.decide(snapshot), dangers)
        except Exception as error:  # whatever a user's policy raises must not end the run
            text = error.message if isinstance(error, QmpallocError) else f"{type(error).__name__}: {error}"
            self._journal.fault(None, "policy", f"policy {self.config.policy} failed: {text}", "all guests are held")
            return apply_limits(snapshot, hold(snapshot, "policy failed"), dangers)
        self._journal.clear_fault(None, "policy")
        return decision

    def _rescue(self) -> None:
        """Answer danger and loss at once, not at the next interval: a decision that holds all others."""
        now_s = self._journal.now_s()
        in_need = frozenset(
            guest.name
            for guest in self.guests
            if guest.link is Link.UP and (guest.danger(now_s) or guest.state(now_s) is GuestState.LOST)
        )
        news, self._rescued = in_need - self._rescued, in_need
        for guest in self.guests:
            if guest.name in news and (danger := guest.danger(now_s)):
                self._journal.clear_fault(guest.name, "danger")
                self._journal.fault(guest.name, "danger", danger, "it gets its baseline and gives nothing for a minute")
        if news and self.mode == "run" and self.control in {"running", "paused"} and not self._stop.is_set():
            why = f"at once, for {', '.join(sorted(news))}"
            self._decide(lambda snapshot, dangers: apply_limits(snapshot, hold(snapshot, why), dangers))

    # --- books and time ---------------------------------------------------------------------------------------------

    def _note_change(self) -> None:
        """Note that a size, an order or a state changed; cheap, callable from anywhere."""
        self._changed.set()

    async def _keep_books(self) -> None:
        """Report what changed and send what the ledger allows, whenever something changed."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            self._was_away()
            self._rescue()
            self._books.show()
            self._check_budget()
            if self.mode == "run":
                self._books.send_orders()

    async def _watch_time(self) -> None:
        """Report what changes by time alone."""
        while True:
            await trio.sleep(STATE_TICK_S)
            self._was_away()
            self._rescue()
            self._books.show_states()

    def _was_away(self) -> bool:
        """Tell whether this process stood still just now, and let nothing have grown old by that."""
        now_s = trio.current_time()
        away_s, self._alive_s = now_s - self._alive_s - STATE_TICK_S, now_s
        if away_s < ABSENT_S:
            return False
        for guest in self.guests:
            guest.host_was_away(away_s)
        hint = "nothing was decided meanwhile"
        self._journal.fault(None, "absence", f"this process did not run for {away_s:.1f} s", hint)
        return True

    def _check_budget(self) -> None:
        over_bytes = self._books.committed_bytes - self.config.host.budget
        if over_bytes > 0 and self.control in {"settling", "running", "paused"}:
            message = "the guests may occupy more than the budget; nothing is granted until they fit"
            hint = "a guest grew by itself (deflate-on-oom), appeared, does not shrink, or cannot be measured"
            self._journal.fault(None, "budget", message, hint)
        elif over_bytes <= 0:
            self._journal.clear_fault(None, "budget")

    def _set_control(self, control: Control, detail: str = "") -> None:
        self.control = control
        self._journal.emit(ControlChanged, control=control, detail=detail)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Leave the guests as configured. Runs shielded, within a time limit, and can be hurried."""
        if self.mode != "run" or self.config.control.on_exit == "keep":
            return
        self._set_control("returning", "to baseline")
        with self._ending, trio.move_on_after(float(self.config.control.exit_timeout)):
            while self._serving and not all(_is_home(guest) for guest in self.guests):
                self._want_baseline()
                self._note_change()
                await trio.sleep(float(self.config.control.balloon_poll))
            if not self._serving:
                await self._return_without_sessions()
        away = [guest.name for guest in self.guests if not _is_home(guest)]
        self.clean = not away
        if away:
            hint = "run again, or use QEMU's balloon command"
            self._journal.fault(None, "exit", f"not back at baseline: {', '.join(away)}", hint)

    async def _return_without_sessions(self) -> None:
        """Send the baselines although the sessions have failed: those that shrink first."""
        timeout_s = float(self.config.control.command_timeout)
        for guest in sorted(self.guests, key=lambda guest: guest.baseline_bytes - guest.actual_bytes):
            if not guest.commanded or guest.link is Link.GONE:
                continue
            try:
                await send_once(guest, guest.baseline_bytes, timeout_s)
            except QmpallocError as error:
                self._journal.fault(guest.name, "exit", error.message, error.hint)
            else:
                guest.target_bytes = guest.actual_bytes = guest.baseline_bytes


def _is_home(guest: Guest) -> bool:
    """Tell whether nothing is left to do for a guest at the end."""
    if guest.link is Link.UP:
        return guest.settled and guest.actual_bytes == guest.baseline_bytes
    # What cannot be reached cannot be moved; it is a mess left behind only if we moved it.
    return not guest.commanded or guest.target_bytes == guest.baseline_bytes
