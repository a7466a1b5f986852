"""Whatever a guest, a socket or an output does is a state or a fault, and hurts nobody else."""

import contextlib
import errno
import itertools
from functools import partial

import pytest
import trio

from qmpalloc.control.controller import Controller
from qmpalloc.control.journal import CALM_S
from qmpalloc.events import (
    Commanded,
    ControlChanged,
    Decided,
    Faulted,
    Header,
    Sampled,
    SampleRejected,
    SizeChanged,
)  # fmt: skip
from qmpalloc.model import GuestState
from qmpalloc.policy import load
from qmpalloc.qmp.framing import encode
from qmpalloc.qmp.subscriptions import BUFFER_EVENTS
from qmpalloc.testing import FakeAgent, FakeQemu, Refusal
from qmpalloc.units import MIB

BASELINE = 500
BUDGET = 1000


async def test_a_collector_that_stops_is_late_then_lost_then_back_at_its_baseline(lab, autojump_clock):
    await lab.two()
    lab.control["on_exit"] = "keep"

    def stop_collecting(_):
        lab.guests["small"].collecting = False

    await lab.run(60.0, actions=[(9.0, stop_collecting)])
    assert lab.states("small")[-3:] == ["fresh", "late", "lost"]
    assert lab.states("large")[-1] == "fresh"
    assert lab.size("small") == BASELINE


async def test_a_qemu_that_is_slow_with_every_answer_is_connected(lab, autojump_clock):
    """All of what is asked at first takes longer than one command may."""
    await lab.two()
    lab.guests["small"].qemu.faults.delay_s = 0.2
    await lab.run(20.0)
    assert lab.states("small")[-1] == "fresh"
    assert not any(event.kind == "monitor" for event in lab.of(Faulted))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe\x00", b"[" * 3000, b" " * 5000, b'{"format": "qmpalloc-counters", "version": 99}',
        b'{"format": "\x1b[2J[red]"}', None,
    ],
)  # fmt: skip
async def test_a_file_that_cannot_be_used_moves_nothing_and_says_why(lab, autojump_clock, content):
    await lab.two()

    def spoil(_):
        guest = lab.guests["small"]
        guest.collecting = False
        if content is None:
            guest.agent.files.clear()
        else:
            guest.agent.files["/run/qmpalloc/counters.json"] = content

    before = {}
    await lab.run(
        12.0, actions=[(0.1, spoil), (11.9, lambda c: before.update({g.name: g.size.target_bytes for g in c.guests}))]
    )
    assert not any(event.decision.moves for event in lab.of(Decided))
    rejected = [event for event in lab.events if type(event).__name__ == "SampleRejected"]
    assert rejected
    assert all(" " <= char <= "~" for event in rejected for char in event.message)


async def test_an_agent_that_never_answers_does_not_hold_up_the_others(lab, autojump_clock):
    await lab.two()
    lab.guests["small"].agent.stop()
    await lab.run(12.0)
    assert "fresh" not in lab.states("small")
    assert lab.states("large")[-1] == "fresh"
    assert any(event.kind == "agent" for event in lab.of(Faulted, "small"))
    assert [round(event.t, 1) for event in lab.of(Decided)] == [pytest.approx(2.0 * n, abs=0.6) for n in range(1, 6)]


async def test_an_agent_that_is_always_too_slow_is_left_with_few_open_files(lab, autojump_clock):
    await lab.two()
    agent = lab.guests["small"].agent
    agent.faults.delay_s = 1.0  # so that opening, reading and closing take as long as the deadline
    await lab.run(200.0)
    assert lab.states("small")[-1] == "lost"
    assert len(agent.handles) < 15
    assert lab.states("large")[-1] == "fresh"


async def test_a_guest_that_dies_is_gone_and_its_memory_is_free(lab, autojump_clock):
    await lab.two()
    await lab.run(12.0, actions=[(6.5, lambda _: lab.guests["small"].qemu.shut_down())])
    assert lab.states("small")[-1] == "gone"
    last = lab.of(Decided)[-1]
    assert last.committed_bytes == last.snapshot.guests[1].charge_bytes
    assert lab.events[-1].clean


async def test_a_guest_that_is_paused_is_held(lab, autojump_clock):
    await lab.two()
    stop, resume = lab.guests["small"].qemu.stop, lab.guests["small"].qemu.resume
    await lab.run(20.0, actions=[(5.1, lambda _: stop()), (12.0, lambda _: resume())])
    during = [event for event in lab.of(Decided) if 5.2 < event.t < 12.0]
    assert {event.snapshot.guests[0].state for event in during} == {GuestState.PAUSED}
    assert not any(event.decision.moves for event in during)
    assert lab.states("small")[-1] == "fresh"


async def test_a_guest_that_is_reset_goes_to_its_baseline_until_it_reports(lab, autojump_clock):
    await lab.two()
    lab.may_grow = lab.may_exceed = True
    await lab.run(30.0, actions=[(9.1, lambda _: lab.guests["small"].reboot())])
    assert "lost" in lab.states("small")
    assert lab.states("small")[-1] == "fresh"
    grants = [event.target_bytes // MIB for event in lab.of(Commanded, "small") if event.t > 9.1]
    assert grants


async def test_a_monitor_that_hangs_stays_charged_and_recovers(lab, autojump_clock):
    await lab.two()
    faults = lab.guests["small"].qemu.faults

    def hang(on):
        faults.hang = on

    charges = []
    note = lambda controller: charges.append(controller.guests[0].charge_bytes // MIB)  # noqa: E731
    await lab.run(30.0, actions=[(5.1, lambda _: hang(True)), (19.0, note), (20.0, lambda _: hang(False))])
    assert "hung" in lab.states("small")
    assert charges[0] >= min(event.actual_bytes for event in lab.of(SizeChanged, "small")) // MIB > 0
    assert lab.states("small")[-1] == "fresh"
    assert lab.size("small") == lab.size("large") == BASELINE


async def test_a_held_socket_is_told_with_a_hint(lab, autojump_clock):
    await lab.two()
    async with await trio.open_unix_socket(lab.guests["small"].monitor_path):
        await lab.run(12.0, budget=1400)
    fault = lab.of(Faulted, "small")[0]
    assert "no greeting" in fault.message or "greeting" in fault.message
    assert "-qmp" in fault.hint
    assert lab.states("large")[-1] == "fresh"


@pytest.mark.parametrize(
    ("how", "state", "says"),
    [
        ("missing", "connecting", "no such socket"),
        ("refused", "connecting", "no process listens"),
        ("forbidden", "hung", "permission denied"),
    ],
)
async def test_sockets_that_are_missing_or_refused_are_a_state(
    lab, autojump_clock, tmp_path, monkeypatch, how, state, says
):
    await lab.add("large", file_mib=900)
    lab.guests["absent"] = None
    path, real = str(tmp_path / "absent.qmp"), trio.open_unix_socket
    if how == "refused":
        with trio.socket.socket(trio.socket.AF_UNIX) as listener:
            await listener.bind(path)

    async def open_unix_socket(filename):
        if filename == path:
            raise PermissionError(errno.EACCES, "Permission denied")  # a superuser would not meet it
        return await real(filename)

    if how == "forbidden":
        monkeypatch.setattr(trio, "open_unix_socket", open_unix_socket)
    await lab.run(8.0, budget=1400)
    assert lab.states("absent")[-1] == state
    fault = lab.of(Faulted, "absent")[0]
    assert says in fault.message
    assert how != "forbidden" or "as the user that runs QEMU" in fault.hint
    assert lab.states("large")[-1] == "fresh"


async def test_what_is_not_qmp_is_held(lab, autojump_clock, tmp_path):
    await lab.add("large", file_mib=900)
    lab.guests["shell"] = None

    async def talk(stream):
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"\x1b[31mSSH-2.0 hello\r\n")
            await trio.sleep(1)

    async def serve(*, task_status):
        with trio.socket.socket(trio.socket.AF_UNIX) as sock:
            await sock.bind(str(tmp_path / "shell.qmp"))
            sock.listen(4)
            listener = trio.SocketListener(sock)
            await trio.serve_listeners(talk, [listener], task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        await lab.run(8.0, budget=1400)
        nursery.cancel_scope.cancel()
    assert lab.states("shell")[-1] == "held"
    assert all("\x1b" not in event.message for event in lab.of(Faulted))


async def test_monitor_and_agent_swapped_is_told(lab, autojump_clock, nursery, tmp_path):
    await lab.add("large", file_mib=900)
    lab.guests["swapped"] = None
    await nursery.start(FakeAgent().serve_path, str(tmp_path / "swapped.qmp"))
    await nursery.start(FakeQemu().serve_path, str(tmp_path / "swapped.agent"))
    await lab.run(20.0, budget=1400)
    assert lab.states("swapped")[-1] == "held"
    assert lab.states("large")[-1] == "fresh"
    (fault,) = lab.of(Faulted, "swapped")
    assert "a guest agent answers on this socket" in fault.message
    assert "swapped" in fault.hint


async def test_a_qemu_before_its_machine_is_held_until_it_has_one(lab, autojump_clock):
    await lab.two()
    qemu = lab.guests["small"].qemu
    machine = {name: qemu.commands[name] for name in ("query-memory-size-summary", "query-balloon", "query-migrate")}

    def wait_before_machine(_):
        raise Refusal("The command 'query-balloon' is permitted only after machine initialization has completed")

    qemu.commands |= dict.fromkeys(machine, wait_before_machine)
    await lab.run(20.0, budget=1400, actions=[(8.0, lambda _: qemu.commands.update(machine))])
    assert lab.states("small")[0] == "held"
    assert lab.states("small")[-1] == "fresh"
    (fault,) = [fault for fault in lab.of(Faulted, "small") if fault.kind == "monitor"]
    assert "x-exit-preconfig" in fault.hint


@pytest.mark.parametrize(
    ("spoil", "mend", "fault", "hint"),
    [
        ({"frozen": True}, {"frozen": False}, "refused", "backup"),
        ({"refusal": "Permission denied"}, {"refusal": ""}, "refused", "SELinux"),
        ({"refusal": "Too many open files"}, {"refusal": ""}, "refused", "descriptors"),
        ({"refusal": "No such file or directory"}, {"refusal": ""}, "missing", "install guest_agent/"),
    ],
)
async def test_why_a_counters_file_is_not_read_is_told(lab, autojump_clock, spoil, mend, fault, hint):
    await lab.two()
    agent = lab.guests["small"].agent

    def change(to):
        for name, value in to.items():
            setattr(agent, name, value)

    await lab.run(30.0, actions=[(5.0, lambda _: change(spoil)), (20.0, lambda _: change(mend))])
    assert lab.states("small")[-2:] == ["late", "fresh"]
    assert {event.fault for event in lab.of(SampleRejected, "small")} == {fault}
    (told,) = [event for event in lab.of(Faulted, "small") if event.kind == "counters"]
    assert hint in told.hint
    assert ("guest_agent/" in told.hint) == (fault == "missing")
    assert agent.handles == {}


async def test_a_balloon_that_does_not_move_never_lets_the_receiver_grow(lab, autojump_clock):
    await lab.two()
    lab.guests["small"].qemu.balloon.stalled = True
    await lab.run(20.0)
    assert not [event for event in lab.of(Commanded, "large") if event.purpose == "grant"]


async def test_a_condition_that_comes_and_goes_is_told_once_until_it_has_been_over_for_a_while(lab, autojump_clock):
    await lab.two()
    lab.may_grow = True
    balloon = lab.guests["small"].qemu.balloon
    controller = Controller(lab.config("static"), load("static", {}), lab.events.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(controller.run, duration_s=200.0))
        await trio.sleep(9.1)
        for pause_s in (0.0, CALM_S + 10.0):
            await trio.sleep(pause_s)
            for _ in range(20):  # it is 3 MiB above the budget, and is not
                balloon.take_back(3 * MIB)
                await trio.sleep(1.5)
                balloon.request(BASELINE * MIB)
                await trio.sleep(1.5)
    over = [event.committed_bytes > BUDGET * MIB for event in lab.of(SizeChanged)]
    assert sum(after and not before for before, after in itertools.pairwise(over)) == 40
    assert [event.t > 70 for event in lab.of(Faulted) if event.kind == "budget"] == [False, True]


async def test_a_size_that_somebody_else_set_is_set_right(lab, autojump_clock):
    await lab.two()
    await lab.run(20.0, "static", actions=[(9.1, lambda _: lab.guests["small"].qemu.balloon.request(300 * MIB))])
    assert "repeat" in [event.purpose for event in lab.of(Commanded, "small")]
    assert lab.size("small") == BASELINE


async def test_a_running_guest_that_cannot_be_measured_is_charged_with_its_most(lab, autojump_clock):
    await lab.two()
    async with await trio.open_unix_socket(lab.guests["small"].monitor_path):
        loaded = lab.config()
        controller = Controller(loaded, lab.toward(large=800), lab.events.append)
        await controller.run(duration_s=20.0)
    assert not [event for event in lab.of(Commanded, "large") if event.target_bytes > BASELINE * MIB]
    assert lab.events[-1].clean


@pytest.mark.parametrize("bad", [b"\x1b[31m\xff\n", b"[1, 2]\r\n"])
async def test_a_qemu_that_talks_nonsense_in_mid_run_is_a_state_of_its_own(lab, autojump_clock, bad):
    await lab.two()
    lab.may_exceed = True  # it is charged with its cap

    def garble(_):
        lab.guests["small"].qemu.faults.garbage = bad

    await lab.run(20.0, actions=[(5.1, garble)])
    assert lab.states("small")[-1] in {"held", "hung"}
    assert lab.states("large")[-1] == "fresh"
    assert lab.size("large") == BASELINE
    assert lab.events[-1].reason == "duration reached"


@pytest.mark.parametrize("reply", [{"actual": "many"}, {"actual": -1}, {"actual": 1 << 40}, {"actual": True}, [], None])
async def test_a_size_that_is_none_is_a_state_too(lab, autojump_clock, reply):
    await lab.two()
    lab.may_exceed = True  # it is charged with its cap
    commands = lab.guests["small"].qemu.commands
    await lab.run(20.0, actions=[(5.1, lambda _: commands.update({"query-balloon": lambda _: reply}))])
    assert lab.states("small")[-1] == "held"
    assert lab.size("large") == BASELINE


async def test_an_output_that_fails_stops_nothing(lab, autojump_clock):
    await lab.two()

    def broken(event):
        raise BrokenPipeError("nobody reads")

    controller = Controller(lab.config(), load("paper", {"step": "32MiB"}), broken, lab.events.append)
    await controller.run(duration_s=9.0)
    assert lab.size("small") == lab.size("large") == BASELINE
    assert [event.kind for event in lab.of(Faulted)] == ["output"]
    assert isinstance(lab.events[0], Header)  # the fault comes after the event that an output failed to take
    assert lab.events[-1].clean


async def test_a_flood_of_other_events_hides_none_that_matters(lab, autojump_clock):
    await lab.two()
    qemu = lab.guests["small"].qemu

    def resume(_):
        qemu.status, qemu.balloon.paused = "running", False
        names = ["ACPI_DEVICE_OST"] * 10 + ["RESUME"] + ["ACPI_DEVICE_OST"] * 100
        qemu._events.send_nowait(b"".join(encode({"event": name}) for name in names))  # at once

    await lab.run(30.0, actions=[(5.1, lambda _: qemu.stop()), (9.0, resume)])
    assert "paused" in lab.states("small")
    assert lab.states("small")[-1] == "fresh"


async def test_events_that_are_lost_are_told_and_the_state_is_asked_for_again(lab, autojump_clock):
    await lab.two()
    qemu = lab.guests["small"].qemu

    def resume(_):
        qemu.status, qemu.balloon.paused = "running", False
        names = ["BALLOON_CHANGE", "RESUME"] + ["BALLOON_CHANGE"] * (BUFFER_EVENTS + 10)
        qemu._events.send_nowait(b"".join(encode({"event": name}) for name in names))  # at once

    await lab.run(30.0, actions=[(5.1, lambda _: qemu.stop()), (9.0, resume)])
    assert "paused" in lab.states("small")
    assert lab.states("small")[-1] == "fresh"
    assert not {"connecting", "hung", "held"} & set(lab.states("small"))  # it is the same connection
    fault = next(event for event in lab.of(Faulted, "small") if event.kind == "events")
    assert "events of its QEMU were lost" in fault.message


async def test_a_guest_that_takes_long_to_answer_is_charged_before_anything_is_granted(lab, autojump_clock):
    lab.control["command_timeout"] = "20s"
    lab.may_exceed = True  # in what is committed: all that it may have
    await lab.add("slow", size_mib=700)
    await lab.add("large", size_mib=250)
    lab.guests["slow"].qemu.faults.hang = True
    await lab.run(20.0, the_policy=lab.toward(large=700))
    assert lab.states("slow") == ["connecting", "hung"]
    assert lab.size("large") == 250
    assert "budget" in {event.kind for event in lab.of(Faulted)}


async def test_a_guest_whose_way_home_is_not_confirmed_is_told(lab, autojump_clock):
    await lab.two()
    qemu = lab.guests["small"].qemu

    def hang_and_quit(controller):
        qemu.faults.hang = True  # the command that returns it is sent, and never answered
        controller.quit()

    wanted = lab.toward(small=400, large=600)
    controller = await lab.run(60.0, the_policy=wanted, actions=[(15.0, hang_and_quit)])
    assert lab.size("small") == 400
    assert not controller.clean
    assert "small" in lab.of(Faulted)[-1].message


async def test_outputs_that_fail_together_stop_nothing_either(lab, autojump_clock):
    await lab.two()

    def full(event):
        if event.t > 5.0:
            raise OSError("no space left on device")

    controller = Controller(
        lab.config(), load("paper", {"step": "32MiB"}), full, lambda event: full(event), lab.events.append
    )
    await controller.run(duration_s=12.0)
    assert lab.events[-1].clean
    assert any(event.kind == "output" for event in lab.of(Faulted))
    assert len(lab.of(Decided)) >= 5


async def test_when_no_output_is_left_the_run_ends_in_order(lab, autojump_clock):
    await lab.two()
    seen = []

    def broken(event):
        seen.append(event)
        if isinstance(event, Commanded) and event.purpose == "shrink":
            raise BrokenPipeError("nobody reads")

    controller = Controller(lab.config(), load("paper", {"step": "32MiB"}), broken)
    await controller.run()
    assert controller.reason == "no output is left"
    assert lab.size("small") == lab.size("large") == BASELINE


@pytest.mark.parametrize("when", [0.1, 0.4, 0.7, 1.0, 1.3, 1.6])
async def test_a_process_that_stood_still_decides_nothing_about_guests_it_has_not_seen(lab, autojump_clock, when):
    await lab.two()
    lab.control["on_exit"] = "keep"
    # In virtual time nothing but a jump of the clock can stop a process.
    await lab.run(130.0, actions=[(9.0 + when, lambda _: autojump_clock.jump(100.0))])
    kinds = [getattr(event, "kind", "") for event in lab.events]
    seen = set()
    for event in lab.events[kinds.index("absence") :]:
        if isinstance(event, Sampled):
            seen.add(event.guest)
        elif isinstance(event, Decided):
            assert {guest.name for guest in event.snapshot.guests if guest.decidable} <= seen
    assert [lab.states(name)[-1] for name in lab.guests] == ["fresh", "fresh"]
    assert not [state for name in lab.guests for state in lab.states(name) if state == "lost"]


async def test_a_refused_command_is_not_repeated_in_a_loop(lab, autojump_clock):
    await lab.two()

    def refuse(arguments):
        raise Refusal("no")

    lab.guests["small"].qemu.commands["balloon"] = refuse
    await lab.run(30.0)
    assert len(lab.of(Commanded, "small")) < 10
    assert lab.states("small").count("held") >= 1
    assert lab.states("large")[-1] == "fresh"


async def test_guests_that_do_not_shrink_do_not_hold_up_the_run_for_ever(lab, autojump_clock):
    lab.may_grow = True
    await lab.add("small", file_mib=100, size_mib=800)
    await lab.add("large", file_mib=900, size_mib=800)
    for guest in lab.guests.values():
        guest.qemu.balloon.stalled = True
    loaded = lab.config()
    controller = Controller(loaded, load("paper", {"step": "32MiB"}), lab.events.append)
    await controller.run(duration_s=10.0)
    assert "running" in [event.control for event in lab.of(ControlChanged)]
    assert any(event.kind == "budget" for event in lab.of(Faulted))
    assert not lab.events[-1].clean
