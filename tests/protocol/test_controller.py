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
from qmpalloc.events import Commanded, ControlChanged, Decided, Ended, Faulted, Header, SizeChanged, StateChanged
from qmpalloc.model import Decision, GuestDecision, GuestState, Limiter, hold
from qmpalloc.policy import load
from qmpalloc.testing import FakeBalloon, Load, open_simulated_guest
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

    async def run(self, seconds, policy="paper", *, mode="run", actions=(), the_policy=None, **settings):
        """Run a controller for `seconds`, doing `actions` (delay, function of the controller) on the way."""
        loaded = self.config(policy, **settings)
        chosen = the_policy or load(loaded.policy, loaded.policy_settings)
        controller = Controller(loaded, chosen, self.events.append, mode=mode)

        async def act(delay, action):
            await trio.sleep(delay)
            action(controller)

        async with trio.open_nursery() as nursery:
            for delay, action in actions:
                nursery.start_soon(act, delay, action)
            await controller.run(duration_s=seconds)
            nursery.cancel_scope.cancel()
        self.check_invariants(loaded)
        return controller

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
        await lab.run(12.0)
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
        await lab.run(8.0)
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


async def test_a_guest_that_grows_by_itself_is_charged_and_told(lab, autojump_clock):
    await two(lab)

    def deflate(_):
        lab.guests["small"].qemu.balloon.take_back(100 * MIB)

    events = lab.events
    loaded = lab.config()
    controller = Controller(loaded, load("paper", {"step": "32MiB", "threshold": 1e9}), events.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(controller.run, duration_s=20.0))
        await trio.sleep(9.1)
        deflate(None)
    over = [event for event in lab.of(SizeChanged) if event.committed_bytes > loaded.host.budget]
    assert over
    assert any(event.kind == "budget" for event in lab.of(Faulted))
    blocked_until = over[-1].t
    grants = [event for event in lab.of(Commanded, "large") if event.purpose == "grant"]
    assert not [event for event in grants if over[0].t < event.t < blocked_until]
