"""A controller among guests of which something goes wrong all the time.

    python -m tests.chaos [--seed 1] [--guests 10] [--cycles 1000]

The guests are simulated ones over real Unix sockets, in virtual time, so that a day takes minutes and a seed replays.
Half of them have a balloon, half a virtio-mem device. Of every guest something breaks, shows in the record, is mended,
and the guest recovers, again and again, and even that while its peers split, repeat or delay their answers: no guest is
sound in any cycle. Now and then the controller is stopped in place or cancelled and another one adopts what it finds,
the host runs out of memory or cannot be looked at, the policy raises, and the configuration is read again: with a
mistake, with another budget, without a guest and with it again.

After every event this must hold, or the run ends with the seed and what broke:

* nothing is granted that the budget has no room for, by what the fakes themselves have told;
* no command takes a guest below its floor, and no decision changes a guest whose state forbids it;
* no spoilt sample is accepted; every fault shows in the record, and every guest recovers from it;
* decisions come on time; nothing unprintable is reported;
* tasks, descriptors and memory of this process do not grow.
"""

from __future__ import annotations

import errno
import functools
import gc
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest_trio  # noqa: F401 - puts the order in which trio runs ready tasks into the hands of hypothesis
import trio
import trio.testing
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from msgspec import structs

from qmpalloc import config as configuration
from qmpalloc.config import Config
from qmpalloc.control.controller import Controller
from qmpalloc.errors import QmpallocError
from qmpalloc.events import AnyEvent, Ended
from qmpalloc.model import Decision, GuestState, HostMemory, Promise, Snapshot
from qmpalloc.policy import load
from qmpalloc.rules.promises import KeepsPromises
from qmpalloc.sim.load import Load
from qmpalloc.testing.balloon import FakeBalloon, FakeVirtioMem
from qmpalloc.testing.simulated_guest import SimulatedGuest, open_simulated_guest
from qmpalloc.units import GIB, MIB, format_size
from tests.chaos.faults import RESTARTED, SPOILT_SAMPLES, Fault, catalogue, mend, nuisances, shows
from tests.chaos.witness import ViolationError, Witness

INTERVAL_S = 5.0
RAM, CAP, BASELINE, FLOOR = 768 * MIB, 768 * MIB, 512 * MIB, 256 * MIB
RATES = 80.0 * MIB, 400.0 * MIB
"""How fast a guest gives memory and takes it, in bytes per second."""

SHOW_LIMIT_S = 60.0
RECOVER_LIMIT_S = 200.0
RESTART_EVERY = 97
VISITOR = "visitor"
"""A guest of which nothing breaks, and which leaves the configuration and comes back."""

LEAVE_LIMIT_S = 60.0
SPOILT_UNSEEN_MAX = 10
"""Spoilt samples need not be told at once: some are well-formed, and none may have been read."""

GROWTH_MAX_BYTES = 24 * MIB


class Policy:
    """The paper's rule, which raises now and then, and promises that no guest loses by it.

    It breaks that often, so that moves are taken back all the time.
    """

    promises = True

    def __init__(self) -> None:
        self._rule = load("paper", {"step": "32MiB", "threshold": 1e12})
        self.raises = False

    def decide(self, snapshot: Snapshot) -> Decision:
        """Decide, or raise."""
        if self.raises:
            raise ZeroDivisionError("chaos")
        decision = self._rule.decide(snapshot)
        promised = (Promise(page_ins_per_s=guest.page_ins_per_s or 0.0) for guest in snapshot.guests)
        verdicts = zip(decision.guests, promised, strict=True)
        return structs.replace(
            decision, guests=tuple(structs.replace(verdict, promise=promise) for verdict, promise in verdicts)
        )


class Place:
    """One guest and what happens to it.

    Attributes:
        name: Of the guest.
        guest: Present while its QEMU lives.
        resting: Nothing more breaks.
    """

    def __init__(self, name: str, directory: Path, witness: Witness, seed: str) -> None:
        self.name = name
        self._directory = directory
        self._witness = witness
        self._rng = random.Random(seed)
        self._faults = catalogue()
        self._nuisances = nuisances()
        self.guest: SimulatedGuest | None = None
        self.resting = False

    async def run(self) -> None:
        """Live, break and recover, for ever; a QEMU that ends is followed by another."""
        while True:
            self._witness.states.pop(self.name, None)
            plugs = self._rng.randrange(2)
            virtio_mem = FakeVirtioMem(FLOOR, RAM - FLOOR) if plugs else None
            balloon = None if plugs else FakeBalloon(RAM)
            load = Load(file_pages=self._rng.choice([25_000, 200_000]), accesses_per_s=self._rng.uniform(100, 9000))
            async with (
                open_simulated_guest(
                    self.name, self._directory, load=load, memory_bytes=RAM, balloon=balloon, virtio_mem=virtio_mem
                ) as guest,
                trio.open_nursery() as nursery,
            ):
                guest.qemu.actuator.request(BASELINE)
                guest.qemu.actuator.inflate_bytes_per_s, guest.qemu.actuator.deflate_bytes_per_s = RATES
                self.guest = guest
                guest.qemu.version = (9, 2, 0)
                guest.qemu.stats |= {"stat-alloc-stalls": 0, "stat-oom-kills": 0}
                self._witness.listen(self.name, guest.qemu)
                nursery.start_soon(self._report_stats, guest)
                await self._suffer(guest)
                nursery.cancel_scope.cancel()
            self._witness.forget(self.name)
            with self._witness.trouble(self.name):
                await trio.sleep(self._rng.uniform(1, 8))

    async def _report_stats(self, guest: SimulatedGuest) -> None:
        while True:
            await trio.sleep(1.0)
            guest.qemu.last_update = 1_700_000_000 + int(trio.current_time())
            for requests in (guest.qemu.requests, guest.agent.requests):
                requests.clear()  # the fakes remember all, and it is the controller's memory that is watched

    async def _suffer(self, guest: SimulatedGuest) -> None:
        """Let one thing after the other go wrong, until QEMU has ended."""
        if self.name == VISITOR:
            await trio.sleep_forever()
        while True:
            await self._recover(guest)
            await trio.sleep(self._rng.uniform(0, 1.5))
            while self.resting:  # noqa: ASYNC110 - nothing has to happen at once
                await trio.sleep(0.5)
            fault = self._rng.choice([fault for fault in self._faults if fault.can_befall(guest)])
            await self._break(guest, fault)
            if fault.ends_qemu:
                return

    async def _break(self, guest: SimulatedGuest, fault: Fault) -> None:
        witness = self._witness
        events = witness.events[self.name] = []
        with self._done(guest, fault):
            await witness.until(lambda: shows(fault, events), SHOW_LIMIT_S, f"{self.name}: {fault.name}: does not show")
            witness.shown[fault.name] += 1
            await trio.sleep(self._rng.uniform(0, 2))
        del witness.events[self.name]

    async def _recover(self, guest: SimulatedGuest) -> None:
        """Wait until the guest takes part again, in spite of a nuisance."""
        state, sampled = self._witness.states, self._witness.sampled
        before = sampled[self.name]
        nuisance = self._rng.choice(self._nuisances)
        with self._done(guest, nuisance):
            await self._witness.until(
                lambda: state.get(self.name) is GuestState.FRESH and sampled[self.name] > before,
                RECOVER_LIMIT_S,
                f"{self.name}: does not recover while {nuisance.name}",
            )

    @contextmanager
    def _done(self, guest: SimulatedGuest, fault: Fault) -> Iterator[None]:
        """Break a guest for the time of a block."""
        with self._witness.trouble(self.name):
            undo = fault.do(guest, self._rng)
            try:
                yield
            finally:
                undo()
                mend(guest.qemu.faults)
                mend(guest.agent.faults)


class Chaos:
    """A whole run.

    Attributes:
        config: As it is now.
        witness: What was seen.
        restarts: Controllers that ended.
        reloads: Configurations that were read again without a mistake.
        sound_guest_cycles: Decisions times guests of which nothing was wrong since the decision before.
    """

    def __init__(self, directory: Path, *, seed: int, guests: int, cycles: int) -> None:
        self.config = make_config(directory, guests)
        self.witness = Witness(budget_bytes=self.config.host.budget, floor_bytes=FLOOR, interval_s=INTERVAL_S)
        self.sound_guest_cycles = 0
        self.reloads = 0
        self._make_config = functools.partial(make_config, directory, guests)
        self._guests = guests
        self.policy = Policy()
        self.restarts = 0
        self.host_available: int | None = 8 * GIB
        self._rng = random.Random(f"{seed}/all")
        self._cycles = cycles
        self._places = [
            Place(guest.name, directory, self.witness, f"{seed}/{guest.name}") for guest in self.config.guests
        ]
        self._use: list[tuple[int, int, int]] = []

    async def run(self) -> None:
        """Run until all cycles are done or something does not hold.

        Raises:
            ViolationError: Something did not hold.
        """
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for place in self._places:
                    nursery.start_soon(place.run)
                await trio.sleep(5.0)
                while self.witness.decisions < self._cycles and not self.witness.violation:
                    await self._control(last=False)
                    self._measure()
                self.sound_guest_cycles = self.witness.decisions * self._guests - self.witness.guest_cycles
                if not self.witness.violation:
                    for place in self._places:
                        place.resting = True
                    await self._control(last=True)
                scope.cancel()
        self._compare_use()
        if self.witness.shown[SPOILT_SAMPLES] > SPOILT_UNSEEN_MAX and not self.witness.dropped:
            self.witness.object(f"{SPOILT_SAMPLES}: never told")
        if self.witness.violation:
            raise ViolationError(self.witness.violation)

    async def _control(self, *, last: bool) -> None:
        """Let one controller work for a while, and leave everything in place, or at the very end at the baselines."""
        until = min(self.witness.decisions + RESTART_EVERY, self._cycles)
        control = msgspec.structs.replace(self.config.control, on_exit="baseline" if last else "keep")
        config = msgspec.structs.replace(self.config, control=control)
        ended: list[Ended] = []

        def note(event: AnyEvent) -> None:
            if isinstance(event, Ended):
                ended.append(event)

        controller = Controller(config, KeepsPromises(self.policy), self.witness, note, read_host=self._read_host)
        life = trio.CancelScope()

        async def live() -> None:
            with life:
                await controller.run()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(live)
            if last:
                await self._end_in_peace()
            else:
                nursery.start_soon(self._trouble, controller)
                while self.witness.decisions < until and not self.witness.violation:
                    await self.witness.news.wait()
            if last or self._rng.randrange(2):
                controller.quit()
            else:
                life.cancel()
            await self.witness.until(lambda: bool(ended), 60.0, "the controller did not end")
            nursery.cancel_scope.cancel()
        self.restarts += 1
        self.witness.states.clear()
        for events in self.witness.events.values():
            events.append(RESTARTED)
        if last and not ended[0].clean:
            self.witness.object("the last controller did not leave all guests at their baselines")

    async def _end_in_peace(self) -> None:
        """Wait until every guest is well."""
        states = self.witness.states
        names = [guest.name for guest in self.config.guests]
        await self.witness.until(
            lambda: all(states.get(name) is GuestState.FRESH for name in names), 300.0, "not all guests recovered"
        )
        await trio.sleep(150.0)  # what was stuck is asked again
        real = sum(place.guest.qemu.actuator.actual_bytes for place in self._places if place.guest is not None)
        if real > self.config.host.budget:
            self.witness.object(f"the guests really have {format_size(real)} in the end")

    async def _trouble(self, controller: Controller) -> None:
        """Trouble of the whole run, now and then."""
        while True:
            await trio.sleep(self._rng.uniform(10, 60))
            match self._rng.randrange(6):
                case 0:
                    with self._set("host_available", 100 * MIB):
                        await trio.sleep(self._rng.uniform(2, 20))
                case 1:
                    self.policy.raises = True
                    await trio.sleep(self._rng.uniform(2, 20))
                    self.policy.raises = False
                case 2:
                    controller.reload(self._fail)
                case 3:
                    await self._change_budget(controller)
                case 4:
                    with self._set("host_available", None):
                        await trio.sleep(self._rng.uniform(2, 20))
                case 5:
                    await self._let_the_visitor_go_and_come(controller)

    async def _change_budget(self, controller: Controller) -> None:
        """Raise the budget for a while, and lower it again under the guests' feet."""
        usual_bytes = self.config.host.budget
        self.witness.budget_bytes += self._rng.randrange(16, 512) * MIB
        try:
            self._reload(controller, self._make_config(budget_bytes=self.witness.budget_bytes))
            await trio.sleep(self._rng.uniform(5, 30))
            self._reload(controller, self._make_config())
            await trio.sleep(2.0)  # what was granted before is on its way
        finally:
            self.config = self._make_config()
            self.witness.budget_bytes = usual_bytes

    async def _let_the_visitor_go_and_come(self, controller: Controller) -> None:
        """Take the visitor out of the configuration together with its memory, and put it in again."""
        usual_bytes = self.config.host.budget

        def is_there() -> bool:
            return any(guest.name == VISITOR for guest in controller.guests)

        try:
            self._reload(controller, self._make_config(budget_bytes=usual_bytes - BASELINE, visitor=False))
            await self.witness.until(lambda: not is_there(), LEAVE_LIMIT_S, "the visitor does not leave the run")
            self.witness.budget_bytes -= BASELINE
            self.witness.forget(VISITOR)
            await trio.sleep(self._rng.uniform(5, 30))
            self.witness.budget_bytes = usual_bytes
            self.witness.states.pop(VISITOR, None)
            self._reload(controller, self._make_config())
            came = self.witness.states.get
            await self.witness.until(
                lambda: came(VISITOR) is GuestState.FRESH, LEAVE_LIMIT_S, "the visitor does not come back"
            )
        finally:
            self.config = self._make_config()
            self.witness.budget_bytes = usual_bytes

    def _reload(self, controller: Controller, new: Config) -> None:
        self.config = msgspec.structs.replace(new, control=controller.config.control)
        controller.reload(lambda: self.config)
        self.reloads += 1

    @contextmanager
    def _set(self, name: str, value: object) -> Iterator[None]:
        before = getattr(self, name)
        setattr(self, name, value)
        try:
            yield
        finally:
            setattr(self, name, before)

    def _fail(self) -> Config:
        raise QmpallocError("chaos wrote nonsense into the configuration")

    def _read_host(self) -> HostMemory:
        if self.host_available is None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return HostMemory(total_bytes=16 * GIB, available_bytes=self.host_available)

    # --- leaks ------------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        gc.collect()
        tasks = trio.lowlevel.current_statistics().tasks_living
        self._use.append((tasks, len(list(Path("/proc/self/fd").iterdir())), resident_bytes()))

    def _compare_use(self) -> None:
        if len(self._use) < 3:
            return
        # Of the guests' own side as many tasks and descriptors live as their state at that moment asks for.
        slack = 8 * len(self._places)
        (tasks, files, memory), later = self._use[len(self._use) // 3], self._use[-1]
        if later[0] > tasks + slack or later[1] > files + slack or later[2] > memory + GROWTH_MAX_BYTES:
            self.witness.object(f"tasks, descriptors, bytes grew from {(tasks, files, memory)} to {later}")

    @property
    def use(self) -> str:
        """Tasks, descriptors and memory after the first third and at the end, for people."""
        if not self._use:
            return "not measured"
        shown = [
            f"{tasks} tasks, {files} descriptors, {memory / MIB:.1f} MiB"
            for tasks, files, memory in (self._use[len(self._use) // 3], self._use[-1])
        ]
        return " -> ".join(shown)


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def make_config(directory: Path, guests: int, *, visitor: bool = True, budget_bytes: int | None = None) -> Config:
    """Return the configuration of so many guests and the visitor.

    Args:
        directory: Where their sockets are.
        guests: Their number, without the visitor.
        visitor: Whether that is among them.
        budget_bytes: Of all; the sum of their baselines by default.
    """
    names = [f"g{index}" for index in range(guests)] + [VISITOR] * visitor
    budget_bytes = len(names) * BASELINE if budget_bytes is None else budget_bytes
    text = f'[host]\nbudget = "{budget_bytes // MIB}MiB"\n[control]\ninterval = "{INTERVAL_S:g}s"\n'
    text += 'command_timeout = "1s"\nlate_after = "3s"\nlost_after = "10s"\n'
    for name in names:
        text += f'[[guest]]\nname = "{name}"\nmonitor = "{name}.qmp"\nagent = "{name}.agent"\n'
        text += f'floor = "{FLOOR // MIB}MiB"\ncap = "{CAP // MIB}MiB"\nbaseline = "{BASELINE // MIB}MiB"\n'
    return configuration.parse(text, file=directory / "chaos.toml")


def run_chaos(*, seed: int, guests: int, cycles: int) -> Chaos:
    """Run chaos in virtual time and return what was seen.

    Raises:
        ViolationError: Something did not hold.
    """
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        chaos = Chaos(Path(name), seed=seed, guests=guests, cycles=cycles)
        clock = trio.testing.MockClock(autojump_threshold=0)
        _with_fixed_scheduling(lambda: trio.run(chaos.run, clock=clock))
    return chaos


def _with_fixed_scheduling(run: Callable[[], None]) -> None:
    """Run what runs trio; ready tasks take turns in an order by chance, but every time in the same one.

    That order is seeded while hypothesis runs an example, so this is one.
    """
    outcome: list[Exception] = []

    @settings(max_examples=1, phases=[Phase.generate], database=None, deadline=None)
    @given(st.none())
    def example(_: None) -> None:
        try:
            run()
        except Exception as error:  # hypothesis would run it again
            outcome.append(error)

    example()
    if outcome:
        raise outcome[0]
