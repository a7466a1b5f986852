"""The loop: sample, decide, actuate. The heart of a run.

Life of a run: *settling* (only while the guests found exceed the budget: all go to their baselines), *running* (a
decision every interval), *paused* (by a person), *returning* (to baseline, at the end), *stopped*. A run that only
observes is *watching* from beginning to end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import trio

from qmpalloc.config import Config
from qmpalloc.control.commitments import Commitments
from qmpalloc.control.decider import Decider, ReadHost
from qmpalloc.control.fleet import Fleet
from qmpalloc.control.guest import Guest, Link
from qmpalloc.control.journal import Journal
from qmpalloc.control.restore import is_restored, missing_bytes, restore_baselines, want_baselines
from qmpalloc.control.roster import Changes, compare, sockets, with_budget
from qmpalloc.control.session import Session
from qmpalloc.errors import ConfigError, QmpallocError
from qmpalloc.events import ControlChanged, CurveSeen, Ended, Mode, Reloaded, Sink
from qmpalloc.host.facts import guest_headers, header
from qmpalloc.model import Decision, Policy, Snapshot
from qmpalloc.rules.progress_deadline import ProgressDeadline
from qmpalloc.units import format_size

STATE_TICK_S = 0.5
"""How often ages are looked at: a state that depends on time changes at most this late."""

ABSENT_S = 2.0
"""A tick that comes this much too late means that the whole process stood still (Ctrl-Z, a suspended host)."""

FIRST_CONTACT_S = 5.0
"""How long the run waits for all monitors to answer before it goes on without the rest, which then count as hung."""

SETTLE_MOST_S = 60.0
"""How long guests found above the budget may take to their baselines before decisions begin all the same."""

Control = Literal["settling", "running", "paused", "returning", "watching", "stopped"]


class Controller:
    """A run: its guests, its policy and what people ask of it while it goes on.

    Start it with `run`, once. `quit`, `hurry`, `toggle_pause`, `return_to_baseline` and `reload` may be called at any
    time from the same trio loop; they return at once.

    Args:
        config: The configuration.
        policy: Decides.
        sinks: Take the events.
        mode: ``run`` sends balloon commands, the others none.
        read_host: Tells how the host's own memory is, see `qmpalloc.host.memory`; without it nobody watches the host.

    Attributes:
        guests: In the order of the configuration.
        control: What the run is doing.
        reason: Why it ends; empty while it goes on.
        clean: Whether every guest was left where it was meant to be; only meaningful at the end.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        *sinks: Sink,
        mode: Mode = "run",
        read_host: ReadHost | None = None,
    ) -> None:
        self.config = config
        self.mode: Mode = mode
        self._fleet = Fleet(config)
        self.guests = self._fleet.guests
        self.control: Control = "settling" if mode == "run" else "watching"
        self.reason = ""
        self.clean = True
        self._policy = policy
        self._sinks = sinks
        self._read_host = read_host
        self._changed = trio.Event()
        self._stop = trio.Event()
        self._ending = trio.CancelScope()
        self._serving = True
        self._alive_s = 0.0
        self._ready = False
        self._told_room: set[str] = set()
        self._without_curve: dict[str, str] = {}

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
            want_baselines(self.guests)
            self._set_control("paused", "all guests go back to baseline")
            self._note_change()

    def reload(self, load: Callable[[], Config]) -> None:
        """Read the configuration again: guests come and go, limits and budget change. A mistake changes nothing.

        Guests that were removed return to their baselines first. For a guest that was added and does not run yet, the
        others make room. Before the run has begun, and after it ends, nothing is done.

        Args:
            load: Returns the new configuration, or raises a `QmpallocError`.
        """
        if not self._ready or self._stop.is_set():
            return
        try:
            new = load()
            changes = compare(self.config, new)
            self._refuse_to_cross_the_leaving(changes)
        except Exception as error:  # whatever goes wrong in reading must not end the run
            message, hint = f"{type(error).__name__}: {error}", ""
            if isinstance(error, ConfigError) and error.each:
                message = f"{error.each[0].file}: {'; '.join(f'{each.key}: {each.reason}' for each in error.each)}"
                hint = "qmpalloc doctor tells what to do about each"
            elif isinstance(error, QmpallocError):
                message, hint = error.message, error.hint
            hint = f"{hint}; nothing was changed" if hint else "nothing was changed"
            self._journal.fault(None, "reload", message, hint, again=True)
            return
        self.config = self._decider.config = with_budget(self.config, new)
        self._commitments.budget_bytes = new.host.budget
        now_s = self._journal.now_s()
        for name in changes.renamed:
            self._forget(name)  # all that is known of it is told anew, of the new name
        self._fleet.change(changes.changed)
        for name in changes.removed:
            self._fleet.leave(name, ProgressDeadline(float(self.config.control.exit_timeout), now_s))
        for guest in changes.added:
            self._fleet.add(guest, new.control, now_s)
        self._fleet.sort([guest.name for guest in new.guests])
        self._tell_guests(changes.renamed)
        self._drop_left()
        self._note_change()

    def _refuse_to_cross_the_leaving(self, changes: Changes) -> None:
        """Check that no guest comes with the name, or a socket, of one that is still on its way out.

        Raises:
            QmpallocError: One does.
        """
        names = {guest.name for guest in changes.added} | set(changes.renamed.values())
        places = {place for guest in changes.added for place in sockets(guest)}
        back = [
            guest.name
            for guest in self.guests
            if guest.leaving and (guest.name in names or not places.isdisjoint(sockets(guest.config)))
        ]
        if back:
            raise QmpallocError(f"{', '.join(sorted(back))} is still on its way out", hint="try again in a moment")

    # --- the run ----------------------------------------------------------------------------------------------------

    async def run(
        self, *, duration_s: float = math.inf, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run until `quit`, until `duration_s` of control have passed, or until cancelled.

        Cancellation: the guests are still returned to baseline, while they come closer to it; the connections live
        until that is done.
        """
        self._journal = Journal(self._sinks, on_deaf=lambda: self.quit("no output is left"))
        self._fleet.open_sessions(self._make_session)
        self._commitments = Commitments(self.guests, self._fleet.sessions, self._journal, self.config.host.budget)
        self._decider = Decider(
            self.guests, self.config, self._policy, self._journal, self._commitments, self._read_host
        )
        self._ready = True
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
                except KeyboardInterrupt:  # passed on by a policy
                    reason = self.reason or "interrupted"
                    raise
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

    def _make_session(self, guest: Guest) -> Session:
        return Session(
            guest,
            self._journal,
            self.config.control,
            may_command=self.mode == "run",
            on_change=self._note_change,
            on_reset=self._guest_reset,
        )

    async def _serve(self, service: trio.CancelScope) -> None:
        """Keep sessions and commitments going; shielded, so that they outlive a cancelled controller."""
        try:
            with service:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._fleet.run)
                    nursery.start_soon(self._keep_commitments)
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
        self._commitments.show_sizes(again=True)  # what is committed now belongs to the time of control
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
            if self._was_away():
                continue
            if self.mode == "watch":
                self._show_curves()
                continue
            self._decider.paused = self.control == "paused"
            self._carry_out(self._decider.decide())
            self._close_windows()

    def _show_curves(self) -> None:
        """Report the curves of all guests, which no decision shows, and those that have none once."""
        for guest in self.guests:
            seen = guest.snapshot(self._journal.now_s())
            if seen.curve is not None or self._without_curve.get(guest.name) != seen.no_curve:
                self._journal.emit(CurveSeen, guest=guest.name, curve=seen.curve, no_curve=seen.no_curve)
            self._without_curve[guest.name] = "" if seen.curve is not None else seen.no_curve

    async def _wait_for_contact(self) -> None:
        """Wait until every monitor has answered in some way, within a limit."""
        with trio.move_on_after(FIRST_CONTACT_S):
            while any(guest.link is Link.CONNECTING and not guest.detail for guest in self.guests):
                if self._stop.is_set():
                    return
                await self._changed.wait()
        for guest in self.guests:
            if guest.link is Link.CONNECTING and not guest.detail:
                # It may run, with all the memory it may have, and command_timeout may be long.
                guest.hung(f"no answer yet after {FIRST_CONTACT_S:g} s")
        self._commitments.show()  # what was found, before anything is asked

    async def _settle(self) -> None:
        """Bring guests that were found above the budget to their baselines before anything is decided."""
        budget_bytes = self.config.host.budget
        if self._commitments.committed_bytes <= budget_bytes:
            return
        self._set_control("settling", "the guests found exceed the budget: all go to baseline")
        with trio.move_on_after(SETTLE_MOST_S):
            while self._commitments.committed_bytes > budget_bytes and not self._stop.is_set():
                want_baselines(self.guests)  # every time, as guests may appear meanwhile
                self._note_change()
                if all(is_restored(guest) for guest in self.guests):
                    break  # what is left belongs to guests that cannot be measured
                with trio.move_on_after(STATE_TICK_S):
                    await self._stop.wait()
        self._check_budget()

    def _guest_reset(self, guest: Guest) -> None:
        if self.mode == "run" and not self._stop.is_set():
            guest.desired_bytes = guest.baseline_bytes

    def _close_windows(self) -> None:
        for guest in self.guests:
            guest.close_window()

    def snapshot(self) -> Snapshot:
        """Return what a policy would see now. Only while the run goes on."""
        return self._decider.snapshot()

    @property
    def _in_control(self) -> bool:
        return self.mode == "run" and self.control in {"running", "paused"} and not self._stop.is_set()

    def _carry_out(self, decision: Decision | None) -> None:
        """Want what was decided."""
        if decision is None or self.mode != "run" or self.control not in {"running", "paused"}:
            return
        for guest, verdict in zip(self.guests, decision.guests, strict=True):
            guest.desired_bytes = verdict.target_bytes
        self._note_change()

    def _rescue(self) -> None:
        """Answer danger and loss at once, not at the next interval."""
        if self._in_control:
            self._carry_out(self._decider.rescue())

    # --- commitments and time -----------------------------------------------------------------------------------------

    def _note_change(self) -> None:
        """Note that a size, an order or a state changed; cheap, callable from anywhere."""
        self._changed.set()

    async def _keep_commitments(self) -> None:
        """Report what changed and send what the ledger allows, whenever something changed."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            self._was_away()
            self._rescue()
            self._commitments.show()
            self._check_budget()
            if self.mode == "run":
                self._commitments.send_orders()

    async def _watch_time(self) -> None:
        """Report what changes by time alone."""
        while True:
            await trio.sleep(STATE_TICK_S)
            self._was_away()
            self._rescue()
            if self._in_control:
                self._decider.paused = self.control == "paused"
                self._carry_out(self._decider.look_at_host())
            self._keep_roster()
            self._commitments.show_states()

    def _keep_roster(self) -> None:
        """Part with guests that have left, and see to those that are to come."""
        now_s = self._journal.now_s()
        self._drop_left()
        self._give_kept_room(now_s)
        for guest in self.guests:
            if guest.end_expectation(now_s):
                message = "was added and has not started; the room kept for it is given back"
                self._journal.fault(guest.name, "room", message, "reload again when it is about to start")
                self._note_change()
            elif self._has_new_room(guest):
                self._told_room.add(guest.name)
                self._set_control(self.control, f"there is room for {guest.name}: it can be started")

    def _give_kept_room(self, now_s: float) -> None:
        """Keep no room for guests that are yet to start while others pay with their baselines for one in danger."""
        up = [guest for guest in self.guests if guest.link is Link.UP]
        starved = [guest.name for guest in up if guest.danger(now_s)]
        if not starved or not self._in_control or all(guest.desired_bytes >= guest.baseline_bytes for guest in up):
            return
        for guest in self.guests:
            if guest.expected:
                guest.expected = False
                message = f"the room kept for it is given up: {', '.join(starved)} is in danger"
                self._journal.fault(guest.name, "room", message, "reload again when it is about to start")
                self._note_change()

    def _has_new_room(self, guest: Guest) -> bool:
        fits = self._commitments.committed_bytes <= self.config.host.budget
        return guest.expected and fits and guest.name not in self._told_room

    def _drop_left(self) -> None:
        if self.mode != "run" or self.config.control.on_exit == "keep":
            left = self._fleet.drop_left(lambda _guest, _deadline: True)
        else:
            want_baselines([guest for guest in self.guests if guest.leaving])
            now_s = self._journal.now_s()
            left = self._fleet.drop_left(
                lambda guest, deadline: is_restored(guest) or deadline.passed(missing_bytes([guest]), now_s)
            )
        for guest in left:
            self._forget(guest.name)
            if not is_restored(guest) and self.mode == "run" and self.config.control.on_exit == "baseline":
                self._journal.fault(guest.name, "exit", "left the run and is not back at its baseline")
        if left:
            self._tell_guests()
            self._note_change()

    def _forget(self, name: str) -> None:
        """Forget what was told of a guest by that name."""
        self._commitments.forget(name)
        self._journal.forget(name)
        self._told_room.discard(name)

    def _tell_guests(self, renamed: dict[str, str] | None = None) -> None:
        self._journal.emit(
            Reloaded,
            budget_bytes=self.config.host.budget,
            guests=guest_headers(guest.config for guest in self.guests),
            leaving=tuple(guest.name for guest in self.guests if guest.leaving),
            renamed=renamed or {},
        )

    def _was_away(self) -> bool:
        """Tell whether this process stood still just now, and let nothing have grown old by that."""
        now_s = trio.current_time()
        away_s, self._alive_s = now_s - self._alive_s - STATE_TICK_S, now_s
        if away_s < ABSENT_S:
            return False
        for guest in self.guests:
            guest.host_was_away(away_s)
        hint = "nothing was decided meanwhile"
        self._journal.fault(None, "absence", f"this process did not run for {away_s:.1f} s", hint, again=True)
        return True

    def _check_budget(self) -> None:
        over_bytes = self._commitments.committed_bytes - self.config.host.budget
        if over_bytes > 0 and self.control in {"settling", "running", "paused"}:
            message = "the guests may occupy more than the budget; nothing is granted until they fit"
            hint = "a guest grew by itself (deflate-on-oom), was given memory, appeared, or does not shrink"
            self._journal.fault(None, "budget", message, hint, once=True)
        elif over_bytes <= 0:
            self._journal.clear_fault(None, "budget")

    def _set_control(self, control: Control, detail: str = "") -> None:
        self.control = control
        self._journal.emit(ControlChanged, control=control, detail=detail)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Leave the guests as configured. Runs shielded, ends when nothing comes closer, and can be hurried."""
        if self.mode != "run" or self.config.control.on_exit == "keep":
            return
        self._set_control("returning", "to baseline")
        with self._ending:
            await restore_baselines(
                self.guests,
                self.config.control,
                self._journal,
                serving=lambda: self._serving,
                on_change=self._note_change,
            )
        away = [guest for guest in self.guests if not is_restored(guest)]
        self.clean = not away
        if away:
            where = [
                f"{guest.name} at {format_size(guest.actual_bytes)} of {format_size(guest.baseline_bytes)}"
                for guest in away
            ]
            hint = "one that has its target goes on by itself; else run again, or use QEMU's balloon command"
            self._journal.fault(None, "exit", f"not back at baseline: {', '.join(where)}", hint)
