"""So much at once, so much a second."""

from hypothesis import given
from hypothesis import strategies as st

from qmpalloc.allowance import Allowance

SPENDING = st.lists(st.tuples(st.floats(-5, 60), st.floats(0, 500)), max_size=50)


def test_it_fills_with_time_up_to_its_brim():
    allowance = Allowance(per_s=10, at_once=100)
    assert allowance.take(100, 5.0)
    assert not allowance.take(1, 5.0)
    assert allowance.left(7.0) == 20
    assert allowance.left(1000.0) == 100


def test_what_was_no_cost_comes_back():
    allowance = Allowance(per_s=10, at_once=100)
    allowance.take(60, 0.0)
    allowance.give_back(50)
    assert allowance.left(0.0) == 90
    allowance.give_back(50)
    assert allowance.left(0.0) == 100


@given(SPENDING)
def test_nobody_takes_more_than_time_has_brought(spending):
    allowance, now_s, latest_s, taken = Allowance(per_s=10, at_once=100), 0.0, 0.0, 0.0
    allowance.left(0.0)
    for passed_s, amount in spending:
        now_s += passed_s
        advanced_s = max(0.0, passed_s)
        latest_s += advanced_s
        taken += amount if allowance.take(amount, now_s) else 0.0
        assert taken <= 100 + 10 * latest_s + 1e-6
