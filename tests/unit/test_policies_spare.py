"""What policy curve does with memory that nobody would miss: idle guests, scans, and what is beyond a guest's need."""

import json

from made_up_guests import CLIFF, IDLE, STRAIGHT, guest, line, snapshot, targets
from msgspec import structs

from qmpalloc.model import GuestState
from qmpalloc.policy import load
from qmpalloc.rules.limits import apply_limits
from qmpalloc.units import MIB

WEAK = line((100, 0.6), (2000, 0.5), weak=("only 26 sampled accesses",))


def test_an_idle_guest_gives_whatever_its_curve_for_it_has_nothing_to_lose():
    busy = guest("busy", STRAIGHT)
    for idle in (guest("idle", WEAK, rate=10), guest("idle", rate=0), guest("idle", WEAK, rate=190, misses=5)):
        decision = load("curve", {}).decide(snapshot(idle, busy, carry=IDLE))
        assert targets(decision)[0] < 500, idle
        assert targets(decision)[1] > 500
    # One whose accesses are worth more than the other gains, one in danger and one that is not heard of are held.
    for other in (
        guest("idle", WEAK, rate=2_000, misses=5),
        guest("idle", WEAK, rate=10, frozen="danger"),
        guest("idle", WEAK, rate=10, state=GuestState.LATE),
    ):
        assert targets(load("curve", {}).decide(snapshot(other, busy, carry=IDLE))) == [500, 500]


def test_a_pause_is_not_idleness():
    """A guest has to rest for 15 s in a row; an interval in which it works begins them anew."""
    policy, busy, carry, sizes = load("curve", {}), guest("busy", STRAIGHT), None, []
    for second, rate in enumerate([5_000] * 10 + [10] * 10 + [5_000] + [10] * 15):
        now = structs.replace(snapshot(guest("idle", WEAK, rate=rate), busy, carry=carry), time_s=second + 1.0)
        decision = policy.decide(now)
        carry = json.loads(json.dumps(decision.carry))
        sizes.append(targets(decision)[0])
    assert sizes[:-1] == [500] * 35
    assert sizes[-1] < 500


def test_nor_is_it_for_a_guest_whose_curve_is_known():
    """In a pause the curve is worth nothing, for nothing is read; but what is taken would have to be read anew."""
    policy, carry, sizes = load("curve", {}), None, []
    for second, rate in enumerate([10_000] + [0] * 14 + [10_000] + [0] * 15):
        pauses, busy = guest("pauses", CLIFF, size=620, rate=rate), guest("busy", STRAIGHT)
        now = structs.replace(snapshot(pauses, busy, carry=carry), time_s=second + 1.0)
        decision = policy.decide(now)
        carry = json.loads(json.dumps(decision.carry))
        sizes.append(targets(decision)[0])
    assert sizes[:-1] == [620] * 30
    assert sizes[-1] < 620


def test_what_nobody_would_miss_goes_before_any_curve_is_known_to_who_reads_again_what_it_had_to_drop():
    idle = guest("idle", WEAK, rate=10, misses=0)

    def decide(*guests, carry=IDLE):
        return load("curve", {}).decide(snapshot(*guests, carry=carry))

    lacking = guest("lacking", WEAK, refaults=3_000)
    decision = decide(idle, lacking)
    assert targets(decision) == [500 - 128, 500 + 128]
    assert [one.reason for one in decision.guests] == [
        "loses 10 hits/s at most",
        "reads 3k pages/s again that it had to drop",
    ]
    # So it is when the idle guest's own curve is known: by curves nothing gains.
    assert targets(decide(guest("idle", STRAIGHT, rate=10, misses=0), lacking)) == [372, 628]
    # Where fairness is the objective, only from one that reads nothing at all.
    fair = load("curve", {"objective": "fair"})
    assert targets(fair.decide(snapshot(idle, lacking, carry=IDLE))) == [500, 500]
    assert targets(fair.decide(snapshot(guest("idle", WEAK, rate=0), lacking, carry=IDLE))) == [372, 628]
    # Among two both get some. Floors and caps hold.
    assert targets(decide(idle, lacking, guest("other", WEAK, refaults=4_000))) == [372, 564, 564]
    assert targets(decide(guest("idle", WEAK, rate=10, misses=0, floor=450), lacking)) == [450, 550]
    assert targets(decide(idle, guest("lacking", WEAK, refaults=3_000, cap=560))) == [440, 560]
    # Not from one that only pauses, is in danger or reads as much as counts; not to one that has dropped nothing, whose
    # misses its disks do not confirm, or that hits nothing.
    assert targets(decide(idle, lacking, carry=None)) == [500, 500]
    for donor in (guest("idle", WEAK, rate=400, misses=0), guest("idle", WEAK, rate=10, misses=0, frozen="danger")):
        assert targets(decide(donor, lacking)) == [500, 500]
    for taker in (
        guest("lacking", WEAK),
        guest("lacking", WEAK, refaults=0),
        guest("lacking", WEAK, refaults=20),
        guest("lacking", WEAK, refaults=3_000, disk_read_pages=100),
        guest("lacking", WEAK, refaults=3_000, misses=9_900),
        guest("lacking", WEAK, refaults=3_000, state=GuestState.LATE),
    ):
        assert targets(decide(idle, taker)) == [500, 500], taker


def test_memory_that_nobody_would_miss_is_given_away_until_the_floor_and_then_it_rests():
    idle, lacking = guest("idle", rate=10, misses=0), guest("lacking", refaults=3_000)
    policy, sizes, carry = load("curve", {}), [(500, 500)], IDLE
    for second in range(10):
        now = snapshot(
            structs.replace(idle, target_bytes=sizes[-1][0] * MIB, actual_bytes=sizes[-1][0] * MIB),
            structs.replace(lacking, target_bytes=sizes[-1][1] * MIB, actual_bytes=sizes[-1][1] * MIB),
            budget=1000,
            carry=carry,
        )
        decision = apply_limits(now, policy.decide(structs.replace(now, time_s=float(second))), {})
        carry = decision.carry
        sizes.append(tuple(targets(decision)))
    assert sizes[1:4] == [(372, 628), (244, 756), (200, 800)]
    assert set(sizes[4:]) == {(200, 800)}


def test_a_scan_gives_before_its_curve_is_known_for_it_hits_nothing():
    unknown = ("1.0 working sets seen, 2 are needed",)
    busy = guest("busy", STRAIGHT)

    def sizes(scan):
        return targets(load("curve", {}).decide(snapshot(scan, busy)))

    def scan(measured=1.0, misses=10_000, *, turned_over=True, **more):
        curve = line((100, 1.0), (2000, 1.0), weak=unknown, measured=measured, turned_over=turned_over)
        return guest("scan", curve, misses=misses, **more)

    assert sizes(scan())[0] < 500
    assert sizes(scan())[1] > 500
    # One that is still filling its cache, that hits as much as counts, or did so a moment ago, or is held anyway, or
    # whose disks do not confirm what it says.
    held = scan(turned_over=False), scan(misses=9_000), scan(measured=0.90), scan(frozen="danger")
    for one in (*held, scan(disk_read_pages=100)):
        assert sizes(one) == [500, 500], one


def test_a_starved_guest_beside_a_fast_one_is_not_taken_for_a_scan():
    """Its few hits are next to nothing beside the other's, for it waits for its disk; what it could do is not known."""
    unknown = structs.replace(line((100, 0.9), (2000, 0.1), measured=0.9, turned_over=True), weak=("1.0 of 2",))
    fast = guest("fast", STRAIGHT, rate=100_000)
    assert targets(load("curve", {}).decide(snapshot(guest("starved", unknown, rate=1_000, misses=900), fast))) == [
        500,
        500,
    ]
    assert targets(load("curve", {}).decide(snapshot(guest("scan", unknown, rate=100), fast, carry=IDLE)))[0] < 500


def test_idle_guests_alone_are_no_reason_to_decide_by_curves():
    idle = guest("idle", WEAK, rate=10, ghost_gain=0.0, ghost_loss=0.0)
    busy = guest("busy", WEAK, ghost_gain=100.0, ghost_loss=1.0)
    assert targets(load("curve", {}).decide(snapshot(idle, busy, carry=IDLE))) == [484, 516]  # it climbs
    assert targets(load("curve", {}).decide(snapshot(idle, busy))) == [500, 500]  # not on one that may only pause


FITS = line((100, 1.0), (400, 0.0), (2000, 0.0))
"""A file that fits into 400 MiB of memory."""


def test_nothing_is_taken_for_a_guest_that_can_take_nothing_now():
    """Else its donors are drained for nobody: a stuck balloon, or one in danger, reads much again."""
    idle, fits = guest("idle", WEAK, rate=0), guest("fits", FITS)
    for frozen in ("stuck: does not grow beyond 500M", "danger: 20M available, below 24M"):
        for taker in (
            guest("taker", WEAK, refaults=3_000, frozen=frozen),
            guest("taker", refaults=3_000, ghost_gain=100.0, ghost_loss=100.0, frozen=frozen),
        ):
            for donor in (idle, fits, guest("b", WEAK, ghost_gain=1.0, ghost_loss=1.0)):
                for policy in ("curve", "hill"):
                    decision = load(policy, {}).decide(snapshot(donor, taker, carry=IDLE))
                    assert targets(decision) == [500, 500], (policy, donor.name, frozen)


def test_what_no_guest_has_goes_first_to_who_lacks_and_nobody_gives():
    lacking, fits = guest("lacking", WEAK, refaults=3_000), guest("fits", FITS)
    for others in ((), (fits,), (guest("b", WEAK),)):
        decision = load("curve", {}).decide(snapshot(lacking, *others, budget=500 * (1 + len(others)) + 300))
        assert targets(decision) == [628] + [500] * len(others)  # a step at a time: who else lacks may come next
        assert decision.summary == "free → lacking 128M"
    # Nor what a guest that is still to come will need; one that has gone needs nothing.
    for state, kept in ((GuestState.CONNECTING, 500), (GuestState.GONE, 628)):
        absent = structs.replace(guest("absent", state=state), target_bytes=0, actual_bytes=0, charge_bytes=0)
        decision = load("curve", {}).decide(snapshot(lacking, absent, budget=1000))
        assert targets(decision) == [kept, 0]
    # Not what is none to speak of.
    assert targets(load("curve", {}).decide(snapshot(lacking, guest("b", WEAK), budget=1010))) == [500, 500]


def test_what_a_good_curve_says_is_beyond_need_goes_to_who_lacks_before_its_own_curve_is_known():
    lacking = guest("lacking", WEAK, refaults=3_000)

    def decide(*guests, **settings):
        return load("curve", settings).decide(snapshot(*guests))

    decision = decide(guest("fits", FITS), lacking)
    kept = targets(decision)[0]
    assert 400 + 16 <= kept < 400 + 16 + 4  # with the margin, and to the grid
    assert targets(decision)[1] == 1000 - kept
    assert decision.guests[0].reason == "loses 0 hits/s, 0 misses/s more, by its curve"
    # A step at a time; down to the floor.
    small = line((100, 1.0), (150, 0.0), (2000, 0.0))
    assert targets(decide(guest("fits", small), lacking)) == [500 - 128, 500 + 128]
    assert targets(decide(guest("fits", small, floor=450), lacking)) == [450, 550]
    # Whatever the objective: nobody loses by it.
    for objective in ("misses", "fair"):
        assert targets(decide(guest("fits", FITS), lacking, objective=objective)) == [kept, 1000 - kept]


def test_what_is_needed_or_hardly_worth_taking_is_not_beyond_need():
    lacking = guest("lacking", WEAK, refaults=3_000)
    rate = {"rate": 10_000}
    for held in (
        guest("slope", STRAIGHT, **rate),
        guest("fits", structs.replace(FITS, weak=("only 26 sampled accesses",)), **rate),
        guest("fits", FITS, frozen="danger", **rate),
        guest("fits", FITS, state=GuestState.LATE, **rate),
        guest("fits", FITS, size=430, **rate),
    ):
        assert targets(load("curve", {}).decide(snapshot(held, lacking)))[0] == held.target_bytes // MIB, held
    # Nor does it go to one that lacks nothing, or whose samples are lost or wrong.
    lost = structs.replace(WEAK, suspect=True)
    assert targets(load("curve", {}).decide(snapshot(guest("fits", FITS), guest("lost", lost, refaults=3_000)))) == [
        500,
        500,
    ]
    assert targets(load("curve", {}).decide(snapshot(guest("fits", FITS), guest("other", WEAK)))) == [500, 500]


def test_a_load_that_waits_for_its_reads_needs_what_keeps_it_from_slowing_down():
    """One more miss in 500 reads is next to nothing of the hits, were it not for the time that it takes."""
    nearly = line((100, 1.0), (350, 0.002), (450, 0.0), (2000, 0.0))
    lacking = guest("lacking", WEAK, refaults=3_000)
    paced = guest("fits", nearly, waits=0.0, miss_s=0.01)
    waiting = guest("fits", nearly, waits=1.0, miss_s=0.01)
    sizes = [targets(load("curve", {}).decide(snapshot(one, lacking)))[0] for one in (paced, waiting)]
    assert sizes[0] < 400 < 450 < sizes[1]


def test_beyond_need_is_taken_until_it_is_needed_and_then_it_rests():
    policy, sizes = load("curve", {}), [(500, 500)]
    for second in range(8):
        now = structs.replace(
            snapshot(guest("fits", FITS, size=sizes[-1][0]), guest("lacking", WEAK, size=sizes[-1][1], refaults=3_000)),
            time_s=float(second),
        )
        sizes.append(tuple(targets(apply_limits(now, policy.decide(now), {}))))
    assert sizes[1] == sizes[-1] != (500, 500)
    assert sum(sizes[-1]) == 1000


def test_what_is_not_known_to_help_is_worth_a_tenth_of_what_the_other_lacks():
    slope = line((100, 0.5), (2000, 0.45))  # a step of 128 MiB costs 34 hits/s
    for refaults, moves in ((3_000, True), (300, False)):
        lacking = guest("lacking", WEAK, refaults=refaults)
        decision = load("curve", {"least_gain": 0.0}).decide(snapshot(guest("slope", slope), lacking))
        assert bool(decision.moves) is moves


def test_a_guest_that_reads_through_mmap_is_not_idle_and_not_judged_by_hits_that_nobody_counts():
    busy, lacking = guest("busy", STRAIGHT), guest("lacking", WEAK, refaults=3_000)
    for policy, other in (("curve", busy), ("curve", lacking), ("hill", guest("a", ghost_gain=30.0, ghost_loss=30.0))):
        for curve in (WEAK, FITS):
            decision = load(policy, {}).decide(
                snapshot(guest("idle", curve, rate=10, misses=0, faults=500), other, carry=IDLE)
            )
            assert targets(decision) == [500, 500]
            assert decision.guests[0].reason == (
                "100% of what it brings in is by page faults (mmap), of which no hits are counted"
                if policy == "hill" or curve is FITS
                else "weak curve: only 26 sampled accesses"
            )
    # A program that starts beside a load is no mmap load; nor are a few faults of an idle guest a reason to hold it.
    metadata = guest("idle", WEAK, rate=0, refaults=8_000)
    decision = load("curve", {}).decide(snapshot(metadata, busy, carry=IDLE))
    assert targets(decision) == [500, 500]
    metadata = structs.replace(metadata, curve=FITS, hits=10)
    assert load("curve", {}).decide(snapshot(metadata, busy, carry=IDLE)).guests[0].reason == (
        "100% of what it brings in is neither by reads nor by page faults (metadata), of which no hits are counted"
    )
    fast = guest("fits", FITS, misses=0, faults=90)
    assert targets(load("curve", {}).decide(snapshot(fast, lacking)))[0] < 500
    idle = guest("idle", WEAK, rate=10, misses=0, faults=20)
    assert targets(load("curve", {}).decide(snapshot(idle, busy, carry=IDLE)))[0] < 500


def test_a_warm_guest_that_is_learnt_anew_keeps_what_it_has():
    """After a restart of its collector nothing is known of it but that it hits all it reads."""
    weak = structs.replace(WEAK, weak=("only 12 sampled accesses",), steady_accesses=5_000, cached_bytes=400 * MIB)
    warm = guest("a", weak, rate=10_000, misses=0)
    for objective in ("hits", "misses", "fair"):
        decision = load("curve", {"objective": objective}).decide(snapshot(warm, guest("busy", STRAIGHT), carry=IDLE))
        assert targets(decision) == [500, 500]


def test_who_swaps_is_not_idle():
    swaps = guest("idle", WEAK, rate=10, misses=0, swap_ins=600)
    decision = load("curve", {}).decide(snapshot(swaps, guest("busy", STRAIGHT), carry=IDLE))
    assert targets(decision) == [500, 500]
