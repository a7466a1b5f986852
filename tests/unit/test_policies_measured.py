"""Policy curve where a curve turned out to be wrong: what was measured before counts."""

import json

import numpy as np
import pytest
from made_up_guests import STRAIGHT, guest, line, snapshot, targets
from msgspec import structs

from qmpalloc.model import UNMEASURED
from qmpalloc.policy.curve.belief import Tuning, believe
from qmpalloc.policy.curve.measured import Point
from qmpalloc.policy.curve.memory import Pace, recalled
from qmpalloc.policy.curve.policy import CurvePolicy
from qmpalloc.units import MIB

PROMISES = line((200, 0.30), (600, 0.12), (800, 0.10), (2000, 0.10))
"""What b's curve says: little is lost down to 600 MiB and not much below."""

FLATTENS = line((100, 1.0), (500, 0.5), (1000, 0.10), (2000, 0.10))


def curve(points, size, measured, accesses, *, contradicted=0.0, load=1):
    """A curve that a guest with that size has, where that was measured."""
    text = (f"the curve says {measured - contradicted:.2f} misses here, measured are {measured:.2f}",)
    ratios = np.interp([mib * MIB for mib in (200, size, 2000)], points.sizes_bytes, points.miss_ratio)
    known = line(*zip((200, size, 2000), (float(ratio) for ratio in ratios), strict=True)) if contradicted else points
    return structs.replace(
        known,
        measured=measured,
        contradicted=contradicted,
        steady_accesses=accesses,
        load=load,
        weak=text if contradicted else (),
    )


def decide(carry, *guests, budget=1600):
    decision = CurvePolicy().decide(snapshot(*guests, budget=budget, carry=carry))  # promises apart
    return decision, json.loads(json.dumps(decision.carry))


def after_a_wrong_move(*, before=0.10, now=0.45, accesses=100_000, later=110_000, other=FLATTENS, load_then=1, **more):
    """What is decided when b went from 800 to 600 MiB for a, and then misses `now` where its curve says .12."""
    a = guest("a", structs.replace(other, measured=None), size=800)
    _, carry = decide(None, a, guest("b", curve(PROMISES, 800, before, accesses), size=800))
    a = guest("a", other, size=1000)
    b = guest(
        "b",
        curve(PROMISES, 600, now, later, contradicted=0.33, load=load_then),
        size=600,
        misses=int(now * 10_000),
        **more,
    )
    return decide(carry, a, b)


def test_a_guest_that_misses_far_more_than_its_curve_promised_gets_back_what_it_had():
    decision, _ = after_a_wrong_move()
    assert targets(decision) == [pytest.approx(800, abs=8), pytest.approx(800, abs=8)]
    assert decision.guests[1].reason.startswith("gains")
    assert "by what it missed with 800M, 0.10 of all" in decision.guests[1].reason


def test_nothing_is_given_back_that_is_worth_more_where_it_is():
    steeper = line((100, 1.0), (990, 0.9), (1000, 0.0), (2000, 0.0))
    decision, _ = after_a_wrong_move(other=steeper)
    assert decision.moves == ()


def test_no_more_is_taken_from_a_guest_whose_curve_is_wrong():
    decision, _ = after_a_wrong_move(other=STRAIGHT, before=0.44)
    assert decision.moves == ()
    assert decision.guests[1].reason.startswith("weak curve: the curve says 0.12 misses here")


@pytest.mark.parametrize(
    "more",
    [
        {"before": 0.90},  # its cache was being filled
        {"later": 10_000},  # another load since
        {"later": 200_000},  # long ago
        {"load_then": 2},  # another load, of which nothing was seen in between
        {"disk_read_pages": 100},  # its disks do not confirm its misses
        {"frozen": "its balloon does not move"},
    ],
)
def test_what_does_not_count_is_given_nothing_back(more):
    decision, _ = after_a_wrong_move(**more)
    assert decision.moves == ()


def test_a_curve_is_not_believed_again_at_the_size_it_was_wrong_for_until_the_load_has_lasted_as_long_again():
    _, carry = after_a_wrong_move()
    for accesses, taken in ((150_000, False), (220_000, True)):
        a = guest("a", FLATTENS, size=800)
        b = guest("b", curve(PROMISES, 800, 0.10, accesses), size=800)
        decision, _ = decide(carry, a, b)
        assert (targets(decision)[1] < 800) is taken, accesses


def test_a_size_that_is_not_measured_yet_is_not_taken_for_a_contradiction():
    a = guest("a", structs.replace(FLATTENS, measured=None), size=800)
    _, carry = decide(None, a, guest("b", curve(PROMISES, 800, 0.10, 100_000), size=800))
    waiting = structs.replace(PROMISES, weak=(UNMEASURED,), steady_accesses=110_000)
    decision, _ = decide(carry, guest("a", FLATTENS, size=1000), guest("b", waiting, size=600, misses=4_500))
    assert decision.moves == ()


def test_a_guest_gets_back_what_it_had_and_no_more():
    """A guest may say that it misses much: it is known to miss little with what it had, and that is all it gets."""
    a = guest("a", line((200, 0.01), (2000, 0.01)), size=1000)
    _, carry = decide(None, a, guest("b", curve(PROMISES, 700, 0.10, 100_000), size=700), budget=1700)
    b = guest("b", curve(PROMISES, 600, 0.45, 110_000, contradicted=0.33), size=600, misses=4_500)
    decision, _ = decide(carry, guest("a", a.curve, size=1100), b, budget=1700)
    assert targets(decision)[1] == pytest.approx(700, abs=8)


def test_small_steps_do_not_make_it_forget_where_they_began():
    carry = None
    for size in range(1_000, 832, -16):
        a = guest("a", structs.replace(FLATTENS, measured=None), size=600)
        more = 0.10 + 0.2 * (1_000 - size) / 152  # than it is worth, by no more than the curve is trusted to be off
        _, carry = decide(carry, a, guest("b", curve(PROMISES, size, more, 100_000), size=size))
    b = guest("b", curve(PROMISES, 832, 0.45, 110_000, contradicted=0.33), size=832, misses=4_500)
    decision, _ = decide(carry, guest("a", line((100, 0.01), (2000, 0.01)), size=768), b)
    assert targets(decision)[1] == pytest.approx(1_000, abs=12)


def test_misses_that_the_disks_deny_are_not_kept_for_later():
    a = guest("a", FLATTENS, size=1000)
    _, carry = decide(None, guest("a", FLATTENS, size=800), guest("b", curve(PROMISES, 800, 0.10, 100_000), size=800))
    forged = guest(
        "b", curve(PROMISES, 600, 0.90, 110_000, contradicted=0.78), size=600, misses=9_000, disk_read_pages=100
    )
    _, carry = decide(carry, a, forged)
    points = recalled(carry).guests["b"].points
    assert [(point.size_bytes // MIB, point.contradicts) for point in points] == [(800, False)]


def test_it_says_by_which_size_it_goes():
    decision, carry = None, None
    for size, ratio in ((1_000, 0.60), (800, 0.10)):
        a = guest("a", structs.replace(FLATTENS, measured=None), size=1_600 - size)
        _, carry = decide(carry, a, guest("b", curve(PROMISES, size, ratio, 100_000), size=size))
    b = guest("b", curve(PROMISES, 600, 0.70, 110_000, contradicted=0.5), size=600, misses=7_000)
    decision, _ = decide(carry, guest("a", line((100, 0.01), (2000, 0.01)), size=1_000), b)
    assert "by what it missed with 800M, 0.10 of all" in decision.guests[1].reason


def test_below_a_size_that_was_measured_nothing_is_known():
    point = Point(480 * MIB, 0.06, 100_000, 1)
    one = guest("a", line((100, 0.9), (2000, 0.1), weak=("only 12 sampled accesses",)), size=500, misses=1_000)
    belief = believed(one, point)
    assert belief.planned([479 * MIB, 480 * MIB, 499 * MIB]) == pytest.approx([1.0, 0.1, 0.1], abs=0.001)
    # A point that missed less with less says that the miss ratio swings, not that less memory helps.
    assert (belief.values([480 * MIB, 490 * MIB], "hits") <= 0).all()


def test_what_a_move_was_planned_with_is_allowed_to_who_gives():
    """With its margin, and with what was measured there: a promise that is stricter breaks although all came true."""
    cliff = line((100, 1.0), (449, 1.0), (450, 0.0), (2000, 0.0))
    contradicting = Point(460 * MIB, 0.6, 100_000, 1, contradicts=True)
    for points, margin, planned in (((), 16, 10_000), ((contradicting,), 0, 6_000)):
        one = guest("a", structs.replace(cliff, measured=0.0), size=500, misses=0)
        belief = believed(one, *points, margin_bytes=margin * MIB)
        assert belief.planned([460 * MIB])[0] * 10_000 == pytest.approx(planned, rel=0.01)
        assert belief.promise(460 * MIB, Tuning()).page_ins_per_s >= 0.99 * planned


def test_what_comes_back_from_swap_is_worth_as_much_beside_a_good_curve():
    for curve in (FLATTENS, structs.replace(FLATTENS, weak=("too few samples",))):
        one = guest("a", structs.replace(curve, measured=0.1), size=1_000, misses=1_000, swap_ins=300)
        gained = -believed(one).unread_per_s(np.array([2_000.0 * MIB]))[0]
        assert gained == pytest.approx(0.1 * 300)


def believed(one, *points, margin_bytes=0):
    return believe(
        one, points, Pace(planned_per_s=10_000.0, promised_s=120.0), held="",
        margin_bytes=margin_bytes, tuning=Tuning(),
    )  # fmt: skip
