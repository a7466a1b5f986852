"""Guests that do not do what they are asked, and guests that somebody else commands."""

import os
from functools import partial

import pytest

from qmpalloc.control import inspection
from qmpalloc.events import Commanded, Decided, Faulted, SizeChanged
from qmpalloc.model import Limiter
from qmpalloc.testing import Refusal
from qmpalloc.units import MIB

BASELINE = 500


def at(seconds, function):
    return seconds, lambda _: function()


async def test_a_stuck_donor_is_set_to_what_it_achieved_and_left_alone(lab, autojump_clock):
    await lab.two()
    lab.guests["small"].qemu.balloon.least_bytes = 440 * MIB
    await lab.run(40.0, the_policy=lab.toward(small=380, large=620))
    accepted = next(event for event in lab.of(Commanded, "small") if event.purpose == "accept")
    assert accepted.target_bytes == 440 * MIB
    after = [event.decision.guests[0] for event in lab.of(Decided) if event.t > accepted.t]
    assert {verdict.limiter for verdict in after} == {Limiter.STUCK}
    assert {verdict.target_bytes for verdict in after} == {440 * MIB}
    grants = [event.target_bytes for event in lab.of(Commanded, "large") if event.purpose == "grant"]
    assert max(grants) == 560 * MIB
    assert any(event.kind == "stuck" and "driver" in event.hint for event in lab.of(Faulted, "small"))


async def test_a_stuck_receiver_gives_its_claim_back(lab, autojump_clock):
    await lab.two()

    def stall():
        lab.guests["large"].qemu.balloon.stalled = True

    lab.control["on_exit"] = "keep"
    await lab.run(40.0, the_policy=lab.toward(small=380, large=620), actions=[at(0.5, stall)])
    assert lab.of(Commanded, "large")[-1].purpose == "accept"
    assert lab.of(Decided)[-1].snapshot.guests[1].charge_bytes == BASELINE * MIB


async def test_a_stuck_guest_is_asked_again_later_and_obeys(lab, autojump_clock):
    await lab.two()
    balloon = lab.guests["small"].qemu.balloon
    balloon.stalled = True

    def free():
        balloon.stalled = False

    lab.control["on_exit"] = "keep"
    await lab.run(80.0, the_policy=lab.toward(small=400), actions=[at(25.0, free)])
    assert lab.size("small") == 400


async def test_a_stuck_guest_in_danger_gets_its_baseline_all_the_same(lab, autojump_clock):
    await lab.two()
    guest = lab.guests["small"]
    guest.qemu.balloon.least_bytes = 420 * MIB

    def squeeze():
        guest.cache.own_bytes = 415 * MIB

    await lab.run(50.0, the_policy=lab.toward(small=380), actions=[at(30.0, squeeze)])
    assert any(event.decision.guests[0].limiter is Limiter.DANGER for event in lab.of(Decided))
    assert lab.size("small") == BASELINE


async def test_every_interference_is_told(lab, autojump_clock):
    await lab.two()
    balloon = lab.guests["small"].qemu.balloon
    balloon.inflate_bytes_per_s = balloon.deflate_bytes_per_s = float("inf")
    await lab.run(40.0, "static", actions=[at(when, partial(balloon.request, 300 * MIB)) for when in (9.1, 29.1)])
    told = [event.message for event in lab.of(Faulted, "small") if event.kind == "interference"]
    assert len(told) == 2
    assert told[0] == told[1]


async def test_another_controller_is_noticed_and_then_left_alone(lab, autojump_clock):
    await lab.two()
    request = partial(lab.guests["small"].qemu.balloon.request, 300 * MIB)
    await lab.run(60.0, "static", actions=[at(second, request) for second in (9.1, 19.1, 29.1)])
    faults = [event for event in lab.of(Faulted, "small") if event.kind == "interference"]
    assert faults
    assert "second monitor" in faults[0].hint
    assert lab.states("small")[-1] == "held"
    assert not [event for event in lab.of(Commanded, "small") if 30 < event.t < 59]


@pytest.mark.parametrize(
    ("kind", "property_name", "value"),
    [("vfio-pci", "", None), ("vhost-vdpa-device-pci", "", None), ("memory-backend-memfd", "hugetlb", True)],
)
async def test_memory_that_does_not_come_back_to_the_host_is_refused(lab, autojump_clock, kind, property_name, value):
    await lab.two()
    qemu = lab.guests["small"].qemu
    own_list, own_get = qemu.commands["qom-list"], qemu.commands["qom-get"]
    container = "/machine/peripheral" if kind.startswith("v") else "/objects"

    def qom_list(arguments):
        children = [{"name": name, "type": f"child<{kind}>"} for name in ("plain", "it")]
        if arguments["path"] == "/objects":
            return children if container == "/objects" else []
        return own_list(arguments) + (children if arguments["path"] == container else [])

    def qom_get(arguments):
        if arguments["path"] == "/objects/plain":  # the memory of another NUMA node
            return False
        return value if arguments.get("property") == property_name else own_get(arguments)

    qemu.commands |= {"qom-list": qom_list, "qom-get": qom_get}
    await lab.run(12.0, budget=1400)
    assert lab.states("small")[-1] == "held"
    assert not lab.of(Commanded, "small")
    fault = lab.of(Faulted, "small")[0]
    assert "pins" in fault.message or "huge pages" in fault.message
    assert lab.states("large")[-1] == "fresh"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {("/machine", "confidential-guest-support"): "/objects/it", ("/objects/it", "type"): "sev-guest"},
            "sev-guest",
        ),
        (
            {("/machine", "confidential-guest-support"): "/objects/it", ("/objects/it", "type"): "tdx-guest"},
            "tdx-guest",
        ),
        ({("/machine", "confidential-guest-support"): "/objects/new-in-qemu-12"}, "new-in-qemu-12"),
        ({("/machine", "memory-backend"): "/objects/it", ("/objects/it", "readonly"): True}, "for reading only"),
    ],
)
async def test_memory_that_is_kept_from_the_host_is_refused(lab, autojump_clock, changes, says):
    await lab.two()
    qemu = lab.guests["small"].qemu
    own_get = qemu.commands["qom-get"]

    def qom_get(arguments):
        asked = arguments["path"], arguments["property"]
        return changes[asked] if asked in changes else own_get(arguments)

    qemu.commands["qom-get"] = qom_get
    await lab.run(12.0, budget=1400)
    assert lab.states("small")[-1] == "held"
    assert not lab.of(Commanded, "small")
    assert says in lab.of(Faulted, "small")[0].message
    assert lab.states("large")[-1] == "fresh"


async def test_a_host_whose_pages_are_larger_than_the_balloons_is_refused(lab, autojump_clock, monkeypatch):
    await lab.two()
    real = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 65_536 if name == "SC_PAGE_SIZE" else real(name))
    await lab.run(12.0, budget=1400)
    assert lab.states("small")[-1] == lab.states("large")[-1] == "held"
    assert not lab.of(Commanded)
    assert "the host's pages are of 64K" in lab.of(Faulted, "small")[0].message


async def test_memory_that_is_pinned_later_is_noticed_and_so_is_its_end(lab, autojump_clock):
    await lab.two()
    commands = lab.guests["small"].qemu.commands
    own_list = commands["qom-list"]
    device = {"name": "hotplugged", "type": "child<vfio-pci>"}

    def plug():
        commands["qom-list"] = lambda arguments: [*own_list(arguments), device]

    def unplug():
        commands["qom-list"] = own_list

    lab.may_exceed = True
    await lab.run(130.0, "static", actions=[at(9.1, plug), at(100.1, unplug)])
    assert lab.states("small")[-2:] == ["warming", "fresh"]
    fault = next(event for event in lab.of(Faulted, "small") if event.kind == "monitor")
    assert 60 <= fault.t < 66
    assert "vfio" in fault.message
    pinned = [event.snapshot.guests[0] for event in lab.of(Decided) if 70 < event.t < 100]
    assert {(guest.state, guest.charge_bytes) for guest in pinned} == {("held", 800 * MIB)}
    assert lab.size("large") == BASELINE


async def test_a_disk_that_qemu_drives_itself_is_refused(lab, autojump_clock):
    await lab.two()
    nodes = {"small": "nvme", "large": "file"}
    for name, driver in nodes.items():
        answer = [{"node-name": "n0", "drv": driver}]
        lab.guests[name].qemu.commands["query-named-block-nodes"] = lambda _, answer=answer: answer
    await lab.run(12.0, budget=1400)
    assert lab.states("small")[-1] == "held"
    assert "nvme://" in lab.of(Faulted, "small")[0].message
    assert lab.states("large")[-1] == "fresh"


async def test_a_network_by_vdpa_is_refused(lab, autojump_clock):
    await lab.two()
    info = "net0: index=0,type=vhost-vdpa,vhostdev=/dev/vhost-vdpa-0\r\n"
    lab.guests["small"].qemu.commands["human-monitor-command"] = lambda _: info
    await lab.run(12.0, budget=1400)
    assert lab.states("small")[-1] == "held"
    assert "a vDPA device pins" in lab.of(Faulted, "small")[0].message
    assert lab.states("large")[-1] == "fresh"


@pytest.mark.parametrize(("pinned_mib", "state"), [(600, "held"), (300, "fresh")])
async def test_memory_that_is_locked_on_the_host_is_refused(lab, autojump_clock, monkeypatch, pinned_mib, state):
    await lab.two()
    monkeypatch.setattr(inspection, "pinned_bytes", lambda process_id: pinned_mib * MIB)
    await lab.run(12.0, budget=1400)
    assert {lab.states(name)[-1] for name in ("small", "large")} == {state}
    told = [event.message for event in lab.of(Faulted, "small")]
    assert any("has 600M of memory locked" in message for message in told) == (state == "held")


async def test_a_guest_without_a_balloon_is_held_and_charged_with_its_cap(lab, autojump_clock):
    await lab.two()
    lab.guests["small"].qemu.balloon_id = None
    await lab.run(12.0, budget=1400)
    assert lab.states("small")[-1] == "held"
    assert not lab.of(Commanded, "small")
    fault = lab.of(Faulted, "small")[0]
    assert "no balloon device" in fault.message
    assert "virtio-balloon" in fault.hint
    assert lab.of(Decided)[-1].snapshot.guests[0].charge_bytes == 800 * MIB
    assert lab.states("large")[-1] == "fresh"


async def test_a_guest_that_somebody_migrates_is_not_touched(lab, autojump_clock):
    await lab.two()
    qemu = lab.guests["small"].qemu

    def migrate(status):
        qemu.migration = status

    await lab.run(50.0, actions=[at(9.1, partial(migrate, "active")), at(30.1, partial(migrate, "cancelled"))])
    assert "held" in lab.states("small")
    assert not [event for event in lab.of(Commanded, "small") if 15 < event.t < 30]
    assert lab.states("small")[-1] == "fresh"


async def test_a_command_that_was_not_answered_is_not_sent_again_while_somebody_migrates_the_guest(lab, autojump_clock):
    await lab.two()
    qemu = lab.guests["small"].qemu

    def hang(on):
        qemu.faults.hang = on

    def migrate(status):
        qemu.migration = status
        qemu.emit("MIGRATION", {"status": status})

    def commands():
        return [name for name, _ in qemu.requests].count("balloon")

    counts = []
    await lab.run(
        60.0,
        the_policy=lab.toward(small=400, large=600),
        actions=[
            at(1.9, partial(hang, True)),
            at(9.0, partial(migrate, "active")),
            at(10.0, partial(hang, False)),
            at(30.0, lambda: counts.append(commands())),
            at(31.0, partial(migrate, "completed")),
            at(45.0, lambda: counts.append(commands())),
        ],
    )
    assert counts[0] == 2  # to adopt it, and the one without an answer
    assert counts[1] > 2
    assert lab.of(Decided)[-1].snapshot.guests[0].charge_bytes == 400 * MIB


async def test_after_a_refusal_a_doubt_is_ended_by_asking_again(lab, autojump_clock):
    await lab.two()
    qemu = lab.guests["small"].qemu
    balloon = qemu.commands["balloon"]
    lab.control["on_exit"] = "keep"

    def hang(on):
        qemu.faults.hang = on

    def refuse(arguments):
        raise Refusal("no")

    def answer(how):
        qemu.commands["balloon"] = how

    charges = []
    note = lambda controller: charges.append(controller.guests[0].charge_bytes // MIB)  # noqa: E731
    await lab.run(
        40.0,
        the_policy=lab.toward(small=400, large=600),
        actions=[
            at(1.9, partial(hang, True)),
            at(6.0, partial(answer, refuse)),
            at(6.0, partial(hang, False)),
            (15.0, note),
            at(15.0, partial(answer, balloon)),
            (35.0, note),
        ],
    )
    assert charges == [BASELINE, 400]


async def test_a_qemu_without_migration_is_no_problem(lab, autojump_clock):
    await lab.two()

    def refuse(_):
        raise Refusal("not built in", "CommandNotFound")

    lab.guests["small"].qemu.commands["query-migrate"] = refuse
    await lab.run(9.0)
    assert lab.states("small")[-1] == "fresh"


async def test_a_guest_that_reboots_is_charged_with_all_of_its_memory(lab, autojump_clock):
    await lab.two()
    lab.may_grow = lab.may_exceed = True
    await lab.run(30.0, "static", actions=[at(9.1, lab.guests["small"].reboot)])
    charges = [event.snapshot.guests[0].charge_bytes for event in lab.of(Decided)]
    assert max(charges) == 800 * MIB
    assert charges[-1] == BASELINE * MIB


async def test_a_guest_that_reboots_stays_charged_when_its_connection_breaks_meanwhile(lab, autojump_clock):
    await lab.two()
    lab.may_grow = lab.may_exceed = True
    guest, charges = lab.guests["small"], []
    guest.qemu.balloon.boot_s = 20.0

    def reboot():
        guest.collecting = False
        guest.reboot()

    def break_connection(how):
        guest.qemu.commands["query-balloon"] = how

    note = lambda controller: charges.append(controller.guests[0].charge_bytes // MIB)  # noqa: E731
    await lab.run(
        30.0,
        actions=[
            at(9.1, reboot),
            at(11.0, partial(break_connection, lambda _: "nonsense")),
            at(14.0, partial(break_connection, guest.qemu.commands["query-balloon"])),
            (25.0, note),
        ],
    )
    assert lab.states("small").count("held") == 1
    assert charges == [800]


@pytest.mark.parametrize("collecting", [True, False], ids=["it reports again", "it never does"])
async def test_a_reboot_is_no_danger_squeezes_nobody_and_ends_at_the_baseline(lab, autojump_clock, collecting):
    await lab.two()
    lab.may_grow = lab.may_exceed = True
    lab.control["on_exit"] = "keep"
    guest = lab.guests["small"]

    def reboot():
        guest.collecting = collecting
        guest.reboot()

    await lab.run(100.0, the_policy=lab.toward(large=600), actions=[at(9.1, reboot)])
    told = [event.actual_bytes // MIB for event in lab.of(SizeChanged, "small") if event.t > 9.1]
    assert max(told) > 700  # all that its driver had not taken yet
    assert not [event for event in lab.of(Faulted) if event.kind in {"danger", "interference", "stuck"}]
    assert min(event.decision.target_of("large") for event in lab.of(Decided)) >= BASELINE * MIB
    assert (lab.size("small"), lab.size("large")) == (BASELINE, BASELINE)
    assert lab.states("small")[-1] == ("fresh" if collecting else "lost")
    assert lab.of(Decided)[-1].committed_bytes == 2 * BASELINE * MIB


async def test_without_a_driver_a_reset_guest_stays_charged_and_with_one_it_does_not(lab, autojump_clock):
    """A rescue shell, another system: nothing shows that it has given anything back."""
    await lab.two()
    lab.may_grow = lab.may_exceed = True
    lab.control["on_exit"] = "keep"
    guest, charges = lab.guests["small"], []
    balloon = guest.qemu.balloon

    def reboot():
        guest.collecting, balloon.stalled = False, True
        guest.reboot()

    def load_driver():
        balloon.stalled = False

    def decide(snapshot):
        return lab.toward(large=600 if snapshot.time_s > 20.0 else BASELINE).decide(snapshot)

    note = lambda controller: charges.append(controller.guests[0].charge_bytes // MIB)  # noqa: E731
    await lab.run(
        140.0,
        the_policy=lab.policy(decide),
        budget=1100,
        actions=[at(2.1, reboot), (129.0, note), at(130.1, load_driver), (138.0, note)],
    )
    assert charges == [800, BASELINE]
    grants = [event.t for event in lab.of(Commanded, "large") if event.purpose == "grant"]
    assert min(grants) > 130
    assert lab.size("large") == 600


async def test_a_guest_found_below_its_floor_is_brought_to_it_at_once_when_there_is_room(lab, autojump_clock):
    await lab.add("small", file_mib=20, size_mib=180)
    await lab.add("large", size_mib=500)
    lab.control["on_exit"] = "keep"
    await lab.run(1.5, the_policy=lab.toward())
    assert lab.size("small") == 200
    fault = next(event for event in lab.of(Faulted, "small") if event.kind == "floor")
    assert fault.message == "found at 180M, below its floor of 200M"


async def test_for_a_guest_found_below_its_floor_the_others_give(lab, autojump_clock):
    await lab.add("small", file_mib=20, size_mib=180)
    await lab.add("large", size_mib=800)
    await lab.add("other", size_mib=520)
    lab.control["on_exit"] = "keep"
    await lab.run(20.0, the_policy=lab.toward(), budget=1500)
    assert lab.size("small") == 200
    assert 1298 <= lab.size("large") + lab.size("other") <= 1300
