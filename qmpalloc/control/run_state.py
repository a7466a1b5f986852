"""What QEMU's run states mean for control, and which of its events say that the state may have changed.

The names are those of QEMU's ``qapi/run-state.json``. An event says that it is time to ask: the truth is what
``query-status`` tells. So no order of events, and none that is lost, leaves a guest in a state that it is not in.
"""

from __future__ import annotations

from enum import StrEnum

from qmpalloc.qmp import VmStatus


class Activity(StrEnum):
    """What a guest does, as far as control is concerned."""

    RUNS = "runs"
    STOPPED = "stopped"  # its virtual CPUs do not run: it is paused, nothing is decided about it
    MOVES = "moves"  # its memory is on the way between two QEMUs: hands off


RUN_STATES = {
    "running": Activity.RUNS,
    "colo": Activity.MOVES,
    "debug": Activity.STOPPED,
    "finish-migrate": Activity.MOVES,
    "guest-panicked": Activity.STOPPED,
    "inmigrate": Activity.MOVES,
    "internal-error": Activity.STOPPED,
    "io-error": Activity.STOPPED,
    "paused": Activity.STOPPED,
    "postmigrate": Activity.STOPPED,
    "preconfig": Activity.STOPPED,
    "prelaunch": Activity.STOPPED,
    "restore-vm": Activity.STOPPED,
    "save-vm": Activity.STOPPED,
    "shutdown": Activity.STOPPED,
    "suspended": Activity.STOPPED,
    "watchdog": Activity.STOPPED,
}
"""Every state of ``query-status``, of QEMU 4 to 10. ``postmigrate`` is not MOVES: what is left here stands still."""

ASLEEP = "suspended"
"""ACPI S3. The guest itself entered it, and neither ``STOP`` nor ``RESUME`` tell of it."""

ARRIVING = "inmigrate"
"""It waits for its memory, and its balloon, from another QEMU: what is told of its size until then is not its own."""

STATE_EVENTS = frozenset({"STOP", "RESUME", "SUSPEND", "WAKEUP", "RESET", "MIGRATION", "COLO_EXIT"})
"""What may change the state. ``SHUTDOWN``, ``GUEST_PANICKED``, ``WATCHDOG`` and ``BLOCK_IO_ERROR`` are followed by
``STOP`` where the guest stops for them."""


def activity(status: VmStatus) -> Activity:
    """Return what a guest in that state does; of a state that is not known QEMU says itself whether it runs."""
    return RUN_STATES.get(status.status, Activity.RUNS if status.running else Activity.STOPPED)
