"""What guests that do their worst cost the controller: CPU seconds by guest and second, and what the others notice.

    python benchmarks/hostile_guests.py [--hostile 6] [--honest 4] [--seconds 30] [TRICK ...]

For each trick the controller works among honest and hostile guests, then among as many honest ones alone; the
difference of its CPU time, by hostile guest and second, is what the trick costs. The guests are simulated ones
(qmpalloc.testing) over real Unix sockets, in a process of their own.

Reported besides: the age of the honest guests' samples at decisions, 99th percentile, without and with the hostile
ones; and how often a hostile guest's faults and lost samples were told.
"""

from __future__ import annotations

import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from multiprocessing.synchronize import Event
from pathlib import Path

import click
import numpy as np
import trio
from controller import BASELINE_MIB, Watch, configuration_text, percentile

from qmpalloc import Controller, load_policy
from qmpalloc import config as configuration
from qmpalloc.curves.samples import Batch, pack
from qmpalloc.events import AnyEvent, Faulted, SamplesDropped
from qmpalloc.sim import Load
from qmpalloc.testing import FakeBalloon, open_simulated_guest
from qmpalloc.testing.simulated_guest import SimulatedGuest
from qmpalloc.units import MIB

SAMPLES = "/run/qmpalloc/samples.bin"
COSTLY_LINE = b'{"x":[' + b"[]," * 300_000 + b"[]]}\n"
"""A line of 0.9 MB that takes JSON longest: about 0.1 s."""


def forge(guest: SimulatedGuest, events: int) -> None:
    """Let a guest's samples file hold so many new events, whenever it is opened, of pages that no rate leaves out."""
    first = itertools.count(0, events)

    def content() -> bytes:
        start = next(first)
        keys = np.arange(start, start + events, dtype=np.uint64) << np.uint64(10)
        return pack(
            Batch(
                boot_id=b"b" * 16,
                start_id=b"s" * 8,
                first=start,
                accesses=(start + events) * 64,
                lost=0,
                shift=6,
                events=keys << np.uint64(4),
            )
        )

    guest.agent.files[SAMPLES] = content


def interpose(guest: SimulatedGuest, noise: bytes) -> None:
    """Let a guest's agent send noise before each of its answers."""
    guest.agent.faults.garbage = noise


def crumble(guest: SimulatedGuest) -> None:
    """Let a guest's agent send its answers, and blanks before them, in single bytes."""
    guest.agent.faults.garbage = b" " * 5_000
    guest.agent.faults.split = True


TRICKS: dict[str, Callable[[SimulatedGuest], None]] = {
    "samples": lambda guest: forge(guest, 16_000),
    "allowed-samples": lambda guest: forge(guest, 2_400),
    "many-samples": lambda guest: forge(guest, 65_000),
    "flood": lambda guest: interpose(guest, 5 * COSTLY_LINE),
    "noise": lambda guest: interpose(guest, COSTLY_LINE),
    "lines": lambda guest: interpose(guest, b"{}\n" * 900),
    "crumbs": crumble,
}


def serve_guests(directory: Path, honest: int, hostile: int, trick: str, ready: Event) -> None:
    """Run the guests until killed; the last ones are hostile."""

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            for index in range(honest + hostile):
                balloon = FakeBalloon(1024 * MIB, inflate_bytes_per_s=200.0 * MIB, deflate_bytes_per_s=1500.0 * MIB)
                balloon.request(BASELINE_MIB * MIB)
                load = Load(file_pages=(100 if index % 2 else 900) * 256, accesses_per_s=20_000.0)
                guest = await stack.enter_async_context(
                    open_simulated_guest(f"g{index}", directory, load=load, memory_bytes=1024 * MIB, balloon=balloon)
                )
                if index >= honest:
                    TRICKS[trick](guest)
            await trio.sleep(3.0)
            ready.set()
            await trio.sleep_forever()

    trio.run(serve)


class Told:
    """A sink that counts what was told of guests."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, event: AnyEvent) -> None:
        """Note one event."""
        self.count += isinstance(event, (Faulted, SamplesDropped))


def measure(honest: int, hostile: int, trick: str, seconds: float) -> tuple[float, float, float]:
    """Return CPU seconds of the controller, by second; p99 age of honest samples, ms; times something was told."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ready = multiprocessing.Event()
        arguments = (directory, honest, hostile, trick, ready)
        guests = multiprocessing.Process(target=serve_guests, args=arguments, daemon=True)
        guests.start()
        ready.wait()
        loaded = configuration.parse(configuration_text(honest + hostile), file=directory / "lab.toml")
        watch, told = Watch({f"g{index}" for index in range(honest, honest + hostile)}), Told()
        controller = Controller(loaded, load_policy(loaded.policy, loaded.policy_settings), watch, told)
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        trio.run(lambda: controller.run(duration_s=seconds))
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        guests.kill()
        guests.join()
    return cpu_s / wall_s, percentile(watch.ages_ms, 99), told.count * 60 / wall_s


@click.command()
@click.argument("tricks", nargs=-1, type=click.Choice(list(TRICKS)))
@click.option("--hostile", default=6, show_default=True)
@click.option("--honest", default=4, show_default=True)
@click.option("--seconds", default=30.0, show_default=True)
def main(tricks: tuple[str, ...], hostile: int, honest: int, seconds: float) -> None:
    """Measure and print."""
    for trick in tricks or tuple(TRICKS):
        cpu, age_ms, told = measure(honest, hostile, trick, seconds)
        cpu_without, age_without_ms, _ = measure(honest + hostile, 0, trick, seconds)
        click.echo(
            f"{trick}: {1e3 * (cpu - cpu_without) / hostile:.1f} ms CPU by hostile guest and second; "
            f"all together {cpu:.1%} of a core, {cpu_without:.1%} if they were honest; "
            f"age of the others' samples, p99: {age_ms:.0f} ms, {age_without_ms:.0f} ms; "
            f"told of each: {told / hostile:.1f} a minute"
        )


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
