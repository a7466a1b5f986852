"""What policy curve does with memory of known age: whoever does not touch it may lend it, whatever kind it is."""

import numpy as np
import pytest
from made_up_guests import FLAT, IDLE, STRAIGHT, guest, line, snapshot, targets
from msgspec import structs

from qmpalloc.idle import IdleMemory
from qmpalloc.policy import load
from qmpalloc.policy.curve.belief import Tuning, believe
from qmpalloc.policy.curve.memory import Pace
from qmpalloc.returns import Returns
from qmpalloc.sample import Memory
from qmpalloc.units import MIB, PAGE_BYTES

WEAK = line((100, 0.6), (2000, 0.5), weak=("only 26 sampled accesses",))
SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
LONG = IDLE | {
    "guests": {name: {"since_s": -600.0, "load_since_s": -600.0} for name in ("idle", "maps", "reads", "busy")}
}


def old(mib, *, seconds=256.0, of="unread", **more):
    """So much memory that nothing has touched for so long, and none that is younger."""
    size = mib * MIB
    amounts = tuple(size if age <= seconds else 0 for age in SECONDS)
    kinds = {"read": (0,) * len(SECONDS), "unread": (0,) * len(SECONDS)} | {of: amounts}
    return IdleMemory(seconds=SECONDS, **kinds, **more)


def decide(*guests, carry=LONG):
    return load("curve", {}).decide(snapshot(*guests, carry=carry))


@pytest.mark.parametrize("objective", ["hits", "misses", "fair"])
def test_old_mapped_memory_is_lent_and_its_price_is_promised(objective):
    maps, busy = guest("maps", rate=0, idle=old(300), in_use_bytes=200 * MIB), guest("busy", STRAIGHT)
    policy = load("curve", {"objective": objective})
    decision = policy.decide(snapshot(maps, busy, carry=LONG))
    given = 500 - targets(decision)[0]
    assert given > 50
    assert decision.guests[0].promise.page_ins_per_s == pytest.approx(given * MIB / PAGE_BYTES / 256, rel=0.02)


@pytest.mark.parametrize("objective", ["hits", "misses"])
def test_mapped_memory_that_is_touched_each_second_is_worth_more_than_what_another_gains(objective):
    maps = guest("maps", rate=0, idle=old(0, hot_pages=300 * MIB // PAGE_BYTES))
    policy = load("curve", {"objective": objective})
    assert targets(policy.decide(snapshot(maps, guest("busy", STRAIGHT), carry=LONG)))[0] == 500


def test_the_younger_it_is_the_dearer():
    """A reader that gains little gets what is old, and not what was touched a second ago."""
    reads = guest("reads", line((100, 0.6), (2000, 0.0)), rate=10_000)
    given = [500 - targets(decide(guest("maps", rate=0, idle=old(300, seconds=age)), reads))[0] for age in (1, 8, 256)]
    assert given[0] == given[1] == 0
    assert given[2] > 50


def test_a_load_without_a_curve_that_leaves_old_cache_alone_is_taken_at_its_word():
    slow = {"rate": 2_000, "misses": 5}
    busy = guest("busy", STRAIGHT)
    assert targets(decide(guest("idle", WEAK, **slow), busy))[0] == 500
    decision = decide(guest("idle", WEAK, idle=old(250, of="read"), **slow), busy)
    assert targets(decision)[0] < 500
    assert decision.guests[0].reason.startswith("loses")
    assert "by how long nothing has touched its memory" in decision.guests[0].reason


def test_where_reads_leave_no_trace_only_what_is_free_is_known_to_cost_nothing():
    """Cache that is old is then no more than cache that has been there for long."""
    reads = {"rate": 2_000, "misses": 5, "idle": old(250, of="read", reads_touch=False)}
    busy = guest("busy", STRAIGHT)
    assert targets(decide(guest("idle", WEAK, **reads), busy))[0] == 500
    decision = decide(guest("idle", WEAK, **reads, memory=Memory(free=132 * MIB)), busy)
    assert targets(decision)[0] == 400
    assert "by what it has free" in decision.guests[0].reason


@pytest.mark.parametrize(("on_its_way", "given"), [(0, 100), (60, 40), (160, 0)])
def test_what_is_free_in_a_guest_that_is_on_its_way_to_a_smaller_size_is_not_given_twice(on_its_way, given):
    reads = guest("idle", WEAK, rate=2_000, misses=5, idle=old(0), memory=Memory(free=132 * MIB))
    reads = structs.replace(reads, actual_bytes=reads.target_bytes + on_its_way * MIB)
    assert 500 - targets(decide(reads, guest("busy", STRAIGHT)))[0] == given


def test_ages_of_a_load_that_has_just_begun_prove_nothing():
    fresh = {"version": 1, "guests": LONG["guests"] | {"idle": {"since_s": -600.0, "load_since_s": 0.0}}}
    idle = guest("idle", WEAK, idle=old(250, of="read"), rate=2_000, misses=5)
    assert targets(decide(idle, guest("busy", STRAIGHT), carry=fresh))[0] == 500


def test_memory_that_faults_bring_back_again_and_again_is_asked_for():
    """A guest that maps more than it has makes no reads; what comes back tells that it lacks memory."""
    lacks = {"rate": 0, "faults": 20_000, "refaults": 20_000}
    idle = guest("idle", WEAK, rate=10, misses=0, idle=old(250, of="read"))
    maps = guest("maps", idle=old(0, hot_pages=1000), **lacks)
    decision = decide(idle, maps)
    assert targets(decision)[0] < 500
    assert targets(decision)[1] > 500


def coming_back(mib, faults_per_s):
    """So many page-ins a second that so much more memory would save, the more of it the more."""
    return Returns(bytes=(0, mib * MIB), reads_per_s=(0.0, 0.0), faults_per_s=(0.0, faults_per_s))


def test_by_how_far_mapped_pages_had_gone_it_is_known_what_more_memory_saves():
    """What lies beyond a step counts as well, and what had gone farther than there is memory counts for nothing."""
    lacks = {"rate": 0, "faults": 20_000, "refaults": 20_000, "idle": old(0, hot_pages=1000)}
    busy = guest("busy", line((100, 0.2), (500, 0.1), (2000, 0.0)), rate=10_000, floor=100)
    gained = {}
    for name, returns in (
        ("unknown", None),
        ("near", coming_back(100, 20_000.0)),
        ("far", coming_back(100_000, 20_000.0)),
    ):
        belief = believe(
            guest("maps", returns=returns, **lacks),
            (),
            Pace(planned_per_s=0.0),
            held="",
            margin_bytes=0,
            tuning=Tuning(),
        )
        gained[name] = -belief.unread_per_s(np.array([600.0 * MIB]))[0]
    assert gained == pytest.approx({"unknown": 0.1 * 20_000 * 100 / 128, "near": 20_000, "far": 0.0}, abs=1.0)
    decision = decide(guest("maps", returns=coming_back(100, 20_000.0), **lacks), busy)
    assert targets(decision)[0] > 560
    assert decision.guests[0].reason == "faults 20k pages/s in again that it had to drop"


def test_where_a_fault_brings_in_neighbours_taking_old_memory_costs_as_much_more():
    maps = {"rate": 0, "idle": old(300), "in_use_bytes": 200 * MIB}
    for brought_in, faults, each in (
        (None, None, 1.0),
        (800, None, 1.0),
        (32, 1, 57 / 26),
        (8_000, 1_000, 8_025 / 1_025),
    ):
        donor = guest("maps", faults=brought_in, faults_major=faults, **maps)
        belief = believe(donor, (), Pace(planned_per_s=0.0, watched_s=999.0), held="", margin_bytes=0, tuning=Tuning())
        assert belief.unread_per_s(np.array([400.0 * MIB]))[0] == pytest.approx(each * 100 * MIB / PAGE_BYTES / 256)
    assert targets(decide(guest("maps", **maps), guest("busy", STRAIGHT)))[0] < 500


@pytest.mark.parametrize(("watched_s", "given"), [(2.0, False), (600.0, True)])
def test_how_seldom_the_load_before_touched_its_memory_proves_nothing(watched_s, given):
    idle = old(300, again_per_s=(0.7,) * 9)
    maps = guest("maps", rate=0, idle=idle, in_use_bytes=200 * MIB)
    carry = {"version": 1, "guests": LONG["guests"] | {"maps": {"since_s": -600.0, "load_since_s": 1.0 - watched_s}}}
    slow = guest("busy", line((100, 0.6), (2000, 0.58)), rate=20_000)
    assert (targets(decide(maps, slow, carry=carry))[0] < 500) is given


def test_a_guest_that_only_faults_is_asked_for_a_gain_as_well():
    """It counts with what it brings in: a few faults a second do not move memory to and fro for ever."""
    maps = guest("maps", rate=0, faults=30, refaults=30, returns=coming_back(16, 0.05), idle=old(0, hot_pages=100))
    flat = guest("busy", FLAT, rate=1_000_000)
    decision = decide(maps, flat)
    assert targets(decision) == [500, 500]
    assert "below" in decision.summary
