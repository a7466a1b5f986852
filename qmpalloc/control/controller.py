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
from qmpalloc.control.guest import Guest
from qmpalloc.control.journal import Journal
from qmpalloc.control.reporter import Reporter
from qmpalloc.control.requests import Requests
from qmpalloc.control.restore import report_unrestored, restore_baselines, want_baselines
from qmpalloc.control.room import Room
from qmpalloc.control.roster import why_refused, with_budget
from qmpalloc.control.standstill import TICK_S, Standstill
from qmpalloc.control.start import settle, wait_for_contact
from qmpalloc.events import Answer, ControlChanged, Ended, Mode, Request, Sink
from qmpalloc.host.facts import header
from qmpalloc.model import Decision, Policy, Snapshot
from qmpalloc.rules.pins import Refusal

GATHER_S = 0.02
"""What changes so soon after a change was answered is answered together: looking at all guests costs more than news of
one, and of hundreds there is news all the time."""

Control = Literal["settling", "running", "paused", "returning", "watching", "stopped"]


class Controller:
    """A run: its guests, its policy and what people ask of it while it goes on.

    Start it with `run`, once. `quit`, `hurry`, `toggle_pause`, `return_to_baseline`, `ask` and `reload` may be called
    at any time from the same trio loop; they return at once.

    Args:
        config: The configuration.
        policy: Decides.
        sinks: Take the events.
        mode: ``run`` resizes guests, the others do not.
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
        self._due = trio.Event()
        self._stop = trio.Event()
        self._ending = trio.CancelScope()
        self._serving = True
        self._ready = False
        self._untold: list[tuple[str, str, str]] = []

    # --- what people may ask ----------------------------------------------------------------------------------------

    def quit(self, reason: str = "quit") -> None:
        """End the run: guests return to baseline (unless configured to keep), then `run` returns."""
        self.reason = self.reason or reason
        self._stop.set()

    def hurry(self) -> None:
        """Do not wait for the guests to come back to their baselines: leave them on their way."""
        self.quit("hurried")
        self._ending.cancel()

    def toggle_pause(self, why: str = "by request") -> None:
        """Pause control, leaving all guests where they are, or resume it. Danger is answered also while paused."""
        if self._stop.is_set():
            return
        if self.control == "running":
            self._pause(why)
        elif self.control == "paused":
            self._resume()

    def _pause(self, why: str = "by request") -> None:
        for guest in self.guests:
            guest.size.desired_bytes = guest.size.target_bytes
        self._decider.sizes_set()
        self._set_control("paused", why)
        self._note_change()

    def _resume(self) -> None:
        self._close_windows()
        self._set_control("running", "resumed")

    def ask(self, request: Request, by: str = "") -> Answer:
        """Do what a person asks from outside of the terminal, or refuse it; told as an event either way.

        Args:
            request: What is asked.
            by: Who asks, for the record.
        """
        if not self._ready:
            return Answer(done=False, message="the run has not begun yet", hint="try again in a moment")
        if not self._in_control:
            return self._requests.refused(request, self._why_deaf(), by)
        if request.verb == "pause":
            if self.control == "paused":
                return self._requests.accepted(request, "control was paused already", by)
            answer = self._requests.accepted(request, "control is paused; danger is still answered", by)
            self._pause()
        elif request.verb == "resume":
            if self.control == "running":
                return self._requests.accepted(request, "control was not paused", by)
            answer = self._requests.accepted(request, "control goes on", by)
            self._resume()
        else:
            answer = self._requests.choose(request, by, short=self._decider.host_is_short)
            if answer.done:
                self._carry_out(self._decider.at_once(f"at once: {answer.message}"))
        return answer

    def tell(self, kind: str, message: str, hint: str = "") -> None:
        """Report that something beside control is wrong; before the run has begun, as soon as it has."""
        if self._ready:
            self._journal.fault(None, kind, message, hint, again=True)
        else:
            self._untold.append((kind, message, hint))

    def _why_deaf(self) -> Refusal:
        if self.mode != "run":
            return Refusal(f"this run changes nothing ({self.mode})", "start one with: qmpalloc run CONFIG")
        if self.control == "settling":
            return Refusal("the guests still settle: nothing is decided yet", "try again in a moment")
        return Refusal("the run is ending: all guests go to their baselines", "start another one")

    def return_to_baseline(self) -> None:
        """Return all guests to their baselines and pause there; sizes that people chose end."""
        if self.control in {"running", "paused"} and not self._stop.is_set():
            self._requests.release_all("all guests go back to baseline")
            want_baselines(self.guests)
            self._decider.sizes_set()
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
            changes = self._fleet.compare(self.config, new)
        except Exception as error:  # whatever goes wrong in reading must not end the run
            self._journal.fault(None, "reload", *why_refused(error), again=True)
            return
        self.config = self._decider.config = with_budget(self.config, new)
        self._commitments.budget_bytes = new.host.budget
        if changes.renamed:
            self._decider.guests_renamed()
        for name in changes.renamed:
            self._forget(name)  # all that is known of it is told anew, of the new name
        for guest in self._fleet.change(changes, new):
            self._room.keep_for(guest)
        self._fleet.report(new.host.budget, changes.renamed)
        self._drop_left()
        self._note_change()

    # --- the run ----------------------------------------------------------------------------------------------------

    async def run(
        self, *, duration_s: float = math.inf, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run until `quit`, until `duration_s` of control have passed, or until cancelled.

        Cancellation: the guests are still returned to baseline, while they come closer to it; the connections live
        until that is done.
        """
        self._journal = Journal(self._sinks, on_deaf=lambda: self.quit("no output is left"))
        self._fleet.open_sessions(
            self._journal,
            may_command=self.mode == "run",
            on_change=self._note_change,
            on_order=lambda: self._reporter.show_sizes(),
            on_reset=self._guest_reset,
        )
        self._commitments = Commitments(self.guests, self._fleet.sessions, self._journal, self.config.host.budget)
        self._decider = Decider(
            self.guests, self.config, self._policy, self._journal, self._commitments, self._read_host
        )
        self._requests = Requests(self.guests, self._journal, self._decider.snapshot)
        self._reporter = Reporter(self.guests, self._journal)
        self._room = Room(
            self.guests, self._commitments, self._journal, on_room=self._tell_room, on_change=self._note_change
        )
        self._ready = True
        self._standstill = Standstill(self.guests, self._journal)
        self._journal.pass_on(header(self.config, self.mode, self._policy))
        for untold in self._untold:
            self.tell(*untold)
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
        await wait_for_contact(self.guests, self._stop, lambda: self._changed)
        self._reporter.show()  # what was found, before anything is asked
        if self.mode == "run" and not self._commitments.fit():
            self._set_control("settling", "the guests found exceed the budget: all go to baseline")
            await settle(self.guests, self._commitments, self._stop, self._journal.now_s, self._settle_on)
            self._check_budget()
        if self._stop.is_set():
            return
        self._close_windows()
        if self.mode == "run":
            self._set_control("running", f"policy {self.config.policy}")
        else:
            self._set_control("watching", "no guest is resized")
        self._reporter.show_sizes(again=True)  # what is committed now belongs to the time of control
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
            if self._standstill.check():
                continue
            if self.mode == "watch":
                self._reporter.show_curves()
                continue
            self._decider.paused = self.control == "paused"
            self._carry_out(self._decider.decide())
            self._close_windows()

    def _settle_on(self) -> bool:
        """Carry out what is wanted; return whether something cannot wait."""
        self._carry_out(self._decider.look_at_host())
        self._note_change()
        return self._decider.is_urgent

    def _guest_reset(self, guest: Guest) -> None:
        if self.mode == "run" and not self._stop.is_set():
            guest.size.desired_bytes = guest.memory.baseline_bytes

    def _close_windows(self) -> None:
        for guest in self.guests:
            guest.samples.close_window()

    def snapshot(self) -> Snapshot:
        """Return what a policy would see now. Only while the run goes on."""
        return self._decider.snapshot()

    @property
    def _in_control(self) -> bool:
        return self.mode == "run" and self.control in {"running", "paused"} and not self._stop.is_set()

    def _carry_out(self, decision: Decision | None) -> None:
        """Want what was decided."""
        if decision is None or self.mode != "run":
            return
        for guest, verdict in zip(self.guests, decision.guests, strict=True):
            guest.size.desired_bytes = verdict.target_bytes
        self._note_change()

    def _rescue(self) -> None:
        """Answer danger and loss at once, not at the next interval."""
        if self._in_control:
            self._carry_out(self._decider.rescue())

    # --- commitments and time -----------------------------------------------------------------------------------------

    def _note_change(self) -> None:
        """Note that a size, an order or a state changed; cheap, callable from anywhere."""
        self._due.set()
        self._changed.set()  # who waits for that looks at once, and waits for the next one
        self._changed = trio.Event()

    async def _keep_commitments(self) -> None:
        """Report what changed and send what the ledger allows, whenever something changed."""
        while True:
            await self._due.wait()
            self._due = trio.Event()
            self._standstill.check()
            self._rescue()
            self._reporter.show()
            self._check_budget()
            if self.mode == "run" and self._commitments.send_orders():
                self._reporter.show_sizes()
            await trio.sleep(GATHER_S)

    async def _watch_time(self) -> None:
        """Report what changes by time alone."""
        while True:
            await trio.sleep(TICK_S)
            self._standstill.check()
            self._rescue()
            if self._in_control:
                self._decider.paused = self.control == "paused"
                self._carry_out(self._decider.look_at_host())
                if over := self._requests.end_those_over():
                    self._carry_out(self._decider.at_once(f"at once: the policy decides about {over} again"))
            self._drop_left()
            self._room.look(in_control=self._in_control)
            self._reporter.show_states()

    def _tell_room(self, guest: Guest) -> None:
        self._set_control(self.control, f"there is room for {guest.name}: it can be started")

    @property
    def _restores(self) -> bool:
        """Whether guests return to their baselines when they leave the run, or it ends."""
        return self.mode == "run" and self.config.control.on_exit == "baseline"

    def _drop_left(self) -> None:
        """Part with guests that have left."""
        left = self._fleet.drop_left(restoring=self._restores)
        for name in left:
            self._forget(name)
        if left:
            self._fleet.report(self.config.host.budget)
            self._note_change()

    def _forget(self, name: str) -> None:
        """Forget what was told of a guest by that name."""
        self._reporter.forget(name)
        self._journal.forget(name)
        self._room.forget(name)

    def _check_budget(self) -> None:
        self._commitments.check(in_control=self.control in {"settling", "running", "paused"})

    def _set_control(self, control: Control, detail: str = "") -> None:
        self.control = control
        self._journal.emit(ControlChanged, control=control, detail=detail)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Leave the guests as configured. Runs shielded, ends when nothing comes closer, and can be hurried."""
        if not self._restores:
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
        self.clean = not report_unrestored(self.guests, self._journal)
