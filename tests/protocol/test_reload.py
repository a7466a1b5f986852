"""Guests that come and go while a run goes on, and a host that runs out of memory under it."""

import math
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest
import trio

from qmpalloc.config import parse
from qmpalloc.control.controller import Controller
from qmpalloc.errors import ConfigError
from qmpalloc.events import Commanded, ControlChanged, Decided, Faulted, Reloaded, SizeChanged
from qmpalloc.model import HostMemory, Limiter, hold
from qmpalloc.rules.hostguard import BLIND_MOST_S
from qmpalloc.testing import Refusal
from qmpalloc.text import LINE_LIMIT, is_visible
from qmpalloc.units import GIB, MIB

BASELINE = 500


def reloading(lab, *names, budget=1000):
    """An action that reloads a configuration with these guests."""

    def act(controller):
        guests = tuple(guest for guest in lab.config(budget=9999).guests if guest.name in names)
        host = msgspec.structs.replace(controller.config.host, budget=budget * MIB)
        controller.reload(lambda: msgspec.structs.replace(controller.config, host=host, guests=guests))

    return act


async def test_a_removed_guest_goes_home_and_is_then_forgotten(lab, autojump_clock):
    await lab.two()
    lab.control["on_exit"] = "baseline"
    controller = await lab.run(30.0, actions=[(9.1, reloading(lab, "large"))])
    assert [guest.name for guest in controller.guests] == ["large"]
    assert lab.size("small") == BASELINE
    reloaded = lab.of(Reloaded)
    assert (reloaded[0].leaving, reloaded[-1].leaving) == (("small",), ())
    assert [guest.name for guest in reloaded[-1].guests] == ["large"]
    assert [len(event.decision.guests) for event in lab.of(Decided)][-1] == 1
    assert not [event for event in lab.of(SizeChanged, "small") if event.t > reloaded[-1].t]


async def test_a_removed_guest_is_waited_for_as_long_as_it_comes_closer(lab, autojump_clock):
    await lab.two()
    slow = lab.guests["large"].qemu.balloon

    def be_slow(_):
        slow.inflate_bytes_per_s = 5 * MIB

    actions = [(60.0, be_slow), (60.1, reloading(lab, "small"))]
    controller = await lab.run(140.0, the_policy=lab.toward(small=200, large=800), actions=actions)
    assert max(event.actual_bytes for event in lab.of(SizeChanged, "large")) > 750 * MIB  # 50 s away and more
    assert [guest.name for guest in controller.guests] == ["small"]
    assert lab.size("large") == BASELINE
    assert not lab.of(Faulted, "large")


async def test_an_added_guest_that_runs_takes_part(lab, autojump_clock):
    await lab.two()
    await lab.add("third", size_mib=400)
    del lab.guests["third"]  # not configured at first
    third = partial(lab.guests.__setitem__, "third")
    await lab.run(
        30.0,
        "paper",
        budget=1500,
        actions=[(9.0, lambda _: third(None)), (9.1, reloading(lab, "small", "large", "third", budget=1500))],
    )
    assert lab.states("third")[-1] == "fresh"
    assert len(lab.of(Decided)[-1].decision.guests) == 3
    assert lab.of(Commanded, "third")


async def test_room_is_made_before_an_added_guest_starts(lab, autojump_clock):
    await lab.two()
    lab.may_exceed = True
    lab.guests["third"] = None
    actions = [(0.0, reloading(lab, "small", "large", budget=1900)), (15.1, reloading(lab, *lab.guests, budget=1900))]
    wanted = lab.toward(small=700, large=700)
    await lab.run(40.0, the_policy=wanted, budget=1900, actions=actions)
    told = next(event for event in lab.of(ControlChanged) if "room for third" in event.detail)
    charged = [event.committed_bytes for event in lab.of(Decided) if event.t > told.t]
    assert max(charged) <= 1900 * MIB
    assert lab.of(Decided)[-1].snapshot.guests[2].charge_bytes == 800 * MIB


async def test_room_for_a_guest_that_never_starts_is_given_back(lab, autojump_clock):
    await lab.two()
    lab.may_exceed = True
    lab.guests["third"] = None
    everyone = reloading(lab, "small", "large", "third", budget=1600)
    actions = [(0.0, reloading(lab, "small", "large", budget=1600)), (5.1, everyone)]
    await lab.run(330.0, the_policy=lab.toward(small=700, large=700), budget=1600, actions=actions)
    assert any(event.kind == "room" for event in lab.of(Faulted, "third"))
    assert lab.of(Decided)[-1].snapshot.guests[2].charge_bytes == 0


async def test_room_that_is_kept_goes_to_a_guest_in_danger(lab, autojump_clock):
    await lab.two()
    lab.may_exceed = True
    lab.control["on_exit"] = "keep"
    lab.guests["third"] = None
    small = lab.guests["small"]

    def squeeze(_):
        small.cache.own_bytes = small.qemu.balloon.actual_bytes - 5 * MIB

    two, three = (reloading(lab, *names, budget=1500) for names in (("small", "large"), lab.guests))
    actions = [(0.0, two), (20.1, three), (40.0, squeeze)]
    await lab.run(60.0, the_policy=lab.toward(small=300, large=700), budget=1500, actions=actions)
    assert lab.size("small") == BASELINE
    fault = next(event for event in lab.of(Faulted, "third") if event.kind == "room")
    assert "small is in danger" in fault.message


async def test_new_limits_hold_at_once(lab, autojump_clock):
    await lab.two()

    def change(controller):
        guests = tuple(msgspec.structs.replace(guest, cap=550 * MIB) for guest in controller.config.guests)
        controller.reload(lambda: msgspec.structs.replace(controller.config, guests=guests))

    await lab.run(30.0, the_policy=lab.toward(small=300, large=700), actions=[(4.1, change)])
    assert lab.of(Decided)[-1].decision.target_of("large") == 550 * MIB


async def test_a_smaller_budget_is_kept(lab, autojump_clock):
    await lab.two()
    lab.may_exceed = True
    loaded = reloading(lab, "small", "large", budget=1000)
    await lab.run(30.0, the_policy=lab.toward(small=600, large=600), budget=1200, actions=[(9.1, loaded)])
    assert lab.of(Decided)[-1].committed_bytes <= 1000 * MIB


@pytest.mark.parametrize(
    "mistake",
    [
        ConfigError("unknown key", file="lab.toml", key="host.bugdet", hint="did you mean budget?"),
        ValueError("bugdet"),
    ],
)
async def test_a_mistake_changes_nothing_and_is_told(lab, autojump_clock, mistake):
    await lab.two()

    def wrong(controller):
        def fail():
            raise mistake

        controller.reload(fail)

    controller = await lab.run(20.0, actions=[(9.1, wrong)])
    fault = next(event for event in lab.of(Faulted) if event.kind == "reload")
    assert "bugdet" in fault.message
    assert "nothing was changed" in fault.hint
    assert len(controller.guests) == 2
    assert not lab.of(Reloaded)


def renaming(**names):
    """An action that reloads the configuration with other names for the same sockets."""

    def act(controller):
        guests = tuple(
            msgspec.structs.replace(guest, name=names.get(guest.name, guest.name)) for guest in controller.config.guests
        )
        controller.reload(lambda: msgspec.structs.replace(controller.config, guests=guests))

    return act


async def test_a_renamed_guest_stays_as_it_is_and_is_charged_once(lab, autojump_clock):
    await lab.two()
    policy = lab.toward(small=300, large=700, tiny=300)
    controller = await lab.run(40.0, the_policy=policy, actions=[(20.1, renaming(small="tiny"))])
    assert [guest.name for guest in controller.guests] == ["tiny", "large"]
    after = [event for event in lab.of(Decided) if event.t > 20.1]
    assert {event.decision.target_of("tiny") for event in after} == {300 * MIB}
    assert {event.decision.target_of("large") for event in after} == {700 * MIB}
    assert {seen.state for event in after for seen in event.snapshot.guests} == {"fresh"}
    assert [event for event in lab.of(Commanded) if 20.1 < event.t < 39.0] == []
    assert not lab.of(Faulted)
    assert lab.of(Reloaded)[0].renamed == {"small": "tiny"}
    assert lab.states("tiny") == ["fresh"]
    assert lab.of(SizeChanged, "tiny")[0].actual_bytes == 300 * MIB
    assert lab.size("small") == BASELINE  # at the end, over the connection of the beginning


async def test_guests_that_swap_names_keep_what_they_have(lab, autojump_clock):
    await lab.two()
    policy = lab.toward(small=300, large=700)
    swap = renaming(small="large", large="small")
    controller = await lab.run(30.1, the_policy=policy, actions=[(20.1, swap), (20.2, swap)])
    assert [guest.name for guest in controller.guests] == ["small", "large"]
    assert [event for event in lab.of(Commanded) if 20.1 < event.t < 30.0] == []
    assert not lab.of(Faulted)


async def test_what_a_policy_carries_by_name_is_not_taken_for_another_guests(lab, autojump_clock):
    await lab.two()
    carried = []

    def decide(snapshot):
        carried.append((snapshot.time_s, snapshot.carry))
        return msgspec.structs.replace(hold(snapshot, "test"), carry={"small": snapshot.cycle})

    await lab.run(30.1, the_policy=lab.policy(decide), actions=[(20.1, renaming(small="large", large="small"))])
    (_, at_first), *others = carried
    assert at_first is None
    before, after = ([carry for t, carry in others if (t > 20.1) is late] for late in (False, True))
    assert None not in before
    assert after[0] is None
    assert None not in after[1:]


async def test_what_goes_wrong_with_a_renamed_guest_is_told_of_its_new_name(lab, autojump_clock):
    await lab.two()

    def hang(_):
        lab.guests["small"].qemu.faults.hang = True

    await lab.run(40.0, actions=[(10.0, hang), (20.1, renaming(small="tiny"))])
    assert lab.states("tiny")[0] == "hung"
    assert not [event for event in lab.events if getattr(event, "guest", None) == "small" and event.t > 20.1]


async def test_the_sockets_of_a_guest_on_its_way_out_are_not_given_to_another(lab, autojump_clock):
    await lab.two()
    lab.guests["small"].qemu.balloon.deflate_bytes_per_s = 5 * MIB
    everyone = lab.config().guests

    def again(controller):
        back = msgspec.structs.replace(everyone[0], name="tiny")
        controller.reload(lambda: msgspec.structs.replace(controller.config, guests=(back, everyone[1])))

    actions = [(20.1, reloading(lab, "large")), (22.0, again), (80.0, again)]
    controller = await lab.run(100.0, the_policy=lab.toward(small=300, large=500), actions=actions)
    (told,) = [event for event in lab.of(Faulted) if event.kind == "reload"]
    assert "small is still on its way out" in told.message
    assert [guest.name for guest in controller.guests] == ["tiny", "large"]


async def test_several_mistakes_are_told_in_one_line(lab, autojump_clock):
    await lab.two()
    text = '[host]\nbugdet = "1GiB"\n' + "".join(
        f'[[guest]]\nname = "{name}"\nmonitor = "{name}.qmp"\nagent = "{name}.agent"\nfloor = "2"\ncap = 1\n'
        for name in "abcdefgh"
    )
    broken = lambda controller: controller.reload(lambda: parse(text, file=lab.directory / "lab.toml"))  # noqa: E731
    await lab.run(12.0, actions=[(9.1, broken)])
    (fault,) = [event for event in lab.of(Faulted) if event.kind == "reload"]
    assert f"{lab.directory}/lab.toml: host.bugdet: unknown key; guest[0].floor: " in fault.message
    for line in (fault.message, fault.hint):
        assert is_visible(line)
        assert len(line) <= LINE_LIMIT


async def test_the_faults_of_a_guest_that_comes_back_are_told_again(lab, autojump_clock):
    await lab.two()
    lab.control["on_exit"] = "keep"
    lab.may_exceed = True  # room is kept for it

    def refuse(arguments):
        raise Refusal("no balloon today", "DeviceNotActive")

    lab.guests["small"].qemu.commands["query-balloon"] = refuse
    actions = [(15.1, reloading(lab, "large")), (20.1, reloading(lab, "small", "large"))]
    await lab.run(40.0, actions=actions)
    times = [event.t for event in lab.of(Faulted, "small") if "no balloon today" in event.message]
    assert [time > 20 for time in times] == [False, True]


async def test_a_guest_removed_while_its_qemu_hangs_does_not_stay_for_ever(lab, autojump_clock):
    await lab.two()

    def hang(_):
        lab.guests["small"].qemu.faults.hang = True

    controller = await lab.run(60.0, actions=[(9.1, hang), (15.1, reloading(lab, "large", budget=600))])
    assert [guest.name for guest in controller.guests] == ["large"]
    assert any(event.kind == "exit" for event in lab.of(Faulted, "small"))


@pytest.mark.parametrize("paused", [False, True])
async def test_a_host_without_memory_gets_some_from_every_guest_whatever_the_policy_wants(lab, autojump_clock, paused):
    await lab.two()
    lab.control["on_exit"] = "keep"
    host = {"available": 8 * GIB}
    loaded = lab.config()
    policy = lab.toward(small=500, large=500)

    def read_host():
        return HostMemory(total_bytes=16 * GIB, available_bytes=host["available"])

    controller = Controller(loaded, policy, lab.events.append, read_host=read_host)
    async with lab_running(controller, 40.0) as after:
        await after(9.0)
        if paused:
            controller.toggle_pause()
        host["available"] = 200 * MIB
        await after(5.0)
        assert lab.size("small") < BASELINE
        assert lab.size("large") < BASELINE
        host["available"] = 8 * GIB
    fault = next(event for event in lab.of(Faulted) if event.kind == "host")
    assert "200M left" in fault.message
    decided = lab.of(Decided)
    assert Limiter.HOST in [event.decision.guests[0].limiter for event in decided]
    assert {event.snapshot.host.available_bytes for event in decided} == {200 * MIB, 8 * GIB}
    # The fake QEMUs listen in this process.
    assert min(guest.resident_bytes for guest in decided[-1].snapshot.guests) > MIB


@asynccontextmanager
async def lab_running(controller, seconds):
    """Run a controller in the background of a block; the block gets a way to wait."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(controller.run, duration_s=seconds))
        yield trio.sleep


class Readings:
    """What the kernel tells of the host's memory: each reading until a time, then the next."""

    def __init__(self, *readings):
        self.readings = readings
        self.started_s = trio.current_time()

    def __call__(self):
        elapsed_s = trio.current_time() - self.started_s
        reading = next(what for until_s, what in self.readings if elapsed_s < until_s)
        if isinstance(reading, Exception):
            raise reading
        return reading


WELL = HostMemory(total_bytes=16 * GIB, available_bytes=8 * GIB)
SHORT = HostMemory(total_bytes=16 * GIB, available_bytes=100 * MIB)
UNREAD = HostMemory(unread=("/proc/meminfo: Too many open files",))


@pytest.mark.parametrize("unreadable", [UNREAD, None, ValueError("/proc/meminfo: too many")])
async def test_a_host_whose_memory_cannot_be_read_is_told_once_and_control_goes_on(lab, autojump_clock, unreadable):
    await lab.two()
    coming_and_going = [(9.0 + second, WELL if second % 2 else unreadable) for second in range(10)]
    read_host = Readings((9.0, WELL), *coming_and_going, (25.0, unreadable), (70.0, WELL), (80.0, unreadable))
    controller = Controller(lab.config(), lab.toward(small=400, large=600), lab.events.append, read_host=read_host)
    await controller.run(duration_s=75.0)
    told = [event for event in lab.of(Faulted) if event.kind == "guard"]
    assert [event.t > 60 for event in told] == [False, True]
    assert "the host's memory cannot be read: " in told[0].message
    assert "not protected" in told[0].hint
    assert not [event for event in lab.of(Faulted) if event.kind != "guard"]
    assert lab.events[-1].clean
    assert lab.of(Decided)[-1].decision.target_of("small") == 400 * MIB


async def test_an_emergency_that_nobody_can_see_the_end_of_ends(lab, autojump_clock):
    await lab.two()
    read_host = Readings((20.0, WELL), (22.0, SHORT), (math.inf, UNREAD))
    policy = lab.toward(small=500, large=500)
    controller = Controller(lab.config(), policy, lab.events.append, read_host=read_host)
    await controller.run(duration_s=200.0)
    in_emergency = [event.t for event in lab.of(Decided) if "host emergency" in event.decision.guests[0].reason]
    assert 20.0 <= in_emergency[0] < 22.0
    assert 22.0 + BLIND_MOST_S - 5 < in_emergency[-1] < 22.0 + BLIND_MOST_S + 5
    blind = [event for event in lab.of(Decided) if 23.0 < event.t < in_emergency[-1]]
    assert {seen.target_bytes for event in blind for seen in event.snapshot.guests} == {
        guest.target_bytes for guest in blind[0].decision.guests
    }  # neither more nor less than was decided when it was seen last
    assert [event.kind for event in lab.of(Faulted)] == ["host", "guard"]
    assert lab.of(Decided)[-1].decision.target_of("small") == 500 * MIB
