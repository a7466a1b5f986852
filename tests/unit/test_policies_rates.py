"""How fast a load is thought to be: what it works off, it will not do for long."""

import json

import pytest
from made_up_guests import STRAIGHT, guest, snapshot
from msgspec import structs

from qmpalloc.policy.rates import Rates


def seen(carry, rate, *, interval_s=15.0, **more):
    """Note an interval; return the rates and the guest."""
    one = structs.replace(guest("a", STRAIGHT, rate=int(rate * interval_s), **more), interval_s=interval_s)
    rates = Rates(json.loads(json.dumps(carry)), snapshot(one), 120.0)
    return rates, one


def test_a_load_that_catches_up_is_planned_with_by_its_average_and_no_other():
    carry = {}
    for _ in range(20):
        rates, _ = seen(carry, 1_000)
        carry = rates.carry
    behind, one = seen(carry, 9_000, waits=1 / 250)
    assert 1_500 < behind.planned_per_s(one) < 2_000
    for waits in (None, 0.0, 1 / 8, 1.0):
        rates, one = seen(carry, 9_000, waits=waits)
        assert rates.planned_per_s(one) == pytest.approx(9_000)


def test_a_load_that_got_slower_is_planned_with_as_it_is():
    rates, _ = seen({}, 9_000)
    rates, one = seen(rates.carry, 100, waits=1 / 250)
    assert rates.planned_per_s(one) == pytest.approx(100)


def test_a_guest_of_which_nothing_is_known_has_no_rate():
    rates, one = seen({}, 0, waits=1 / 250)
    assert rates.planned_per_s(one) == 0.0
