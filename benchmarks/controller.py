"""What the controller costs: its CPU share and its punctuality with many guests at 1 Hz.

    python benchmarks/controller.py [GUESTS, default 16] [SECONDS, default 30] [HUNG, default 0]

With HUNG, monitor and agent of that many guests stop answering 3 s after the start, as a stopped QEMU's do.

The guests are simulated ones (qmpalloc.testing) over real Unix sockets, in a process of their own, so that only the
controller is measured: sampling every guest every second, a decision of the paper's rule every second, and the balloon
commands that follow from it. It runs headless, with a record.

Reported: CPU seconds of this process by wall seconds; the time from the tick of a cycle to its decision (snapshot,
policy, limits); the age of a guest's newest sample at the decision, without the guests that hang; and commands sent.
Medians and 99th percentiles. ``benchmarks/controller_growth.py`` makes a figure of it.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Container, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import trio

from qmpalloc import Controller, RecordWriter, load_policy
from qmpalloc import config as configuration
from qmpalloc.events import AnyEvent, Commanded, ControlChanged, Decided, Sampled
from qmpalloc.sim import Load
from qmpalloc.testing import FakeBalloon, open_simulated_guest
from qmpalloc.testing.simulated_guest import SimulatedGuest
from qmpalloc.units import MIB

BASELINE_MIB = 512


async def open_guests(stack: AsyncExitStack, directory: Path, count: int) -> list[SimulatedGuest]:
    """Open simulated guests until the stack is closed: every other one has a file that does not fit."""
    guests = []
    for index in range(count):
        balloon = FakeBalloon(1024 * MIB, inflate_bytes_per_s=200.0 * MIB, deflate_bytes_per_s=1500.0 * MIB)
        balloon.request(BASELINE_MIB * MIB)
        load = Load(file_pages=(100 if index % 2 else 900) * 256, accesses_per_s=20_000.0)
        opening = open_simulated_guest(f"g{index}", directory, load=load, memory_bytes=1024 * MIB, balloon=balloon)
        guests.append(await stack.enter_async_context(opening))
    return guests


def serve_guests(directory: Path, count: int, hung: int, ready: Event) -> None:
    """Run the simulated guests until killed; the first `hung` of them stop answering."""

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            guests = await open_guests(stack, directory, count)
            await trio.sleep(3.0)
            ready.set()
            await trio.sleep(3.0)
            for guest in guests[:hung]:
                guest.qemu.faults.hang = guest.agent.faults.hang = True
            await trio.sleep_forever()

    trio.run(serve)


def configuration_text(count: int, interval: str = "1s") -> str:
    """Return a configuration for `count` guests with a decision every so often."""
    text = f'[host]\nbudget = "{count * BASELINE_MIB}MiB"\n[control]\ninterval = "{interval}"\non_exit = "keep"\n'
    text += '[policy]\nname = "paper"\nstep = "16MiB"\nthreshold = 1e9\n'
    for index in range(count):
        text += f'[[guest]]\nname = "g{index}"\nmonitor = "g{index}.qmp"\nagent = "g{index}.agent"\n'
        text += f'floor = "256MiB"\ncap = "1GiB"\nbaseline = "{BASELINE_MIB}MiB"\n'
    return text


class Watch:
    """A sink that notes when things happened, without the samples of some guests."""

    def __init__(self, without: Container[str] = ()) -> None:
        self._without = without
        self.begin_s = 0.0
        self.cycles_ms: list[float] = []
        self.ages_ms: list[float] = []
        self.samples = 0
        self.commands = 0
        self._sampled_t: dict[str, float] = {}

    def __call__(self, event: AnyEvent) -> None:
        """Note one event."""
        match event:
            case ControlChanged(control="running"):
                self.begin_s = event.t
            case Sampled():
                self.samples += 1
                self._sampled_t[event.guest] = event.t
            case Commanded():
                self.commands += 1
            case Decided():
                tick_t = self.begin_s + event.snapshot.cycle * event.snapshot.interval_s
                self.cycles_ms.append((event.t - tick_t) * 1000)
                self.ages_ms += [
                    (event.t - t) * 1000 for name, t in self._sampled_t.items() if name not in self._without
                ]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result of one run. Times of the others, where guests hang."""

    wall_s: float
    cpu_s: float
    record_bytes: int
    watch: Watch


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def percentiles(values: Sequence[float]) -> str:
    """Return median and 99th percentile for people."""
    p99 = percentile(values, 99)
    return f"median {statistics.median(values):.1f} ms, p99 {p99:.1f} ms, worst {max(values):.1f} ms"


def measure(count: int, seconds: float, hung: int) -> Measured:
    """Let a controller work for a while among so many guests, of which some hang."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ready = multiprocessing.Event()
        guests = multiprocessing.Process(target=serve_guests, args=(directory, count, hung, ready), daemon=True)
        guests.start()
        ready.wait()
        loaded = configuration.parse(configuration_text(count), file=directory / "lab.toml")
        policy = load_policy(loaded.policy, loaded.policy_settings)
        watch = Watch({f"g{index}" for index in range(hung)})
        with RecordWriter(directory / "record.jsonl") as record:
            controller = Controller(loaded, policy, watch, record)
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            trio.run(lambda: controller.run(duration_s=seconds))
            cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        size = (directory / "record.jsonl").stat().st_size
        guests.kill()
        guests.join()
    return Measured(wall_s=wall_s, cpu_s=cpu_s, record_bytes=size, watch=watch)


def main(count: int, seconds: float, hung: int) -> None:
    """Measure and print."""
    run = measure(count, seconds, hung)
    wall_s, cpu_s, watch = run.wall_s, run.cpu_s, run.watch
    print(f"{count} guests at 1 Hz for {wall_s:.0f} s: {watch.samples} samples, {watch.commands} balloon commands")
    print(f"CPU of the controller: {cpu_s / wall_s:.1%} of one core, {cpu_s / watch.samples * 1000:.2f} ms per sample")
    print(f"from tick to decision: {percentiles(watch.cycles_ms)}")
    print(f"age of samples when decided on: {percentiles(watch.ages_ms)}")
    print(f"record: {run.record_bytes / wall_s / 1000:.0f} kB/s")


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 16,
        float(sys.argv[2]) if len(sys.argv) > 2 else 30.0,
        int(sys.argv[3]) if len(sys.argv) > 3 else 0,
    )
