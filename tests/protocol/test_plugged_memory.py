"""Memory that is plugged and unplugged: what the balloon is measured against, and what stands outside of it."""

from functools import partial

import pytest

from qmpalloc.events import Commanded, Decided, Faulted, SampleRejected, SizeChanged
from qmpalloc.model import hold
from qmpalloc.units import MIB

BASELINE = 500


def keep(snapshot):
    return hold(snapshot, "test")


def trouble(lab):
    """Whatever a run has told of a guest that is not as it should be."""
    states = set(lab.states("small")) - {"connecting", "warming", "fresh"}
    dangers = [event for event in lab.of(Decided) if event.decision.guests[0].limiter == "danger"]
    return [*states, *lab.of(SampleRejected, "small"), *lab.of(Faulted, "small"), *dangers]


def last_seen(lab):
    return lab.of(Decided)[-1].snapshot.guests[0]


# The second size is within the RAM that was known, so that nothing about it is impossible.
@pytest.mark.parametrize(("size_mib", "dimm_mib"), [(800, 128), (400, 128), (400, 2), (400, 1024)])
async def test_a_dimm_that_is_plugged_is_no_danger_and_stays_with_its_guest(lab, autojump_clock, size_mib, dimm_mib):
    lab.may_grow = True
    lab.control["on_exit"] = "keep"
    await lab.add("small", file_mib=100, size_mib=size_mib)
    await lab.add("large", file_mib=900)
    plug = partial(lab.guests["small"].qemu.plug, "dimm0", "dimm", dimm_mib * MIB)
    await lab.run(30.0, budget=4000, actions=[(9.1, lambda _: plug())], the_policy=lab.policy(keep))
    assert not trouble(lab)
    kept_mib = min(size_mib + dimm_mib, 800)  # the configured cap holds
    assert lab.size("small") == kept_mib
    assert (last_seen(lab).target_bytes, last_seen(lab).charge_bytes) == (kept_mib * MIB, kept_mib * MIB)
    assert size_mib + dimm_mib in [event.target_bytes // MIB for event in lab.of(SizeChanged, "small")]
    assert lab.of(Decided)[-1].committed_bytes == (kept_mib + BASELINE) * MIB


async def test_a_dimm_that_the_kernel_does_not_use_is_not_taken_from_what_it_does_use(lab, autojump_clock):
    """The budget does not hold it, the cap neither: to give it back, the guest would have to give up all else."""
    lab.may_grow = lab.may_exceed = True
    lab.control["on_exit"] = "keep"
    await lab.two()
    guest = lab.guests["small"]

    def plug(_):
        guest.offline_bytes = 1024 * MIB
        guest.qemu.plug("dimm0", "dimm", 1024 * MIB)

    def use(_):
        guest.offline_bytes = 0

    used = []

    def look(_):
        used.append(lab.size("small") - guest.offline_bytes // MIB)

    actions = [(9.1, plug), *((when, look) for when in range(10, 60)), (60.0, use)]
    await lab.run(90.0, the_policy=lab.policy(keep), actions=actions)
    assert min(used) >= 200
    assert lab.size("small") == BASELINE  # once it uses all of it, the budget is answered


async def test_a_dimm_that_is_plugged_while_the_guest_shrinks_keeps_its_target_known(lab, autojump_clock):
    lab.may_grow = True
    lab.control["on_exit"] = "keep"
    await lab.add("small", file_mib=100, size_mib=700, rate_mib=10.0)
    await lab.add("large", file_mib=100, size_mib=300)
    qemu = lab.guests["small"].qemu
    await lab.run(
        60.0,
        budget=4000,
        the_policy=lab.toward(small=600),
        actions=[(6.0, lambda _: qemu.plug("dimm0", "dimm", 128 * MIB))],
    )
    assert not trouble(lab)
    assert lab.size("small") == 600
    assert qemu.balloon.target_bytes == 600 * MIB


async def test_a_dimm_that_is_unplugged_is_no_interference_and_no_absurdity(lab, autojump_clock):
    lab.control["on_exit"] = "keep"
    await lab.add("small", file_mib=100)
    await lab.add("large", file_mib=900)
    qemu = lab.guests["small"].qemu
    qemu.plug("dimm0", "dimm", 128 * MIB)
    unplug = partial(qemu.unplug, "dimm0")
    await lab.run(30.0, budget=2000, the_policy=lab.policy(keep), actions=[(9.1, lambda _: unplug())])
    assert not trouble(lab)
    assert lab.size("small") == last_seen(lab).target_bytes // MIB
    assert last_seen(lab).charge_bytes >= BASELINE * MIB


@pytest.mark.parametrize("kind", ["nvdimm", "virtio-pmem"])
async def test_a_file_that_is_seen_as_memory_is_no_ram(lab, autojump_clock, kind):
    await lab.two()
    lab.guests["small"].qemu.plug("nv0", kind, 4096 * MIB)
    await lab.run(12.0)
    assert not trouble(lab)
    seen = last_seen(lab)
    assert seen.floor_bytes == 200 * MIB
    assert seen.charge_bytes == seen.actual_bytes < BASELINE * MIB


@pytest.mark.parametrize("how", ["event", "poll"])
async def test_memory_outside_of_the_balloon_is_charged_to_the_budget(lab, autojump_clock, how):
    lab.may_exceed = lab.may_grow = True
    await lab.add("small", file_mib=100)
    await lab.add("large", file_mib=900)
    qemu = lab.guests["small"].qemu
    requested = {"requested-size": 100 * MIB, "max-size": 4096 * MIB}
    qemu.plug("vm0", "virtio-mem", 64 * MIB, **requested)

    def grow(_):
        qemu.plug("vm0", "virtio-mem", 300 * MIB, **requested | {"requested-size": 300 * MIB})
        if how == "event":
            qemu.emit("MEMORY_DEVICE_SIZE_CHANGE", {"id": "vm0", "size": 300 * MIB, "qom-path": "/machine"})

    told = {}

    def look(controller):
        told["charge"] = controller.guests[0].charge_bytes - controller.guests[0].outside_bytes
        told["outside"] = controller.guests[0].outside_bytes

    actions = [(9.1, grow), (9.5 if how == "event" else 14.5, look)]
    await lab.run(60.0, "static", budget=1200, actions=actions)
    assert not lab.of(SampleRejected)
    first, last = lab.of(Decided)[0], lab.of(Decided)[-1]
    assert first.committed_bytes == (2 * BASELINE + 100) * MIB  # what was asked for counts, if that is more
    assert told["outside"] == 300 * MIB
    sizes = [(event.outside_bytes // MIB, event.committed_bytes // MIB) for event in lab.of(SizeChanged, "small")]
    assert (300, 2 * BASELINE + 300) in sizes
    assert "budget" in {event.kind for event in lab.of(Faulted)}
    assert all(guest.target_bytes <= BASELINE * MIB for guest in last.snapshot.guests)


async def test_what_virtio_mem_has_is_granted_to_nobody_else(lab, autojump_clock):
    lab.guests.clear()
    await lab.two()
    lab.guests["small"].qemu.plug("vm0", "virtio-mem", 200 * MIB, **{"requested-size": 200 * MIB})
    await lab.run(30.0, budget=1300, the_policy=lab.toward(large=800))
    last = lab.of(Decided)[-1]
    assert last.committed_bytes == 1300 * MIB
    assert max(event.actual_bytes for event in lab.of(SizeChanged, "large")) == 600 * MIB


async def test_a_qemu_that_has_ended_has_no_memory_outside_of_its_balloon(lab, autojump_clock):
    await lab.two()
    qemu = lab.guests["small"].qemu
    qemu.plug("vm0", "virtio-mem", 200 * MIB, **{"requested-size": 200 * MIB})
    await lab.run(20.0, budget=1300, actions=[(6.5, lambda _: qemu.shut_down())])
    assert lab.states("small")[-1] == "gone"
    assert last_seen(lab).charge_bytes == 0


async def test_more_memory_than_was_plugged_is_still_absurd(lab, autojump_clock):
    await lab.two()
    guest = lab.guests["small"]
    guest.qemu.plug("vm0", "virtio-mem", 64 * MIB, **{"requested-size": 64 * MIB})
    guest.qemu.commands["query-memory-devices"] = lambda _: []
    await lab.run(12.0, budget=1300)
    assert {event.fault.value for event in lab.of(SampleRejected, "small")} == {"absurd"}


async def test_a_size_above_all_ram_is_nonsense_also_after_it_was_asked_for_again(lab, autojump_clock):
    await lab.two()
    lab.may_exceed = True  # it is charged with its cap
    qemu = lab.guests["small"].qemu

    def lie(_):
        qemu.commands["query-balloon"] = lambda _: {"actual": 900 * MIB}

    await lab.run(20.0, actions=[(6.5, lie)])
    assert lab.states("small")[-1] == "held"
    assert not [event for event in lab.of(Commanded, "small") if event.t > 8]
