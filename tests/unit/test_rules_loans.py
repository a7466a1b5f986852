"""Who gave for another's need, or for the budget, gets it back when nobody has it any more."""

import pytest
from made_up_guests import guest, snapshot
from msgspec import structs

from qmpalloc.model import GuestState, Limiter, hold
from qmpalloc.rules.loans import Loans
from qmpalloc.units import MIB


def decided(seen, *sizes, limiter=Limiter.BUDGET):
    decision = hold(seen, "as it is")
    verdicts = [
        structs.replace(one, target_bytes=size * MIB, limiter=limiter)
        for one, size in zip(decision.guests, sizes, strict=True)
    ]
    return structs.replace(decision, guests=tuple(verdicts))


def two(a, b, budget=768, **more):
    return snapshot(guest("a", size=a, **more), guest("b", size=b), budget=budget)


def back(loans, seen, *wishes):
    decision = decided(seen, *wishes, limiter=Limiter.NONE)
    return [one.target_bytes // MIB for one in loans.repay(seen, decision).guests]


@pytest.fixture
def loans():
    loans = Loans()
    loans.note(two(384, 384), decided(two(384, 384), 256, 512))  # a gives 128 for b
    return loans


def test_what_was_given_comes_back_as_far_as_it_is_free(loans):
    assert back(loans, two(256, 512), 256, 512) == [256, 512]
    assert back(loans, two(256, 480), 256, 480) == [288, 480]
    assert back(loans, two(256, 384), 256, 384) == [384, 384]
    assert back(loans, two(256, 200), 256, 200) == [384, 200]  # no more than it gave
    decision = loans.repay(two(256, 384), decided(two(256, 384), 256, 384))
    assert decision.guests[0].reason == "gets back 128M of what it gave"
    assert decision.summary == "free → a 128M"


def test_a_guest_that_a_policy_moves_is_that_policys_business(loans):
    assert back(loans, two(256, 384), 300, 384) == [300, 384]
    loans.note(two(256, 384), decided(two(256, 384), 200, 384, limiter=Limiter.POLICY))
    assert back(loans, two(200, 384), 200, 384) == [200, 384]


def test_once_it_has_it_nothing_is_owed(loans):
    loans.note(two(256, 384), decided(two(256, 384), 384, 384))
    assert back(loans, two(300, 384), 300, 384) == [300, 384]


def test_who_can_take_nothing_and_who_never_gave_get_nothing(loans):
    for more in ({"state": GuestState.LATE}, {"frozen": "stuck"}):
        assert back(loans, two(256, 384, **more), 256, 384) == [256, 384]
    assert back(loans, two(256, 200, cap=300), 256, 200) == [300, 200]
    assert back(Loans(), two(256, 384), 256, 384) == [256, 384]


def test_nothing_is_owed_any_more_when_a_guest_has_left_or_come(loans):
    loans.note(snapshot(guest("a", size=256), budget=768), decided(snapshot(guest("a", size=256)), 256))
    assert back(loans, two(256, 384), 256, 384) == [256, 384]


def test_what_a_guest_that_is_to_come_will_find_is_not_free(loans):
    seen = two(256, 0)
    to_come = structs.replace(seen.guests[1], state=GuestState.CONNECTING, baseline_bytes=512 * MIB)
    assert back(loans, structs.replace(seen, guests=(seen.guests[0], to_come)), 256, 0) == [256, 0]
