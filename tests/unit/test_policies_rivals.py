"""The published arithmetic of other systems' rules, by hand on small snapshots; and that all keep the limits."""

import made_up_guests
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_guests import sized
from msgspec import structs

from qmpalloc.errors import ConfigError
from qmpalloc.events import encoder
from qmpalloc.idle import IdleMemory
from qmpalloc.model import Decision, GuestState, HostMemory, Limiter
from qmpalloc.policy import load
from qmpalloc.policy.rivals import idle_tax, mom, proxmox, qemus, qubes
from qmpalloc.policy.rivals.host import Seen, fitted, seen
from qmpalloc.rules.limits import apply_limits
from qmpalloc.sample import Memory
from qmpalloc.units import MIB

RIVALS = ("proxmox", "mom", "qubes", "qemus", "idle-tax")


def guest(name, *, size=600, held=None, used=100, floor=200, cap=1200, **more):
    """A guest of which `held` MiB are in use, cache included, and `used` MiB without it."""
    held = size if held is None else held
    memory = Memory(
        total=size * MIB,
        free=(size - held) * MIB,
        available=(size - used) * MIB,
        active_file=0,
        inactive_file=max(0, held - used) * MIB,
        shmem=0,
        swap_total=0,
        swap_free=0,
    )
    known = {"memory": memory, "hits": 1000, "misses": 100}
    return sized(name, size, floor=floor, cap=cap, baseline=600, **known | more)


def snapshot(*guests, budget=1200, **more):
    return made_up_guests.snapshot(*guests, budget=budget, **more)


def decide(name, *guests, **more):
    return load(name, {}).decide(snapshot(*guests, **more))


def targets(decision):
    return [one.target_bytes / MIB for one in decision.guests]


def about(*sizes):
    return pytest.approx(list(sizes), abs=0.5)


def sizes(**mib):
    return {"sizes": {name: size * MIB for name, size in mib.items()}}


FULL, IDLE = guest("a"), guest("b", held=160)
BOTH_FULL = (FULL, guest("b"))


class TestHost:
    """How rules that lend memory twice are made to fit a budget."""

    def test_who_fills_what_it_has_is_taken_to_fill_what_the_rule_gave_it(self):
        full, idle = seen(snapshot(FULL, IDLE, carry=sizes(a=900, b=700)))
        assert (full.size_bytes, full.used_bytes, full.unused_bytes) == (900 * MIB, 900 * MIB, 0)
        assert (idle.size_bytes, idle.used_bytes, idle.unused_bytes) == (700 * MIB, 160 * MIB, 540 * MIB)

    def test_what_qemu_has_resident_counts_where_that_is_less(self):
        (one,) = seen(snapshot(guest("a", resident_bytes=300 * MIB)))
        assert one.used_bytes == 300 * MIB

    def test_who_tells_nothing_is_taken_to_fill_all(self):
        (one,) = seen(snapshot(guest("a", memory=None)))
        assert one.used_bytes == 600 * MIB

    def test_what_fits_is_given(self):
        assert fitted(1200 * MIB, (), {"a": 700 * MIB, "b": 500 * MIB}) == {"a": 700 * MIB, "b": 500 * MIB}

    def test_what_nobody_fills_goes_first(self):
        given_ = fitted(1200 * MIB, seen(snapshot(FULL, IDLE)), {"a": 900 * MIB, "b": 600 * MIB})
        assert {name: size // MIB for name, size in given_.items()} == {"a": 900, "b": 300}

    def test_then_what_lies_above_floors_is_cut_in_proportion(self):
        given_ = fitted(1200 * MIB, seen(snapshot(*BOTH_FULL)), {"a": 1200 * MIB, "b": 800 * MIB})
        # 800 MiB above floors for 1000 and 600 MiB.
        assert {name: size // MIB for name, size in given_.items()} == {"a": 700, "b": 500}

    @pytest.mark.parametrize("carry", [None, 7, {"sizes": 3}, {"version": 1}])
    def test_what_another_policy_carried_over_is_no_size(self, carry):
        assert [one.size_bytes for one in seen(snapshot(FULL, carry=carry))] == [600 * MIB]


class TestProxmox:
    def test_who_is_under_pressure_grows_by_100_mib_and_who_has_free_memory_pays(self):
        assert targets(decide("proxmox", FULL, IDLE)) == about(700, 500)

    def test_a_host_within_10_mib_of_its_goal_is_left_alone(self):
        near = guest("b", size=609)
        assert targets(decide("proxmox", FULL, near, budget=1219)) == about(600, 609)
        assert decide("proxmox", FULL, near, budget=1220).carry == sizes(a=610, b=610)

    def test_growth_is_shared_out_so_that_what_lies_above_minimums_is_in_proportion_to_shares(self):
        # 400 and 400 MiB above minimums and 40 MiB more: 630 and 210 for shares of 3 to 1.
        decision = decide("proxmox", guest("a", weight=3.0), guest("b"), budget=1240)
        assert decision.carry == sizes(a=700, b=500)

    def test_too_much_is_taken_from_those_with_enough_free_memory_first(self):
        decision = decide("proxmox", FULL, IDLE, carry=sizes(a=1100, b=600))
        assert decision.carry == sizes(a=1100, b=540)  # 1260 MiB are used of 1200

    def test_else_from_all_by_shares(self):
        decision = decide("proxmox", guest("a", weight=3.0), guest("b"), carry=sizes(a=700, b=700))
        assert decision.carry == sizes(a=700, b=600)
        assert targets(decision) == about(200 + 500 * 8 / 9, 200 + 400 * 8 / 9)

    @pytest.mark.parametrize(("held", "enough"), [(549, True), (551, False)])
    def test_enough_is_more_than_a_quarter_of_the_minimum(self, held, enough):
        (one,) = seen(snapshot(guest("a", held=held)))
        assert proxmox.enough_free(one) is enough

    def test_whose_free_memory_is_not_known_has_not_enough(self):
        (one,) = seen(snapshot(guest("a", memory=None, resident_bytes=100 * MIB)))
        assert proxmox.enough_free(one) is False


def a_guest_of(size, filled, **more):
    return Seen(guest=guest("a", **more), size_bytes=size * MIB, held_bytes=filled * MIB, used_bytes=filled * MIB)


class TestMom:
    def test_all_grow_while_a_fifth_of_the_host_is_free(self):
        decision = decide("mom", FULL, IDLE)  # 760 of 1500 MiB are used
        assert {name: size / MIB for name, size in decision.carry["sizes"].items()} == pytest.approx(
            {"a": 720, "b": 630}, abs=0.5
        )
        assert targets(decision) == about(720, 480)

    def test_exactly_a_fifth_is_no_pressure(self):
        assert decide("mom", *BOTH_FULL).guests[0].reason == "20% of the host free: grow"

    def test_growth_is_5_per_cent_or_to_what_is_used_and_a_fifth_and_ends_at_the_maximum(self):
        assert mom.grown(a_guest_of(600, 100)) == 630 * MIB
        assert mom.grown(a_guest_of(600, 600)) == 720 * MIB
        assert mom.grown(a_guest_of(1100, 1100)) == 1200 * MIB

    @pytest.mark.parametrize(
        ("free", "used", "size"),
        [
            (0.10, 300, 950),  # by 5 %
            (0.10, 880, 980),  # to what is used and a tenth
            (0.10, 950, 1000),  # that is more than it has: left alone
            (0.05, 960, 960),  # critical: to what is used
            (0.03, 1000, 980),  # below it
            (0.03, 100, 950),
        ],
    )
    def test_shrinking_scales_with_the_pressure(self, free, used, size):
        assert mom.shrunk(a_guest_of(1000, used), free) == pytest.approx(size * MIB, abs=2)

    def test_no_guest_shrinks_below_its_minimum(self):
        assert mom.shrunk(a_guest_of(205, 100), 0.1) == 200 * MIB

    def test_a_quarter_of_a_per_cent_is_not_worth_it(self):
        assert decide("mom", guest("a", size=1000, cap=1002), budget=2000).carry == sizes(a=1000)
        assert decide("mom", guest("a", size=1000, cap=1003), budget=2000).carry == sizes(a=1003)


class TestQubes:
    def test_used_is_without_cache_and_with_what_is_swapped_out(self):
        memory = guest("a", used=300).memory
        assert qubes.used_bytes(guest("a", memory=memory)) == 300 * MIB
        swapping = structs.replace(memory, swap_total=100 * MIB, swap_free=40 * MIB, shmem=10 * MIB)
        assert qubes.used_bytes(guest("a", memory=swapping)) == 350 * MIB

    @pytest.mark.parametrize(("used", "preferred"), [(400, 520), (100, 200), (1000, 1200)])
    def test_a_guest_prefers_1_3_times_what_it_uses_within_bounds(self, used, preferred):
        assert qubes.preferred_bytes(FULL, used * MIB) // MIB == preferred

    def test_all_there_is_is_split_in_proportion_to_preferences(self):
        assert targets(decide("qubes", guest("a", used=400), guest("b"))) == about(0.999 * 867, 0.999 * 333)

    def test_what_a_maximum_leaves_goes_to_the_others(self):
        decision = decide("qubes", guest("a", used=400, cap=700), guest("b"))
        assert targets(decision) == about(700, 499)

    def test_with_too_little_those_who_have_more_than_they_prefer_give_first(self):
        greedy, starved = guest("a", size=700, used=700), guest("c", size=400, used=400)  # preferring 910 and 520 MiB
        assert targets(decide("qubes", greedy, guest("b", size=400), starved, budget=1500)) == about(700, 200, 400)

    def test_and_what_is_free_then_goes_to_the_others_in_proportion(self):
        first, second = guest("a", used=600), guest("b", size=200, used=200)  # preferring 780 and 260 MiB
        assert targets(decide("qubes", first, second, budget=1000)) == about(0.999 * 750, 0.999 * 250)

    def test_a_change_of_less_than_150_mib_in_all_is_not_made(self):
        one = guest("a", used=160)  # preferring 208 MiB
        assert targets(decide("qubes", one, guest("b", used=200))) == about(600, 600)
        assert targets(decide("qubes", one, guest("b", used=240))) == about(0.999 * 480, 0.999 * 720)

    def test_who_has_less_than_it_prefers_is_helped_by_more_than_15_mib(self):
        lacking, other = guest("a", size=500, used=400), guest("b", size=460, used=340)  # preferring 520 and 442 MiB
        assert targets(decide("qubes", lacking, other, budget=1000)) == about(0.999 * 540.5, 0.999 * 459.5)
        other = structs.replace(other, target_bytes=490 * MIB)
        assert targets(decide("qubes", lacking, other, budget=990)) == about(534.5, 454.5)

    def test_who_does_not_tell_takes_no_part(self):
        silent = guest("b", memory=None)
        assert targets(decide("qubes", guest("a", used=400), silent)) == about(600, 600)


class TestQemus:
    def test_a_host_used_to_80_per_cent_is_left_alone(self):
        assert targets(decide("qemus", *BOTH_FULL)) == about(600, 600)

    def test_sizes_change_by_the_error_and_its_integral_times_the_maximum(self):
        # 740 of 1500 MiB are free, .2933 more than wanted: .55 * .2933 * 1200 MiB after a second.
        decision = decide("qemus", FULL, IDLE)
        assert [size / MIB for size in decision.carry["sizes"].values()] == about(793.6, 793.6)
        assert decision.carry["integrals"] == pytest.approx({"a": -0.2933, "b": -0.2933}, abs=1e-4)
        assert targets(decision) == about(793.6, 406.4)

    def test_changes_of_less_than_128_mib_wait(self):
        decision = decide("qemus", FULL, guest("b", held=400))
        assert decision.carry["sizes"] == sizes(a=600, b=600)["sizes"]
        assert decision.carry["integrals"] == pytest.approx({"a": -0.1333, "b": -0.1333}, abs=1e-4)

    def test_the_integral_goes_on(self):
        first = decide("qemus", FULL, guest("b", held=400))
        again = decide("qemus", FULL, guest("b", held=400), carry=first.carry)
        assert again.carry["integrals"]["a"] == pytest.approx(-0.2667, abs=1e-4)

    def test_at_a_bound_it_is_set_back_to_what_leads_there(self):
        one = a_guest_of(600, 600)
        size, integral = qemus.controlled(one, 200 * MIB, 620 * MIB, 0.25, 0.0, 1.0)
        # (600 - 620) / 60 + .5 * .05 / .05
        assert (size, integral) == (620 * MIB, pytest.approx(-1 / 3 + 0.5))

    def test_the_integral_is_within_one(self):
        _, integral = qemus.controlled(a_guest_of(600, 600), 0, 1200 * MIB, 0.1, 0.9, 5.0)
        assert integral == 1.0

    def test_it_keeps_what_the_guest_uses_without_its_cache_until_the_host_is_nearly_full(self):
        one = a_guest_of(600, 600, used=300)
        assert qemus.bounds(one, 0.15, None) == (300 * MIB, 1200 * MIB)
        assert qemus.bounds(one, 0.09, None) == (200 * MIB, 1200 * MIB)
        silent = a_guest_of(600, 600, memory=None, resident_bytes=400 * MIB)
        assert qemus.bounds(silent, 0.15, None) == (400 * MIB, 1200 * MIB)

    @pytest.mark.parametrize(("psi", "most"), [(10.0, 1200), (30.0, 700), (50.0, 200), (90.0, 200)])
    def test_the_hosts_pressure_lowers_the_maximum_from_10_to_50_per_cent(self, psi, most):
        assert qemus.bounds(a_guest_of(600, 600), 0.05, psi) == (200 * MIB, most * MIB)

    def test_that_pressure_is_the_hosts(self):
        decision = decide("qemus", *BOTH_FULL, host=HostMemory(psi_some_avg10=40.0))
        assert targets(decision) == about(450, 450)


def idle(mib):
    """Ages of memory: so much was not touched for 32 s and more."""
    return IdleMemory(seconds=(16.0, 32.0, 64.0), read=(mib * MIB, mib * MIB, 0), unread=(0, 0, 0))


class TestIdleTax:
    def test_a_guest_keeps_three_quarters_of_what_it_uses_and_a_share_of_the_rest(self):
        decision = decide("idle-tax", FULL, guest("b", idle=idle(500)))
        assert targets(decision) == about(787.5, 412.5)

    def test_then_all_pay_the_same_for_a_page(self):
        first, second = targets(decide("idle-tax", guest("a", weight=2.0), guest("b", idle=idle(400))))
        prices = [
            weight / (size * (used / size + 4 * (1 - used / size)))
            for size, used, weight in ((first, 600, 2.0), (second, 200, 1.0))
        ]
        assert prices[0] == pytest.approx(prices[1], rel=0.01)

    def test_the_rest_is_split_by_shares(self):
        assert targets(decide("idle-tax", guest("a", weight=3.0), guest("b"))) == about(675, 525)

    def test_without_a_tax_only_shares_count(self):
        policy = load("idle-tax", {"tax": 0.0})
        found = policy.decide(snapshot(guest("a", weight=2.0), guest("b", idle=idle(500))))
        assert targets(found) == about(800, 400)

    def test_free_memory_is_idle_and_what_is_not_known_is_in_use(self):
        assert idle_tax.active_bytes(guest("a", held=400)) == 400 * MIB
        assert idle_tax.active_bytes(guest("a", held=400, idle=idle(150))) == 250 * MIB
        assert idle_tax.active_bytes(guest("a", memory=None)) == 600 * MIB

    def test_the_estimate_goes_down_slowly_and_up_at_once(self):
        assert idle_tax.averaged((600.0, 600.0), 100.0, 30.0) == pytest.approx((350.0, 537.5))
        assert idle_tax.averaged(None, 100.0, 30.0) == (100.0, 100.0)
        carry = {"means": {"a": [600 * MIB, 600 * MIB], "b": [100 * MIB, 100 * MIB]}}
        falling, rising = guest("a", idle=idle(500)), guest("b")
        decision = decide("idle-tax", falling, rising, carry=carry, interval_s=30.0)
        assert [one.terms["active_mib"] for one in decision.guests] == [537.5, 600.0]

    def test_a_change_below_16_mib_is_not_made(self):
        assert targets(decide("idle-tax", FULL, guest("b", idle=idle(40)))) == about(600, 600)
        assert targets(decide("idle-tax", FULL, guest("b", idle=idle(48)))) == about(618, 582)

    def test_within_floors_and_caps(self):
        found = decide("idle-tax", guest("a", cap=650), guest("b", idle=idle(550), floor=400), guest("c"), budget=1800)
        assert targets(found) == about(650, 400, 750)

    @pytest.mark.parametrize("tax", [-0.1, 1.0])
    def test_a_tax_that_is_none_is_refused(self, tax):
        with pytest.raises(ConfigError, match=r"policy\.tax: must be from 0 to below 1"):
            load("idle-tax", {"tax": tax})


made_up = st.builds(
    guest,
    st.uuids().map(str),
    size=st.integers(200, 1200),
    held=st.integers(0, 200),
    used=st.integers(0, 200),
    weight=st.sampled_from([0.5, 1.0, 4.0]),
    state=st.sampled_from([GuestState.FRESH, GuestState.FRESH, GuestState.LATE, GuestState.LOST, GuestState.HUNG]),
    frozen=st.sampled_from(["", "", "it was in danger"]),
    resident_bytes=st.none() | st.integers(0, 2000 * MIB),
    idle=st.none() | st.integers(0, 200).map(idle),
)
silent = made_up.map(lambda one: structs.replace(one, memory=None))
full = st.builds(guest, st.uuids().map(str), size=st.integers(200, 1200), used=st.integers(0, 1500))


@pytest.mark.parametrize("name", RIVALS)
@given(guests=st.lists(made_up | silent | full, min_size=1, max_size=5), spare=st.integers(0, 2000))
@settings(max_examples=60, deadline=None)
def test_every_rival_is_pure_and_keeps_floors_caps_and_budget(name, guests, spare):
    policy = load(name, {})
    budget = sum(one.charge_bytes for one in guests) // MIB + spare
    seen_first = before = snapshot(*guests, budget=budget)
    for _ in range(3):  # with what it carries over
        bytes_before = encoder.encode(before)
        wish = policy.decide(before)
        assert policy.decide(before) == wish
        assert encoder.encode(before) == bytes_before
        assert msgspec.json.decode(encoder.encode(wish), type=Decision).guests == wish.guests
        decision = apply_limits(before, wish, {})
        assert sum(one.target_bytes for one in decision.guests) <= before.budget_bytes
        for one, verdict, wished in zip(before.guests, decision.guests, wish.guests, strict=True):
            if one.state is GuestState.FRESH:
                assert one.floor_bytes <= verdict.target_bytes <= one.cap_bytes
            if one.state is not GuestState.FRESH or one.frozen:
                assert (wished.target_bytes, wished.limiter) == (one.target_bytes, Limiter.STATE)
        moved = [
            structs.replace(
                one, target_bytes=to.target_bytes, actual_bytes=to.target_bytes, charge_bytes=to.target_bytes
            )
            for one, to in zip(before.guests, decision.guests, strict=True)
        ]
        before = structs.replace(seen_first, guests=tuple(moved), carry=msgspec.json.decode(encoder.encode(wish.carry)))


@pytest.mark.parametrize("name", RIVALS)
def test_the_budget_is_kept_without_the_limits_too(name):
    guests = (guest("a", used=500), guest("b", held=160), guest("c", size=300, used=250, weight=2.0))
    before = snapshot(*guests, budget=1500)
    for _ in range(20):
        decision = load(name, {}).decide(before)
        assert sum(one.target_bytes for one in decision.guests) <= 1500 * MIB
        before = structs.replace(before, carry=decision.carry)


@pytest.mark.parametrize("name", RIVALS)
def test_nobody_to_size_is_no_error(name):
    decision = decide(name, guest("a", state=GuestState.LATE))
    assert targets(decision) == [600]
    assert decision.guests[0].reason == "not fresh but late"
