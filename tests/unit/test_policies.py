"""The paper's rule, to the letter, and finding policies by name."""

import sys
from contextlib import suppress

import made_up_guests
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_guests import sized, targets
from msgspec import structs

from qmpalloc.errors import ConfigError
from qmpalloc.model import Decision, GuestState, Limiter, hold
from qmpalloc.policy import NAMES, load
from qmpalloc.policy.paper import PaperPolicy
from qmpalloc.units import MIB

STEP = 100 * MIB


def guest(name, hits=0, misses=0, size=1000, *, target=None, floor=200, cap=4000, state=GuestState.FRESH):
    target_bytes = (target or size) * MIB
    return sized(
        name,
        size,
        floor=floor,
        cap=cap,
        baseline=1000,
        state=state,
        hits=hits,
        misses=misses,
        target_bytes=target_bytes,
    )


def snapshot(*guests):
    return made_up_guests.snapshot(*guests, budget=10_000)


def paper(**settings):
    return load("paper", {"step": "100MiB"} | settings)


def test_e_is_hits_minus_misses_by_memory_size():
    assert paper().evaluation(guest("a", hits=9000, misses=4000, size=500), 1.0) == 10.0
    assert paper(memsize_unit="GiB").evaluation(guest("a", hits=9000, misses=4000, size=512), 1.0) == 10_000.0
    assert paper(memsize_unit="page").evaluation(guest("a", hits=256, misses=512, size=1), 1.0) == -1.0


def test_counts_of_another_time_than_the_interval_are_scaled_to_it():
    assert paper().evaluation(guest("a", hits=9000, misses=4000, size=500), 5.0) == 50.0


def test_memory_moves_from_high_e_to_low_e_by_the_step():
    decision = paper().decide(snapshot(guest("a", hits=5000), guest("b", misses=5000)))
    assert targets(decision) == [900, 1100]
    assert [(move.donor, move.receiver, move.size_bytes) for move in decision.moves] == [("a", "b", STEP)]
    assert decision.guests[0].terms == {"e": 5.0}
    assert decision.guests[1].terms == {"e": -5.0}


def test_the_default_step_is_the_papers_100_mb_and_its_gate_is_read_literally():
    settings = PaperPolicy().settings
    assert (settings.step, settings.gate, settings.threshold) == (100_000_000, "literal", 500.0)


@pytest.mark.parametrize(
    ("gate", "difference", "moves"),
    [("literal", 499, True), ("literal", 500, False), ("dead-band", 499, False), ("dead-band", 500, True)],
)
def test_both_readings_of_the_gate(gate, difference, moves):
    decision = paper(gate=gate).decide(snapshot(guest("a", hits=difference * 1000), guest("b")))
    assert bool(decision.moves) is moves
    if not moves:
        assert targets(decision) == [1000, 1000]
        assert {g.limiter for g in decision.guests} == {Limiter.GATE}


def test_equal_e_gives_no_direction():
    decision = paper().decide(snapshot(guest("a", hits=10), guest("b", hits=10)))
    assert decision.moves == ()


def test_the_step_is_cut_at_floor_and_cap():
    assert targets(paper().decide(snapshot(guest("a", hits=1, size=240), guest("b")))) == [200, 1040]
    assert targets(paper().decide(snapshot(guest("a", hits=1), guest("b", size=3990)))) == [990, 4000]


def test_nothing_moves_at_the_floor_or_the_cap_and_the_reason_says_so():
    at_floor = paper().decide(snapshot(guest("a", hits=1, size=200), guest("b")))
    at_cap = paper().decide(snapshot(guest("a", hits=1), guest("b", size=4000)))
    assert at_floor.moves == at_cap.moves == ()
    assert at_floor.guests[0].limiter is Limiter.FLOOR
    assert at_cap.guests[0].limiter is Limiter.CAP


def test_more_than_two_guests_are_paired_from_the_outside_in():
    guests = [guest(name, hits=hits) for name, hits in [("a", 10), ("b", 50), ("c", 20), ("d", 40), ("e", 30)]]
    decision = paper().decide(snapshot(*guests))
    assert [(move.donor, move.receiver) for move in decision.moves] == [("b", "a"), ("d", "c")]
    assert targets(decision) == [1100, 900, 1100, 900, 1000]


@pytest.mark.parametrize("state", [state for state in GuestState if state is not GuestState.FRESH])
def test_only_fresh_guests_take_part(state):
    decision = paper().decide(snapshot(guest("a", hits=100), guest("b", state=state)))
    assert decision.moves == ()
    assert decision.guests[1].limiter is Limiter.STATE


def test_unknown_counts_are_not_zero():
    unknown = guest("b", hits=None, misses=None)
    decision = paper().decide(snapshot(guest("a", hits=100), unknown))
    assert decision.moves == ()
    assert decision.guests[1].limiter is Limiter.STATE
    assert decision.guests[1].reason == "its hits are not counted: see qmpalloc doctor"
    assert structs.replace(unknown, interval_s=None).undecidable == "counts not known yet"
    assert structs.replace(unknown, state=GuestState.WARMING).undecidable == "not fresh but warming"
    assert guest("a").undecidable == ""


@given(
    st.lists(
        st.builds(guest, st.uuids().map(str), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(200, 4000)),
        min_size=1,
        max_size=7,
    ),
    st.sampled_from(["literal", "dead-band"]),
)
def test_the_rule_moves_memory_and_never_makes_or_loses_any(guests, gate):
    decision = paper(gate=gate).decide(snapshot(*guests))
    assert sum(targets(decision)) == sum(g.target_bytes // MIB for g in guests)
    for before, after in zip(guests, decision.guests, strict=True):
        assert before.floor_bytes <= after.target_bytes <= before.cap_bytes
        assert abs(after.target_bytes - before.target_bytes) <= STEP


def test_static_returns_to_the_baseline():
    decision = load("static", {}).decide(snapshot(guest("a", size=1500), guest("b", size=500)))
    assert targets(decision) == [1000, 1000]


@pytest.mark.parametrize(
    ("name", "settings", "key"),
    [
        ("papre", {}, "policy.name"),
        ("paper", {"stepp": "1MiB"}, "policy.stepp"),
        ("paper", {"step": 100}, "policy.step"),
        ("paper", {"gate": "ajar"}, "policy.gate"),
        ("paper", {"step": "0B"}, "policy.step"),
        ("paper", {"threshold": float("nan")}, "policy.threshold"),
        ("paper", {"threshold": -1.0}, "policy.threshold"),
        ("static", {"step": "1MiB"}, "policy.step"),
        ("no_such_module:thing", {}, "policy.name"),
        ("os:path", {}, "policy.name"),
    ],
)
def test_a_wrong_policy_or_setting_is_named(name, settings, key):
    with pytest.raises(ConfigError) as caught:
        load(name, settings, file="lab.toml")
    assert caught.value.key == key
    assert str(caught.value).startswith(f"lab.toml: {key}: ")
    assert str(caught.value).count(key.rpartition(".")[2]) <= 2  # the key is not told twice


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def X(s:", "line 1"),
        ("1/0", "ZeroDivisionError: division by zero (broken_policy"),
        ("class X:\n    def __init__(self):\n        raise ValueError('boom')\n", "ValueError: boom"),
        ("X = 3", "is not a policy"),
    ],
)
def test_a_policy_module_that_is_broken_is_named_with_file_and_line(tmp_path, body, says):
    name = f"broken_policy_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(body)
    with pytest.raises(ConfigError) as caught:
        load(f"{name}:X", {}, file=str(tmp_path / "lab.toml"))
    assert caught.value.key == "policy.name"
    assert says in str(caught.value)


def test_a_policy_of_ones_own_is_found_beside_the_configuration(tmp_path):
    (tmp_path / "my_own_policy.py").write_text(
        "from qmpalloc.model import hold\ndef quiet(snapshot):\n    return hold(snapshot, 'quiet')\n"
    )
    policy = load("my_own_policy:quiet", {}, file=str(tmp_path / "lab.toml"))
    decision = policy.decide(snapshot(guest("a")))
    assert isinstance(decision, Decision)
    assert decision == hold(snapshot(guest("a")), "quiet")


@pytest.mark.parametrize("name", NAMES)
def test_for_a_policy_of_ours_nothing_is_looked_for_beside_the_configuration(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with suppress(ConfigError):  # the oracle wants curves
        load(name, {}, file=str(tmp_path / "lab.toml"))
    assert str(tmp_path) not in sys.path
