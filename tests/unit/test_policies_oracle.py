"""Policy oracle: curves that are known beforehand, and where they come from."""

import json

import pytest
from made_up_guests import guest, snapshot, targets
from msgspec import structs

from qmpalloc.curves.mapping import SYSTEM_PAGES
from qmpalloc.errors import ConfigError
from qmpalloc.policy import load
from qmpalloc.sample import Memory
from qmpalloc.units import MIB


def test_the_oracle_goes_to_the_best_split_of_the_curves_it_was_given_and_changes_with_them():
    curves = {
        "a": [{"sizes": ["100MiB", "2000MiB"], "miss_ratio": [1.0, 0.0]}],
        "b": [
            {"sizes": ["100MiB", "2000MiB"], "miss_ratio": [1.0, 1.0], "until": "100s"},
            {"sizes": ["100MiB", "200MiB", "1000MiB"], "miss_ratio": [1.0, 1.0, 0.0]},
        ],
    }
    policy = load("oracle", {"curves": curves})
    now = snapshot(guest("a"), guest("b"))
    assert targets(policy.decide(now)) == [800, 200]
    assert targets(policy.decide(structs.replace(now, time_s=100.0))) == [200, 800]


@pytest.mark.parametrize(
    "curve",
    [
        {"sizes": ["1MiB"], "miss_ratio": []},
        {"sizes": ["2MiB", "1MiB"], "miss_ratio": [1.0, 0.0]},
        {"sizes": ["1MiB"], "miss_ratio": [1.5]},
    ],
)
def test_the_oracle_refuses_what_is_no_curve(curve):
    with pytest.raises(ConfigError) as caught:
        load("oracle", {"curves": {"a": [curve]}})
    assert caught.value.key == "policy.curves.a[0]"


def test_the_oracle_follows_a_guest_by_its_accesses():
    curves = {
        "a": [
            {"sizes": ["100MiB", "2000MiB"], "miss_ratio": [1.0, 1.0], "until_accesses": 25_000},
            {"sizes": ["100MiB", "200MiB", "1000MiB"], "miss_ratio": [1.0, 1.0, 0.0]},
        ],
        "b": [{"sizes": ["100MiB", "2000MiB"], "miss_ratio": [1.0, 0.0]}],
    }
    policy = load("oracle", {"curves": curves})
    now = snapshot(guest("a"), guest("b"))  # 10,000 accesses in each interval
    first = policy.decide(now)
    second = policy.decide(structs.replace(now, carry=first.carry))
    assert [targets(first), targets(second)] == [[200, 800], [200, 800]]
    assert targets(policy.decide(structs.replace(now, carry=second.carry))) == [800, 200]


def test_an_oracle_that_must_see_a_load_read_first_leaves_its_guest_until_then():
    curves = {
        "a": [
            {"sizes": ["100MiB", "2000MiB"], "miss_ratio": [1.0, 1.0], "until_accesses": 35_000, "working_set": 12_000},
            {"sizes": ["100MiB", "200MiB", "1000MiB"], "miss_ratio": [1.0, 1.0, 0.0], "working_set": 6_000},
        ],
        "b": [{"sizes": ["100MiB", "2000MiB"], "miss_ratio": [1.0, 0.0], "working_set": 1_000}],
    }
    policy = load("oracle", {"curves": curves, "known_after": 1.5})
    found, carry = [], None
    for _ in range(5):
        decision = policy.decide(structs.replace(snapshot(guest("a"), guest("b")), carry=carry))
        found.append(targets(decision))
        carry = decision.carry
    # After 10,000 accesses of each only b is known, but nobody has what it wants; of its second load a has to read too.
    assert found == [[500, 500], [200, 800], [200, 800], [500, 500], [800, 200]]
    assert "none known yet" in policy.decide(snapshot(guest("a"), guest("b"))).guests[0].reason


@pytest.mark.parametrize("known_after", [-1.0, float("inf"), float("nan")])
def test_it_is_told_where_an_oracle_cannot_know_when_it_may_know(known_after):
    with pytest.raises(ConfigError) as caught:
        load("oracle", {"curves": {}, "known_after": known_after})
    assert caught.value.key == "policy.known_after"


@pytest.mark.parametrize("more", [{}, {"working_set": 9, "until": "9s"}])
def test_a_curve_that_is_to_be_known_later_says_when_that_is(more):
    curve = {"sizes": ["1MiB"], "miss_ratio": [0.5], **more}
    with pytest.raises(ConfigError) as caught:
        load("oracle", {"curves": {"a": [curve]}, "known_after": 1})
    assert caught.value.key == "policy.curves.a[0]"
    assert "working_set" in caught.value.hint


def test_the_oracle_foresees_how_fast_a_guest_will_be_when_its_cache_has_filled():
    """Guest a waits for its misses, most of which are first reads: it is slow now and will be fast."""
    curves = {
        "a": [{"sizes": ["100MiB", "499MiB", "500MiB"], "miss_ratio": [0.9, 0.9, 0.0]}],
        "b": [{"sizes": ["100MiB", "2000MiB"], "miss_ratio": [0.9, 0.0]}],
    }
    filling = guest("a", rate=2_000, misses=1_900, miss_s=0.0005, waits=1.0)
    assert targets(load("oracle", {"curves": curves}).decide(snapshot(filling, guest("b"))))[0] >= 500


def test_the_oracle_counts_with_a_rate_it_was_given_as_long_as_there_are_reads():
    """Guest a is catching up, as fast as its misses let it; then it will make the 500 reads a second it is for."""
    straight = {"sizes": ["100MiB", "2000MiB"], "miss_ratio": [1.0, 0.0]}
    bent = {"sizes": ["100MiB", "200MiB", "500MiB", "2000MiB"], "miss_ratio": [1.0, 0.35, 0.3, 0.0]}
    behind = guest("a", rate=1_000, misses=790, miss_s=0.001, waits=1.0)
    steady = guest("b", rate=2_000, misses=600)

    def sizes(rate, first=behind):
        curves = {"a": [straight | ({"accesses_per_s": rate} if rate else {})], "b": [bent]}
        return targets(load("oracle", {"curves": curves}).decide(snapshot(first, steady)))

    assert sizes(None) == sizes(5_000.0) == [800, 200]
    assert sizes(500.0) == [200, 800]
    assert sizes(5_000.0, structs.replace(behind, hits=0, misses=0)) == [200, 800]  # its load is over


def test_the_oracle_turns_sizes_of_the_cache_into_sizes_of_the_guest():
    """Guest a has 100 MiB that are not cache, and 27 MiB of the system's files: 300 MiB of cache take 435 of memory."""
    held = Memory(total=500 * MIB, free=32 * MIB, active_file=0, inactive_file=368 * MIB)
    curves = {
        "a": [{"sizes": ["1MiB", "299MiB", "300MiB"], "miss_ratio": [1.0, 1.0, 0.0], "sizes_of": "cache"}],
        "b": [{"sizes": ["100MiB", "2000MiB"], "miss_ratio": [0.5, 0.0]}],
    }
    policy = load("oracle", {"curves": curves})
    now = snapshot(guest("a", memory=held), guest("b"))
    decision = policy.decide(now)
    wanted = 300 + (500 - 368) + SYSTEM_PAGES / 256 + 8
    assert targets(decision)[0] == pytest.approx(wanted, abs=3)
    # A little more or less memory that is not cache is noise; much more is not.
    noise = structs.replace(held, inactive_file=364 * MIB)
    again = policy.decide(snapshot(guest("a", memory=noise), guest("b"), carry=decision.carry))
    assert targets(again) == targets(decision)
    for _ in range(10):
        more = structs.replace(held, inactive_file=318 * MIB)
        again = policy.decide(snapshot(guest("a", memory=more), guest("b"), carry=again.carry))
    assert targets(again)[0] == pytest.approx(wanted + 50, abs=12)


def test_the_oracle_leaves_a_guest_whose_cache_is_not_known():
    curves = {"a": [{"sizes": ["1MiB", "300MiB"], "miss_ratio": [1.0, 0.0], "sizes_of": "cache"}]}
    decision = load("oracle", {"curves": curves}).decide(snapshot(guest("a"), guest("b")))
    assert decision.guests[0].reason == "no measured curve"
    assert decision.moves == ()


CURVES = {
    "web": [{"sizes": ["100MiB", "2000MiB"], "miss_ratio": [1.0, 0.0]}],
    "b": [{"sizes": ["100MiB", "2000MiB"], "miss_ratio": [1.0, 1.0]}],
}


@pytest.fixture
def beside(tmp_path):
    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "curves.json").write_text(text)
        return str(tmp_path / "qmpalloc.toml")

    return write


def test_the_oracle_takes_curves_from_a_file_beside_the_configuration(beside):
    file = beside({"format": "qmpalloc-curves", "version": 1, "curves": CURVES})
    policy = load("oracle", {"file": "curves.json", "names": {"a": "web"}}, file=file)
    assert targets(policy.decide(snapshot(guest("a"), guest("b")))) == [800, 200]


@pytest.mark.parametrize(
    ("content", "settings", "key", "message"),
    [
        (None, {}, "policy.curves", "no curves are given"),
        (None, {"file": "curves.json"}, "policy.file", "no such file"),
        ("{", {"file": "curves.json"}, "policy.file", "is not JSON"),
        ([], {"file": "curves.json"}, "policy.file", "not of the format"),
        ({"format": "qmpalloc-curves", "version": 1}, {"file": "curves.json"}, "policy.file", "no table of curves"),
        (CURVES, {"file": "curves.json", "curves": {}}, "policy.file", "beside curves"),
        (
            {"format": "qmpalloc-curves", "version": 1, "curves": CURVES},
            {"file": "curves.json", "names": {"a": "db"}},
            "policy.names.a",
            "has no curve 'db'",
        ),
        (
            {"format": "qmpalloc-curves", "version": 1, "curves": {"web": [{"sizes": ["1MiB"]}]}},
            {"file": "curves.json"},
            "policy.curves",
            "miss_ratio",
        ),
        (None, {"file": 3}, "policy.curves", "no curves are given"),
    ],
)
def test_the_oracle_refuses_files_it_cannot_use(beside, tmp_path, content, settings, key, message):
    file = beside(content) if content is not None else str(tmp_path / "qmpalloc.toml")
    with pytest.raises(ConfigError) as caught:
        load("oracle", settings, file=file)
    assert caught.value.key == key
    assert message in caught.value.message
