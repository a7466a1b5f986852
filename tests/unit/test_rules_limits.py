"""What no policy may overrule, however wrong it is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_guests import sized
from msgspec import structs

from qmpalloc.errors import PolicyError
from qmpalloc.model import Band, Curve, Decision, GuestDecision, GuestState, Limiter, Promise, Snapshot
from qmpalloc.rules.budget import UNCONTROLLED
from qmpalloc.rules.limits import apply_limits
from qmpalloc.rules.step import TAKE_MIN_BYTES
from qmpalloc.units import MIB, Grid


def guest(name, size=1000, *, floor=200, cap=4000, baseline=1000, state=GuestState.FRESH, actual=None):
    actual_bytes = (actual or size) * MIB
    return sized(
        name, size, floor=floor, cap=cap, baseline=baseline, state=state, hits=1, misses=1,
        actual_bytes=actual_bytes, charge_bytes=max(size * MIB, actual_bytes),
    )  # fmt: skip


def limited(guests, wishes, *, budget=10_000, dangers=None):
    snapshot = Snapshot(cycle=1, time_s=0.0, budget_bytes=budget * MIB, interval_s=1.0, guests=tuple(guests))
    decision = Decision(
        guests=tuple(
            GuestDecision(name=g.name, target_bytes=wish * MIB, reason="wish", limiter=Limiter.POLICY)
            for g, wish in zip(guests, wishes, strict=True)
        )
    )
    return [(d.target_bytes // MIB, d.limiter) for d in apply_limits(snapshot, decision, dangers or {}).guests]


def test_a_modest_wish_passes():
    assert limited([guest("a"), guest("b")], [900, 1100]) == [(900, Limiter.POLICY), (1100, Limiter.POLICY)]


def test_floor_and_cap():
    assert limited([guest("a", 250), guest("b")], [100, 9000]) == [(200, Limiter.FLOOR), (4000, Limiter.CAP)]


def test_the_floor_that_a_guest_needs_lifts_it_even_if_the_policy_holds():
    assert limited([guest("a", 300, floor=400)], [300]) == [(400, Limiter.FLOOR)]


def test_a_guest_loses_no_more_than_a_quarter_at_once():
    assert limited([guest("a", 2000)], [300]) == [(1500, Limiter.STEP)]
    assert limited([guest("a", 400)], [200]) == [(400 - TAKE_MIN_BYTES // MIB, Limiter.STEP)]


def test_a_guest_that_is_moved_in_blocks_loses_whole_ones_and_no_more_than_a_quarter():
    in_blocks = structs.replace(guest("a", 2000), grid=Grid(0, 400 * MIB))
    assert limited([in_blocks], [300]) == [(1600, Limiter.STEP)]
    large = structs.replace(guest("a", 2000), grid=Grid(0, 1000 * MIB))
    assert limited([large], [300]) == [(2000, Limiter.STEP)]


@pytest.mark.parametrize("state", sorted(UNCONTROLLED | {GuestState.LATE, GuestState.WARMING, GuestState.GONE}))
def test_a_guest_that_is_not_fresh_is_left_alone(state):
    assert limited([guest("a", 700, state=state)], [500]) == [(700, Limiter.STATE)]


def test_a_lost_guest_goes_back_to_its_baseline():
    assert limited([guest("a", 700, state=GuestState.LOST)], [500]) == [(1000, Limiter.STATE)]


def test_a_guest_in_danger_gets_its_baseline_and_gives_nothing():
    assert limited([guest("a", 700)], [600], dangers={"a": "OOM"}) == [(1000, Limiter.DANGER)]
    assert limited([guest("a", 1500)], [1400], dangers={"a": "OOM"}) == [(1500, Limiter.DANGER)]


def test_donors_keep_what_its_receiver_cannot_take():
    """Else memory is lost to all, a step in every decision, as long as the receiver is in danger or stuck."""
    stuck = structs.replace(guest("b"), frozen="stuck: does not grow beyond 1000M")
    late = guest("b", state=GuestState.LATE)
    for receiver, dangers, limiter in (
        (stuck, {}, Limiter.STUCK),
        (late, {}, Limiter.STATE),
        (guest("b"), {"b": "OOM"}, Limiter.DANGER),
    ):
        result = limited([guest("a"), receiver], [900, 1100], budget=2000, dangers=dangers)
        assert result == [(1000, Limiter.GATE), (1000, limiter)]
    # Others still get their share, in proportion.
    three = [guest("a", 1500), stuck, guest("c"), guest("d", 1200)]
    assert limited(three, [1400, 1100, 1100, 1100], budget=4700) == [
        (1450, Limiter.GATE),
        (1000, Limiter.STUCK),
        (1100, Limiter.POLICY),
        (1150, Limiter.GATE),
    ]
    # Who keeps it is not in danger for that, and gives what the one in danger needs, above its own baseline.
    assert limited([guest("a", 1900), guest("b", 100)], [1600, 1200], budget=2000, dangers={"b": "OOM"}) == [
        (1000, Limiter.BUDGET),
        (1000, Limiter.DANGER),
    ]
    # What is given up for the budget is given up all the same.
    assert limited([guest("a", 1500), stuck], [1250, 1050], budget=2300)[0] == (1300, Limiter.GATE)
    assert limited([guest("a", 1500), stuck], [1200, 1000], budget=2300)[0] == (1200, Limiter.POLICY)


@pytest.mark.parametrize("state", [GuestState.FRESH, GuestState.LATE, GuestState.LOST, GuestState.WARMING])
def test_nobody_counts_on_a_stuck_guest_as_a_donor_whether_it_is_heard_of_or_not(state):
    stuck = structs.replace(guest("stuck", 3000, state=state), frozen="stuck: does not shrink beyond 2.93G")
    needy = structs.replace(guest("needy", 1000), rescue_bytes=1500 * MIB)
    rich = guest("rich", 2000, floor=700)
    result = limited([stuck, needy, rich], [3000, 1000, 2000], budget=6000, dangers={"needy": "OOM"})
    assert result == [(3000, Limiter.STUCK), (1500, Limiter.DANGER), (1500, Limiter.BUDGET)]


def test_growth_beyond_the_budget_is_cut_in_proportion():
    result = limited([guest("a"), guest("b"), guest("c")], [1300, 1100, 1000], budget=3200)
    assert result == [(1150, Limiter.BUDGET), (1050, Limiter.BUDGET), (1000, Limiter.POLICY)]


@pytest.mark.parametrize("state", [GuestState.FRESH, GuestState.HUNG])
def test_memory_outside_of_the_balloon_takes_its_part_of_the_budget(state):
    outside = structs.replace(guest("a", 1000, state=state), charge_bytes=1500 * MIB, outside_bytes=500 * MIB)
    verdicts = limited([outside, guest("b", 1000)], [1000, 2000], budget=3000)
    assert [size for size, _ in verdicts] == [1000, 1500]


def test_danger_is_paid_by_those_above_their_baseline():
    result = limited([guest("a", 600), guest("b", 2400)], [600, 2400], budget=3000, dangers={"a": "OOM"})
    assert result == [(1000, Limiter.DANGER), (2000, Limiter.BUDGET)]


def test_a_guest_in_danger_pays_for_no_other():
    guests = [guest("a", 1500), guest("b", 900), guest("c", 1100)]
    result = limited(guests, [1500, 900, 1100], budget=3500, dangers={"a": "OOM", "b": "OOM"})
    assert [size for size, _ in result] == [1500, 1000, 1000]


def test_a_guest_that_is_always_in_danger_does_not_keep_another_in_danger_from_its_baseline():
    liar, other, sizes = guest("liar", 3000), guest("b", 500), []
    for _ in range(5):
        result = limited([liar, other], [3000, 500], budget=3500, dangers={"liar": "it says so", "b": "OOM"})
        sizes.append([size for size, _ in result])
        liar, other = (guest(name, size) for name, size in zip(("liar", "b"), sizes[-1], strict=True))
    assert sizes == [[2500, 1000]] * 5


def test_in_danger_it_gives_a_step_at_a_time_and_nothing_that_it_cannot_give_up():
    dangers = {"a": "OOM", "b": "OOM"}
    result = limited([guest("a", 2000), guest("b", 200)], [2000, 200], budget=2200, dangers=dangers)
    assert [size for size, _ in result] == [1500, 700]
    result = limited([guest("a", 2000, floor=1900), guest("b", 200)], [2000, 200], budget=2200, dangers=dangers)
    assert [size for size, _ in result] == [1900, 300]


def test_in_danger_it_gives_nothing_for_a_wish_or_a_lost_guest():
    guests = [guest("a", 2000), guest("b", 500), guest("c", 500, state=GuestState.LOST)]
    result = limited(guests, [2000, 900, 500], budget=3000, dangers={"a": "OOM"})
    assert [size for size, _ in result] == [2000, 500, 500]


@pytest.mark.parametrize(
    ("changes", "limiter"), [({"state": GuestState.LOST}, Limiter.STATE), ({"cap": 1200}, Limiter.STEP)]
)
def test_a_lost_guest_and_a_lowered_cap_take_slowly_too(changes, limiter):
    assert limited([guest("a", 2000, **changes)], [2000]) == [(1500, limiter)]
    assert limited([guest("a", 1100, **(changes | {"cap": 1050}))], [1100])[0][0] in {1000, 1050}


def test_for_the_budget_more_than_a_step_is_taken_at_once():
    assert limited([guest("a", 2000)], [2000], budget=1200) == [(1200, Limiter.BUDGET)]


def test_a_hung_guest_stays_charged():
    hung = guest("a", 1000, actual=1500, state=GuestState.HUNG)
    assert limited([hung, guest("b")], [1000, 2000], budget=3000)[1] == (1500, Limiter.BUDGET)


def test_a_gone_guest_is_free():
    gone = guest("a", 1000, state=GuestState.GONE)
    assert limited([gone, guest("b")], [1000, 2000], budget=2000)[1] == (2000, Limiter.POLICY)


@pytest.mark.parametrize("names", [["a"], ["b", "a"], ["a", "b", "c"], ["a", "a"]])
def test_a_decision_about_other_guests_is_refused(names):
    guests = (guest("a"), guest("b"))
    snapshot = Snapshot(cycle=1, time_s=0.0, budget_bytes=10**10, interval_s=1.0, guests=guests)
    decision = Decision(guests=tuple(GuestDecision(name=n, target_bytes=10**9, reason="") for n in names))
    with pytest.raises(PolicyError):
        apply_limits(snapshot, decision, {})


@pytest.mark.parametrize("target", [-1, 1.5e9, float("nan"), True, None, "1GiB"])
def test_a_target_that_is_no_size_is_refused(target):
    snapshot = Snapshot(cycle=1, time_s=0.0, budget_bytes=10**10, interval_s=1.0, guests=(guest("a"),))
    decision = Decision(guests=(GuestDecision(name="a", target_bytes=target, reason=""),))
    with pytest.raises(PolicyError):
        apply_limits(snapshot, decision, {})


@pytest.mark.parametrize("promise", [Promise(page_ins_per_s=-1.0), Promise(page_ins_per_s=1.0, for_s=-1.0)])
def test_a_promise_of_less_than_nothing_is_refused(promise):
    snapshot = Snapshot(cycle=1, time_s=0.0, budget_bytes=10**10, interval_s=1.0, guests=(guest("a"),))
    decision = Decision(guests=(GuestDecision(name="a", target_bytes=10**9, reason="", promise=promise),))
    with pytest.raises(PolicyError):
        apply_limits(snapshot, decision, {})


def test_a_band_at_other_sizes_than_it_names_is_refused_and_its_source_is_one_printable_line():
    snapshot = Snapshot(cycle=1, time_s=0.0, budget_bytes=10**10, interval_s=1.0, guests=(guest("a"),))
    band = Band(sizes_bytes=(1, 2), least=(0.5, 0.0), most=(1.0, 0.5), accesses_per_s=9.0, source="its\ncurve")
    decision = Decision(guests=(GuestDecision(name="a", target_bytes=10**9, reason="", band=band),))
    found = apply_limits(snapshot, decision, {}).guests[0].band
    assert found == structs.replace(band, source="its; curve")
    for wrong in (structs.replace(band, least=(0.5,)), structs.replace(band, most=(1.0, float("nan")))):
        decision = Decision(guests=(GuestDecision(name="a", target_bytes=10**9, reason="", band=wrong),))
        with pytest.raises(PolicyError):
            apply_limits(snapshot, decision, {})


guests_strategy = st.lists(
    st.builds(
        lambda size, state: guest("x", size, state=state),
        st.integers(200, 4000), st.sampled_from([GuestState.FRESH] * 4 + sorted(GuestState)),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@given(guests_strategy, st.data())
def test_whatever_the_policy_wants_the_result_fits(guests, data):
    wishes = [data.draw(st.integers(0, 20_000)) for _ in guests]
    found = sum(g.charge_bytes for g in guests if g.state is not GuestState.GONE) // MIB
    baselines = sum(max(g.charge_bytes // MIB, 1000) for g in guests if g.state is not GuestState.GONE)
    budget = data.draw(st.integers(max(found, baselines), 30_000))
    result = limited(guests, wishes, budget=budget)
    total = sum(size for (size, _), g in zip(result, guests, strict=True) if g.state is not GuestState.GONE)
    assert total <= budget
    for (size, _), before in zip(result, guests, strict=True):
        if before.state is GuestState.FRESH:
            assert 200 <= size <= 4000
            assert (
                before.target_bytes // MIB - size <= max(128, before.target_bytes // MIB / 4) + 1
            )  # sizes are whole MiB


def random_guest(draw, name):
    """Any guest the controller may show, its size above its cap or below its floor included."""
    cap = draw(st.integers(200, 4000))
    floor = draw(st.integers(100, cap))
    size, actual = (draw(st.integers(50, 4500)) for _ in range(2))
    baseline = draw(st.integers(floor, cap))
    state = draw(st.sampled_from([GuestState.FRESH] * 4 + sorted(GuestState)))
    short = draw(st.booleans()) and state is GuestState.FRESH
    return structs.replace(
        guest(name, size, floor=floor, cap=cap, baseline=baseline, state=state, actual=actual),
        frozen=draw(st.sampled_from(["", "", "stuck: does not shrink"])),
        hits=draw(st.sampled_from([None, 0, 100_000])),
        rescue_bytes=draw(st.integers(baseline, cap)) * MIB if short else 0,
    )


@st.composite
def situations(draw):
    guests = [random_guest(draw, f"g{number}") for number in range(draw(st.integers(1, 5)))]
    dangers = {one.name: f"{one.name} is short" for one in guests if one.rescue_bytes}
    wishes = [draw(st.integers(0, 6000)) for _ in guests]
    return guests, wishes, draw(st.integers(100, 12_000)), dangers


@settings(max_examples=1000)
@given(situations())
def test_no_decision_raises_above_the_cap_or_takes_more_than_a_step_without_a_true_reason(situation):
    """Whatever the guests, the wishes, the budget and the dangers are."""
    guests, wishes, budget, dangers = situation
    snapshot = Snapshot(cycle=1, time_s=0.0, budget_bytes=budget * MIB, interval_s=1.0, guests=tuple(guests))
    decision = Decision(
        guests=tuple(
            GuestDecision(name=one.name, target_bytes=wish * MIB, reason="wish", limiter=Limiter.POLICY)
            for one, wish in zip(guests, wishes, strict=True)
        )
    )
    occupied = sum(one.charge_bytes for one in guests if one.state is not GuestState.GONE)
    below_floor = [one for one in guests if one.state is GuestState.FRESH and one.target_bytes < one.floor_bytes]
    for before, verdict in zip(guests, apply_limits(snapshot, decision, dangers).guests, strict=True):
        target = verdict.target_bytes
        grown, taken = target > before.target_bytes, before.target_bytes - target
        assert not grown or target <= max(before.cap_bytes, before.target_bytes)
        if before.state is not GuestState.FRESH and before.state is not GuestState.LOST:
            assert not grown or before.name in dangers
        if taken > 0:
            assert target >= min(before.floor_bytes, before.target_bytes)
        if before.name in dangers and taken > 0:  # the excess it was given, or a step for another in danger
            assert target >= min(before.rescue_bytes, before.baseline_bytes)
        elif taken > max(TAKE_MIN_BYTES, max(before.target_bytes, before.actual_bytes) // 4):
            needy = [*dangers, *(one.name for one in below_floor)]
            assert verdict.limiter is Limiter.BUDGET
            if verdict.reason == "gives: the budget is exceeded":
                assert occupied > snapshot.budget_bytes
            else:
                assert any(name in verdict.reason for name in needy)
            if not needy:
                assert target >= min(before.baseline_bytes, before.target_bytes)


def test_who_needs_more_than_its_baseline_gets_it_from_those_that_lose_least():
    """Down to their floors, and only then less than it needs."""
    needy = structs.replace(guest("a", 300, floor=256, cap=512, baseline=384), rescue_bytes=512 * MIB)
    idle = structs.replace(guest("idle", 384, floor=256, baseline=384), hits=0, misses=0)
    busy = structs.replace(guest("busy", 384, floor=256, baseline=384), hits=9_000, misses=1_000)
    for guests, budget, sizes in (
        ([needy, busy], 768, [512, 256]),
        ([needy, busy], 700, [444, 256]),
        ([needy, busy, idle], 1152, [512, 384, 256]),
        ([needy, busy, idle], 1100, [512, 332, 256]),
        ([needy, busy, structs.replace(idle, hits=None)], 1152, [512, 256, 384]),  # unknown is not idle
        ([needy, busy, structs.replace(idle, weight=1e9, hits=1)], 1152, [512, 256, 384]),
    ):
        result = limited(guests, [one.target_bytes // MIB for one in guests], budget=budget, dangers={"a": "OOM"})
        assert [size for size, _ in result] == sizes
    # A curve says what a guest loses: this one nothing down to 256.
    curve = Curve(sizes_bytes=(200 * MIB, 2000 * MIB), miss_ratio=(0.1, 0.1))
    guests = [needy, structs.replace(busy, curve=curve), structs.replace(idle, hits=100)]
    result = limited(guests, [300, 384, 384], budget=1152, dangers={"a": "OOM"})
    assert [size for size, _ in result] == [512, 256, 384]


def test_what_a_guest_in_danger_does_not_need_any_more_is_asked_back():
    grown = structs.replace(guest("a", 512, actual=512, baseline=384), rescue_bytes=384 * MIB)
    assert limited([grown], [512], dangers={"a": "danger lately"}) == [(384, Limiter.DANGER)]


def test_a_guest_in_danger_that_wants_more_than_there_is_still_pays_for_anothers_baseline():
    """What is cut of its wish makes it no other guest: it goes on to give what it has above its baseline."""
    liar = structs.replace(guest("liar", 600, cap=800, baseline=500), rescue_bytes=704 * MIB)
    other = structs.replace(guest("b", 400, cap=800, baseline=500), rescue_bytes=500 * MIB)
    result = limited([liar, other], [700, 300], budget=1000, dangers={"liar": "it says so", "b": "OOM"})
    assert [size for size, _ in result] == [500, 500]


def test_what_programs_map_is_paid_with_last():
    """A guest whose mapped files are all cached makes no reads and no faults: it would lose most by it."""
    needy = structs.replace(guest("a", 300, floor=256, cap=512, baseline=384), rescue_bytes=420 * MIB)
    mapper = structs.replace(guest("mapper", 384, floor=256, baseline=384), hits=0, misses=0, in_use_bytes=380 * MIB)
    reader = structs.replace(guest("reader", 384, floor=256, baseline=384), hits=90_000)
    result = limited([needy, mapper, reader], [300, 384, 384], budget=1068, dangers={"a": "OOM"})
    assert [size for size, _ in result] == [420, 380, 268]
    silent = structs.replace(mapper, in_use_bytes=None)
    result = limited([needy, silent, reader], [300, 384, 384], budget=1068, dangers={"a": "OOM"})
    assert [size for size, _ in result] == [420, 384, 264]
    needy = structs.replace(needy, rescue_bytes=512 * MIB)  # at last it is only its cache, and the other one's life
    result = limited([needy, mapper, reader], [300, 384, 384], budget=1068, dangers={"a": "OOM"})
    assert [size for size, _ in result] == [512, 300, 256]


def test_who_is_in_need_is_not_for_a_policy_to_say():
    """The word that it puts beside a wish takes nothing from anybody."""
    guests = (guest("a", 500, cap=2000), guest("b", 1000, baseline=500))
    snapshot = Snapshot(cycle=1, time_s=0.0, budget_bytes=1500 * MIB, interval_s=1.0, guests=guests)
    for label in (Limiter.FLOOR, Limiter.DANGER, Limiter.POLICY):
        wishes = (
            GuestDecision(name="a", target_bytes=900 * MIB, reason="me", limiter=label),
            GuestDecision(name="b", target_bytes=1000 * MIB, reason="stays", limiter=label),
        )
        result = apply_limits(snapshot, Decision(guests=wishes), {})
        assert [one.target_bytes // MIB for one in result.guests] == [500, 1000]


def test_what_a_guest_in_danger_needs_no_more_it_gives_back_in_steps():
    grown = structs.replace(guest("a", 2000), rescue_bytes=1000 * MIB)
    assert limited([grown], [2000], dangers={"a": "danger lately"}) == [(1500, Limiter.DANGER)]
