"""Policy curve, and what value it puts on memory."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_guests import CLIFF, FLAT, IDLE, STRAIGHT, guest, line, snapshot, targets
from msgspec import structs

from qmpalloc.curves.value import Load
from qmpalloc.errors import ConfigError
from qmpalloc.model import UNMEASURED, GuestState, Limiter
from qmpalloc.policy import load
from qmpalloc.policy.curve import gate
from qmpalloc.policy.curve.belief import of_curve
from qmpalloc.policy.curve.explain import change_text
from qmpalloc.policy.curve.memory import Known, recalled
from qmpalloc.policy.curve.split import divide
from qmpalloc.policy.evidence import accesses_per_s
from qmpalloc.rules.limits import apply_limits
from qmpalloc.units import MIB


def settled(policy, *guests, rounds=30, budget=None):
    """Carry decisions out until nothing moves; return the sizes and how many decisions moved."""
    now, moves = snapshot(*guests, budget=budget), 0
    for _ in range(rounds):
        decision = apply_limits(now, policy.decide(now), {})
        moved = False
        after = []
        for one, verdict in zip(now.guests, decision.guests, strict=True):
            size = verdict.target_bytes
            moved |= size != one.target_bytes
            changed = guest(
                one.name, one.curve, size=size // MIB, rate=one.hits + one.misses, floor=one.floor_bytes // MIB
            )
            after.append(structs.replace(changed, weight=one.weight))
        moves += moved
        now = structs.replace(now, guests=tuple(after))
    return [one.target_bytes // MIB for one in now.guests], moves


def test_memory_goes_from_where_it_is_worth_nothing_to_where_it_saves_misses():
    sizes, moves = settled(load("curve", {}), guest("a", STRAIGHT), guest("b", FLAT))
    assert sizes == [800, 200]
    assert moves < 6


def test_the_losing_side_gives_no_more_than_a_step_and_the_reason_says_where_it_goes():
    decision = load("curve", {}).decide(snapshot(guest("a", STRAIGHT), guest("b", FLAT)))
    assert targets(decision) == [628, 372]
    assert decision.guests[1].limiter is Limiter.STEP
    assert decision.guests[1].reason.endswith("on the way to 200M")
    assert decision.guests[0].reason.startswith("gains 674 hits/s, 674 misses/s fewer")
    assert decision.guests[0].terms["hits_s_gained"] == pytest.approx(674, abs=1)
    assert [(move.donor, move.receiver) for move in decision.moves] == [("b", "a")]


def test_what_is_gained_and_lost_is_told_whichever_way_it_goes():
    assert change_text(674.0, -674.0, shrinks=False) == "gains 674 hits/s, 674 misses/s fewer"
    assert change_text(2_600.0, 41.8, shrinks=False) == "gains 2.6k hits/s, 41.8 misses/s more"
    assert change_text(-50.0, 50.0, shrinks=True) == "loses 50 hits/s, 50 misses/s more"
    assert change_text(-50.0, -5.0, shrinks=True) == "loses 50 hits/s, 5 misses/s fewer"
    assert change_text(-0.01, -2e-13, shrinks=True) == "loses 0 hits/s, 0 misses/s more"
    assert change_text(0.0, 0.0, shrinks=True) == "loses 0 hits/s, 0 misses/s more"


def test_a_cliff_is_jumped_with_a_margin():
    sizes, _ = settled(load("curve", {}), guest("a", CLIFF), guest("b", CLIFF))
    assert max(sizes) >= 616
    assert sum(sizes) <= 1000


def test_a_guest_that_fits_by_less_than_the_margin_is_not_robbed_as_if_it_did_not():
    fits = guest("fits", structs.replace(CLIFF, measured=0.0), size=610)
    decision = load("curve", {}).decide(snapshot(fits, guest("a", STRAIGHT, rate=2_000)))
    assert decision.moves == ()


def test_on_a_slope_the_margin_is_no_reason_to_stay():
    """Were only the sizes that a guest does not have read with the margin, both would stay 60 MiB from the best."""
    bent = line(*((mib, (1 - mib / 1000) ** 2) for mib in range(100, 1001, 10)))
    guests = guest("slow", bent, size=420, rate=10_000), guest("fast", bent, size=780, rate=40_000)
    sizes, _ = settled(load("curve", {"least_gain": 0.0}), *guests)
    assert sizes == pytest.approx([360, 840], abs=16)


def test_the_best_split_stays():
    decision = load("curve", {}).decide(snapshot(guest("a", STRAIGHT), guest("b", STRAIGHT)))
    assert targets(decision) == [500, 500]
    assert decision.moves == ()


def test_too_little_gain_moves_nothing():
    slightly = line((100, 0.5), (2000, 0.49))
    decision = load("curve", {}).decide(snapshot(guest("a", slightly), guest("b", FLAT)))
    assert targets(decision) == [500, 500]
    assert "below" in decision.summary
    assert decision.guests[0].limiter is Limiter.GATE


def test_growth_that_would_not_be_filled_before_the_load_changes_is_not_worth_it():
    slow = guest("a", line((100, 1.0), (2000, 0.0), steady=100), rate=50)
    decision = load("curve", {"horizon": "10s"}).decide(snapshot(slow, guest("b", FLAT, rate=50)))
    assert decision.moves == ()
    long = guest("a", line((100, 1.0), (2000, 0.0), steady=10**7), rate=50)
    assert load("curve", {"horizon": "10s"}).decide(snapshot(long, guest("b", FLAT, rate=50))).moves


def band_of(one, **more):
    return load("curve", {}).decide(snapshot(one, guest("other", FLAT), **more)).guests[0].band


def test_what_is_believed_is_told_around_a_good_curve_as_far_as_it_may_be_off():
    points = ((mib, 1 - (mib - 100) / 1900) for mib in range(100, 2001, 25))
    curve = line(*points, measured=0.8)
    curve = structs.replace(curve, deviation=(0.07,) * len(curve.sizes_bytes))
    band = band_of(guest("a", curve))
    assert (band.accesses_per_s, band.measured, band.source) == (10_000.0, 0.8, "by its curve")
    off = 0.05 + 3 * 0.07
    middle = [np.interp(1050 * MIB, band.sizes_bytes, bound) for bound in (band.least, band.most)]
    assert middle == pytest.approx([0.5 - off, 0.5 + off], abs=0.006)
    assert (band.least[-1], band.most[0]) == (0.0, 1.0)


def test_what_is_believed_is_told_where_only_bounds_are_known():
    for one in (guest("a", WEAK), guest("a", None)):
        band = band_of(one)
        bounds = [
            [float(np.interp(mib * MIB, band.sizes_bytes, bound)) for mib in (300, 500, 1500)]
            for bound in (band.least, band.most)
        ]
        assert bounds[1][:2] == [1.0, band.measured]
        assert bounds[0][0] == 0.0
        assert band.source.startswith("loses 10k hits/s at most")


def test_what_is_believed_is_told_of_who_reads_nothing_but_not_of_who_does_not_tell():
    band = band_of(guest("idle", None, rate=0), carry=IDLE)
    assert (band.accesses_per_s, band.source) == (0.0, "loses 0 hits/s at most")
    assert band_of(structs.replace(guest("a", STRAIGHT), hits=None)) is None


def test_a_band_keeps_its_bends_and_is_small():
    rough = line(*((mib, 1 / (1 + mib / 100) + 0.02 * (mib // 100 % 2)) for mib in range(100, 2001, 10)))
    cliff = band_of(guest("a", CLIFF))
    assert [size // MIB for size in cliff.sizes_bytes] == [100, 599, 600, 2000]
    assert len(band_of(guest("a", rough)).sizes_bytes) == 24


def test_what_is_promised_is_the_upper_bound_that_is_told():
    donor = load("curve", {}).decide(snapshot(guest("a", STRAIGHT), guest("b", FLAT))).guests[1]
    most = np.interp(donor.target_bytes, donor.band.sizes_bytes, donor.band.most)
    assert donor.promise.page_ins_per_s == pytest.approx(most * donor.band.accesses_per_s)


WEAK = structs.replace(FLAT, weak=("only 12 sampled accesses",))


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        (guest("b", WEAK), "weak curve: only 12 sampled accesses"),
        (guest("b", None), "no curve: accesses are not sampled"),
        (guest("b", FLAT, state=GuestState.LATE), "not fresh but late"),
        (guest("b", FLAT, frozen="its balloon does not move"), "its balloon does not move"),
        (
            guest("b", STRAIGHT, disk_read_pages=100),
            "reports 7.89k page-ins, but its disks read 100 pages",
        ),
    ],
)
def test_a_guest_whose_curve_is_in_doubt_is_held_and_the_others_share_the_rest(held, reason):
    decision = load("curve", {}).decide(snapshot(guest("a", STRAIGHT), held, guest("c", FLAT)))
    verdict = decision.guests[1]
    assert (verdict.target_bytes, verdict.reason, verdict.limiter) == (500 * MIB, reason, Limiter.STATE)
    assert targets(decision)[0] > 500


def test_without_any_curve_it_climbs_on_ghosts_and_without_ghosts_it_holds():
    policy = load("curve", {})
    climbing = snapshot(
        guest("a", WEAK, ghost_gain=20.0, ghost_loss=20.0),
        guest("b", WEAK, ghost_gain=0.0, ghost_loss=0.0),
        carry=IDLE,
    )
    assert targets(policy.decide(climbing)) == [516, 484]
    assert targets(policy.decide(snapshot(guest("a", WEAK), guest("b", WEAK)))) == [500, 500]


def test_without_any_curve_a_claim_of_ghost_hits_is_worth_no_more_than_the_misses_that_are_confirmed():
    """What a forger says of its ghosts is as little to be believed as its curve, which is held for it."""
    weak = line((100, 0.9), (2000, 0.8), weak=("the curve says 0.88 misses here, measured are 0.00",))
    honest = guest("honest", ghost_gain=1.0, ghost_loss=1.0)
    for liar in (
        guest("liar", weak, misses=0, ghost_gain=1_000.0, ghost_loss=1.0),
        guest("liar", weak, misses=9_000, disk_read_pages=0, ghost_gain=1_000.0, ghost_loss=1.0),
    ):
        assert targets(load("curve", {}).decide(snapshot(liar, honest))) == [500, 500]


def test_a_budget_that_does_not_hold_the_floors_holds_everything():
    decision = load("curve", {}).decide(snapshot(guest("a", STRAIGHT), guest("b", FLAT), budget=300))
    assert targets(decision) == [500, 500]
    assert "floors" in decision.summary


def test_a_claim_is_worth_no_more_than_the_misses_that_are_measured():
    liar = guest("a", structs.replace(STRAIGHT, measured=0.001), misses=10)
    honest = guest("b", STRAIGHT)
    decision = load("curve", {}).decide(snapshot(liar, honest))
    assert targets(decision)[0] <= 500 or decision.moves == ()


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.integers(0, 100_000), st.integers(200, 1500)),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["hits", "misses", "fair"]),
)
def test_floors_caps_and_budget_hold_for_any_curves(specs, objective):
    guests = [
        guest(
            f"g{index}",
            line(*zip(np.linspace(100, 2000, len(ratios)).astype(int).tolist(), sorted(ratios)[::-1], strict=True)),
            size=size,
            rate=rate,
        )
        for index, (ratios, rate, size) in enumerate(specs)
    ]
    shot = snapshot(*guests)
    decision = load("curve", {"objective": objective}).decide(shot)
    assert sum(one.target_bytes for one in decision.guests) <= shot.budget_bytes
    for one, verdict in zip(guests, decision.guests, strict=True):
        assert one.floor_bytes <= verdict.target_bytes <= one.cap_bytes or verdict.target_bytes == one.target_bytes
    assert apply_limits(shot, decision, {}).guests == decision.guests


def test_the_order_of_the_guests_does_not_matter():
    steep = line((100, 1.0), (700, 0.1), (2000, 0.0))
    guests = [guest("a", STRAIGHT), guest("b", steep, rate=3_000), guest("c", FLAT)]
    one = load("curve", {}).decide(snapshot(*guests))
    other = load("curve", {}).decide(snapshot(*guests[::-1]))
    assert targets(one) == targets(other)[::-1]


# --- value ----------------------------------------------------------------------------------------------------------


def test_a_starved_load_that_waits_is_worth_what_it_would_do_not_what_it_does():
    starved = Load(accesses_per_s=1 / 400e-6, miss_ratio=0.95, miss_s=395e-6, waits=1.0)
    assert starved.rates(np.array([0.95, 0.0])) == pytest.approx([2_500, 40_000], rel=0.02)
    paced = structs.replace(starved, waits=0.0)
    assert paced.rates(np.array([0.95, 0.0])) == pytest.approx([2_500, 2_500])


def test_reads_that_have_piled_up_are_not_promised_to_go_faster_but_more_misses_slow_them_down():
    """250 reads outstanding: a rate of its own that its disk cannot serve looks like that."""
    behind = Load(accesses_per_s=4_000, miss_ratio=0.35, miss_s=250 * 700e-6, waits=1 / 250)
    more, now, fewer = behind.rates(np.array([0.7, 0.35, 0.05]))
    assert now == pytest.approx(4_000)
    assert fewer == pytest.approx(4_000, rel=0.05)
    assert more == pytest.approx(4_000 / (1 + 4_000 * 0.35 * 700e-6))
    # Eight threads that wait are believed, and more of them in part.
    eight = structs.replace(behind, miss_s=8 * 700e-6, waits=1 / 8)
    assert eight.rates(np.array([0.05]))[0] == pytest.approx(1 / (1 / 4_000 - 0.3 * 700e-6))
    many = structs.replace(behind, miss_s=32 * 700e-6, waits=1 / 32)
    assert now < many.rates(np.array([0.05]))[0] < eight.rates(np.array([0.05]))[0]


def test_misses_are_not_thought_to_cost_more_than_all_the_time_there_is():
    """What a miss cost the load before was six times what one can cost now: nothing is promised from that."""
    load_now = Load(accesses_per_s=2_117, miss_ratio=0.61, miss_s=1.647e-3, waits=1.0)
    assert load_now.rates(np.array([0.61, 0.305])) == pytest.approx([2_117, 2 * 2_117])
    assert load_now.rates(np.array([0.9]))[0] == pytest.approx(2_117 * 0.61 / 0.9)


@settings(deadline=None)
@given(
    st.floats(0, 1e6), st.floats(0, 1), st.floats(0, 0.1), st.floats(0, 1), st.sampled_from(["hits", "misses", "fair"])
)
def test_fewer_misses_are_never_worth_less_to_a_paced_load_nor_in_hits_or_fairness(rate, m0, miss_s, waits, objective):
    if objective == "misses":
        waits = 0.0  # a load that waits reads more when it misses less: that may cost the disk more reads
    values = Load(accesses_per_s=rate, miss_ratio=m0, miss_s=miss_s, waits=waits).values(
        np.linspace(1, 0, 50), objective
    )
    assert np.isfinite(values).all()
    assert (np.diff(values) >= -1e-9 * (1 + np.abs(values[1:]))).all()


def test_weights_count_and_fairness_spreads():
    weighted, _ = settled(load("curve", {}), guest("a", STRAIGHT, weight=3.0), guest("b", STRAIGHT))
    assert weighted[0] > weighted[1]
    fast = guest("a", STRAIGHT, rate=90_000)
    greedy, _ = settled(load("curve", {}), fast, guest("b", STRAIGHT))
    fair, _ = settled(load("curve", {"objective": "fair"}), fast, guest("b", STRAIGHT))
    assert greedy == [800, 200]
    assert abs(fair[0] - fair[1]) < 60


@pytest.mark.parametrize("objective", ["hits", "misses", "fair"])
def test_weights_count_in_every_objective(objective):
    policy = load("curve", {"objective": objective})
    heavy, _ = settled(policy, guest("a", STRAIGHT, weight=3.0), guest("b", STRAIGHT))
    light, _ = settled(policy, guest("a", STRAIGHT), guest("b", STRAIGHT, weight=3.0))
    assert heavy[0] > 560
    assert light[1] > 560


def test_fewest_misses_and_most_hits_are_not_the_same():
    """A load that waits reads more when it misses less: worth it for its hits, not for the disk."""
    waiting = guest("waits", line((100, 0.5), (2000, 0.3)), hit_s=10e-6, miss_s=400e-6, waits=1.0, misses=4_500)
    paced = guest("paced", line((100, 0.5), (2000, 0.3)), misses=4_500)
    hits = load("curve", {}).decide(snapshot(waiting, paced))
    misses = load("curve", {"objective": "misses"}).decide(snapshot(waiting, paced))
    assert targets(hits)[0] > 500 > targets(misses)[0]


def test_memory_that_nobody_needs_is_given_in_one_go_as_far_as_it_will_be_filled():
    # 213 misses a second fill 100 MiB in the horizon of 120 s. What is filled first is worth more than what is last.
    slow = guest("slow", line((100, 1.0), (2000, 0.0), steady=0), rate=270)
    decision = load("curve", {"margin": "0B", "least_gain": 0.0}).decide(
        snapshot(guest("idle", FLAT, rate=0), slow, carry=IDLE)
    )
    assert targets(decision)[0] == pytest.approx(500 - 100, abs=3)


def test_what_curves_chose_is_not_climbed_away_from_while_the_new_sizes_are_not_measured():
    ghosts = {"ghost_gain": 1.0, "ghost_loss": 1.0}, {"ghost_gain": 100.0, "ghost_loss": 1.0}
    good = guest("a", FLAT, **ghosts[0]), guest("b", STRAIGHT, **ghosts[1])
    policy = load("curve", {"horizon": "60s"})
    first = policy.decide(snapshot(*good))
    assert targets(first)[0] < 500
    unmeasured = [structs.replace(one, curve=structs.replace(one.curve, weak=(UNMEASURED,))) for one in good]

    def then(*guests, seconds=2.0, carry=first.carry):
        return policy.decide(structs.replace(snapshot(*guests, carry=carry), time_s=seconds))

    assert then(*unmeasured).moves == ()
    # It climbs when the curves are weak for another reason.
    changed = [structs.replace(one, curve=structs.replace(one.curve, weak=("the load has changed",))) for one in good]
    assert targets(then(*changed, seconds=15.5)) == [484, 516]


def swinging(turn, size):
    """Two guests whose curves take turns: each is right for a while, as miss ratios of a kernel that ages in rounds."""
    up, down = (0.06, 0.14) if turn % 2 else (0.14, 0.06)
    return [
        guest("a", line((100, 0.5 + up), (2000, 0.5 - up), steady=10**8 + turn), size=size),
        guest("b", line((100, 0.5 + down), (2000, 0.5 - down), steady=10**8 + turn), size=1000 - size),
    ]


def test_moves_to_and_fro_under_steady_loads_must_gain_more_each_time():
    policy, carry, moves, size = load("curve", {"margin": "0B"}), None, [], 500
    for turn in range(40):
        pair = swinging(turn, size)
        decision = policy.decide(snapshot(*pair, carry=carry))
        carry = json.loads(json.dumps(decision.carry))
        moves.append(bool(decision.moves))
        size = targets(decision)[0]
    assert sum(moves) >= 3
    assert not any(moves[20:])


def test_a_change_too_small_to_matter_takes_no_move_back():
    best = line((100, 1.0), (408, 0.1), (424, 0.0), (2000, 0.0))
    carry = {"version": 1, "guests": {"a": {"direction": -1}, "b": {"direction": 1}}}
    for known, moves in ((None, True), (carry, False)):
        pair = guest("a", best, size=410, rate=20_000), guest("b", FLAT, size=590)
        decision = load("curve", {"margin": "0B"}).decide(snapshot(*pair, carry=known))
        assert bool(decision.moves) is moves
    assert decision.summary == "would take a move back by too little to matter"


@pytest.mark.parametrize("changes_every", [12, 20])
def test_a_third_guest_whose_load_changes_often_does_not_keep_two_swinging(changes_every):
    policy, carry, moves, size = load("curve", {"margin": "0B"}), None, [], 500
    for turn in range(100):
        changed = line((100, 0.0), (2000, 0.0), steady=1 + turn % changes_every)
        third = guest("c", changed, size=300, floor=300, cap=300)
        decision = policy.decide(snapshot(*swinging(turn, size), third, carry=carry))
        carry = json.loads(json.dumps(decision.carry))
        moves.append(bool(decision.moves))
        size = targets(decision)[0]
    assert sum(moves) >= 3
    assert not any(moves[50:])


def test_how_much_a_third_guest_reads_is_no_reason_to_move_nothing_between_two():
    """Else one that reads a million pages a second from its cache, or claims to, holds up all the others."""
    pair = [guest("a", STRAIGHT, rate=4_000), guest("b", FLAT, rate=4_000)]
    fast = guest("fast", line((100, 0.0), (2000, 0.0)), rate=10**7, floor=500, cap=500)
    for objective in ("hits", "misses", "fair"):
        two, three = (load("curve", {"objective": objective}).decide(snapshot(*pair, *more)) for more in ((), (fast,)))
        assert targets(two)[0] > 500
        assert targets(three) == [*targets(two), 500]


GIB = 1024


@pytest.mark.parametrize("total", [8, 16, 32, 64, 120])
def test_a_small_guest_beside_large_ones_gets_the_little_it_needs(total):
    """Of large budgets a step of the grid may be more than a small guest lacks, or than it can be given at all."""
    half = total * GIB // 2
    large = line((GIB, 0.1), (8 * half, 0.1))
    pair = [guest(name, large, size=half, rate=30_000, floor=GIB, cap=8 * half) for name in ("a", "b")]
    for lacks in (20, 82):
        fits = line((200, 1.0), (400 + lacks - 17, 1.0), (400 + lacks - 16, 0.0), (4096, 0.0))
        for floor, cap in ((256, 2048), (256, 400 + lacks), (390, 410 + lacks)):
            small = guest("small", fits, size=400, rate=20_000, floor=floor, cap=cap)
            sizes = targets(load("curve", {}).decide(snapshot(*pair, small)))
            needed = 400 + lacks - 16 + min(16, (cap - floor) // 8)  # with the margin
            assert needed <= sizes[2] <= needed + 8
            assert 0 <= 2 * half + 400 - sum(sizes) < 8


@given(
    st.lists(
        st.tuples(st.integers(1, 4_000), st.integers(0, 9_000), st.floats(0, 1), st.floats(0, 1)),
        min_size=1, max_size=6,
    ),
    st.integers(0, 3_000),
)  # fmt: skip
def test_large_budgets_hold_however_tight(specs, spare):
    """Where the split is refined, as well: floors that fill the budget leave nothing to align grids with."""
    guests = []
    for number, (floor, range_mib, place, drop) in enumerate(specs):
        size = floor + int(place * range_mib)
        curve = line((1, 1.0), (floor + 1 + range_mib // 2, 1.0), (floor + 2 + range_mib, 1.0 - drop))
        rate = 1 + number * 5_000
        guests.append(guest(f"g{number}", curve, size=size, floor=floor, cap=floor + range_mib, rate=rate))
    assert_divided(guests, spare)


def test_guests_at_their_floors_leave_nothing_to_align_grids_with():
    donors = [guest(f"g{number}", FLAT, size=103, floor=100, rate=1_000) for number in range(15)]
    sizes = assert_divided([*donors, guest("r", line((100, 1.0), (9_000, 0.0)), size=100, floor=100, cap=9_000)], 3_000)
    assert sizes["r"] > 3_000 * MIB


def assert_divided(guests, spare_mib):
    """Divide what the floors leave and check what must hold."""
    beliefs = [of_curve(one, one.curve, Load(accesses_per_s=accesses_per_s(one), miss_ratio=0.5)) for one in guests]
    room = sum(one.floor_bytes for one in guests) + spare_mib * MIB
    sizes = divide(beliefs, room, "hits")
    assert sum(sizes.values()) <= room
    for one in guests:
        assert one.floor_bytes <= sizes[one.name] <= one.cap_bytes
    return sizes


def test_a_small_guest_does_not_hold_up_large_ones():
    a = guest("a", line((GIB, 0.9), (200 * GIB, 0.1)), size=50 * GIB, rate=60_000, floor=GIB, cap=200 * GIB)
    b = guest("b", line((GIB, 0.9), (200 * GIB, 0.1)), size=70 * GIB, rate=30_000, floor=GIB, cap=200 * GIB)
    fits = line((200, 1.0), (420, 1.0), (421, 0.0), (600, 0.0), measured=0.0)
    for cap in (490, 512, 640):
        small = guest("small", fits, size=480, rate=20_000, floor=256, cap=cap)
        sizes = targets(load("curve", {}).decide(snapshot(a, b, small)))
        assert sizes[0] > 51 * GIB
        assert 421 + 16 <= sizes[2] <= cap


def test_who_gives_only_what_it_has_free_does_not_raise_what_a_move_must_gain():
    """A busy guest loses nothing by that: its million reads a second are no reason to leave the other in want."""
    fits = line((200, 0.9), (300, 0.0), (2000, 0.0))
    busy, slow = guest("busy", fits, rate=1_000_000), guest("starved", STRAIGHT, rate=100)
    decision = load("curve", {}).decide(snapshot(busy, slow, carry=IDLE))
    assert targets(decision)[0] < 500 < targets(decision)[1]
    needs = guest("busy", line((200, 0.9), (300, 0.1), (2000, 0.0999)), rate=1_000_000)
    assert targets(load("curve", {}).decide(snapshot(needs, slow, carry=IDLE)))[0] == 500


def test_who_swings_does_not_hold_up_the_others_nor_for_ever():
    tuning = gate.Tuning()
    memory = structs.replace(recalled(None), guests={name: Known() for name in "abc"})
    low, high = {"a": 400 * MIB, "b": 600 * MIB, "c": MIB}, {"a": 500 * MIB, "b": 500 * MIB, "c": 2 * MIB}
    for _ in range(20):
        memory = gate.moved(gate.moved(memory, low, high, 1.0, tuning), high, low, 1.0, tuning)
    assert gate.reversals(memory.guests["a"], 1.0, tuning) == 10
    assert gate.reversals(memory.guests["a"], 1.0 + 36_000, tuning) < 0.1
    assert gate.reversals(memory.guests["c"], 1.0, tuning) == 0  # too small to be a move


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("curve", {"least_gain": 2.0}),
        ("curve", {"horizon": "0s"}),
        ("curve", {"objective": "most"}),
        ("hill", {"ratio": 0.5}),
        ("hill", {"step": "1kB"}),
    ],
)
def test_settings_out_of_range_are_refused(name, settings):
    with pytest.raises(ConfigError):
        load(name, settings)
