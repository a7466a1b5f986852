"""Guests whose memory virtio-mem moves: obedient ones, and all that can go wrong with them."""

from functools import partial

import pytest

from qmpalloc.control.inspection import ask_facts, choose_actuator, measure
from qmpalloc.errors import RefusedError
from qmpalloc.events import Commanded, Decided, Faulted, SizeChanged
from qmpalloc.model import Limiter
from qmpalloc.qmp import find_actuators
from qmpalloc.qmp.actuator import nearest_order
from qmpalloc.testing import FakeBalloon, FakeQemu, FakeVirtioMem, Refusal
from qmpalloc.units import GIB, MIB, Grid
from tests.protocol.clients import monitor_of

BASELINE = 500
BASE = 200
"""RAM of the guest, which is its floor."""


def at(seconds, function):
    return seconds, lambda _: function()


async def plugged_and_ballooned(lab, **changes):
    """A guest with virtio-mem, and one with a balloon."""
    await lab.add("small", file_mib=100, **{"base_mib": BASE} | changes)
    await lab.add("large", file_mib=900)
    return lab.guests["small"].qemu


def kinds(lab, name="small"):
    return [event.kind for event in lab.of(Faulted, name)]


def last(lab):
    return lab.of(Decided)[-1].snapshot.guests[0]


@pytest.mark.parametrize("wanted", [{"small": 350, "large": 650}, {"small": 650, "large": 350}])
async def test_memory_moves_between_a_balloon_and_virtio_mem(lab, autojump_clock, wanted):
    """The lab checks that the budget holds at every instant, in what is committed and in what the guests have."""
    lab.control["on_exit"] = "keep"
    qemu = await plugged_and_ballooned(lab, rate_mib=40.0)
    await lab.run(40.0, the_policy=lab.toward(**wanted))
    assert {name: lab.size(name) for name in wanted} == wanted
    assert qemu.virtio_mem.requested_bytes == (wanted["small"] - BASE) * MIB
    assert "balloon" not in {command for command, _ in qemu.requests}
    assert not lab.of(Faulted)


async def test_targets_are_whole_blocks_and_the_rest_is_nobodys(lab, autojump_clock):
    lab.control["on_exit"] = "keep"
    qemu = await plugged_and_ballooned(lab)
    await lab.run(20.0, the_policy=lab.toward(small=377, large=623))
    assert (lab.size("small"), lab.size("large")) == (376, 623)
    targets = [event.target_bytes for event in lab.of(Commanded, "small")]
    assert len(targets) == 2  # to adopt it, and one order: the rest of a block is not asked for again and again
    assert all((target - BASE * MIB) % qemu.virtio_mem.grid.unit_bytes == 0 for target in targets)


async def test_it_returns_to_its_baseline_at_the_end(lab, autojump_clock):
    await plugged_and_ballooned(lab)
    await lab.run(20.0, the_policy=lab.toward(small=300))
    assert lab.size("small") == BASELINE
    assert lab.events[-1].clean


async def test_its_ram_is_its_floor_and_what_the_backend_holds_its_cap(lab, autojump_clock):
    lab.control["on_exit"] = "keep"
    await plugged_and_ballooned(lab, base_mib=300, most_mib=250)
    await lab.run(30.0, budget=2000, the_policy=lab.toward(small=790))
    assert (last(lab).floor_bytes, last(lab).cap_bytes) == (300 * MIB, 550 * MIB)
    assert lab.size("small") == 550
    assert not lab.of(Faulted)


async def test_an_unplug_that_stalls_is_stuck_at_what_it_achieved(lab, autojump_clock):
    qemu = await plugged_and_ballooned(lab)
    qemu.virtio_mem.least_bytes = 440 * MIB
    lab.control["on_exit"] = "keep"
    await lab.run(40.0, the_policy=lab.toward(small=380, large=620))
    accepted = next(event for event in lab.of(Commanded, "small") if event.purpose == "accept")
    assert accepted.target_bytes == 440 * MIB
    assert lab.of(Decided)[-1].decision.guests[0].limiter is Limiter.STUCK
    assert lab.size("large") == 560
    fault = next(event for event in lab.of(Faulted, "small") if event.kind == "stuck")
    assert "online_movable" in fault.hint


async def test_a_guest_without_the_virtio_mem_driver_is_stuck_at_its_ram(lab, autojump_clock):
    qemu = await plugged_and_ballooned(lab, size_mib=BASE)
    qemu.virtio_mem.stalled = True
    lab.control["on_exit"] = "keep"
    await lab.run(40.0, the_policy=lab.toward(small=400))
    assert lab.size("small") == BASE
    assert last(lab).charge_bytes == BASE * MIB
    fault = next(event for event in lab.of(Faulted, "small") if event.kind == "stuck")
    assert "does not grow" in fault.message
    assert "virtio_mem driver" in fault.hint


async def test_an_unplug_that_qemu_refuses_holds_the_guest_and_is_tried_again(lab, autojump_clock):
    qemu = await plugged_and_ballooned(lab)
    own = qemu.commands["qom-set"]

    def refuse(_):
        raise Refusal("Device is busy")

    def answer(how):
        qemu.commands["qom-set"] = how

    lab.control["on_exit"] = "keep"
    actions = [at(1.5, partial(answer, refuse)), at(12.0, partial(answer, own))]
    await lab.run(40.0, the_policy=lab.toward(small=400), actions=actions)
    assert "held" in lab.states("small")
    told = next(event for event in lab.of(Faulted, "small") if event.kind == "virtio-mem")
    assert "qom-set was refused: Device is busy" in told.message
    assert lab.states("small")[-1] == "fresh"
    assert lab.size("small") == 400


async def test_a_reboot_with_plugged_memory_is_charged_with_the_target_and_no_interference(lab, autojump_clock):
    qemu = await plugged_and_ballooned(lab, rate_mib=20.0)
    sizes = []
    look = lambda: sizes.append(lab.size("small"))  # noqa: E731
    lab.control["on_exit"] = "keep"
    reboot = lab.guests["small"].reboot
    await lab.run(40.0, "static", actions=[at(9.1, reboot), at(9.2, look), at(35.0, look)])
    assert sizes[0] < 300  # QEMU has unplugged all
    assert sizes[1] == BASELINE  # and the new system's driver plugged it again
    charges = {event.snapshot.guests[0].charge_bytes for event in lab.of(Decided)}
    assert charges == {BASELINE * MIB}
    assert qemu.virtio_mem.target_bytes == BASELINE * MIB
    assert not set(kinds(lab)) & {"interference", "stuck", "danger"}


async def test_a_size_that_somebody_else_asks_for_is_told_and_set_right(lab, autojump_clock):
    lab.may_grow = lab.may_exceed = True
    qemu = await plugged_and_ballooned(lab)
    for when, size in ((9.1, 700), (29.1, 300)):
        lab.control["on_exit"] = "keep"
        lab.events.clear()
        await lab.run(25.0, "static", actions=[at(when % 10, partial(qemu.virtio_mem.request, size * MIB))])
        assert kinds(lab).count("interference") == 1
        assert lab.size("small") == BASELINE
        dangers = [event for event in lab.of(Decided) if event.decision.guests[0].limiter is Limiter.DANGER]
        assert not dangers  # it cannot have grown by itself


async def test_qemus_event_tells_of_a_new_size_at_once(lab, autojump_clock):
    lab.may_grow = lab.may_exceed = True
    lab.control["sample_interval"], lab.control["late_after"] = "4s", "9s"
    qemu = await plugged_and_ballooned(lab)
    await lab.run(25.0, "static", actions=[at(9.05, partial(qemu.virtio_mem.request, 700 * MIB))])
    seen = next(event for event in lab.of(SizeChanged, "small") if event.actual_bytes == 700 * MIB)
    assert seen.t < 9.5


async def test_a_device_that_is_unplugged_is_held_and_told(lab, autojump_clock):
    lab.may_exceed = True  # it is charged with its cap
    qemu = await plugged_and_ballooned(lab)

    def unplug():
        qemu.commands["query-memory-devices"] = lambda _: []

    await lab.run(20.0, actions=[at(9.1, unplug)])
    assert lab.states("small")[-1] == "held"
    assert any("is gone" in event.message for event in lab.of(Faulted, "small"))
    assert lab.states("large")[-1] == "fresh"


# --- both devices, and which of them fits ---------------------------------------------------------------


def with_both():
    return FakeQemu(balloon=FakeBalloon(GIB), virtio_mem=FakeVirtioMem(GIB, 2 * GIB))


def assign(qemu, kind="vfio-pci"):
    """Give it a device."""
    own = qemu.commands["qom-list"]

    def listing(arguments):
        more = [{"name": "dev0", "type": f"child<{kind}>"}] if arguments["path"] == "/machine/peripheral" else []
        return [*own(arguments), *more]

    qemu.commands["qom-list"] = listing


async def test_of_both_the_balloon_moves_the_memory_and_the_rest_is_charged(autojump_clock):
    qemu = with_both()
    qemu.virtio_mem.request(GIB + 512 * MIB)
    async with monitor_of(qemu) as monitor:
        actuator = await choose_actuator(monitor)
        facts = await ask_facts(actuator)
    assert (actuator.kind, facts.actuator, facts.takes_back) == ("balloon", "balloon", True)
    assert (facts.ram_bytes, facts.outside_bytes) == (GIB, 512 * MIB)
    assert facts.grid == Grid()


async def test_of_both_virtio_mem_moves_what_a_balloon_cannot_give_back(autojump_clock):
    qemu = with_both()
    assign(qemu)
    qemu.virtio_mem.request(GIB + 512 * MIB)
    async with monitor_of(qemu) as monitor:
        actuator = await choose_actuator(monitor)
        facts, actual_bytes = await measure(actuator, await ask_facts(actuator))
    assert (actuator.kind, facts.takes_back, facts.deflate_on_oom) == ("virtio-mem", False, False)
    assert facts.balloon_path  # it still tells statistics
    assert (facts.ram_bytes, facts.outside_bytes, actual_bytes) == (3 * GIB, 0, GIB + 512 * MIB)
    assert facts.grid == Grid(GIB, 2 * MIB)


async def test_a_balloon_alone_with_an_assigned_device_is_pointed_at_virtio_mem(autojump_clock):
    qemu = FakeQemu()
    assign(qemu)
    async with monitor_of(qemu) as monitor:
        with pytest.raises(RefusedError, match="pins") as caught:
            await choose_actuator(monitor)
    assert "virtio-mem" in caught.value.hint


async def test_nothing_moves_the_memory_of_a_confidential_guest(autojump_clock):
    qemu = with_both()
    qemu.machine["confidential-guest-support"] = "/objects/sev0"
    async with monitor_of(qemu) as monitor:
        with pytest.raises(RefusedError, match="kept from the host"):
            await choose_actuator(monitor)


async def test_of_several_devices_the_one_with_most_room_is_moved_and_the_others_are_charged(autojump_clock):
    qemu = FakeQemu(virtio_mem=FakeVirtioMem(GIB, GIB))
    more = {"requested-size": 96 * MIB, "max-size": 512 * MIB, "memaddr": 1 << 40}
    qemu.plug("vm1", "virtio-mem", 64 * MIB, **more)
    async with monitor_of(qemu) as monitor:
        facts = await ask_facts(await choose_actuator(monitor))
    assert (facts.ram_bytes, facts.outside_bytes) == (2 * GIB, 96 * MIB)


async def test_more_than_the_memory_backend_holds_is_refused_with_a_hint(autojump_clock):
    qemu = FakeQemu(virtio_mem=FakeVirtioMem(GIB, 512 * MIB))
    async with monitor_of(qemu) as monitor:
        [actuator] = await find_actuators(monitor)
        with pytest.raises(RefusedError, match="cannot exceed the memory backend size") as caught:
            await actuator.order(2 * GIB)
        assert "more than its 512 MiB" in caught.value.hint
        with pytest.raises(RefusedError, match="multiples of 'block-size'"):
            await actuator.order(GIB + MIB)
        nearest = [nearest_order(await actuator.memory(), size) for size in (2 * GIB, GIB + 3 * MIB, 5 * MIB)]
        assert nearest == [GIB + 512 * MIB, GIB + 2 * MIB, GIB]
        await actuator.order(nearest[0])
        assert await actuator.size_bytes() == GIB + 512 * MIB


async def test_a_guest_changes_over_to_virtio_mem_when_a_device_is_assigned_to_it(lab, autojump_clock):
    """Sizes go on being true: what the balloon had taken is not given back any more, so it counts again."""
    lab.may_grow = lab.may_exceed = True
    lab.control["on_exit"] = "keep"
    qemu = await plugged_and_ballooned(lab)
    qemu.balloon, qemu.balloon_id = FakeBalloon(BASE * MIB), "balloon0"
    await lab.run(90.0, budget=1100, the_policy=lab.toward(small=600), actions=[at(5.0, partial(assign, qemu))])
    assert lab.size("small") == 600
    assert last(lab).outside_bytes == 0
    assert lab.states("small")[-1] == "fresh"
