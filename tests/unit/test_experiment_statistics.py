"""Ratios, intervals and verdicts: right, symmetric, and honest where nothing is known."""

import math
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpalloc.experiment.analysis.statistics import ArmResult, compare, more_hits, ratio, t_quantile, verdict

POSITIVE = st.floats(1e-3, 1e6)


def result(arm, repeat, seconds, *, hits=(10, 10), ends=(1, 2), failed=""):
    finished = {"g1": (1,), "g2": tuple(ends)}
    return ArmResult(
        arm=arm, repeat=repeat, hits=hits, finished=finished, seconds=seconds, failed=failed,
        total_hits=None if None in hits else sum(hits),
    )  # fmt: skip


def told(ours, theirs):
    results = [result("paper", n, seconds) for n, seconds in enumerate(ours, 1)]
    results += [result("static", n, seconds) for n, seconds in enumerate(theirs, 1)]
    return verdict(compare(results, "paper"))


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227)]
)
def test_quantiles_of_students_t_are_those_of_the_tables(degrees, value):
    assert t_quantile(0.975, degrees) == pytest.approx(value, rel=1e-5)


def test_an_interval_reckoned_by_hand():
    found = ratio([(80, 100), (90, 100), (85, 100)])
    # logs -0.22314 -0.10536 -0.16252: mean -0.163675, s 0.058900, times 4.30265 / sqrt(3)
    assert found.value == pytest.approx(0.84902, abs=1e-5)
    assert found.low == pytest.approx(0.84902 * math.exp(-0.14632), abs=1e-4)
    assert found.high == pytest.approx(0.84902 * math.exp(0.14632), abs=1e-4)
    assert str(found) == "0.85 (0.73 to 0.98)"


def test_the_interval_holds_the_truth_as_often_as_it_says():
    random = Random(7)
    held = 0
    for _ in range(2000):
        found = ratio([(0.9 * math.exp(random.gauss(0, 0.1)), 1.0) for _ in range(3)])
        held += found.low <= 0.9 <= found.high
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=6))
def test_the_ratio_the_other_way_round_is_its_inverse(pairs):
    found, inverse = ratio(pairs), ratio([(theirs, ours) for ours, theirs in pairs])
    assert found.value * inverse.value == pytest.approx(1)
    assert found.low <= found.value * (1 + 1e-9)
    assert found.value <= found.high * (1 + 1e-9)


def test_one_repeat_has_no_interval_and_says_so():
    found = ratio([(80, 100)])
    assert (found.low, found.high, found.n) == (None, None, 1)
    assert str(found) == "0.80"
    assert told([80], [100]) == "paper finished in 0.80 of the static time: one repeat decides nothing."


@pytest.mark.parametrize("pairs", [[], [(0, 1)], [(1, 1), (1, math.nan)]])
def test_no_ratio_of_nothing(pairs):
    with pytest.raises(ValueError, match="above 0"):
        ratio(pairs)


@pytest.mark.parametrize(
    ("ours", "says"),
    [
        ((80, 81, 82), "paper finished in 0.81 (0.79 to 0.84) of the static time: faster."),
        ((118, 120, 122), "paper finished in 1.20 (1.15 to 1.25) of the static time: slower."),
        ((80, 100, 125), "0.57 to 1.74) of the static time: undecided."),
        ((100, 100, 100), "(1.00 to 1.00) of the static time: undecided"),
    ],
)
def test_a_verdict_is_plain_also_when_it_is_bad(ours, says):
    assert says in told(ours, (100, 100, 100))


def test_a_run_that_failed_or_did_not_finish_is_left_out_and_counted():
    results = [result("static", n, 100.0) for n in (1, 2, 3, 4)]
    results += [result("paper", 1, 80.0), result("paper", 2, 82.0), result("paper", 3, 1.0, failed="g1 died")]
    results += [result("paper", 4, None, ends=(1, None))]
    found = compare(results, "paper")
    assert (found.repeats, found.finished, found.time.n, found.trials.n) == (3, 2, 2, 2)
    assert verdict(found).endswith("0.95) of the static time: faster; 1 of 3 repeats did not finish and are left out.")


def test_nothing_to_compare_is_said():
    assert "no repeat has a result of both paper and static" in verdict(compare([result("paper", 1, 80.0)], "paper"))
    unfinished = [result("paper", 1, None, ends=(1, None)), result("static", 1, 100.0)]
    found = compare(unfinished, "paper")
    assert (found.time, found.trials, found.hits) == (None, None, None)
    assert verdict(found) == "paper cannot be compared: in none of 1 repeats did it and static both finish."


def test_trials_to_finish_are_those_of_the_last_guest():
    assert result("paper", 1, 1.0, ends=(9, 24)).trials_to_finish == 24
    assert result("paper", 1, None, ends=(9, None)).trials_to_finish is None
    found = compare([result("paper", 1, 80.0, ends=(9, 24)), result("static", 1, 100.0, ends=(11, 30))], "paper")
    assert found.trials.value == pytest.approx(0.8)


def test_trials_with_more_hits_are_counted_up_to_the_end_of_the_shorter():
    ours, theirs = result("paper", 1, 3.0, hits=(5, 5, 9)), result("static", 1, 5.0, hits=(5, 4, 8, 100, 100))
    assert more_hits(ours, theirs) == (2, 3)
    assert compare([ours, theirs], "paper").more_hits == ((2, 3),)


def test_a_trial_of_which_one_run_does_not_know_its_hits_is_not_compared():
    ours, theirs = result("paper", 1, 3.0, hits=(5, None, 9, 9)), result("static", 1, 5.0, hits=(4, 1, None, 10))
    assert more_hits(ours, theirs) == (1, 2)


def test_hits_in_all_may_be_known_where_those_of_a_trial_are_not():
    known = msgspec.structs.replace(result("paper", 1, 3.0, hits=(5, None)), total_hits=12)
    assert compare([known, result("static", 1, 5.0, hits=(5, 5))], "paper").hits.value == pytest.approx(1.2)


def test_misses_are_compared_where_they_are_known():
    ours = msgspec.structs.replace(result("paper", 1, 3.0), total_misses=80)
    theirs = msgspec.structs.replace(result("static", 1, 5.0), total_misses=100)
    assert compare([ours, theirs], "paper").misses.value == pytest.approx(0.8)
    assert compare([ours, result("static", 1, 5.0)], "paper").misses is None


def test_hits_are_compared_over_the_whole_run():
    results = [result("paper", 1, 3.0, hits=(30, 30)), result("static", 1, 5.0, hits=(20, 20, 10))]
    assert compare(results, "paper").hits.value == pytest.approx(1.2)
    assert compare([results[0], result("static", 1, 5.0, hits=(0, 0))], "paper").hits is None
