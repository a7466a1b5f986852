"""The order of the runs: complete, shuffled by the seed, and resumable at any point."""

from collections import Counter
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from qmpalloc.experiment.spec import parsing
from qmpalloc.experiment.spec.plan import ArmRun, planned

SPEC = parsing.load(Path(__file__).parents[2] / "examples" / "paper-x1.toml")


def with_(**changes):
    return msgspec.structs.replace(SPEC, **changes)


@given(st.integers(0, 2**64), st.integers(1, 8))
def test_every_repeat_has_every_arm_once_and_ends_before_the_next(seed, repeats):
    plan = planned(with_(seed=seed, repeats=repeats))
    assert Counter(plan) == Counter(ArmRun(n, arm.name) for n in range(1, repeats + 1) for arm in SPEC.arms)
    assert [run.repeat for run in plan] == sorted(run.repeat for run in plan)
    assert plan == planned(with_(seed=seed, repeats=repeats))


def test_the_seed_shuffles_each_repeat_of_its_own():
    plan = planned(with_(repeats=600))
    orders = Counter(tuple(run.arm for run in plan[at : at + 3]) for at in range(0, len(plan), 3))
    assert len(orders) == 6
    assert min(orders.values()) > 60


@given(st.integers(0, 2**64), st.integers(1, 4))
def test_of_any_two_arms_each_comes_first_equally_often(seed, pairs):
    """With the seed 1, shuffling alone had the same of two arms first in each of five repeats."""
    plan = planned(with_(seed=seed, repeats=2 * pairs))
    names = [arm.name for arm in SPEC.arms]
    places = {run: place for place, run in enumerate(plan)}
    for one, other in [(one, other) for one in names for other in names if one != other]:
        ahead = [places[ArmRun(n, other)] - places[ArmRun(n, one)] for n in range(1, 2 * pairs + 1)]
        assert sum(ahead) == 0


def test_more_repeats_or_fewer_arms_leave_the_rest_as_it_was():
    plan = planned(SPEC)
    assert planned(with_(repeats=5))[: len(plan)] == plan
    assert planned(with_(arms=SPEC.arms[::-1])) == plan
    assert planned(SPEC, arms=["static", "literal"]) == tuple(run for run in plan if run.arm != "dead-band")


def test_finished_runs_can_be_kept_as_json():
    plan = planned(SPEC)
    kept = msgspec.json.decode(msgspec.json.encode(plan[:2]), type=tuple[ArmRun, ...])
    assert kept == plan[:2]
    assert plan[0].name == f"repeat1-{plan[0].arm}"
