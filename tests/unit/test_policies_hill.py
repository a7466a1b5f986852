"""Policy hill: a step at a time, by ghost hits."""

import pytest
from made_up_guests import guest, line, snapshot, targets

from qmpalloc.policy import load
from qmpalloc.policy.evidence import unconfirmed


def test_hill_moves_a_step_from_the_least_loss_to_the_largest_gain():
    guests = [
        guest("a", ghost_gain=30.0, ghost_loss=40.0),
        guest("b", ghost_gain=5.0, ghost_loss=2.0),
        guest("c", ghost_gain=5.0, ghost_loss=9.0),
    ]
    decision = load("hill", {}).decide(snapshot(*guests))
    assert targets(decision) == [516, 484, 500]


def test_hill_rests_when_gain_and_loss_are_near_or_small():
    near = [guest("a", ghost_gain=10.0, ghost_loss=10.0), guest("b", ghost_gain=10.0, ghost_loss=9.0)]
    assert load("hill", {}).decide(snapshot(*near)).moves == ()
    small = [guest("a", ghost_gain=0.2, ghost_loss=0.2), guest("b", ghost_gain=0.0, ghost_loss=0.0)]
    assert load("hill", {}).decide(snapshot(*small)).moves == ()


def test_hill_takes_from_a_guest_without_ghosts_only_what_it_cannot_miss():
    receiver = guest("a", ghost_gain=30.0, ghost_loss=30.0)
    decision = load("hill", {}).decide(snapshot(receiver, guest("b")))
    assert decision.moves == ()
    assert decision.guests[1].reason == "its ghost hits are not known"
    # 20 accesses a second are more than none of them hit: 16 MiB gain 480 hits a second.
    idle = load("hill", {}).decide(snapshot(receiver, guest("b", rate=20)))
    assert targets(idle) == [516, 484]
    assert idle.guests[1].reason == "loses 20 hits/s at most"
    assert load("hill", {}).decide(snapshot(receiver, guest("b", rate=20, frozen="danger"))).moves == ()
    scan = line((100, 1.0), (2000, 1.0), measured=1.0, turned_over=True)
    assert targets(load("hill", {}).decide(snapshot(receiver, guest("b", scan)))) == [516, 484]


def test_hill_believes_no_more_ghost_hits_than_there_are_misses_nor_any_that_the_disks_deny():
    honest = guest("honest", ghost_gain=1.0, ghost_loss=1.0)

    def decide(**claims):
        return load("hill", {}).decide(snapshot(guest("liar", ghost_gain=1_000.0, ghost_loss=1.0, **claims), honest))

    assert targets(decide(misses=5_000)) == [516, 484]
    assert targets(decide(misses=5_000, disk_read_pages=5_000)) == [516, 484]
    assert targets(decide(misses=0)) == [500, 500]
    assert targets(decide(misses=16)) == [500, 500]  # all of them in a step are 1 hit/s for each MiB
    denied = decide(misses=5_000, disk_read_pages=100)
    assert targets(denied) == [500, 500]
    assert denied.guests[0].reason == "reports 5k page-ins, but its disks read 100 pages"
    few_in_each_interval = decide(misses=1_000, disk_read_pages=0, page_ins_lately=9_000, disk_read_pages_lately=0)
    assert targets(few_in_each_interval) == [500, 500]
    assert few_in_each_interval.guests[0].reason == "reports 9k page-ins lately, but its disks read 0 pages"


@pytest.mark.parametrize(
    ("claims", "denied"),
    [
        ({"faults": 5_000}, "10k"),
        ({"swap_ins": 5_000, "swap_ins_zram": 0}, "10k"),
        ({"faults": 5_000, "swap_ins": 5_000, "swap_ins_zram": 1_000}, "14k"),
        ({"swap_ins": 5_000, "swap_ins_zram": 5_000}, ""),  # no disk is read for zram
        ({"swap_ins": 5_000}, ""),  # an older collector, which does not tell it apart
        ({"faults": 3_000}, ""),  # within what is tolerated
    ],
)
def test_page_ins_of_any_kind_but_zram_are_confirmed_by_the_disks(claims, denied):
    said = unconfirmed(guest("any", misses=5_000, disk_read_pages=5_000, **claims))
    assert said == (denied and f"reports {denied} page-ins, but its disks read 5k pages")


def test_hill_takes_what_no_guest_has_before_it_takes_from_one():
    guests = [guest("a", ghost_gain=30.0, ghost_loss=30.0), guest("b", ghost_gain=5.0, ghost_loss=0.0)]
    decision = load("hill", {}).decide(snapshot(*guests, budget=1016))
    assert targets(decision) == [516, 500]
    assert decision.summary == "free → a 16M"
    assert targets(load("hill", {}).decide(snapshot(*guests, budget=1015))) == [516, 484]


def test_how_much_a_third_guest_reads_is_no_reason_to_move_nothing_between_two():
    pair = [
        guest("a", rate=4_000, ghost_gain=3.0, ghost_loss=3.0),
        guest("b", rate=4_000, ghost_gain=0.0, ghost_loss=0.0),
    ]
    fast = guest("fast", line((100, 0.0), (2000, 0.0)), rate=10**7, floor=500, cap=500)
    assert targets(load("hill", {}).decide(snapshot(*pair, fast))) == [516, 484, 500]
