"""A lab of simulated guests over real Unix sockets, in virtual time, for tests of the whole loop.

Every run is checked against the invariants, whatever the test is about: the budget holds, in what is committed and in
what the guests really have; no target lies below a floor; the last event is the end.
"""

import msgspec
import pytest
import trio

from qmpalloc import config as configuration
from qmpalloc.control.controller import Controller
from qmpalloc.events import Commanded, ControlChanged, Decided, Ended, Header, SizeChanged, StateChanged
from qmpalloc.model import GuestState, hold
from qmpalloc.policy import load
from qmpalloc.sim import Load
from qmpalloc.testing import FakeBalloon, FakeVirtioMem, open_simulated_guest
from qmpalloc.units import MIB

BASELINE = 500
BUDGET = 1000


class FunctionPolicy:
    """A policy that decides by a function."""

    def __init__(self, decide):
        self.decide = decide


class Lab:
    """Two simulated guests, a configuration for them, and what their runs report."""

    def __init__(self, directory, nursery):
        self.directory = directory
        self.nursery = nursery
        self.control = {"interval": "2s", "lost_after": "20s"}
        self.guests = {}
        self.events = []
        self.may_grow = False
        self.may_exceed = False  # in what is committed, because a guest that boots may take what it likes

    async def add(
        self, name, *, file_mib=200, accesses_per_s=2000.0, rate_mib=200.0, ram_mib=800, size_mib=BASELINE, load=None,
        base_mib=0, most_mib=600,
    ):  # fmt: skip
        """Add a guest: with a balloon, or with virtio-mem that plugs up to `most_mib` on top of `base_mib` of RAM."""
        rates = {"inflate_bytes_per_s": rate_mib * MIB, "deflate_bytes_per_s": 5 * rate_mib * MIB}
        balloon = virtio_mem = None
        if base_mib:
            virtio_mem = FakeVirtioMem(base_mib * MIB, most_mib * MIB, **rates)
        else:
            balloon = FakeBalloon(ram_mib * MIB, **rates)
        (virtio_mem or balloon).request(size_mib * MIB)
        load = load or Load(file_pages=file_mib * 256, accesses_per_s=accesses_per_s)

        async def live(*, task_status):
            async with open_simulated_guest(
                name, self.directory, load=load, memory_bytes=ram_mib * MIB, balloon=balloon, virtio_mem=virtio_mem
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
        """What the guests really have, whatever is committed, fits the budget while control lasts."""
        while True:
            await trio.sleep(0.05)
            if controller.control == "settling":
                continue
            alive = [guest for guest in self.guests.values() if guest and not guest.qemu.has_quit]
            real_bytes = sum(guest.qemu.actuator.actual_bytes for guest in alive)
            assert self.may_grow or real_bytes <= budget_bytes

    def of(self, kind, name=None):
        return [
            event for event in self.events if isinstance(event, kind) and name in (None, getattr(event, "guest", 0))
        ]

    def size(self, name):
        return self.guests[name].qemu.actuator.actual_bytes // MIB

    def states(self, name):
        return [event.state for event in self.of(StateChanged, name)]

    def check_invariants(self, loaded):
        assert isinstance(self.events[0], Header)
        assert isinstance(self.events[-1], Ended)
        in_force = False
        for event in self.events:
            if isinstance(event, ControlChanged):
                in_force = in_force or event.control == "running"
            if isinstance(event, SizeChanged) and in_force and not self.may_exceed:
                assert event.committed_bytes <= loaded.host.budget, event
            if isinstance(event, Decided):
                for seen, verdict in zip(event.snapshot.guests, event.decision.guests, strict=True):
                    if seen.state is GuestState.FRESH:
                        assert verdict.target_bytes >= min(seen.floor_bytes, seen.target_bytes)
            if isinstance(event, Commanded):
                assert event.target_bytes % 4096 == 0
                # A guest found below its floor can only be lifted as far as there is room.
                assert event.target_bytes >= min(200 * MIB, event.previous_bytes)

    async def two(self):
        """A guest whose file fits, and one whose file does not: the first has the higher e."""
        await self.add("small", file_mib=100)
        await self.add("large", file_mib=900)

    def policy(self, decide):
        """Return a policy that decides by this function."""
        return FunctionPolicy(decide)

    def toward(self, **wanted_mib):
        """Return a policy that wants these sizes and leaves the others."""

        def decide(snapshot):
            decision = hold(snapshot, "toward")
            guests = tuple(
                msgspec.structs.replace(guest, target_bytes=wanted_mib.get(guest.name, 0) * MIB or guest.target_bytes)
                for guest in decision.guests
            )
            return msgspec.structs.replace(decision, guests=guests)

        return FunctionPolicy(decide)


@pytest.fixture
def lab(tmp_path, nursery):
    return Lab(tmp_path, nursery)
