"""Whatever a policy does, the limits hold and the record can be read."""

import itertools
import sys

import msgspec
import pytest

from qmpalloc.config import Size
from qmpalloc.events import (
    Decided,
    Faulted,
    decoder,
    encoder,
)  # fmt: skip
from qmpalloc.model import Decision, GuestDecision, Limiter, Move, hold
from qmpalloc.text import LINE_LIMIT, is_visible
from qmpalloc.units import MIB

BASELINE = 500


class Stop(BaseException):
    """What is no Exception, and still must not end a run."""


@pytest.mark.parametrize(
    "how",
    [
        lambda snapshot: 1 / 0,
        lambda snapshot: None,
        lambda snapshot: (_ for _ in ()).throw(ValueError("\ud800\x1b[2J")),
        lambda snapshot: sys.exit("policy"),
        lambda snapshot: (_ for _ in ()).throw(Stop("\x1b[2J")),
        lambda snapshot: Decision(guests=()),
        lambda snapshot: Decision(guests=tuple(GuestDecision(name="x", target_bytes=1, reason="") for _ in "ab")),
    ],
)
async def test_a_policy_that_fails_holds_all_guests_visibly(lab, autojump_clock, how):
    await lab.two()
    await lab.run(9.0, the_policy=lab.policy(how))
    told = [event.message for event in lab.of(Faulted) if event.kind == "policy"]
    assert told
    assert "".join(told).isprintable()
    assert lab.size("small") == BASELINE
    assert lab.events[-1].clean


async def test_a_policy_that_passes_on_ctrl_c_ends_the_run_in_order(lab, autojump_clock):
    await lab.two()
    wanted = lab.toward(small=400, large=600)

    def decide(snapshot):
        if snapshot.time_s > 15:
            raise KeyboardInterrupt
        return wanted.decide(snapshot)

    with pytest.raises(BaseExceptionGroup) as raised:
        await lab.run(60.0, the_policy=lab.policy(decide))
    assert raised.group_contains(KeyboardInterrupt)
    assert lab.events[-1].clean
    assert (lab.size("small"), lab.size("large")) == (BASELINE, BASELINE)


@pytest.mark.parametrize("wanted_mib", [0, 1, 10**7])
async def test_a_policy_that_wants_the_impossible_is_limited(lab, autojump_clock, wanted_mib):
    await lab.two()

    def greedy(snapshot):
        decision = hold(snapshot, "greedy")
        first = msgspec.structs.replace(decision.guests[0], target_bytes=wanted_mib * MIB)
        return msgspec.structs.replace(decision, guests=(first, *decision.guests[1:]))

    await lab.run(20.0, the_policy=lab.policy(greedy))
    assert {event.decision.guests[0].limiter for event in lab.of(Decided)} <= {
        Limiter.FLOOR, Limiter.STEP, Limiter.BUDGET, Limiter.CAP,
    }  # fmt: skip


async def test_what_a_policy_carries_comes_back(lab, autojump_clock):
    await lab.two()
    seen = []

    def counting(snapshot):
        seen.append(snapshot.carry)
        return msgspec.structs.replace(hold(snapshot, ""), carry={"n": (snapshot.carry or {"n": 0})["n"] + 1})

    await lab.run(9.0, the_policy=lab.policy(counting))
    assert seen == [None, {"n": 1}, {"n": 2}, {"n": 3}]


async def test_what_is_recorded_is_what_the_policy_was_shown_even_if_it_changes_that(lab, autojump_clock):
    await lab.two()

    def spoiling(snapshot):
        carry = snapshot.carry or {"n": 0}
        carry["n"] += 1
        return msgspec.structs.replace(hold(snapshot, ""), carry=carry)

    await lab.run(7.0, the_policy=lab.policy(spoiling))
    assert [event.snapshot.carry for event in lab.of(Decided)] == [None, {"n": 1}, {"n": 2}]


async def test_a_policy_may_return_sizes_of_its_settings(lab, autojump_clock):
    await lab.two()

    def decide(snapshot):
        decision = hold(snapshot, "")
        guests = tuple(msgspec.structs.replace(guest, target_bytes=Size(400 * MIB)) for guest in decision.guests)
        return msgspec.structs.replace(decision, guests=guests)

    await lab.run(9.0, the_policy=lab.policy(decide))
    assert not lab.of(Faulted)
    assert [guest.target_bytes for guest in lab.of(Decided)[-1].decision.guests] == [400 * MIB] * 2


async def test_a_policy_that_takes_long_is_told(lab, autojump_clock, monkeypatch):
    await lab.two()
    clock = itertools.count(step=1.5)
    monkeypatch.setattr("qmpalloc.control.decider.time.perf_counter", lambda: float(next(clock)))
    await lab.run(9.0, the_policy=lab.policy(lambda snapshot: hold(snapshot, "")))
    assert [event.message for event in lab.of(Faulted)] == ["policy paper took 1.5 s to decide"]


async def test_a_policy_about_as_slow_as_is_told_is_told_once(lab, autojump_clock, monkeypatch):
    await lab.two()
    clock = itertools.accumulate(itertools.cycle((7.0, 1.1, 7.0, 0.9, 7.0, 1.2)))
    monkeypatch.setattr("qmpalloc.control.decider.time.perf_counter", lambda: float(next(clock)))
    await lab.run(60.0, the_policy=lab.policy(lambda snapshot: hold(snapshot, "")))
    assert [event.kind for event in lab.of(Faulted)] == ["slow"]


@pytest.mark.parametrize(
    "change",
    [
        {"carry": object()}, {"moves": None}, {"summary": None}, {"carry": {1: {2, 3}, "x": b"y"}},
        {"summary": "\ud800"}, {"carry": {"\udcff": 1}}, {"carry": [2**70, float("nan")]},
    ],
)  # fmt: skip
async def test_a_decision_that_cannot_be_recorded_is_none(lab, autojump_clock, change):
    await lab.two()
    await lab.run(9.0, the_policy=lab.policy(lambda snapshot: msgspec.structs.replace(hold(snapshot, ""), **change)))
    for event in lab.events:
        assert encoder.encode(decoder.decode(encoder.encode(event))) == encoder.encode(event)
    assert lab.events[-1].clean


async def test_what_a_policy_says_is_one_printable_line(lab, autojump_clock):
    await lab.two()
    text = "\x1b[2J\u202e\u3164 why\n" + "y" * 5000

    def decide(snapshot):
        decision = hold(snapshot, text)
        guests = tuple(msgspec.structs.replace(guest, terms={text: 1.0}) for guest in decision.guests)
        return msgspec.structs.replace(decision, guests=guests, moves=(Move(donor=text, receiver=text, size_bytes=0),))

    await lab.run(9.0, the_policy=lab.policy(decide))
    decision = lab.of(Decided)[-1].decision
    told = [decision.summary, decision.moves[0].donor, *decision.guests[0].terms, decision.guests[1].reason]
    assert all(is_visible(line) and len(line) <= LINE_LIMIT and "why; y" in line for line in told)


async def test_a_policy_that_writes_into_what_it_is_shown_deceives_only_itself(lab, autojump_clock):
    await lab.two()
    write = msgspec.structs.force_setattr

    def decide(snapshot):
        for guest in snapshot.guests:
            for name, value in (("floor_bytes", 0), ("cap_bytes", 2**40), ("baseline_bytes", 0), ("target_bytes", 1)):
                write(guest, name, value)
            write(guest.memory, "total", 1)
        write(snapshot, "budget_bytes", 2**50)
        decision = hold(snapshot, "")
        write(snapshot, "guests", ())
        if snapshot.carry is not None:
            snapshot.carry["n"] = -1
        wishes = [msgspec.structs.replace(guest, target_bytes=2**40) for guest in decision.guests]
        wishes[0] = msgspec.structs.replace(wishes[0], target_bytes=1)
        return msgspec.structs.replace(decision, guests=tuple(wishes), carry={"n": snapshot.cycle})

    await lab.run(30.0, the_policy=lab.policy(decide))
    assert not lab.of(Faulted)
    for event in lab.of(Decided):
        small, large = event.snapshot.guests
        assert (large.cap_bytes, event.snapshot.budget_bytes) == (800 * MIB, 1000 * MIB)
        assert small.floor_bytes >= 200 * MIB
        assert small.memory.total > 1
        assert event.snapshot.carry in (None, {"n": event.snapshot.cycle - 1})
    last = lab.of(Decided)[-1].decision
    assert last.target_of("small") == lab.of(Decided)[-1].snapshot.guests[0].floor_bytes
    assert last.target_of("large") <= 800 * MIB


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
async def test_terms_are_finite_numbers(lab, autojump_clock, value):
    await lab.two()

    def decide(snapshot):
        decision = hold(snapshot, "")
        guests = tuple(msgspec.structs.replace(guest, terms={"e": value}) for guest in decision.guests)
        return msgspec.structs.replace(decision, guests=guests)

    await lab.run(9.0, the_policy=lab.policy(decide))
    assert any(event.kind == "policy" for event in lab.of(Faulted))
    for event in lab.events:
        assert encoder.encode(decoder.decode(encoder.encode(event))) == encoder.encode(event)


async def test_the_moves_told_are_those_that_happen(lab, autojump_clock):
    await lab.two()
    await lab.run(5.0, the_policy=lab.toward(small=200, large=800))
    first = lab.of(Decided)[0].decision
    assert first.target_of("small") == (BASELINE - 128) * MIB
    assert [(move.donor, move.receiver, move.size_bytes // MIB) for move in first.moves] == [("small", "large", 128)]
