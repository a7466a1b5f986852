"""A trial is an interval of the controller, whatever else it decides meanwhile."""

import trio
import trio.testing

from qmpalloc.events import ControlChanged, Decided, SizeChanged
from qmpalloc.experiment.run.trial_clock import TrialClock
from qmpalloc.model import Decision, Snapshot


def decided(cycle):
    snapshot = Snapshot(cycle=cycle, time_s=1.0, budget_bytes=1, interval_s=1.0, guests=())
    return Decided(t=1.0, wall=1.0, snapshot=snapshot, decision=Decision(guests=()), committed_bytes=0, duration_s=0.0)


async def test_it_begins_when_control_does():
    clock = TrialClock({})
    clock(ControlChanged(t=0.0, wall=0.0, control="settling"))
    assert not clock.begun.is_set()
    clock(ControlChanged(t=0.0, wall=0.0, control="running"))
    assert clock.begun.is_set()


async def test_a_decision_out_of_turn_ends_no_trial(autojump_clock):
    clock = TrialClock({})
    clock(decided(1))
    assert await clock.next_trial(0) == 1
    clock(decided(1))  # a guest in danger, in the same cycle
    with trio.move_on_after(5) as scope:
        await clock.next_trial(1)
    assert scope.cancelled_caught
    clock(decided(2))
    assert await clock.next_trial(1) == 2


async def test_who_waits_is_woken_and_who_is_late_misses_none(autojump_clock):
    clock = TrialClock({})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clock.next_trial, 0)
        await trio.testing.wait_all_tasks_blocked()
        clock(decided(1))
    clock(decided(2))
    clock(decided(3))
    assert await clock.next_trial(1) == 3


def test_targets_are_the_latest():
    clock = TrialClock({"g": 3, "h": 4})
    for target in (5, 7):
        clock(SizeChanged(t=0.0, wall=0.0, guest="g", target_bytes=target, actual_bytes=1, committed_bytes=1))
    assert clock.targets == {"g": 7, "h": 4}
