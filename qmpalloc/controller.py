"""The loop: sample, decide, actuate. The heart of a run.

Life of a run: *settling* (only while the guests found exceed the budget: all go to their baselines), *running* (a
decision every interval), *paused* (by a person), *returning* (to baseline, at the end or on request), *stopped*.
"""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import trio

from qmpalloc.config import Config
from qmpalloc.errors import QmpallocError
from qmpalloc.events import ControlChanged, Decided, Ended, Mode, Sink, SizeChanged, StateChanged
from qmpalloc.guest import Guest, Link
from qmpalloc.hostfacts import header
from qmpalloc.journal import Journal
from qmpalloc.ledger import committed_bytes, next_orders
from qmpalloc.limits import apply_limits
from qmpalloc.model import Decision, GuestState, Limiter, Policy, Snapshot, hold
from qmpalloc.session import Session

STATE_TICK_S = 0.5
"""How often ages are looked at: a state that depends on time changes at most this late."""

FIRST_CONTACT_S = 5.0
"""How long the run waits for all monitors to answer before it goes on without the rest."""

Control = Literal["settling", "running", "paused", "returning", "watching", "stopped"]


class Controller:
    """A run: its guests, its policy and what people ask of it while it goes on.

    Start it with `run`. `quit`, `toggle_pause` and `return_to_baseline` may be called at any time from the same trio
    loop; they return at once.

    Attributes:
        guests: In the order of the configuration.
        control: What the run is doing.
        reason: Why it ends; empty while it goes on.
    """

    def __init__(self, config: Config, policy: Policy, sink: Sink, *, mode: Mode = "run") -> None:
        self.config = config
        self.mode: Mode = mode
        self.guests = [Guest(guest, config.control) for guest in config.guests]
        self.control: Control = "settling" if mode == "run" else "watching"
        self.reason = ""
        self._policy = policy
        self._sink = sink
        self._journal: Journal | None = None
        self._sessions: dict[str, Session] = {}
        self._changed = trio.Event()
        self._stop = trio.Event()
        self._cycle = 0
        self._carry: Any = None
        self._shown_states: dict[str, GuestState] = {}
        self._shown_sizes: dict[str, tuple[int, int]] = {}
        self._serving = True
        self._clean = True

    # --- what people may ask ----------------------------------------------------------------------------------------

    def quit(self, reason: str = "quit") -> None:
        """End the run: guests return to baseline (unless configured to keep), then `run` returns."""
        self.reason = self.reason or reason
        self._stop.set()

    def toggle_pause(self) -> None:
        """Pause control, leaving all guests where they are, or resume it."""
        if self.control in {"running", "returning"} and not self._stop.is_set():
            for guest in self.guests:
                guest.desired_bytes = guest.target_bytes
            self._set_control("paused", "by request")
        elif self.control == "paused":
            self._close_windows()
            self._set_control("running", "resumed")

    def return_to_baseline(self) -> None:
        """Return all guests to their baselines and pause there."""
        if self.mode != "run" or self._stop.is_set() or self.control == "settling":
            return
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
        self._journal = Journal(self._sink)
        self._sink(header(self.config, self.mode, self._policy))
        for guest in self.guests:
            self._sessions[guest.name] = Session(
                guest,
                self._journal,
                self.config.control,
                may_command=self.mode == "run",
                on_change=self._note_change,
                on_reset=self._guest_reset,
            )
        reason, failure = "failed", True  # what it is if neither line below is reached
        async with trio.open_nursery() as nursery:
            service = trio.CancelScope(shield=True)
            nursery.start_soon(self._serve, service)
            try:
                task_status.started()
                await self._control_until_stopped(duration_s)
                reason, failure = self.reason or "duration reached", False
            except trio.Cancelled:
                if self._serving:
                    reason, failure = self.reason or "cancelled", False
                raise
            finally:
                if failure:
                    self._journal.fault(None, "controller", "control is lost: the controller failed")
                with trio.CancelScope(shield=True):
                    await self._finish()
                service.cancel()
                self._set_control("stopped", reason)
                self._journal.emit(Ended, reason=reason, clean=self._clean and not failure)

    async def _serve(self, service: trio.CancelScope) -> None:
        """Keep sessions and the ledger going; shielded, so that they outlive a cancelled controller."""
        try:
            with service:
                async with trio.open_nursery() as nursery:
                    for session in self._sessions.values():
                        nursery.start_soon(session.run)
                    nursery.start_soon(self._keep_books)
                    nursery.start_soon(self._watch_states)
        finally:
            self._serving = False

    async def _control_until_stopped(self, duration_s: float) -> None:
        await self._wait_for_contact()
        if self.mode == "run":
            await self._settle()
        if self._stop.is_set():
            return
        self._close_windows()
        self._set_control("running" if self.mode == "run" else "watching", f"policy {self.config.policy}")
        self._shown_sizes.clear()  # what is committed now belongs to the time of control
        self._show_sizes()
        interval_s = float(self.config.control.interval)
        start_s = trio.current_time()
        end_s = start_s + duration_s
        while not self._stop.is_set():
            self._cycle += 1
            # A schedule without drift; a cycle that was missed (a suspended host) is skipped, not made up for.
            now_s = trio.current_time()
            next_s = start_s + interval_s * max(self._cycle, math.ceil((now_s - start_s) / interval_s))
            with trio.move_on_at(min(next_s, end_s)):
                await self._stop.wait()
            if self._stop.is_set() or trio.current_time() >= end_s:
                return
            if self.mode != "watch":
                self._decide()

    async def _wait_for_contact(self) -> None:
        """Wait until every monitor has answered in some way, within a limit."""
        with trio.move_on_after(FIRST_CONTACT_S):
            while any(guest.link is Link.CONNECTING and not guest.detail for guest in self.guests):
                if self._stop.is_set():
                    return
                await self._changed.wait()
        self._show_sizes()  # what was found, before anything is asked

    async def _settle(self) -> None:
        """Bring guests that were found above the budget to their baselines before anything is decided."""
        assert self._journal is not None
        if committed_bytes(guest.account() for guest in self.guests) <= self.config.host.budget:
            return
        self._set_control("settling", "the guests found exceed the budget: all go to baseline")
        while not self._stop.is_set():
            # Also guests that appear while we wait.
            self._want_baseline()
            self._note_change()
            if committed_bytes(guest.account() for guest in self.guests) <= self.config.host.budget:
                return
            with trio.move_on_after(STATE_TICK_S):
                await self._stop.wait()

    def _want_baseline(self) -> None:
        for guest in self.guests:
            if guest.link is not Link.GONE and guest.facts is not None:
                guest.desired_bytes = guest.baseline_bytes

    def _guest_reset(self, guest: Guest) -> None:
        if self.mode == "run" and self.control != "paused":
            guest.desired_bytes = guest.baseline_bytes

    def _close_windows(self) -> None:
        for guest in self.guests:
            guest.close_window()

    # --- one decision -----------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return what a policy would see now."""
        assert self._journal is not None
        now_s = self._journal.now_s()
        return Snapshot(
            cycle=self._cycle,
            time_s=now_s,
            budget_bytes=self.config.host.budget,
            interval_s=float(self.config.control.interval),
            guests=tuple(guest.snapshot(now_s) for guest in self.guests),
            carry=self._carry,
        )

    def _decide(self) -> None:
        assert self._journal is not None
        snapshot = self.snapshot()
        started_s = time.perf_counter()
        decision = self._ask_policy(snapshot)
        duration_s = time.perf_counter() - started_s
        self._carry = decision.carry
        self._close_windows()
        self._journal.emit(
            Decided,
            snapshot=snapshot,
            decision=decision,
            committed_bytes=self.committed_bytes,
            duration_s=round(duration_s, 6),
        )
        if self.mode == "run" and self.control == "running":
            for guest in self.guests:
                guest.desired_bytes = decision.target_of(guest.name)
            self._note_change()

    def _ask_policy(self, snapshot: Snapshot) -> Decision:
        """Return the policy's decision within limits; a policy that fails changes nothing, visibly."""
        assert self._journal is not None
        now_s = self._journal.now_s()
        dangers = {guest.name: why for guest in self.guests if (why := guest.danger(now_s))}
        if self.control == "paused":
            return hold(snapshot, "paused", Limiter.PAUSE)
        try:
            decision = apply_limits(snapshot, self._policy.decide(snapshot), dangers)
        except Exception as error:
            text = error.message if isinstance(error, QmpallocError) else f"{type(error).__name__}: {error}"
            self._journal.fault(None, "policy", f"policy {self.config.policy} failed: {text}", "all guests are held")
            return apply_limits(snapshot, hold(snapshot, "policy failed"), dangers)
        self._journal.clear_fault(None, "policy")
        return decision

    # --- books ------------------------------------------------------------------------------------------------------

    @property
    def committed_bytes(self) -> int:
        """What all guests together may occupy now."""
        return committed_bytes(guest.account() for guest in self.guests)

    def _note_change(self) -> None:
        """Note that a size, an order or a state changed; cheap, callable from anywhere."""
        self._changed.set()

    async def _keep_books(self) -> None:
        """Send what the ledger allows, whenever something changed."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            self._show_states()
            self._show_sizes()
            if self.mode == "run":
                orders = next_orders([guest.account() for guest in self.guests], self.config.host.budget)
                for order in orders:
                    self._sessions[order.name].give(order)
                if orders:
                    self._show_sizes()

    def _show_sizes(self) -> None:
        assert self._journal is not None
        committed = self.committed_bytes
        for guest in self.guests:
            size = (guest.target_bytes, guest.actual_bytes)
            changed = self._shown_sizes.get(guest.name) != size
            if changed and (guest.target_bytes or guest.name in self._shown_sizes):
                self._shown_sizes[guest.name] = size
                self._journal.emit(
                    SizeChanged,
                    guest=guest.name,
                    target_bytes=guest.target_bytes,
                    actual_bytes=guest.actual_bytes,
                    committed_bytes=committed,
                )
        budget = self.config.host.budget
        if committed > budget and self.control in {"running", "paused"}:
            self._journal.fault(
                None,
                "budget",
                "the guests occupy more than the budget",
                "a guest grew by itself (deflate-on-oom) or appeared; nothing is granted until it fits",
            )
        else:
            self._journal.clear_fault(None, "budget")

    async def _watch_states(self) -> None:
        while True:
            self._show_states()
            await trio.sleep(STATE_TICK_S)

    def _show_states(self) -> None:
        assert self._journal is not None
        now_s = self._journal.now_s()
        for guest in self.guests:
            state = guest.state(now_s)
            previous = self._shown_states.get(guest.name)
            if state is not previous:
                self._shown_states[guest.name] = state
                self._journal.emit(StateChanged, guest=guest.name, state=state, previous=previous, detail=guest.detail)

    def _set_control(self, control: Control, detail: str = "") -> None:
        assert self._journal is not None
        self.control = control
        self._journal.emit(ControlChanged, control=control, detail=detail)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Leave the guests as configured. Runs shielded and within a time limit."""
        assert self._journal is not None
        if self.mode != "run" or self.config.control.on_exit == "keep" or not self._serving:
            return
        self._set_control("returning", "to baseline")
        with trio.move_on_after(float(self.config.control.exit_timeout)):
            while True:
                self._want_baseline()
                self._note_change()
                if all(_at_baseline(guest) for guest in self.guests):
                    break
                await trio.sleep(float(self.config.control.balloon_poll))
        missed = [guest.name for guest in self.guests if not _at_baseline(guest)]
        self._clean = not missed
        if missed:
            self._journal.fault(
                None, "exit", f"not back at baseline: {', '.join(missed)}", "run again, or use QEMU's balloon command"
            )


def _at_baseline(guest: Guest) -> bool:
    if guest.link is not Link.UP:
        # What cannot be reached cannot be moved; only one that still runs is a mess left behind.
        return guest.link is not Link.HUNG or guest.target_bytes == guest.baseline_bytes
    return guest.settled and guest.actual_bytes == guest.baseline_bytes
