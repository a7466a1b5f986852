"""Every state of ``query-status`` and every event that changes it: held while a guest does not run, and not after."""

import pytest

from qmpalloc.control.run_state import RUN_STATES, STATE_EVENTS, Activity
from qmpalloc.events import Commanded, Decided, Ended, Faulted
from qmpalloc.model import hold
from qmpalloc.units import MIB

# QEMU's qapi/run-state.json, and preconfig, which it had before 6.0.
QEMU_STATES = [
    "debug", "inmigrate", "internal-error", "io-error", "paused", "postmigrate", "prelaunch", "finish-migrate",
    "restore-vm", "running", "save-vm", "shutdown", "suspended", "watchdog", "guest-panicked", "colo", "preconfig",
]  # fmt: skip
STANDING = sorted(set(QEMU_STATES) - {"running"})
SHOWN = {Activity.STOPPED: "paused", Activity.MOVES: "held"}
# How a state is left, and what QEMU tells of it.
WAYS_BACK = {"suspended": "WAKEUP", "prelaunch": "RESUME", "colo": "COLO_EXIT", "shutdown": "RESET"}


def enter(qemu, state, event):
    qemu.status, qemu.balloon.paused = state, state != "running"
    if event:
        qemu.emit(event, {"guest": False, "reason": "guest-reset"} if event == "RESET" else None)


def test_the_table_has_every_state():
    assert sorted(RUN_STATES) == sorted(QEMU_STATES)
    assert [state for state, doing in RUN_STATES.items() if doing is Activity.RUNS] == ["running"]


@pytest.mark.parametrize("state", STANDING)
async def test_a_guest_found_in_a_state_is_held_and_takes_part_when_it_has_left_it(lab, autojump_clock, state):
    await lab.two()
    qemu = lab.guests["small"].qemu
    enter(qemu, state, None)
    back = WAYS_BACK.get(state, "RESUME")
    lab.may_exceed = back == "RESET"  # all of its RAM is charged until it reports
    await lab.run(30.0, budget=1400, actions=[(12.0, lambda _: enter(qemu, "running", back))])
    before = [event.snapshot.guests[0].state for event in lab.of(Decided) if event.t < 12.0]
    assert set(before) == {SHOWN[RUN_STATES[state]]}
    assert not [event for event in lab.of(Commanded, "small") if event.t < 12.0 and event.purpose != "adopt"]
    assert lab.states("small")[-1] == "fresh"
    assert not lab.of(Faulted, "small")


@pytest.mark.parametrize("state", STANDING)
async def test_a_guest_that_enters_a_state_unheard_is_held_soon_and_let_go_again(lab, autojump_clock, state):
    """No event tells of it: whoever listens on another monitor may have asked, or the event was lost."""
    await lab.two()
    qemu = lab.guests["small"].qemu
    actions = [(5.1, lambda _: enter(qemu, state, None)), (40.1, lambda _: enter(qemu, "running", None))]
    await lab.run(60.0, actions=actions)
    during = {event.snapshot.guests[0].state for event in lab.of(Decided) if 11 < event.t < 40}
    assert during == {SHOWN[RUN_STATES[state]]}
    assert not [event for event in lab.of(Commanded, "small") if 11 < event.t < 40]
    assert "lost" not in lab.states("small")  # for as long as it did not run, nothing grew old
    assert lab.states("small")[-1] == "fresh"
    assert lab.of(Ended)[0].clean


@pytest.mark.parametrize("event", sorted(STATE_EVENTS - {"MIGRATION", "RESET"}))
async def test_every_event_has_the_state_asked_for_at_once(lab, autojump_clock, event):
    await lab.two()
    qemu = lab.guests["small"].qemu
    held_s = []

    def look(controller):
        held_s.append(str(controller.guests[0].state(0.0)))

    # What it is in matters, not what the event is called: RESUME can be of a guest that is asleep.
    actions = [(5.1, lambda _: enter(qemu, "suspended", event)), (5.3, look), (6.0, lambda _: qemu.wake())]
    await lab.run(20.0, actions=actions)
    assert held_s == ["paused"]
    assert lab.states("small")[-1] == "fresh"


async def test_a_state_that_is_not_known_is_what_qemu_says_of_it(lab, autojump_clock):
    await lab.two()
    running = {"status": "new-in-qemu-12", "running": True}
    lab.guests["small"].qemu.commands["query-status"] = lambda _: running
    lab.guests["large"].qemu.commands["query-status"] = lambda _: running | {"running": False}
    await lab.run(12.0)
    assert (lab.states("small")[-1], lab.states("large")[-1]) == ("fresh", "paused")


async def test_a_guest_that_falls_asleep_is_no_danger_gets_no_command_and_ends_clean(lab, autojump_clock):
    await lab.two()
    lab.may_grow = lab.may_exceed = True
    qemu = lab.guests["small"].qemu

    def sleep(_):
        qemu.balloon.take_back(800 * MIB)  # its driver empties the balloon first
        qemu.suspend()

    await lab.run(60.0, budget=1400, the_policy=lab.toward(small=400), actions=[(20.1, sleep)])
    assert lab.states("small")[-1] == "paused"
    after = [event for event in lab.of(Commanded, "small") if event.t > 21]
    assert [event.target_bytes // MIB for event in after] == [500]  # on the way home, which it goes when it wakes
    assert after[0].t > 59
    seen = [event for event in lab.of(Decided) if 22 < event.t < 60]
    assert {event.snapshot.guests[0].charge_bytes for event in seen} == {800 * MIB}
    assert {event.snapshot.guests[0].frozen for event in seen} == {""}
    assert lab.of(Ended)[0].clean


async def test_a_guest_that_sleeps_long_is_neither_lost_nor_moved_when_it_wakes(lab, autojump_clock):
    await lab.two()
    lab.may_grow = lab.may_exceed = True
    qemu = lab.guests["small"].qemu

    def sleep(_):
        qemu.balloon.take_back(800 * MIB)
        qemu.suspend()

    lab.control["on_exit"] = "keep"
    actions = [(20.1, sleep), (300.1, lambda _: qemu.wake())]
    await lab.run(330.0, budget=1400, the_policy=lab.toward(small=400), actions=actions)
    assert lab.states("small")[-2:] == ["late", "fresh"]
    assert not [event for event in lab.of(Decided) if event.decision.guests[0].limiter == "danger"]
    assert lab.size("small") == 400


async def test_system_wakeup_wakes_a_guest_that_was_asleep_at_the_start(lab, autojump_clock):
    await lab.two()
    qemu = lab.guests["small"].qemu
    qemu.suspend()
    await lab.run(30.0, actions=[(9.0, lambda _: qemu.commands["system_wakeup"]({}))])
    assert [str(state) for state in lab.states("small")] == ["paused", "warming", "fresh"]


async def test_a_guest_that_was_never_moved_and_does_not_run_is_left_as_it_is(lab, autojump_clock):
    await lab.add("small", file_mib=100, size_mib=700)
    await lab.add("large", file_mib=900, size_mib=300)
    lab.guests["small"].qemu.suspend()
    await lab.run(12.0, budget=1400, the_policy=lab.policy(lambda snapshot: hold(snapshot, "test")))
    assert {event.purpose for event in lab.of(Commanded, "small")} == {"adopt"}
    assert lab.of(Ended)[0].clean


async def test_a_guest_that_arrives_from_another_qemu_is_adopted_when_it_is_there(lab, autojump_clock):
    await lab.two()
    lab.control["on_exit"] = "keep"
    qemu = lab.guests["small"].qemu
    enter(qemu, "inmigrate", None)

    def arrive(_):
        qemu.balloon.inflate_bytes_per_s = float("inf")
        qemu.balloon.request(300 * MIB)  # its balloon has come with it
        enter(qemu, "running", "RESUME")

    await lab.run(30.0, the_policy=lab.policy(lambda snapshot: hold(snapshot, "test")), actions=[(9.1, arrive)])
    assert not lab.of(Faulted, "small")
    assert lab.size("small") == 300
    assert lab.of(Decided)[-1].snapshot.guests[0].target_bytes == 300 * MIB
