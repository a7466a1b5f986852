"""What policy curve does with memory of known age: whoever does not touch it may lend it, whatever kind it is."""

import pytest
from made_up_guests import IDLE, STRAIGHT, guest, line, snapshot, targets
from msgspec import structs

from qmpalloc.idle import IdleMemory
from qmpalloc.policy import load
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
