"""The policy ``curve`` squeezes a guest that is full of what nobody reads: once, with a reason, and gives back."""

import made_up_guests
import pytest
from made_up_guests import sized
from msgspec import structs

from qmpalloc.model import Curve, GuestState
from qmpalloc.policy import load
from qmpalloc.policy.curve.memory import recalled
from qmpalloc.rules.limits import apply_limits
from qmpalloc.units import MIB


def curve(stale=0.0, *, steady=1_000_000, weak=("the load has changed",)):
    return Curve(
        sizes_bytes=(200 * MIB, 2000 * MIB), miss_ratio=(0.7, 0.7), weak=weak, measured=0.7, stale=stale,
        cached_bytes=600 * MIB, unread_bytes=100 * MIB, unused_bytes=100 * MIB, steady_accesses=steady,
    )  # fmt: skip


def guest(name, *, size=800, stale=0.0, misses=70_000, floor=200, state=GuestState.FRESH, frozen="", **more):
    counts = {"hits": 100_000 - misses, "misses": misses, "interval_s": 10.0}
    return sized(
        name, size, floor=floor, baseline=800, state=state, curve=curve(stale, **more), frozen=frozen, **counts
    )


def snapshot(*guests, carry=None, time_s=10.0):
    return made_up_guests.snapshot(*guests, budget=1600, time_s=time_s, interval_s=10.0, carry=carry)


def decided(*guests, carry=None, time_s=10.0):
    now = snapshot(*guests, carry=carry, time_s=time_s)
    return apply_limits(now, load("curve", {}).decide(now), {})


def had(accesses):
    """Carried over: the guest "a" was squeezed when its load had made so many accesses."""
    return {"version": 1, "squeezed": {"a": accesses}}


def sizes(decision):
    return [verdict.target_bytes // MIB for verdict in decision.guests]


def test_it_is_squeezed_by_a_step_told_why_and_gets_its_memory_back_when_it_has_use_for_it():
    first = decided(guest("a", stale=0.3), guest("b"))
    assert sizes(first) == [600, 800]
    assert "30% of its accesses miss for pages of the load before" in first.guests[0].reason
    # 100 MiB were not read lately and 200 MiB are squeezed out: 76,800 pages.
    second = decided(guest("a", size=600, stale=0.3), guest("b"), carry=first.carry)
    assert sizes(second) == [600, 800]
    third = decided(guest("a", size=600, stale=0.3), guest("b"), carry=second.carry)
    assert sizes(third) == [800, 800]
    assert "was squeezed" in third.guests[0].reason


def test_who_has_grown_meanwhile_gives_back_and_no_one_else():
    first = decided(guest("a", stale=0.3), guest("b", size=400), guest("c", size=400))
    low = guest("a", size=600, stale=0.3)
    kept = decided(low, guest("b", size=400), guest("c", size=400), carry=first.carry)
    back = decided(low, guest("b", size=500), guest("c", size=300), carry=kept.carry)
    assert sizes(back) == [800, 400, 300]


def test_pages_that_do_not_leave_are_within_reach_however_many_have_been_read_since():
    """With its own pages read once around, none is left that was not read: it misses as with a much smaller cache."""

    def reading_all(unused):
        one = guest("a", stale=0.3)
        return structs.replace(one, curve=structs.replace(one.curve, unread_bytes=0, unused_bytes=unused * MIB))

    assert sizes(decided(reading_all(0), guest("b"))) == [800, 800]
    assert sizes(decided(reading_all(300), guest("b"))) == [600, 800]


def test_who_missed_less_with_more_memory_is_not_squeezed_but_given_back():
    larger = structs.replace(guest("a", steady=900_000), curve=structs.replace(curve(weak=()), measured=0.2))
    before = decided(larger, guest("b"))
    one = guest("a", size=700, stale=0.3, steady=1_100_000)
    one = structs.replace(one, curve=structs.replace(one.curve, unused_bytes=300 * MIB))
    assert sizes(decided(one, guest("b"), carry=before.carry))[0] >= 700
    unknown = structs.replace(one, curve=structs.replace(one.curve, measured=None))
    assert sizes(decided(unknown, guest("b"), carry=before.carry))[0] >= 700
    assert sizes(decided(one, guest("b"))) == [525, 800]


def test_once_for_each_change_of_the_load():
    carry = had(600_000)
    assert sizes(decided(guest("a", stale=0.3), guest("b"), carry=carry)) == [800, 800]
    again = decided(guest("a", stale=0.3, steady=400_000), guest("b"), carry=carry)
    assert sizes(again) == [600, 800]


@pytest.mark.parametrize(
    "one",
    [
        guest("a", stale=0.3, floor=750),
        structs.replace(guest("a"), curve=structs.replace(curve(0.3), unread_bytes=90 * MIB, unused_bytes=90 * MIB)),
        guest("a", stale=0.3, frozen="was in danger"),
        guest("a", stale=0.3, state=GuestState.LATE),
        guest("a", stale=0.3, misses=1_000, steady=10_000),
    ],
    ids=[
        "no room",
        "out of reach",
        "frozen",
        "not fresh",
        "longer to refill than the load is thought to last",
    ],
)
def test_it_is_left_alone(one):
    assert sizes(decided(one, guest("b")))[0] == 800


def test_it_ends_when_the_load_changes_again_or_after_the_horizon():
    first = decided(guest("a", stale=0.3), guest("b"))
    changed = guest("a", size=600, misses=1_000, steady=10_000)
    assert sizes(decided(changed, guest("b"), carry=first.carry)) == [800, 800]
    slow = guest("a", size=600, misses=1_000)
    assert sizes(decided(slow, guest("b"), carry=first.carry, time_s=100.0)) == [600, 800]
    assert sizes(decided(slow, guest("b"), carry=first.carry, time_s=131.0)) == [800, 800]


def test_a_guest_in_danger_gets_its_memory_back_and_the_squeeze_is_over():
    first = decided(guest("a", stale=0.3), guest("b"))
    kept = decided(guest("a", size=600, misses=1_000), guest("b"), carry=first.carry)
    rescued = guest("a", size=800, frozen="was in danger")
    assert sizes(decided(rescued, guest("b"), carry=kept.carry)) == [800, 800]
    memory = recalled(decided(rescued, guest("b"), carry=kept.carry).carry)
    assert memory.squeeze is None
    assert "a" in memory.squeezed  # and never again under this load


def test_a_squeeze_that_the_limits_cut_short_is_still_given_back():
    first = decided(structs.replace(guest("a", stale=0.3), actual_bytes=900 * MIB), guest("b"))
    assert sizes(first)[0] > 600
    low = guest("a", size=sizes(first)[0])
    kept = decided(low, guest("b"), carry=first.carry)
    assert sizes(decided(low, guest("b"), carry=kept.carry)) == [800, 800]


def test_the_guest_that_is_squeezed_is_not_decided_about_and_others_are():
    strong = curve(weak=())
    falling = structs.replace(strong, miss_ratio=(0.9, 0.0), measured=0.5)
    first = decided(guest("a", stale=0.3), guest("b"))
    other = structs.replace(guest("b", misses=50_000), curve=falling)
    second = decided(guest("a", size=600, misses=1_000), other, carry=first.carry)
    assert sizes(second) == [600, 1000]
