"""Balloon statistics of a new QEMU: read where they tell something, and never trusted with more than holding."""

import pytest

from qmpalloc.events import Commanded, Decided, Faulted
from qmpalloc.model import Limiter
from qmpalloc.units import MIB

BASELINE = 500


def report(qemu, second, stalls, kills):
    qemu.stats |= {"stat-alloc-stalls": stalls, "stat-oom-kills": kills}
    qemu.last_update = 1_700_000_000 + second


def reports(qemu, counts):
    """Actions that let the guest report these (stalls, kills) second by second."""
    return [
        (second, lambda _, second=second, count=count: report(qemu, second, *count))
        for second, count in enumerate(counts, start=1)
    ]


@pytest.mark.parametrize(("stalls", "kills", "told"), [(9000, 0, "wait for memory"), (20, 1, "killed")])
async def test_stalls_and_kills_are_danger(lab, autojump_clock, stalls, kills, told):
    await lab.two()
    qemu = lab.guests["small"].qemu
    qemu.version = (9, 2, 0)
    calm = [(second, 0) for second in range(1, 20)]
    await lab.run(30.0, the_policy=lab.toward(small=300), actions=reports(qemu, [*calm, (stalls, kills)]))
    fault = next(event for event in lab.of(Faulted, "small") if event.kind == "danger")
    assert told in fault.message
    assert lab.of(Decided)[-1].decision.guests[0].limiter is Limiter.DANGER
    assert lab.size("small") == BASELINE
    assert qemu.stats_interval_s == 1


async def test_an_older_qemu_is_not_asked(lab, autojump_clock):
    await lab.two()
    await lab.run(9.0)
    asked = [arguments.get("property") for command, arguments in lab.guests["small"].qemu.requests if command != "x"]
    assert "guest-stats" not in asked


@pytest.mark.parametrize("jump", [(2**64 - 2, 2**63), (0, 0), (-5, 7), (2**70, 0)])
async def test_statistics_that_jump_take_no_memory_from_anybody(lab, autojump_clock, jump):
    await lab.two()
    qemu = lab.guests["small"].qemu
    qemu.version = (9, 2, 0)
    before = [(100, 100)] * 5
    await lab.run(30.0, "static", actions=reports(qemu, [*before, jump, (5, 5), jump]))
    assert {event.target_bytes for event in lab.of(Commanded)} == {BASELINE * MIB}
    assert lab.states("large")[-1] == "fresh"


async def test_watching_does_not_even_switch_the_statistics_on(lab, autojump_clock):
    await lab.two()
    qemu = lab.guests["small"].qemu
    qemu.version = (9, 2, 0)
    await lab.run(9.0, mode="watch")
    assert "qom-set" not in [command for command, _ in qemu.requests]
