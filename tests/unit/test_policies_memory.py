"""How fast a load is thought to be, and for how long."""

import json

import pytest
from made_up_guests import STRAIGHT, guest, line, snapshot
from msgspec import structs

from qmpalloc.policy.curve.memory import Tuning, carried, lasts_s, pace, pauses, planned_per_s, recalled, updated

TUNING, HORIZON_S = Tuning(), 120.0


class Seen:
    """A guest whose intervals are noted one after the other."""

    def __init__(self):
        self.carry, self.time_s = None, 0.0

    def note(self, rate, *, interval_s=15.0, curve=STRAIGHT, **more):
        """Note an interval; return the rate that is planned with."""
        self.time_s += interval_s
        self.guest = structs.replace(guest("a", curve, rate=int(rate * interval_s), **more), interval_s=interval_s)
        now = structs.replace(snapshot(self.guest), time_s=self.time_s)
        memory = updated(recalled(json.loads(json.dumps(self.carry))), now, HORIZON_S, TUNING)
        self.carry, self.known = carried(memory), memory.guests["a"]
        return planned_per_s(self.guest, self.known, self.time_s, TUNING)

    @property
    def pauses(self):
        return pauses(self.known, self.time_s, TUNING)

    @property
    def lasts_s(self):
        return lasts_s(self.known, self.time_s, HORIZON_S, TUNING)


def test_a_load_that_catches_up_is_planned_with_by_its_average_and_no_other():
    for waits, planned in (
        (1 / 250, (1_500, 2_000)),
        (None, (9_000, 9_001)),
        (0.0, (9_000, 9_001)),
        (1.0, (9_000, 9_001)),
    ):
        seen = Seen()
        for _ in range(20):
            seen.note(1_000)
        assert planned[0] <= seen.note(9_000, waits=waits) <= planned[1]


def test_a_load_that_got_slower_is_planned_with_as_it_is():
    seen = Seen()
    seen.note(9_000)
    assert seen.note(1_000, waits=1 / 250) == pytest.approx(1_000)


def test_a_guest_of_which_nothing_is_known_has_no_rate():
    assert Seen().note(0, waits=1 / 250) == 0.0


def test_a_rest_is_a_pause_at_first_and_idleness_if_it_lasts():
    seen = Seen()
    seen.note(1_000, interval_s=5.0)
    assert (seen.note(10, interval_s=5.0), seen.pauses) == (pytest.approx(1_000), True)
    assert (seen.note(10, interval_s=5.0), seen.pauses) == (pytest.approx(1_000), True)
    assert (seen.note(10, interval_s=5.0), seen.pauses) == (pytest.approx(10), False)


def test_who_has_woken_from_such_a_rest_is_planned_with_by_its_average_and_idle_only_after_twice_the_time():
    seen = Seen()
    for _ in range(4):
        for rate in [1_000] * 12 + [0] * 12:
            planned = seen.note(rate, interval_s=5.0)
    assert 350 < planned < 650  # it works for one minute of two
    assert seen.pauses
    for _ in range(13):
        planned = seen.note(0, interval_s=5.0)
    assert (planned, seen.pauses) == (0.0, False)


def test_a_load_is_thought_to_last_as_long_as_those_before_it_or_as_it_has_already():
    seen = Seen()
    curves = [structs.replace(line((100, 1.0), (2000, 0.0), steady=0), load=number) for number in range(5)]
    seen.note(1_000, curve=curves[0])
    assert seen.lasts_s == HORIZON_S
    for number in (1, 2):
        for _ in range(4):  # loads of a minute each
            seen.note(1_000, curve=curves[number])
    assert seen.lasts_s == pytest.approx(15.0)  # the last interval of the minute
    seen.note(1_000, curve=curves[3])
    assert seen.lasts_s == pytest.approx(60.0)
    for _ in range(20):
        seen.note(1_000, curve=curves[3])
    assert seen.lasts_s == pytest.approx(300.0)


def test_who_wakes_after_a_long_rest_is_planned_with_as_it_is():
    seen = Seen()
    for rate in [1_000] * 20 + [0] * 120:  # it rests for ten minutes
        seen.note(rate, interval_s=5.0)
    assert [seen.note(1_000, interval_s=5.0) for _ in range(5)] == [pytest.approx(1_000)] * 5


def test_what_was_done_once_is_no_rate_at_work_for_ever():
    seen = Seen()
    for _ in range(6):
        seen.note(50_000, interval_s=5.0)  # it boots
    for _ in range(30):
        seen.note(4_000, interval_s=5.0)
    assert seen.known.rests_since_s is not None
    for _ in range(800):
        planned = seen.note(4_000, interval_s=5.0)
    assert (planned, seen.known.rests_since_s) == (4_000, None)


def test_what_a_guest_makes_now_or_at_work_is_told_beside_what_is_planned_with():
    seen = Seen()
    for _ in range(20):
        seen.note(1_000)
    planned = seen.note(9_000, waits=1 / 250)
    now = pace(seen.guest, seen.known, seen.time_s, HORIZON_S, TUNING)
    assert (now.planned_per_s, now.most_per_s) == (planned, 9_000)


def test_time_in_which_it_was_not_seen_is_no_rest():
    seen = Seen()
    for _ in range(20):
        seen.note(1_000, interval_s=5.0)
    seen.note(0, interval_s=5.0)
    seen.time_s += 60.0  # late, or paused
    assert seen.note(0, interval_s=5.0) == pytest.approx(1_000)
    assert seen.pauses


def test_who_swaps_instead_of_reading_does_not_rest():
    seen = Seen()
    for _ in range(20):
        seen.note(1_000, interval_s=5.0)
    for _ in range(12):
        planned = seen.note(0, interval_s=5.0, swap_ins=3_000)
    assert (planned, seen.pauses) == (pytest.approx(1_000), True)


def test_loads_that_lasted_for_a_moment_say_nothing_of_the_next():
    seen = Seen()
    for number in (1, 2, 3, 4):
        curve = structs.replace(line((100, 1.0), (2000, 0.0), steady=0), load=number)
        seen.note(1_000, curve=curve, interval_s=5.0)
    assert seen.lasts_s == HORIZON_S
