"""A balloon that makes no progress is found out, left alone for longer each time, and forgiven when it moves."""

import pytest

from qmpalloc.rules.obedience import (
    BACK_OFF_FIRST_S,
    BACK_OFF_MOST_S,
    INTERFERENCES_MAX,
    STUCK_AFTER_S,
    Obedience,
)  # fmt: skip
from qmpalloc.units import MIB


def watch(obedience, sizes, target, *, start_s=0.0, excused=False):
    """Show it a size every second; return when it was found stuck."""
    found = []
    for second, size in enumerate(sizes):
        if obedience.see(size * MIB, target * MIB, start_s + second, excused=excused):
            found.append(start_s + second)
    return found


@pytest.mark.parametrize(("size", "target", "what"), [(500, 400, "shrink"), (400, 500, "grow")])
def test_no_progress_is_stuck_in_both_directions(size, target, what):
    obedience = Obedience()
    assert watch(obedience, [size] * 20, target) == [STUCK_AFTER_S]
    assert what in obedience.stuck(STUCK_AFTER_S + 1)
    assert obedience.stuck(STUCK_AFTER_S + BACK_OFF_FIRST_S) == ""


def test_a_slow_balloon_is_not_stuck():
    assert watch(Obedience(), [500 - second // 10 for second in range(60)], 400) == []


def test_going_to_and_fro_is_no_progress():
    assert watch(Obedience(), [499, 500] * 20, 400)


def test_new_targets_do_not_start_the_clock_again():
    obedience = Obedience()
    found = [obedience.see(500 * MIB, (480 - second) * MIB, second, excused=False) for second in range(20)]
    assert True in found


def test_it_is_left_alone_for_twice_as_long_each_time_up_to_a_limit():
    obedience, now_s, pauses = Obedience(), 0.0, []
    for _ in range(8):
        while not obedience.see(500 * MIB, 400 * MIB, now_s, excused=False):
            now_s += 1.0
        pauses.append(0)
        while obedience.stuck(now_s):
            now_s += 1.0
            pauses[-1] += 1
    assert pauses[:3] == [BACK_OFF_FIRST_S, 2 * BACK_OFF_FIRST_S, 4 * BACK_OFF_FIRST_S]
    assert pauses[-1] == BACK_OFF_MOST_S


def test_an_excuse_is_accepted():
    assert watch(Obedience(), [500] * 60, 400, excused=True) == []


def test_forgiven():
    obedience = Obedience()
    watch(obedience, [500] * 15, 400)
    obedience.forgive()
    assert obedience.stuck(15.0) == ""


def test_three_changes_that_nobody_asked_for_are_a_habit_unless_long_apart():
    obedience = Obedience()
    assert [obedience.interfered(10.0 * n) for n in range(INTERFERENCES_MAX)] == [False, False, True]
    assert [obedience.interfered(1000.0 * n) for n in range(1, 4)] == [False, False, False]
