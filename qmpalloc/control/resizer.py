"""Resizes one guest by its actuator: asks its QEMU for sizes, and watches what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import trio
from msgspec import Struct

from qmpalloc.config import ControlConfig
from qmpalloc.control.guest import Guest, Link
from qmpalloc.control.inspection import measure
from qmpalloc.control.journal import Journal
from qmpalloc.errors import DeadlineError, QmpallocError, RefusedError
from qmpalloc.events import Commanded
from qmpalloc.qmp import Actuator, deadline
from qmpalloc.rules.ledger import Order
from qmpalloc.units import format_size

Purpose = Literal["adopt", "shrink", "grant", "repeat", "accept"]

FLOOR_HINT = "it is brought to its floor, as far as the budget has room"

RETRY_AFTER_S = 5.0
"""How long a guest is held whose QEMU has refused."""

CONFIRM_AFTER_S = 0.2
"""A size queried this long after QEMU took a command counts as its effect: a driver in mid-move completes the 1 MiB
it is working on before it looks at the new target (``update_balloon_size_func`` in drivers/virtio/virtio_balloon.c).
For virtio-mem, QEMU itself refuses to plug more than it was asked to from that moment on."""

INTERFERENCE_HOLD_S = 60.0
"""How long a guest is left to another controller before it is tried again."""

REPEAT_FIRST_S = 3.0
REPEAT_MOST_S = 60.0
"""A size that stands still beside its target is asked for again: after deflate-on-oom, or when somebody else sent a
command, no driver would come back by itself. Each time the wait doubles."""


class PendingOrder(Struct, frozen=True):
    """A command that was decided and charged, and is yet to be sent."""

    target_bytes: int
    previous_bytes: int
    doubt_bytes: int
    purpose: Purpose


class Resizer:
    """The size of one guest in the hands of this run, and its pending order.

    Args:
        guest: What is known of it.
        journal: For what goes wrong.
        control: For its times.
        may_command: False in a run that only observes.
        on_change: Called when there is news.
        on_order: Called when it gives itself an order, before that is sent: what is asked for is told first.
    """

    def __init__(
        self,
        guest: Guest,
        journal: Journal,
        control: ControlConfig,
        *,
        may_command: bool,
        on_change: Callable[[], None],
        on_order: Callable[[], None],
    ) -> None:
        self._guest = guest
        self._journal = journal
        self._timeout_s = float(control.command_timeout)
        self._rest_poll_s = float(control.sample_interval)
        self._poll_s = float(control.balloon_poll)
        self._may_command = may_command
        self._on_change = on_change
        self._on_order = on_order
        self._order: PendingOrder | None = None
        self._unanswered: Purpose | None = None
        self._order_given = trio.Event()
        self._poll_now = trio.Event()
        self._confirm_from_s: float | None = None
        self._held_until_s = 0.0
        self._still_since_s = 0.0
        self._repeat_after_s = REPEAT_FIRST_S

    # --- orders -----------------------------------------------------------------------------------------------------

    def give(self, order: Order) -> None:
        """Take an order for this guest, charged at once and sent soon; it replaces one that was not sent yet."""
        self._repeat_after_s = REPEAT_FIRST_S
        self._give(order.target_bytes, order.purpose)

    def _give_itself(self, target_bytes: int, purpose: Purpose) -> None:
        self._give(target_bytes, purpose)
        self._on_order()

    def _give(self, target_bytes: int, purpose: Purpose) -> None:
        assert self._may_command, "this run observes only"
        guest, unsent = self._guest, self._order
        # What holds if QEMU refuses it: all as before, what is in doubt included.
        previous_bytes = unsent.previous_bytes if unsent is not None else guest.size.target_bytes
        doubt_bytes = unsent.doubt_bytes if unsent is not None else guest.size.doubt_bytes
        guest.size.ordered(target_bytes)
        self._confirm_from_s = self._unanswered = None
        self._still_since_s = self._journal.now_s()
        self._order = PendingOrder(target_bytes, previous_bytes, doubt_bytes, purpose)
        self._order_given.set()

    def disconnected(self) -> None:
        """Forget what was to be sent, and what was to be confirmed: the connection has ended."""
        self._order = self._unanswered = self._confirm_from_s = None

    def adopt(self) -> None:
        """Begin to control a guest at the size it has; one below its floor is to have that. Not if we only observe."""
        guest = self._guest
        if not self._may_command:
            return
        if not guest.migrating:
            # QEMU cannot be asked for its target. Setting it to what we know of it makes sure, and ends a move that
            # another controller may have left half done. Whether there is room for more is for the ledger to say.
            self._give_itself(guest.memory.grid.fit(guest.size.target_bytes), "adopt")
        if guest.size.target_bytes >= guest.memory.floor_bytes:
            self._journal.clear_fault(guest.name, "floor")
            return
        guest.size.desired_bytes = max(guest.size.desired_bytes, guest.memory.floor_bytes)
        found, floor = format_size(guest.size.actual_bytes), format_size(guest.memory.floor_bytes)
        self._journal.fault(guest.name, "floor", f"found at {found}, below its floor of {floor}", FLOOR_HINT)

    async def send_orders(self, actuator: Actuator) -> None:
        """Send each order that was given, while the connection lasts."""
        guest = self._guest
        while True:
            await self._order_given.wait()
            self._order_given = trio.Event()
            if self._order is None:
                continue
            order, self._order = self._order, None
            error_text = ""
            try:
                with deadline(self._timeout_s, actuator.monitor.address, actuator.command):
                    await actuator.order(order.target_bytes)
            except DeadlineError as error:
                # Whether it took effect is unknown, so both sizes stay charged until a later command is confirmed.
                error_text = error.message
                self._unanswered = order.purpose
                self._hung(error)
            except RefusedError as error:
                error_text = error.message
                if self._order is None:  # else the newer order's charge must stay
                    guest.size.refused(order.previous_bytes, order.doubt_bytes)
                    if order.doubt_bytes:
                        self._unanswered = order.purpose  # only a command that is confirmed ends a doubt
                self._refused(actuator, error)
            except QmpallocError as error:
                self._tell(order, error.message)
                raise
            else:
                self._journal.clear_fault(guest.name, actuator.kind)
                if self._order is None:
                    self._confirm_from_s = self._journal.now_s() + CONFIRM_AFTER_S
            self._tell(order, error_text)
            self._poll_now.set()
            self._on_change()

    def _tell(self, order: PendingOrder, error: str) -> None:
        self._journal.emit(
            Commanded,
            guest=self._guest.name,
            target_bytes=order.target_bytes,
            previous_bytes=order.previous_bytes,
            purpose=order.purpose,
            error=error,
        )

    # --- size -------------------------------------------------------------------------------------------------------

    async def ask_size(self, actuator: Actuator) -> int:
        """Ask for memory and size together, and adopt a guest that has more or less RAM than before at its new size.

        Raises:
            NonsenseError: The size is more than all of the RAM.
        """
        guest = self._guest
        assert guest.memory.facts is not None
        facts, actual_bytes = await measure(actuator, guest.memory.facts.with_memory(await actuator.memory()))
        before = guest.memory.facts
        guest.memory.given(facts)
        if facts.ram_bytes != before.ram_bytes:
            self.adopt_at(actual_bytes)
        elif facts != before:
            self._on_change()
        return actual_bytes

    def adopt_at(self, actual_bytes: int) -> None:
        """Go on with a guest from the size it has, which neither a command of ours nor its own doing has changed."""
        self._guest.size.adopted(actual_bytes)
        self.adopt()
        self._on_change()

    def poll_soon(self) -> None:
        """Ask for the size without waiting: it has changed. While it moves it is asked for anyway."""
        self._poll_now.set()

    async def watch(self, actuator: Actuator) -> None:
        """Ask for the size again and again, and answer what it shows, while the connection lasts."""
        guest = self._guest
        while True:
            self._poll_now = trio.Event()
            asked_s = self._journal.now_s()
            try:
                with deadline(self._timeout_s, actuator.monitor.address, actuator.query):
                    actual_bytes = await actuator.size_bytes()
                    if not guest.size.explains(actual_bytes):
                        actual_bytes = await self.ask_size(actuator)
            except DeadlineError as error:
                self._hung(error)
                continue
            except RefusedError as error:
                self._refused(actuator, error)
                await trio.sleep(RETRY_AFTER_S)
                continue
            self._answered()
            self._take_size(actuator, actual_bytes, asked_s)
            if guest.size.settled:
                with trio.move_on_after(self._rest_poll_s):
                    await self._poll_now.wait()
            if not guest.size.settled:  # what is asked right after a command tells nothing: see `CONFIRM_AFTER_S`
                await trio.sleep(self._poll_s)

    def _take_size(self, actuator: Actuator, actual_bytes: int, asked_s: float) -> None:
        guest, size, now_s = self._guest, self._guest.size, self._journal.now_s()
        if not self._may_command:
            changed = actual_bytes != size.actual_bytes
            size.found(actual_bytes)
            if size.end_boot(actual_bytes, asked_s) or changed:
                self._on_change()
            return
        changed = guest.measured(actual_bytes, now_s)
        if changed or size.settled:
            self._still_since_s = now_s
            if size.settled:
                self._repeat_after_s = REPEAT_FIRST_S
        if self._confirm_from_s is not None and asked_s >= self._confirm_from_s:
            self._confirm_from_s = None
            size.confirmed()
            changed = True
        if size.end_boot(actual_bytes, asked_s):
            changed = True
        self._answer_what_it_does(actuator, now_s)
        if changed:
            self._on_change()

    def _answer_what_it_does(self, actuator: Actuator, now_s: float) -> None:
        """Answer a size that moved unasked, makes no progress, or stands still beside its target."""
        guest = self._guest
        if guest.size.moved_unasked:
            self._interfered(actuator, now_s)
        excused = _is_excused(guest, now_s)
        if guest.progress.see(guest.size.actual_bytes, guest.size.target_bytes, now_s, excused=excused):
            self._accept(actuator, now_s)
        elif self._should_repeat(now_s):
            self._repeat_after_s = min(self._repeat_after_s * 2, REPEAT_MOST_S)
            self._give_itself(guest.size.target_bytes, "repeat")
        if not guest.progress.stuck(now_s):
            self._journal.clear_fault(guest.name, "stuck")

    def _should_repeat(self, now_s: float) -> bool:
        """Tell whether the guest stands still beside its target; one in danger is not pressed."""
        guest, size = self._guest, self._guest.size
        if guest.link is not Link.UP or guest.paused or self._order is not None or guest.danger.why(now_s):
            return False
        if guest.migrating or guest.progress.stuck(now_s):
            return False
        return size.actual_bytes != size.target_bytes and now_s - self._still_since_s >= self._repeat_after_s

    def _accept(self, actuator: Actuator, now_s: float) -> None:
        """Set the target of a stuck guest to what it has achieved, so that nobody waits for the rest."""
        guest = self._guest
        self._journal.fault(guest.name, "stuck", guest.progress.stuck(now_s), actuator.stuck_hint)
        guest.size.desired_bytes = guest.size.achieved_bytes()
        self._give_itself(guest.size.desired_bytes, "accept")
        self._on_change()

    def _interfered(self, actuator: Actuator, now_s: float) -> None:
        """Report a size that changed by somebody else's command; leave the guest to them when it is a habit."""
        guest = self._guest
        way = "fell" if guest.size.actual_bytes < guest.size.target_bytes else "rose"
        found = f"its size {way} to {format_size(guest.size.actual_bytes)} without a command of this run"
        habit = guest.progress.interfered(now_s)
        hint = "is another controller at work on a second monitor of this guest?"
        self._journal.fault(guest.name, "interference", found, hint, again=True)
        if habit and guest.link is Link.UP:
            self._held_until_s = now_s + INTERFERENCE_HOLD_S
            guest.note_link(Link.HELD, f"another controller commands its {actuator.kind}")
            self._on_change()

    def _hung(self, error: DeadlineError) -> None:
        if self._guest.link is Link.UP:
            self._guest.note_link(Link.HUNG, error.message)
            self._journal.fault(self._guest.name, "monitor", error.message, error.hint)
            self._on_change()

    def _refused(self, actuator: Actuator, error: RefusedError) -> None:
        self._held_until_s = self._journal.now_s() + RETRY_AFTER_S
        self._guest.note_link(Link.HELD, error.message)
        self._journal.fault(self._guest.name, actuator.kind, error.message, error.hint)
        self._on_change()

    def _answered(self) -> None:
        link = self._guest.link
        if link is Link.HUNG or (link is Link.HELD and self._journal.now_s() >= self._held_until_s):
            self._guest.note_link(Link.UP)
            self._journal.clear_fault(self._guest.name, "monitor")
            self._on_change()
        if self._unanswered is not None and self._guest.link is Link.UP and not self._guest.migrating:
            self._give_itself(self._guest.size.target_bytes, self._unanswered)


def _is_excused(guest: Guest, now_s: float) -> bool:
    """Tell whether nothing can be expected of a guest's size now."""
    held = guest.link is not Link.UP or guest.paused or guest.migrating
    return held or now_s < guest.size.booting_until_s or guest.danger.why(now_s) is not None
