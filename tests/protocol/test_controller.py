"""The whole loop on simulated guests over real Unix sockets, in virtual time.

Every run is checked against the invariants, whatever the test is about: the budget holds, no target lies below a floor,
a guest that is not fresh gets no policy's target.
"""

import contextlib
from functools import partial

import msgspec
import pytest
import trio

from qmpalloc import config as configuration
from qmpalloc.controller import Controller
from qmpalloc.events import (
    Commanded,
    ControlChanged,
    Decided,
    Ended,
    Faulted,
    Header,
    SizeChanged,
    StateChanged,
    decoder,
    encoder,
)  # fmt: skip
from qmpalloc.model import Decision, GuestDecision, GuestState, Limiter, hold
from qmpalloc.policy import load
from qmpalloc.testing import FakeBalloon, Load, Refusal, open_simulated_guest
from qmpalloc.units import MIB

BASELINE = 500
BUDGET = 1000


class Lab:
    """Two simulated guests, a configuration for them, and what their runs report."""

    def __init__(self, directory, nursery):
        self.directory = directory
        self.nursery = nursery
        self.control = {"interval": "2s", "lost_after": "20s"}
        self.guests = {}
        self.events = []
        self.may_grow = False

    async def add(self, name, *, file_mib=200, accesses_per_s=2000.0, rate_mib=200.0, ram_mib=800, size_mib=BASELINE):
        balloon = FakeBalloon(ram_mib * MIB, inflate_bytes_per_s=rate_mib * MIB, deflate_bytes_per_s=5 * rate_mib * MIB)
        balloon.request(size_mib * MIB)
        load = Load(file_pages=file_mib * 256, accesses_per_s=accesses_per_s)

        async def live(*, task_status):
            async with open_simulated_guest(
                name, self.directory, load=load, memory_bytes=ram_mib * MIB, balloon=balloon
            ) as guest:
                task_status.started(guest)
                await trio.sleep_forever()

        guest = await self.nursery.start(live)
        self.guests[name] = guest
        await trio.sleep(10.0)  # the balloon is where it was asked to be
        return guest

    def config(self, policy="paper", *, budget=BUDGET, **settings):
        if policy == "paper":
            settings = {"step": "32MiB", "threshold": 1e9} | settings
        text = f'[host]\nbudget = "{budget}MiB"\n[control]\n'
        text += "".join(f'{key} = "{value}"\n' for key, value in self.control.items())
        for name in self.guests:
            text += f'[[guest]]\nname = "{name}"\nmonitor = "{name}.qmp"\nagent = "{name}.agent"\n'
            text += f'floor = "200MiB"\ncap = "800MiB"\nbaseline = "{BASELINE}MiB"\n'
        parsed = configuration.parse(text, file=self.directory / "lab.toml")
        return msgspec.structs.replace(parsed, policy=policy, policy_settings=settings)

    async def run(self, seconds, policy="paper", *, mode="run", actions=(), the_policy=None, budget=BUDGET, **settings):
        """Run a controller for `seconds`, doing `actions` (delay, function of the controller) on the way."""
        loaded = self.config(policy, budget=budget, **settings)
        chosen = the_policy or load(loaded.policy, loaded.policy_settings)
        controller = Controller(loaded, chosen, self.events.append, mode=mode)

        async def act(delay, action):
            await trio.sleep(delay)
            action(controller)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch_real_sizes, controller, loaded.host.budget)
            for delay, action in actions:
                nursery.start_soon(act, delay, action)
            await controller.run(duration_s=seconds)
            nursery.cancel_scope.cancel()
        self.check_invariants(loaded)
        return controller

    async def watch_real_sizes(self, controller, budget_bytes):
        """What the guests really have, whatever the books say, fits the budget while control lasts."""
        while True:
            await trio.sleep(0.05)
            if controller.control == "settling":
                continue
            alive = [guest for guest in self.guests.values() if guest and not guest.qemu.has_quit]
            real_bytes = sum(guest.qemu.balloon.actual_bytes for guest in alive)
            assert self.may_grow or real_bytes <= budget_bytes

    def of(self, kind, name=None):
        return [
            event for event in self.events if isinstance(event, kind) and name in (None, getattr(event, "guest", 0))
        ]

    def size(self, name):
        return self.guests[name].qemu.balloon.actual_bytes // MIB

    def states(self, name):
        return [event.state for event in self.of(StateChanged, name)]

    def check_invariants(self, loaded):
        assert isinstance(self.events[0], Header)
        assert isinstance(self.events[-1], Ended)
        in_force = False
        for event in self.events:
            if isinstance(event, ControlChanged):
                in_force = in_force or event.control == "running"
            if isinstance(event, SizeChanged) and in_force:
                assert event.committed_bytes <= loaded.host.budget, event
            if isinstance(event, Decided):
                for seen, verdict in zip(event.snapshot.guests, event.decision.guests, strict=True):
                    if seen.state is GuestState.FRESH:
                        assert verdict.target_bytes >= min(seen.floor_bytes, seen.target_bytes)
            if isinstance(event, Commanded):
                assert event.target_bytes % 4096 == 0
                assert event.target_bytes >= 200 * MIB


@pytest.fixture
def lab(tmp_path, nursery):
    return Lab(tmp_path, nursery)


async def two(lab):
    """A guest whose file fits, and one whose file does not: the first has the higher e."""
    await lab.add("small", file_mib=100)
    await lab.add("large", file_mib=900)


async def test_memory_moves_from_high_e_to_low_e_and_back_to_baseline_at_the_end(lab, autojump_clock):
    await two(lab)
    await lab.run(9.0)
    decided = lab.of(Decided)
    assert [move.donor for event in decided for move in event.decision.moves] == ["small"] * 4
    assert all(move.size_bytes == 32 * MIB for event in decided for move in event.decision.moves)
    assert lab.size("small") == lab.size("large") == BASELINE
    assert lab.events[-1] == Ended(t=lab.events[-1].t, wall=lab.events[-1].wall, reason="duration reached", clean=True)


async def test_the_receiver_is_granted_only_what_came_back(lab, autojump_clock):
    await lab.add("small", file_mib=100, rate_mib=8.0)  # 32 MiB take 4 s: longer than an interval
    await lab.add("large", file_mib=900)
    await lab.run(9.0)
    shrunk = lab.of(Commanded, "small")[1]
    granted = lab.of(Commanded, "large")[1]
    assert (shrunk.purpose, granted.purpose) == ("shrink", "grant")
    assert granted.t - shrunk.t >= 1.0


async def test_keep_leaves_the_sizes(lab, autojump_clock):
    lab.control["on_exit"] = "keep"
    await two(lab)
    await lab.run(9.0)
    assert (lab.size("small"), lab.size("large")) == (BASELINE - 4 * 32, BASELINE + 4 * 32)


async def test_a_restart_adopts_what_it_finds(lab, autojump_clock):
    lab.control["on_exit"] = "keep"
    await two(lab)
    await lab.run(9.0)
    lab.events.clear()
    await lab.run(3.0)
    first = lab.of(Decided)[0].snapshot.guests
    assert [guest.target_bytes // MIB for guest in first] == [BASELINE - 4 * 32, BASELINE + 4 * 32]


async def test_guests_found_above_the_budget_go_to_baseline_before_anything_is_decided(lab, autojump_clock):
    await lab.add("small", file_mib=100, size_mib=800, rate_mib=50.0)
    await lab.add("large", file_mib=900, size_mib=800, rate_mib=50.0)
    await lab.run(5.0)
    controls = [event.control for event in lab.of(ControlChanged)]
    assert controls == ["settling", "running", "returning", "stopped"]
    settled = next(event.t for event in lab.of(ControlChanged) if event.control == "running")
    assert 5.0 < settled < 8.0  # 300 MiB at 50 MiB/s


@pytest.mark.parametrize("mode", ["watch", "dry-run"])
async def test_watching_and_dry_runs_never_send_a_balloon_command(lab, autojump_clock, mode):
    await two(lab)
    await lab.run(9.0, mode=mode)
    for guest in lab.guests.values():
        assert "balloon" not in [command for command, _ in guest.qemu.requests]
    assert bool(lab.of(Decided)) is (mode == "dry-run")


async def test_cancelling_returns_the_guests_too(lab, autojump_clock):
    await two(lab)
    controller = Controller(lab.config(), load("paper", {"step": "32MiB"}), lab.events.append)
    with trio.move_on_after(9.0):
        await controller.run()
    assert lab.size("small") == lab.size("large") == BASELINE
    assert lab.events[-1].clean
    assert lab.events[-1].reason == "cancelled"


async def test_pause_holds_and_resume_goes_on(lab, autojump_clock):
    await two(lab)
    lab.control["on_exit"] = "keep"
    toggle = Controller.toggle_pause
    await lab.run(21.0, actions=[(4.5, toggle), (12.5, toggle)])
    paused = [event for event in lab.of(Decided) if event.decision.guests[0].limiter is Limiter.PAUSE]
    assert len(paused) == 4
    assert not any(event.decision.moves for event in paused)
    assert lab.size("small") < BASELINE - 2 * 32


async def test_return_to_baseline_by_request(lab, autojump_clock):
    await two(lab)
    lab.control["on_exit"] = "keep"
    await lab.run(15.0, actions=[(9.0, Controller.return_to_baseline)])
    assert lab.size("small") == lab.size("large") == BASELINE


async def test_quit(lab, autojump_clock):
    await two(lab)
    await lab.run(1e9, actions=[(5.0, Controller.quit)])
    assert lab.events[-1].reason == "quit"


async def test_a_collector_that_stops_is_late_then_lost_then_back_at_its_baseline(lab, autojump_clock):
    await two(lab)
    lab.control["on_exit"] = "keep"

    def stop_collecting(_):
        lab.guests["small"].collecting = False

    await lab.run(60.0, actions=[(9.0, stop_collecting)])
    assert lab.states("small")[-3:] == ["fresh", "late", "lost"]
    assert lab.states("large")[-1] == "fresh"
    assert lab.size("small") == BASELINE


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe\x00", b"[" * 3000, b" " * 5000, b'{"format": "qmpalloc-counters", "version": 99}',
        b'{"format": "\x1b[2J[red]"}', None,
    ],
)  # fmt: skip
async def test_a_file_that_cannot_be_used_moves_nothing_and_says_why(lab, autojump_clock, content):
    await two(lab)

    def spoil(_):
        guest = lab.guests["small"]
        guest.collecting = False
        if content is None:
            guest.agent.files.clear()
        else:
            guest.agent.files["/run/qmpalloc/counters.json"] = content

    before = {}
    await lab.run(
        12.0, actions=[(0.1, spoil), (11.9, lambda c: before.update({g.name: g.target_bytes for g in c.guests}))]
    )
    assert not any(event.decision.moves for event in lab.of(Decided))
    rejected = [event for event in lab.events if type(event).__name__ == "SampleRejected"]
    assert rejected
    assert all(" " <= char <= "~" for event in rejected for char in event.message)


async def test_an_agent_that_never_answers_does_not_hold_up_the_others(lab, autojump_clock):
    await two(lab)
    lab.guests["small"].agent.stop()
    await lab.run(12.0)
    assert "fresh" not in lab.states("small")
    assert lab.states("large")[-1] == "fresh"
    assert any(event.kind == "agent" for event in lab.of(Faulted, "small"))
    assert [round(event.t, 1) for event in lab.of(Decided)] == [pytest.approx(2.0 * n, abs=0.6) for n in range(1, 6)]


async def test_a_guest_that_dies_is_gone_and_its_memory_is_free(lab, autojump_clock):
    await two(lab)
    await lab.run(12.0, actions=[(6.5, lambda _: lab.guests["small"].qemu.shut_down())])
    assert lab.states("small")[-1] == "gone"
    last = lab.of(Decided)[-1]
    assert last.committed_bytes == last.snapshot.guests[1].charge_bytes
    assert lab.events[-1].clean


async def test_a_guest_that_is_paused_is_held(lab, autojump_clock):
    await two(lab)
    stop, resume = lab.guests["small"].qemu.stop, lab.guests["small"].qemu.resume
    await lab.run(20.0, actions=[(5.1, lambda _: stop()), (12.0, lambda _: resume())])
    during = [event for event in lab.of(Decided) if 5.2 < event.t < 12.0]
    assert {event.snapshot.guests[0].state for event in during} == {GuestState.PAUSED}
    assert not any(event.decision.moves for event in during)
    assert lab.states("small")[-1] == "fresh"


async def test_a_guest_that_is_reset_goes_to_its_baseline_until_it_reports(lab, autojump_clock):
    await two(lab)
    await lab.run(30.0, actions=[(9.1, lambda _: lab.guests["small"].reboot())])
    assert "lost" in lab.states("small")
    assert lab.states("small")[-1] == "fresh"
    grants = [event.target_bytes // MIB for event in lab.of(Commanded, "small") if event.t > 9.1]
    assert grants


async def test_a_monitor_that_hangs_stays_charged_and_recovers(lab, autojump_clock):
    await two(lab)
    faults = lab.guests["small"].qemu.faults

    def hang(on):
        faults.hang = on

    await lab.run(30.0, actions=[(5.1, lambda _: hang(True)), (20.0, lambda _: hang(False))])
    assert "hung" in lab.states("small")
    assert lab.states("small")[-1] == "fresh"
    assert lab.size("small") == lab.size("large") == BASELINE


async def test_a_held_socket_is_told_with_a_hint(lab, autojump_clock):
    await two(lab)
    async with await trio.open_unix_socket(lab.guests["small"].monitor_path):
        await lab.run(12.0, budget=1400)
    fault = lab.of(Faulted, "small")[0]
    assert "no greeting" in fault.message or "greeting" in fault.message
    assert "-qmp" in fault.hint
    assert lab.states("large")[-1] == "fresh"


async def test_sockets_that_are_missing_or_refused_are_a_state(lab, autojump_clock, tmp_path):
    await lab.add("large", file_mib=900)
    lab.guests["absent"] = None
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(tmp_path / "absent.agent"))
    listener.close()
    await lab.run(8.0)
    assert lab.states("absent") == ["connecting"]
    assert "no such socket" in lab.of(Faulted, "absent")[0].message
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


async def test_a_guest_in_danger_gets_its_baseline_in_one_command(lab, autojump_clock):
    await two(lab)
    starving = {}

    def squeeze(_):
        guest = lab.guests["small"]
        guest.cache.own_bytes = guest.qemu.balloon.actual_bytes - 5 * MIB
        starving["t"] = lab.events[-1].t

    await lab.run(20.0, actions=[(9.1, squeeze)])
    after = [event for event in lab.of(Decided) if event.t > starving["t"] + 2]
    assert after[0].decision.guests[0].limiter is Limiter.DANGER
    assert after[0].decision.target_of("small") == BASELINE * MIB
    assert all(event.decision.target_of("small") >= BASELINE * MIB for event in after)


class Failing:
    """A policy that raises, or decides nonsense, now and then."""

    def __init__(self, how):
        self.how = how

    def decide(self, snapshot):
        return self.how(snapshot)


@pytest.mark.parametrize(
    "how",
    [
        lambda snapshot: 1 / 0,
        lambda snapshot: None,
        lambda snapshot: Decision(guests=()),
        lambda snapshot: Decision(guests=tuple(GuestDecision(name="x", target_bytes=1, reason="") for _ in "ab")),
    ],
)
async def test_a_policy_that_fails_holds_all_guests_visibly(lab, autojump_clock, how):
    await two(lab)
    await lab.run(9.0, the_policy=Failing(how))
    assert any(event.kind == "policy" for event in lab.of(Faulted))
    assert lab.size("small") == BASELINE
    assert lab.events[-1].clean


@pytest.mark.parametrize("wanted_mib", [0, 1, 10**7])
async def test_a_policy_that_wants_the_impossible_is_limited(lab, autojump_clock, wanted_mib):
    await two(lab)

    def greedy(snapshot):
        decision = hold(snapshot, "greedy")
        first = msgspec.structs.replace(decision.guests[0], target_bytes=wanted_mib * MIB)
        return msgspec.structs.replace(decision, guests=(first, *decision.guests[1:]))

    await lab.run(20.0, the_policy=Failing(greedy))
    assert {event.decision.guests[0].limiter for event in lab.of(Decided)} <= {
        Limiter.FLOOR, Limiter.STEP, Limiter.BUDGET, Limiter.CAP,
    }  # fmt: skip


async def test_what_a_policy_carries_comes_back(lab, autojump_clock):
    await two(lab)
    seen = []

    def counting(snapshot):
        seen.append(snapshot.carry)
        return msgspec.structs.replace(hold(snapshot, ""), carry={"n": (snapshot.carry or {"n": 0})["n"] + 1})

    await lab.run(9.0, the_policy=Failing(counting))
    assert seen == [None, {"n": 1}, {"n": 2}, {"n": 3}]


async def test_a_balloon_that_does_not_move_never_lets_the_receiver_grow(lab, autojump_clock):
    await two(lab)
    lab.guests["small"].qemu.balloon.stalled = True
    await lab.run(20.0)
    assert not [event for event in lab.of(Commanded, "large") if event.purpose == "grant"]


def toward(**wanted_mib):
    """A policy that wants these sizes and leaves the others."""

    def decide(snapshot):
        decision = hold(snapshot, "toward")
        guests = tuple(
            msgspec.structs.replace(guest, target_bytes=wanted_mib.get(guest.name, 0) * MIB or guest.target_bytes)
            for guest in decision.guests
        )
        return msgspec.structs.replace(decision, guests=guests)

    return Failing(decide)


async def test_a_guest_that_grows_by_itself_is_in_danger_then_asked_again(lab, autojump_clock):
    await two(lab)
    lab.may_grow = True
    lab.control["on_exit"] = "keep"
    balloon = lab.guests["small"].qemu.balloon
    loaded = lab.config("static")
    controller = Controller(loaded, load("static", {}), lab.events.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(controller.run, duration_s=120.0))
        await trio.sleep(9.1)
        balloon.take_back(100 * MIB)
        await trio.sleep(20)
        assert balloon.actual_bytes == 600 * MIB  # it needed that: not pressed for now
    over = [event for event in lab.of(SizeChanged) if event.committed_bytes > loaded.host.budget]
    assert over
    assert any(event.kind == "budget" for event in lab.of(Faulted))
    assert any("deflate-on-oom" in guest.reason for event in lab.of(Decided) for guest in event.decision.guests)
    assert not [event for event in lab.of(Commanded, "large") if event.purpose == "grant"]
    assert lab.size("small") == BASELINE  # asked again after the danger


async def test_a_size_that_somebody_else_set_is_set_right(lab, autojump_clock):
    await two(lab)
    await lab.run(20.0, "static", actions=[(9.1, lambda _: lab.guests["small"].qemu.balloon.request(300 * MIB))])
    assert "repeat" in [event.purpose for event in lab.of(Commanded, "small")]
    assert lab.size("small") == BASELINE


async def test_a_running_guest_that_cannot_be_measured_is_charged_with_its_most(lab, autojump_clock):
    await two(lab)
    async with await trio.open_unix_socket(lab.guests["small"].monitor_path):
        loaded = lab.config()
        controller = Controller(loaded, toward(large=800), lab.events.append)
        await controller.run(duration_s=20.0)
    assert not [event for event in lab.of(Commanded, "large") if event.target_bytes > BASELINE * MIB]
    assert lab.events[-1].clean


@pytest.mark.parametrize("bad", [b"\x1b[31m\xff\n", b"[1, 2]\r\n"])
async def test_a_qemu_that_talks_nonsense_in_mid_run_is_a_state_of_its_own(lab, autojump_clock, bad):
    await two(lab)

    def garble(_):
        lab.guests["small"].qemu.faults.garbage = bad

    await lab.run(20.0, actions=[(5.1, garble)])
    assert lab.states("small")[-1] in {"held", "hung"}
    assert lab.states("large")[-1] == "fresh"
    assert lab.size("large") == BASELINE
    assert lab.events[-1].reason == "duration reached"


@pytest.mark.parametrize("reply", [{"actual": "many"}, {"actual": -1}, {"actual": True}, [], None])
async def test_a_size_that_is_none_is_a_state_too(lab, autojump_clock, reply):
    await two(lab)
    commands = lab.guests["small"].qemu.commands
    await lab.run(20.0, actions=[(5.1, lambda _: commands.update({"query-balloon": lambda _: reply}))])
    assert lab.states("small")[-1] == "held"
    assert lab.size("large") == BASELINE


async def test_no_return_to_baseline_goes_below_what_the_guest_needs(lab, autojump_clock):
    await two(lab)

    def need(_):
        lab.guests["small"].cache.own_bytes = 800 * MIB

    wanted = toward(small=800, large=200)
    await lab.run(60.0, the_policy=wanted, actions=[(40.0, need), (50.0, Controller.return_to_baseline)])
    needed = 800 * 11 // 16 + 64  # what of it cannot be given up (see SimulatedGuest), and the reserve
    after = [event.target_bytes // MIB for event in lab.of(Commanded, "small") if event.t > 41]
    assert min(after) == lab.size("small") == needed
    # Both baselines no longer fit, so that the other one is not back at its own, and that is said.
    assert not lab.events[-1].clean
    assert "large" in next(event.message for event in lab.of(Faulted) if event.kind == "exit")


@pytest.mark.parametrize("paused", [False, True])
async def test_danger_is_answered_at_once_also_while_paused(lab, autojump_clock, paused):
    lab.control["interval"] = "30s"
    await two(lab)

    def squeeze(_):
        guest = lab.guests["small"]
        guest.cache.own_bytes = guest.qemu.balloon.actual_bytes - 5 * MIB

    actions = [(35.0, Controller.toggle_pause)] if paused else []
    await lab.run(55.0, actions=[*actions, (40.2, squeeze)])
    grant = next(event for event in lab.of(Commanded, "small") if event.purpose == "grant")
    assert 40.0 < grant.t < 43.0
    assert grant.target_bytes == BASELINE * MIB


@pytest.mark.parametrize(
    "change",
    [
        {"carry": object()}, {"moves": None}, {"summary": None}, {"carry": {1: {2, 3}, "x": b"y"}},
    ],
)  # fmt: skip
async def test_a_decision_that_cannot_be_recorded_is_none(lab, autojump_clock, change):
    await two(lab)
    await lab.run(9.0, the_policy=Failing(lambda snapshot: msgspec.structs.replace(hold(snapshot, ""), **change)))
    for event in lab.events:
        assert encoder.encode(decoder.decode(encoder.encode(event))) == encoder.encode(event)
    assert lab.events[-1].clean


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
async def test_terms_are_finite_numbers(lab, autojump_clock, value):
    await two(lab)

    def decide(snapshot):
        decision = hold(snapshot, "")
        guests = tuple(msgspec.structs.replace(guest, terms={"e": value}) for guest in decision.guests)
        return msgspec.structs.replace(decision, guests=guests)

    await lab.run(9.0, the_policy=Failing(decide))
    assert any(event.kind == "policy" for event in lab.of(Faulted))
    for event in lab.events:
        assert encoder.encode(decoder.decode(encoder.encode(event))) == encoder.encode(event)


async def test_the_moves_told_are_those_that_happen(lab, autojump_clock):
    await two(lab)
    await lab.run(5.0, the_policy=toward(small=200, large=800))
    first = lab.of(Decided)[0].decision
    assert first.target_of("small") == (BASELINE - 128) * MIB
    assert [(move.donor, move.receiver, move.size_bytes // MIB) for move in first.moves] == [("small", "large", 128)]


async def test_an_output_that_fails_stops_nothing(lab, autojump_clock):
    await two(lab)

    def broken(event):
        raise BrokenPipeError("nobody reads")

    controller = Controller(lab.config(), load("paper", {"step": "32MiB"}), broken, lab.events.append)
    await controller.run(duration_s=9.0)
    assert lab.size("small") == lab.size("large") == BASELINE
    assert any(event.kind == "output" for event in lab.of(Faulted))
    assert lab.events[-1].clean


async def test_when_no_output_is_left_the_run_ends_in_order(lab, autojump_clock):
    await two(lab)
    seen = []

    def broken(event):
        seen.append(event)
        if isinstance(event, Commanded) and event.purpose == "shrink":
            raise BrokenPipeError("nobody reads")

    controller = Controller(lab.config(), load("paper", {"step": "32MiB"}), broken)
    await controller.run()
    assert controller.reason == "no output is left"
    assert lab.size("small") == lab.size("large") == BASELINE


async def test_hurry_does_not_wait_for_the_guests(lab, autojump_clock):
    await two(lab)
    started_s = trio.current_time()

    def stall(_):
        lab.guests["small"].qemu.balloon.stalled = True

    actions = [(8.0, stall), (9.0, Controller.quit), (10.0, Controller.hurry)]
    await lab.run(1e9, the_policy=toward(small=400), actions=actions)
    assert trio.current_time() - started_s == pytest.approx(10.0, abs=0.1)
    assert not lab.events[-1].clean


async def test_a_process_that_stood_still_decides_nothing_about_guests_it_has_not_seen(lab, autojump_clock):
    await two(lab)
    lab.control["on_exit"] = "keep"
    # In virtual time nothing but a jump of the clock can stop a process.
    await lab.run(30.0, actions=[(9.1, lambda _: autojump_clock.jump(100.0))])
    assert any(event.kind == "absence" for event in lab.of(Faulted))
    assert not [state for name in lab.guests for state in lab.states(name) if state == "lost"]


async def test_a_refused_command_is_not_repeated_in_a_loop(lab, autojump_clock):
    await two(lab)

    def refuse(arguments):
        raise Refusal("no")

    lab.guests["small"].qemu.commands["balloon"] = refuse
    await lab.run(30.0)
    assert len(lab.of(Commanded, "small")) < 10
    assert lab.states("small").count("held") >= 1
    assert lab.states("large")[-1] == "fresh"


async def test_nothing_is_reported_behind_the_end(lab, autojump_clock):
    await two(lab)
    for guest in lab.guests.values():
        guest.agent.faults.delay_s = 0.3
    await lab.run(9.0)
    assert [type(event) for event in lab.events].index(Ended) == len(lab.events) - 1


async def test_a_watched_guest_is_shown_with_the_size_it_has(lab, autojump_clock):
    await two(lab)
    change = [(4.0, lambda _: lab.guests["small"].qemu.balloon.request(300 * MIB))]
    await lab.run(9.0, mode="watch", actions=change)
    assert lab.of(SizeChanged, "small")[-1].committed_bytes == 800 * MIB


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
