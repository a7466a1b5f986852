"""A balloon that makes no progress is found out, left alone for longer each time, and forgiven when it moves."""

import pytest

from qmpalloc.rules.balloon_progress import (
    BACK_OFF_FIRST_S,
    BACK_OFF_MOST_S,
    INTERFERENCES_MAX,
    STUCK_AFTER_S,
    BalloonProgress,
)  # fmt: skip
from qmpalloc.units import MIB


def watch(progress, sizes, target, *, start_s=0.0, excused=False):
    """Show it a size every second; return when it was found stuck."""
    found = []
    for second, size in enumerate(sizes):
        if progress.see(size * MIB, target * MIB, start_s + second, excused=excused):
            found.append(start_s + second)
    return found


@pytest.mark.parametrize(("size", "target", "what"), [(500, 400, "shrink"), (400, 500, "grow")])
def test_no_progress_is_stuck_in_both_directions(size, target, what):
    progress = BalloonProgress()
    assert watch(progress, [size] * 20, target) == [STUCK_AFTER_S]
    assert what in progress.stuck(STUCK_AFTER_S + 1)
    assert progress.stuck(STUCK_AFTER_S + BACK_OFF_FIRST_S) == ""


def test_a_slow_balloon_is_not_stuck():
    assert watch(BalloonProgress(), [500 - second // 10 for second in range(60)], 400) == []


def test_going_to_and_fro_is_no_progress():
    assert watch(BalloonProgress(), [499, 500] * 20, 400)


def test_new_targets_do_not_start_the_clock_again():
    progress = BalloonProgress()
    found = [progress.see(500 * MIB, (480 - second) * MIB, second, excused=False) for second in range(20)]
    assert True in found


def test_it_is_left_alone_for_twice_as_long_each_time_up_to_a_limit():
    progress, now_s, pauses = BalloonProgress(), 0.0, []
    for _ in range(8):
        while not progress.see(500 * MIB, 400 * MIB, now_s, excused=False):
            now_s += 1.0
        pauses.append(0)
        while progress.stuck(now_s):
            now_s += 1.0
            pauses[-1] += 1
    assert pauses[:3] == [BACK_OFF_FIRST_S, 2 * BACK_OFF_FIRST_S, 4 * BACK_OFF_FIRST_S]
    assert pauses[-1] == BACK_OFF_MOST_S


def test_an_excuse_is_accepted():
    assert watch(BalloonProgress(), [500] * 60, 400, excused=True) == []


def test_forgiven():
    progress = BalloonProgress()
    watch(progress, [500] * 15, 400)
    progress.forgive()
    assert progress.stuck(15.0) == ""


def test_three_changes_that_nobody_asked_for_are_a_habit_unless_long_apart():
    progress = BalloonProgress()
    assert [progress.interfered(10.0 * n) for n in range(INTERFERENCES_MAX)] == [False, False, True]
    assert [progress.interfered(1000.0 * n) for n in range(1, 4)] == [False, False, False]
