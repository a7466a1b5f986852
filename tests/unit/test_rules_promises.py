"""A guest that loses more by a move than was promised gets its memory back, whatever the policy believed."""

import json

import pytest
from made_up_guests import IDLE, guest, line, snapshot, targets
from msgspec import structs

from qmpalloc.errors import PolicyError
from qmpalloc.model import Decision, GuestDecision, Promise
from qmpalloc.policy import load
from qmpalloc.rules.limits import apply_limits
from qmpalloc.rules.promises import KeepsPromises
from qmpalloc.sample import Memory
from qmpalloc.units import MIB

WEAK = line((100, 1.0), (2000, 0.0), weak=("too few samples",), measured=0.5)
GOOD = line((100, 1.0), (2000, 0.0), measured=0.5)
LACKING = {"refaults": 3_000, "misses": 5_000}


class Lends:
    """Takes 100 MiB from a for b whenever a has more than 300 MiB and its floor allows it."""

    promises = True

    def __init__(self, per_s=10.0, for_s=None):
        self.promise = Promise(page_ins_per_s=per_s, for_s=for_s)

    def decide(self, seen):
        a, b = seen.guests[:2]
        size = min(100 * MIB, max(0, a.target_bytes - max(a.floor_bytes, 300 * MIB)))
        return Decision(
            guests=(
                GuestDecision(name="a", target_bytes=a.target_bytes - size, reason="idle", promise=self.promise),
                GuestDecision(name="b", target_bytes=b.target_bytes + size, reason="needs it"),
                *(GuestDecision(name=one.name, target_bytes=one.target_bytes, reason="") for one in seen.guests[2:]),
            ),
            carry={"decided": (seen.carry or {}).get("decided", 0) + 1},
        )


class Run:
    """Decisions in a row on two guests, with their carry as a record would have it."""

    def __init__(self, policy, *others):
        self.policy = KeepsPromises(policy)
        self.carry, self.time_s = None, 0.0
        self.others = others
        self.sizes = [500, 500]

    def step(self, seconds=5.0, *, a=None, b=None, **more):
        self.time_s += seconds
        guests = (
            guest("a", a, size=self.sizes[0], rate=0, **more) if a is None else a,
            b or guest("b", size=self.sizes[1]),
            *self.others,
        )
        now = structs.replace(
            snapshot(*guests, budget=1000 + sum(o.target_bytes for o in self.others) // MIB, carry=self.carry),
            time_s=self.time_s,
        )
        self.decision = apply_limits(now, self.policy.decide(now), {})
        self.carry = json.loads(json.dumps(self.decision.carry))
        self.sizes = targets(self.decision)[:2]
        return self.sizes

    @property
    def reasons(self):
        return [one.reason for one in self.decision.guests]


def test_what_was_given_on_a_promise_comes_back_when_it_is_broken():
    """By faults, reads and swap-ins alike, at the next decision; and the policy is not asked."""
    for more in ({"faults": 1_200}, {"swap_ins": 70}, {"faults": 40, "swap_ins": 40}):
        run = Run(Lends())
        assert run.step() == [400, 600]
        assert run.step(**more) == [500, 500]
        count = {1_200: "1.2k", 70: "70", 80: "80"}[sum(more.values())]
        assert run.reasons == [
            f"gets back what it gave: brings in {count} pages/s, at most 10 were promised",
            "gives back to a what it got",
        ]
        assert run.decision.carry["decided"] == 1
        for _ in range(100):
            assert run.step() == [500, 500]  # and is not believed idle again
        assert run.reasons[0] == "idle; keeps 500M"
    reads = guest("a", size=400, rate=1_000, misses=900)
    run = Run(Lends())
    run.step()
    assert run.step(a=reads) == [500, 500]


def test_a_promise_that_is_kept_stays_and_what_little_comes_beside_it_is_none_broken():
    run = Run(Lends())
    assert [run.step(faults=60), run.step(faults=60), run.step(faults=60)] == [[400, 600], [300, 700], [300, 700]]
    # All that was taken comes back, however many steps that were; a receiver gives a step at a time.
    assert [run.step(faults=90), run.step(faults=90)] == [[475, 525], [500, 500]]


def test_a_promise_that_holds_for_a_time_is_believed_after_it():
    run = Run(Lends(for_s=30.0))
    run.step()
    run.step()
    for _ in range(7):
        run.step()
    assert run.step(faults=5_000) == [300, 700]  # another load: for the policy to see


def test_who_is_known_to_read_may_read_again_once_what_was_taken():
    """What a kernel lets go of first is not always what is used least."""
    run = Run(Lends(for_s=120.0))
    run.step()
    assert [run.step(faults=12_000), run.step(faults=12_000)] == [[300, 700], [300, 700]]  # 200 MiB are 51,200 pages
    assert [run.step(faults=12_000), run.step(faults=16_000), run.step()] == [[300, 700], [475, 525], [475, 525]]


def test_memory_lent_by_who_is_idle_is_called_back_however_late():
    run = Run(Lends())
    for _ in range(1_000):
        run.step()
    run.step(faults=5_000)
    run.step(faults=5_000)
    assert run.step() == [500, 500]


def test_who_broke_a_promise_is_held_for_twice_as_long_each_time():
    run, held_s = Run(Lends()), []
    for _ in range(3):
        run.step()
        run.step(faults=5_000)
        began_s = run.time_s
        while run.step() == [500, 500]:
            pass
        run.sizes = [500, 500]
        held_s.append(run.time_s - began_s)
        del run.carry["qmpalloc.promises"]["lent"]
    assert held_s == [600, 1_200, 2_400]


@pytest.mark.parametrize(("kept_s", "held_s"), [(590.0, 1_200.0), (600.0, 600.0)])
def test_that_it_broke_one_is_forgotten_once_it_has_kept_them_for_as_long_again(kept_s, held_s):
    run = Run(Lends())
    run.step()
    run.step(faults=5_000)
    run.step(600.0)
    run.step(kept_s)
    run.step(faults=5_000)
    assert run.carry["qmpalloc.promises"]["held"]["a"]["until_s"] - run.time_s == held_s


def test_what_it_has_had_free_ever_since_it_may_give_after_a_tenth_of_that_time():
    run, free = Run(Lends()), {"memory": Memory(total=500 * MIB, free=300 * MIB)}
    run.step()
    run.step(faults=5_000)
    for _ in range(11):
        assert run.step(**free) == [500, 500]
    assert run.step(**free) == [400, 600]
    # That was wrong: for twice as long nothing is taken, nor for ten times that, as it has used all of it once.
    run.step(faults=5_000)
    used = {"memory": Memory(total=500 * MIB, free=32 * MIB)}
    assert run.step(**used) == [500, 500]
    began_s = run.time_s
    while run.step(**free) == [500, 500]:
        pass
    assert run.time_s - began_s == 1_195


def test_it_is_idle_again_when_its_programs_have_ended():
    run = Run(Lends())
    run.step(in_use_bytes=300 * MIB)
    assert run.step(faults=5_000, in_use_bytes=300 * MIB) == [500, 500]
    assert run.step(in_use_bytes=390 * MIB) == [500, 500]
    assert run.step(in_use_bytes=290 * MIB) == [400, 600]


def test_under_another_load_a_curve_is_believed_again():
    def with_load(number, size, **more):
        return guest("a", structs.replace(WEAK, load=number), size=size, rate=0, **more)

    run = Run(Lends(for_s=120.0))
    run.step(a=with_load(1, 500))
    assert run.step(a=with_load(1, 400, faults=60_000)) == [500, 500]
    assert run.step(a=with_load(1, 500)) == [500, 500]
    assert run.step(a=with_load(2, 500)) == [400, 600]


def test_who_woke_is_held_at_rest_and_at_work_until_its_curve_is_good_or_for_a_tenth_of_that_time():
    def reading(per_s, curve):
        return guest("a", curve, size=run.sizes[0], rate=per_s)

    run = Run(Lends())
    run.step()
    assert run.step(a=reading(10_000, GOOD)) == [500, 500]
    assert run.step(a=reading(10_000, WEAK)) == [500, 500]
    assert run.step(a=reading(9_000, GOOD)) == [400, 600]

    run = Run(Lends())
    run.step()
    assert run.step(a=reading(10_000, GOOD)) == [500, 500]
    assert [run.step(a=reading(10, GOOD)) for _ in range(100)] == 100 * [[500, 500]]
    assert run.step(a=reading(10_000, WEAK)) == [400, 600]


def test_a_debt_that_nobody_can_pay_stops_no_policy():
    run = Run(Lends())
    run.step()
    rich = guest("b", size=600, floor=600)
    for _ in range(5):
        run.step(faults=5_000, b=rich)
        assert run.sizes == [400, 600]
    assert run.decision.carry["decided"] == 6
    assert run.step(faults=5_000) == [500, 500]  # as soon as it can


def test_it_comes_from_who_got_it_and_not_from_who_got_its_own_back():
    """Two lent to one: neither pays for the other, and a guest that came later pays for nobody."""

    class FromBoth(Lends):
        def decide(self, seen):
            a, b, c = seen.guests[:3]
            wishes = [
                (one, one.target_bytes - 100 * MIB if one.floor_bytes < 400 * MIB else one.target_bytes)
                for one in (a, b)
            ]
            grown = c.target_bytes + sum(one.target_bytes - wish for one, wish in wishes)
            return Decision(
                guests=tuple(
                    GuestDecision(name=one.name, target_bytes=wish, reason="", promise=self.promise)
                    for one, wish in (*wishes, (c, grown), *((one, one.target_bytes) for one in seen.guests[3:]))
                )
            )

    def decided(policy, carry, *guests, budget=1500):
        decision = apply_limits(now := snapshot(*guests, budget=budget, carry=carry), policy.decide(now), {})
        return targets(decision), json.loads(json.dumps(decision.carry))

    policy, (a, b, c) = KeepsPromises(FromBoth()), (guest(name, size=500, rate=0) for name in "abc")
    sizes, carry = decided(policy, None, a, b, c)
    assert sizes == [400, 400, 700]
    a, b, c = (guest(name, size=size, rate=0) for name, size in zip("abc", sizes, strict=True))
    sizes, carry = decided(policy, carry, structs.replace(a, faults=5_000), b, c)
    assert sizes == [500, 400, 600]
    a, b, c = (guest(name, size=size, rate=0) for name, size in zip("abc", sizes, strict=True))
    sizes, carry = decided(policy, carry, a, structs.replace(b, faults=5_000), c, guest("new", size=900), budget=2400)
    assert sizes == [500, 500, 500, 900]


def test_each_part_may_cost_what_was_promised_of_it_and_no_more():
    """Else a policy that is wrong in small steps is never found out."""

    class Wrong(Lends):
        def decide(self, seen):
            decision = super().decide(seen)
            promise = Promise(page_ins_per_s=seen.guests[0].page_ins_per_s or 0.0)
            return structs.replace(
                decision, guests=(structs.replace(decision.guests[0], promise=promise), *decision.guests[1:])
            )

    run = Run(Wrong())
    assert run.step() == [400, 600]
    assert run.step(faults=40) == [300, 700]
    assert run.step(faults=90) == [475, 525]


def test_what_others_take_from_a_lender_breaks_no_promise():
    run = Run(Lends())
    run.step()
    run.sizes = [300, 700]  # for another in danger
    run.policy.policy.promise = None
    assert run.step(faults=5_000) == [300, 700]


def test_one_that_does_not_tell_what_it_uses_for_a_moment_is_held_all_the_same():
    run = Run(Lends())
    run.step(in_use_bytes=300 * MIB)
    run.step(faults=5_000, in_use_bytes=300 * MIB)
    run.step(in_use_bytes=None)
    assert run.reasons[0] == "idle; it does not tell what its programs map"
    assert run.step(in_use_bytes=300 * MIB) == [500, 500]


def test_it_comes_from_those_that_have_grown_and_from_nobody_else():
    third = guest("c", size=900)
    run = Run(Lends(), third)
    run.step()
    run.step(faults=5_000)
    assert targets(run.decision) == [500, 500, 900]


def test_a_guest_that_is_gone_or_shrunk_by_others_is_owed_nothing():
    class Takes(Lends):
        promise = None

    run = Run(Lends())
    run.step()
    run.policy.policy.promise = None
    run.step()
    assert run.step(faults=5_000) == [300, 700]


def test_what_programs_hold_or_map_is_not_spare():
    """For a policy that promises; and the reason says so."""
    run = Run(Lends())
    assert run.step(in_use_bytes=450 * MIB) == [450, 550]
    assert run.step(in_use_bytes=450 * MIB) == [450, 550]
    assert run.reasons[0] == "idle; its programs hold or map 450M"
    assert run.step(in_use_bytes=800 * MIB) == [450, 550]  # more than it has: nothing is given, none is owed


@pytest.mark.parametrize("name", ["curve", "hill"])
def test_a_guest_that_only_maps_files_is_not_robbed_as_idle(name):
    """It makes no reads and no faults, as all that it maps is cached; the reader beside it lacks memory."""
    busy = guest("busy", WEAK, size=384, floor=256, cap=512, ghost_gain=50.0, ghost_loss=1.0, **LACKING)
    idle = guest("idle", size=384, floor=256, cap=512, rate=0)

    def decided(one):
        return targets(load(name, {}).decide(snapshot(one, busy, carry=IDLE)))

    assert decided(idle)[0] < 384
    assert decided(structs.replace(idle, in_use_bytes=390 * MIB)) == [384, 384]
    assert decided(structs.replace(idle, in_use_bytes=380 * MIB))[0] >= 380


@pytest.mark.parametrize("name", ["curve", "hill"])
def test_policies_of_our_own_keep_their_promises(name):
    busy = guest("busy", WEAK, size=384, floor=256, cap=512, ghost_gain=50.0, ghost_loss=1.0, **LACKING)
    idle = guest("idle", size=384, floor=256, cap=512, rate=0)
    first = load(name, {}).decide(snapshot(idle, busy, carry=IDLE))
    given = 384 - targets(first)[0]
    idle, busy = (
        structs.replace(one, target_bytes=verdict.target_bytes, actual_bytes=verdict.target_bytes)
        for one, verdict in zip((idle, busy), first.guests, strict=True)
    )
    now = snapshot(structs.replace(idle, faults=2_000), busy, budget=768, carry=first.carry)
    back = load(name, {}).decide(structs.replace(now, time_s=6.0))
    assert given > 0
    assert targets(back) == [384, 384]


def test_a_policy_that_promises_and_carries_no_dict_or_decides_nothing_is_told():
    class Carries(Lends):
        def decide(self, seen):
            return structs.replace(super().decide(structs.replace(seen, carry=None)), carry=[1])

    with pytest.raises(PolicyError, match="carries a dict, or nothing, not list"):
        Run(Carries()).step()

    class Nothing(Lends):
        def decide(self, seen):
            return None

    with pytest.raises(PolicyError, match="no decision"):
        Run(Nothing()).step()


def test_only_who_promises_is_held_to_it(tmp_path):
    (tmp_path / "own.py").write_text(
        "from qmpalloc import hold\n"
        "def plain(snapshot): return hold(snapshot, str(snapshot.guests[0].floor_bytes >> 20))\n"
        "def careful(snapshot): return plain(snapshot)\n"
        "careful.promises = True\n"
    )
    mapped = snapshot(guest("a", in_use_bytes=450 * MIB))
    file = str(tmp_path / "lab.toml")
    assert load("own:plain", {}, file=file).decide(mapped).guests[0].reason == "200"
    assert load("own:careful", {}, file=file).decide(mapped).guests[0].reason.startswith("450")
    assert not any(isinstance(load(name, {}), KeepsPromises) for name in ("static", "paper"))
