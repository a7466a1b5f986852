"""Sizes that people choose: above every policy, below danger and what a guest cannot give up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from test_rules_limits import guest, limited

from qmpalloc.model import Decision, GuestDecision, GuestState, Limiter, Pin, Promise, Snapshot, hold
from qmpalloc.policy import load
from qmpalloc.rules.limits import apply_limits
from qmpalloc.rules.pins import Choice, bound, unpinned, why_not
from qmpalloc.units import MIB


def pinned(one, size, why="set to it"):
    """Return a guest with the size that a person chose."""
    limits = {"floor_bytes": one.floor_bytes, "cap_bytes": one.cap_bytes}
    return structs.replace(one, pin=Pin(size_bytes=size * MIB, why=why, **limits))


def seen(*guests, budget=10_000):
    return Snapshot(cycle=1, time_s=0.0, budget_bytes=budget * MIB, interval_s=1.0, guests=guests)


def test_it_is_above_every_wish():
    guests = [pinned(guest("a", 500), 700), guest("b", 500)]
    assert limited(guests, [300, 500]) == [(700, Limiter.PERSON), (500, Limiter.POLICY)]


def test_what_it_is_for_stands_beside_it_and_nothing_is_promised_of_it():
    wish = GuestDecision(name="a", target_bytes=1, reason="mine", promise=Promise(page_ins_per_s=1.0))
    verdict = apply_limits(seen(pinned(guest("a", 500), 500, "held at 500M")), Decision(guests=(wish,)), {}).guests[0]
    assert (verdict.reason, verdict.limiter, verdict.promise) == ("held at 500M", Limiter.PERSON, None)


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({"floor": 600}, (600, Limiter.FLOOR)),  # it has come to need more since
        ({"cap": 400, "size": 350}, (400, Limiter.CAP)),  # its cap was lowered since
        ({"size": 2000}, (1500, Limiter.PERSON)),  # a quarter at once
        ({"state": GuestState.LATE}, (500, Limiter.STATE)),
        ({"state": GuestState.LOST}, (1000, Limiter.STATE)),
    ],
)
def test_it_is_below_what_always_holds(changes, result):
    size = changes.pop("size", 500)
    assert limited([pinned(guest("a", size, **changes), 450)], [3000]) == [result]


def test_danger_overrides_it():
    assert limited([pinned(guest("a", 300), 300)], [300], dangers={"a": "OOM"}) == [(1000, Limiter.DANGER)]


def test_the_others_pay_for_it_a_step_at_a_time_down_to_their_floors():
    a, b = pinned(guest("a", 500, floor=200), 780), guest("b", 500, floor=200, baseline=500)
    sizes = []
    for _ in range(4):
        result = limited([a, b], [500, 500], budget=1000)
        sizes.append([size for size, _ in result])
        a, b = (structs.replace(each, **dict.fromkeys(("target_bytes", "actual_bytes", "charge_bytes"), size * MIB))
                for each, (size, _) in zip((a, b), result, strict=True))  # fmt: skip
    assert sizes == [[628, 372], [756, 244], [780, 220], [780, 220]]


def test_who_pays_is_told_for_whom():
    decision = apply_limits(
        seen(pinned(guest("a", 500), 780), guest("b", 500, baseline=500), budget=1000),
        hold(seen(guest("a", 500), guest("b", 500)), "holds"),
        {},
    )
    assert decision.guests[1].reason == "gives to a, as a person asked"


def test_who_is_in_danger_is_served_first_and_then_by_those_with_a_chosen_size_too():
    chosen, free = pinned(guest("a", 900, baseline=500), 900), guest("b", 300, baseline=300)
    short = structs.replace(guest("c", 300, baseline=500), rescue_bytes=500 * MIB)
    assert limited([chosen, free, short], [900, 300, 300], budget=1500, dangers={"c": "OOM"}) == [
        (800, Limiter.BUDGET), (200, Limiter.BUDGET), (500, Limiter.DANGER),
    ]  # fmt: skip


def test_a_chosen_size_does_not_pay_for_a_wish_or_another_chosen_size():
    a, b = pinned(guest("a", 900, baseline=500), 900), pinned(guest("b", 300, baseline=500), 400)
    assert limited([a, b], [900, 300], budget=1200) == [(900, Limiter.PERSON), (300, Limiter.BUDGET)]
    assert limited([a, guest("b", 300)], [900, 900], budget=1200) == [(900, Limiter.PERSON), (300, Limiter.BUDGET)]


def test_that_a_person_wants_something_is_not_for_a_policy_to_say():
    wishes = (
        GuestDecision(name="a", target_bytes=900 * MIB, reason="me", limiter=Limiter.PERSON),
        GuestDecision(name="b", target_bytes=600 * MIB, reason="stays"),
    )
    decision = apply_limits(seen(guest("a", 500), guest("b", 600), budget=1100), Decision(guests=wishes), {})
    assert [each.target_bytes // MIB for each in decision.guests] == [500, 600]


def test_a_policy_is_shown_the_size_as_floor_cap_and_baseline():
    shown = bound(seen(pinned(guest("a", 500), 700), guest("b"))).guests
    assert {shown[0].floor_bytes, shown[0].cap_bytes, shown[0].baseline_bytes} == {700 * MIB}
    assert (shown[0].pin.floor_bytes, shown[0].pin.cap_bytes) == (200 * MIB, 4000 * MIB)
    assert shown[1] == guest("b")
    outside = bound(seen(pinned(guest("a", 500, floor=600, cap=650), 700))).guests[0]
    assert outside.floor_bytes == 650 * MIB


@pytest.mark.parametrize("name", ["static", "paper", "hill", "curve"])
def test_no_policy_minds_it(name):
    policy = load(name, {})
    for size in (300, 500, 900):
        snapshot = bound(seen(pinned(guest("a", 500), size), guest("b", 500, baseline=500), budget=1200))
        decision = policy.decide(snapshot)
        assert [each.name for each in decision.guests] == ["a", "b"]


def test_while_the_host_is_short_nobody_chooses():
    assert unpinned(seen(pinned(guest("a"), 700), guest("b"))) == seen(guest("a"), guest("b"))


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        (Choice(size_bytes=700 * MIB), "set to 700M"),
        (Choice(size_bytes=700 * MIB, held=True), "held at 700M"),
        (Choice(size_bytes=700 * MIB, until_s=610.0), "set to 700M, 10 min left"),
        (Choice(size_bytes=700 * MIB, until_s=55.0), "set to 700M, 45 s left"),
    ],
)
def test_what_it_says_of_itself(choice, why):
    assert choice.pin(1, 2, now_s=10.0) == Pin(size_bytes=700 * MIB, why=why, floor_bytes=1, cap_bytes=2)


@pytest.mark.parametrize(
    ("changes", "size", "says"),
    [
        ({}, 4001, "its cap is 3.91G"),
        ({}, 99, "its floor is 200M"),
        ({"floor": 300}, 250, "is less than a needs: 300M with what it cannot give up"),
        ({"state": GuestState.HUNG}, 500, "a is hung: nothing can move it"),
        ({"state": GuestState.GONE}, 500, "a is gone: nothing can move it"),
        ({}, 1850, "does not fit the budget of 2G: 200M of it is not to be had from the others"),
    ],
)
def test_what_is_refused_and_why(changes, size, says):
    refusal = why_not(seen(guest("a", 500, **changes), guest("b", 500), budget=2048), "a", size * MIB, 200 * MIB)
    assert says in refusal.message
    assert refusal.hint


def test_in_danger_less_than_it_needs_is_refused():
    short = structs.replace(guest("a", 500), rescue_bytes=800 * MIB, frozen="danger: OOM")
    assert "is in danger and needs 800M" in why_not(seen(short), "a", 700 * MIB, 200 * MIB).message
    assert why_not(seen(short), "a", 800 * MIB, 200 * MIB) is None


def test_what_others_were_given_is_not_to_be_had():
    others = (pinned(guest("b", 500), 900), guest("c", 400, state=GuestState.HELD), guest("d", state=GuestState.GONE))
    snapshot = seen(guest("a", 500), *others, budget=2000)
    assert why_not(snapshot, "a", 700 * MIB, 200 * MIB) is None
    assert "at most 700M" in why_not(snapshot, "a", 701 * MIB, 200 * MIB).hint


@given(st.lists(st.tuples(st.integers(200, 2000), st.integers(100, 2500), st.booleans()), min_size=1, max_size=5),
       st.integers(0, 4), st.integers(0, 8000))  # fmt: skip
def test_what_is_accepted_is_reached_and_always_fits(sizes, index, more):
    """From any sizes within the budget, in some decisions; the policy wants to keep all as it is."""
    guests = [guest(f"g{number}", size, floor=200, baseline=size) for number, (size, _, _) in enumerate(sizes)]
    index %= len(guests)
    budget = sum(size for size, _, _ in sizes) + more
    wanted = sizes[index][1]
    if why_not(seen(*guests, budget=budget), f"g{index}", wanted * MIB, 200 * MIB) is not None:
        return
    guests[index] = pinned(guests[index], wanted)
    for _ in range(100):
        before = [each.target_bytes // MIB for each in guests]
        result = [size for size, _ in limited(guests, before, budget=budget)]
        assert sum(result) <= budget
        assert all(old - new <= max(128, old / 4) + 1 for old, new in zip(before, result, strict=True))
        guests = [
            structs.replace(each, **dict.fromkeys(("target_bytes", "actual_bytes", "charge_bytes"), size * MIB))
            for each, size in zip(guests, result, strict=True)
        ]
    assert guests[index].target_bytes == wanted * MIB
