"""A controller among guests of which something goes wrong all the time.

    python -m qmpalloc.testing.chaos [--seed 1] [--guests 10] [--cycles 1000]

The guests are simulated ones over real Unix sockets, in virtual time, so that a day takes minutes and a seed replays.
Of every guest something breaks, shows in the record, is mended, and the guest recovers, again and again; now and then
the controller is stopped in place and another one adopts what it finds, the host runs out of memory, the policy raises,
and the configuration is read again.

After every event this must hold, or the run ends with the seed and what broke:

* nothing is granted that the budget has no room for, by what the fakes themselves have told;
* no command goes below a floor, and no decision changes a guest whose state forbids it;
* no spoilt sample is accepted; every fault shows in the record, and every guest recovers from it;
* decisions come on time; nothing unprintable is reported;
* tasks, descriptors and memory of this process do not grow.
"""

from __future__ import annotations

import gc
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import trio
import trio.testing
from trio._core import _run as trio_run

from qmpalloc import config as configuration
from qmpalloc.config import Config
from qmpalloc.controller import Controller
from qmpalloc.errors import QmpallocError
from qmpalloc.events import AnyEvent, ControlChanged, Decided, Ended, Sampled, SizeChanged, StateChanged
from qmpalloc.hostguard import HostMemory
from qmpalloc.model import Decision, GuestState, Limiter, Snapshot
from qmpalloc.policy import load
from qmpalloc.testing.balloon import FakeBalloon
from qmpalloc.testing.chaos_faults import HOSTILE, RESTARTED, Fault, catalogue, mend, shows
from qmpalloc.testing.fake_qemu import FakeQemu
from qmpalloc.testing.load import Load
from qmpalloc.testing.simulated_guest import SimulatedGuest, open_simulated_guest
from qmpalloc.units import GIB, MIB, format_size

INTERVAL_S = 5.0
RAM, CAP, BASELINE, FLOOR = 768 * MIB, 768 * MIB, 512 * MIB, 256 * MIB
SHOW_LIMIT_S = 60.0
RECOVER_LIMIT_S = 200.0
RESTART_EVERY = 97
GROWTH_MAX_BYTES = 24 * MIB


class ViolationError(AssertionError):
    """An invariant did not hold."""


class Policy:
    """The paper's rule, which raises now and then."""

    def __init__(self) -> None:
        self._rule = load("paper", {"step": "32MiB", "threshold": 1e12})
        self.raises = False

    def decide(self, snapshot: Snapshot) -> Decision:
        """Decide, or raise."""
        if self.raises:
            raise ZeroDivisionError("chaos")
        return self._rule.decide(snapshot)


class Witness:
    """Sees every event and every command, and objects.

    Attributes:
        events: Of each guest of which something is wrong: what was reported since, and what was decided about it.
        sampled: Samples accepted, by guest.
        broken: Guests of which something has been wrong since the last decision.
        guest_cycles: Decisions times guests of which something was wrong.
        shown: Faults that were seen in the record, by name.
        decisions: All of them.
        violation: The first thing that did not hold.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.events: dict[str, list[object]] = {}
        self.states: dict[str, GuestState] = {}
        self.sampled: Counter[str] = Counter()
        self.broken: set[str] = set()
        self.guest_cycles = 0
        self.decisions = 0
        self.shown: Counter[str] = Counter()
        self.violation = ""
        self.news = trio.Event()
        self._told: dict[str, tuple[float, int, int]] = {}
        self._targets: dict[str, int] = {}
        self._tick_t: float | None = None
        self._cycle = 0

    def object(self, what: str) -> None:
        """Note that something did not hold."""
        self.violation = self.violation or what
        self.news.set()

    # --- the record -------------------------------------------------------------------------------------------------

    def __call__(self, event: AnyEvent) -> None:
        """Take one event."""
        name = getattr(event, "guest", None)
        if name in self.events:
            self.events[name].append(event)
        match event:
            case Sampled() if event.sample.kernel == HOSTILE:
                self.object(f"{name}: a spoilt sample was accepted: {event.sample}")
            case Sampled():
                self.sampled[event.guest] += 1
            case StateChanged():
                self.states[event.guest] = event.state
            case SizeChanged():
                self._hear(event.guest, event.actual_bytes)
            case Decided():
                self._judge(event)
            case ControlChanged(control="settling" | "running"):
                self._tick_t, self._cycle = None, 0
        for text in (getattr(event, field, "") for field in ("message", "hint", "detail", "error")):
            if not text.isprintable():
                self.object(f"unprintable text was reported: {text!r}")
        self.news.set()
        self.news = trio.Event()

    def _judge(self, event: Decided) -> None:
        for seen, verdict in zip(event.snapshot.guests, event.decision.guests, strict=True):
            change = verdict.target_bytes - seen.target_bytes
            self.events.get(seen.name, []).append(verdict)
            may_shrink = seen.state is GuestState.FRESH and not seen.frozen
            home = verdict.target_bytes >= min(seen.baseline_bytes, seen.target_bytes)
            if change < 0 and not may_shrink and not home:
                self.object(f"{seen.name} is {seen.state} ({seen.frozen}) and was shrunk: {verdict}")
            if change < 0 and verdict.target_bytes < seen.floor_bytes:
                self.object(f"{seen.name} was shrunk below its floor of {format_size(seen.floor_bytes)}: {verdict}")
            # By the snapshot, too: where all need more than there is, the budget is what limits a guest in danger.
            in_danger = verdict.limiter is Limiter.DANGER or seen.frozen.startswith("danger")
            in_need = in_danger or seen.state is GuestState.LOST
            if change > 0 and seen.state is not GuestState.FRESH and not in_need:
                self.object(f"{seen.name} is {seen.state} and was to grow: {verdict}")
        if event.snapshot.cycle == self._cycle:
            return  # one that did not wait for the next tick
        self._cycle = event.snapshot.cycle
        self.decisions += 1
        self.guest_cycles += len(self.broken)
        self.broken.clear()
        if self._tick_t is not None and event.t - self._tick_t > INTERVAL_S + 0.5:
            self.object(f"a decision came {event.t - self._tick_t - INTERVAL_S:.1f} s late")
        self._tick_t = event.t

    # --- the wire ---------------------------------------------------------------------------------------------------

    def listen(self, name: str, qemu: FakeQemu) -> None:
        """Listen to what a fake is asked."""
        balloon = qemu.commands["balloon"]

        def asked(arguments: dict[str, Any]) -> object:
            self._grant(name, arguments["value"])
            return balloon(arguments)

        qemu.commands["balloon"] = asked

    def forget(self, name: str) -> None:
        """Note that a QEMU has ended."""
        self._told.pop(name, None)
        self._targets.pop(name, None)

    def _grant(self, name: str, target_bytes: int) -> None:
        if target_bytes < FLOOR:
            self.object(f"{name} was asked for {format_size(target_bytes)}, below its floor")
        before = max(self._known(name), *self._told.get(name, (0.0, 0, 0))[1:])
        self._targets[name] = target_bytes
        total = sum(self._known(each) for each in self._told)
        if self._known(name) > before and total > self.budget_bytes:
            sizes = {each: (self._targets.get(each), told[1:]) for each, told in self._told.items()}
            self.object(f"{name} was granted {format_size(target_bytes)}: {format_size(total)} in all, {sizes}")

    def _known(self, name: str) -> int:
        """Return what a guest may occupy by the last command, and by what the controller had heard when it sent it."""
        heard_s, before, now = self._told.get(name, (0.0, 0, 0))
        # In virtual time a command arrives at the instant it was sent; what was heard at that instant may be younger.
        heard = min(before, now) if heard_s == trio.current_time() else now
        return max(heard, self._targets.get(name, 0))

    def _hear(self, name: str, actual_bytes: int) -> None:
        if actual_bytes == 0:  # its QEMU has ended
            self.forget(name)
            return
        now_s = trio.current_time()
        heard_s, before, latest = self._told.get(name, (0.0, actual_bytes, actual_bytes))
        self._told[name] = (now_s, min(before, latest) if heard_s == now_s else latest, actual_bytes)

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        """Wait until something holds; that it does not is a violation."""
        with trio.move_on_after(limit_s) as scope:
            while not condition() and not self.violation:
                await self.news.wait()
        if scope.cancelled_caught and not condition():
            self.object(what)


class Place:
    """One guest and what happens to it."""

    def __init__(self, name: str, directory: Path, witness: Witness, seed: str) -> None:
        self.name = name
        self._directory = directory
        self._witness = witness
        self._rng = random.Random(seed)
        self._faults = catalogue()
        self.guest: SimulatedGuest | None = None
        self.resting = False

    async def run(self) -> None:
        """Live, break and recover, for ever; a QEMU that ends is followed by another."""
        while True:
            self._witness.states.pop(self.name, None)
            balloon = FakeBalloon(RAM, inflate_bytes_per_s=80 * MIB, deflate_bytes_per_s=400 * MIB)
            balloon.request(BASELINE)
            load = Load(file_pages=self._rng.choice([25_000, 200_000]), accesses_per_s=self._rng.uniform(100, 9000))
            async with (
                open_simulated_guest(self.name, self._directory, load=load, memory_bytes=RAM, balloon=balloon) as guest,
                trio.open_nursery() as nursery,
            ):
                self.guest = guest
                guest.qemu.version = (9, 2, 0)
                guest.qemu.stats |= {"stat-alloc-stalls": 0, "stat-oom-kills": 0}
                self._witness.listen(self.name, guest.qemu)
                nursery.start_soon(self._report_stats, guest)
                await self._suffer(guest)
                nursery.cancel_scope.cancel()
            self._witness.forget(self.name)
            await trio.sleep(self._rng.uniform(1, 8))

    async def _report_stats(self, guest: SimulatedGuest) -> None:
        while True:
            await trio.sleep(1.0)
            guest.qemu.last_update = 1_700_000_000 + int(trio.current_time())

    async def _suffer(self, guest: SimulatedGuest) -> None:
        """Let one thing after the other go wrong, until QEMU has ended."""
        while True:
            await self._recovered()
            await trio.sleep(self._rng.uniform(0, 1.5))
            while self.resting:  # noqa: ASYNC110 - nothing has to happen at once
                await trio.sleep(0.5)
            fault = self._rng.choice(self._faults)
            await self._break(guest, fault)
            if fault.ends_qemu:
                return

    async def _break(self, guest: SimulatedGuest, fault: Fault) -> None:
        witness = self._witness
        events = witness.events[self.name] = []
        witness.broken.add(self.name)
        undo = fault.do(guest, self._rng)
        try:
            await witness.until(lambda: shows(fault, events), SHOW_LIMIT_S, f"{self.name}: {fault.name}: does not show")
            witness.shown[fault.name] += 1
            await trio.sleep(self._rng.uniform(0, 2))
        finally:
            undo()
            mend(guest.qemu.faults)
            mend(guest.agent.faults)
            del witness.events[self.name]

    async def _recovered(self) -> None:
        """Wait until the guest takes part again."""
        state, sampled = self._witness.states, self._witness.sampled
        before = sampled[self.name]
        self._witness.broken.add(self.name)
        await self._witness.until(
            lambda: state.get(self.name) is GuestState.FRESH and sampled[self.name] > before,
            RECOVER_LIMIT_S,
            f"{self.name}: does not recover",
        )


class Chaos:
    """A whole run."""

    def __init__(self, directory: Path, *, seed: int, guests: int, cycles: int) -> None:
        self.config = make_config(directory, guests)
        self.witness = Witness(self.config.host.budget)
        self.policy = Policy()
        self.restarts = 0
        self.host_available = 8 * GIB
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
                if not self.witness.violation:
                    for place in self._places:
                        place.resting = True
                    await self._control(last=True)
                scope.cancel()
        self._compare_use()
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

        controller = Controller(config, self.policy, self.witness, note, read_host=self._read_host)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(controller.run)
            if last:
                await self._end_in_peace()
            else:
                nursery.start_soon(self._trouble, controller)
                while self.witness.decisions < until and not self.witness.violation:
                    await self.witness.news.wait()
            controller.quit()
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
        real = sum(place.guest.qemu.balloon.actual_bytes for place in self._places if place.guest is not None)
        if real > self.config.host.budget:
            self.witness.object(f"the guests really have {format_size(real)} in the end")

    async def _trouble(self, controller: Controller) -> None:
        """Trouble of the whole run, now and then."""
        while True:
            await trio.sleep(self._rng.uniform(10, 60))
            match self._rng.randrange(3):
                case 0:
                    with self._set("host_available", 100 * MIB):
                        await trio.sleep(self._rng.uniform(2, 20))
                case 1:
                    self.policy.raises = True
                    await trio.sleep(self._rng.uniform(2, 20))
                    self.policy.raises = False
                case 2:
                    controller.reload(self._fail)

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


def make_config(directory: Path, guests: int) -> Config:
    """Return the configuration of so many guests, whose budget is the sum of their baselines."""
    text = f'[host]\nbudget = "{guests * BASELINE // MIB}MiB"\n[control]\ninterval = "{INTERVAL_S:g}s"\n'
    text += 'command_timeout = "1s"\nlate_after = "3s"\nlost_after = "10s"\n'
    for index in range(guests):
        text += f'[[guest]]\nname = "g{index}"\nmonitor = "g{index}.qmp"\nagent = "g{index}.agent"\n'
        text += f'floor = "{FLOOR // MIB}MiB"\ncap = "{CAP // MIB}MiB"\nbaseline = "{BASELINE // MIB}MiB"\n'
    return configuration.parse(text, file=directory / "chaos.toml")


def run_chaos(*, seed: int, guests: int, cycles: int) -> Chaos:
    """Run chaos in virtual time and return what was seen.

    Raises:
        ViolationError: Something did not hold.
    """
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        chaos = Chaos(Path(name), seed=seed, guests=guests, cycles=cycles)
        # trio runs ready tasks in random order, on purpose; with its seed fixed the whole run replays.
        scheduling: Any = trio_run
        before, scheduling._ALLOW_DETERMINISTIC_SCHEDULING = scheduling._ALLOW_DETERMINISTIC_SCHEDULING, True
        scheduling._r.seed(seed)
        clock = trio.testing.MockClock(autojump_threshold=0)
        try:
            trio.run(chaos.run, clock=clock)
        finally:
            scheduling._ALLOW_DETERMINISTIC_SCHEDULING = before
    return chaos


@click.command()
@click.option("--seed", default=1, show_default=True)
@click.option("--guests", default=10, show_default=True)
@click.option("--cycles", default=1000, show_default=True, help="Decisions of the loop.")
def main(seed: int, guests: int, cycles: int) -> None:
    """Run chaos and tell what was seen; exit code 1 when something did not hold."""
    try:
        chaos = run_chaos(seed=seed, guests=guests, cycles=cycles)
    except ViolationError as error:
        click.echo(f"seed {seed}, {guests} guests: VIOLATION: {error}", err=True)
        sys.exit(1)
    witness = chaos.witness
    click.echo(f"seed {seed}: {witness.decisions} decisions, {chaos.restarts} controllers, {guests} guests")
    click.echo(
        f"guest-cycles with a fault: {witness.guest_cycles}; faults shown: {witness.shown.total()}; violations: 0"
    )
    click.echo(f"use: {chaos.use}")
    for name, count in sorted(witness.shown.items()):
        click.echo(f"  {count:6} {name}")


if __name__ == "__main__":
    main()
