"""Does one guest that hangs change the others' times by less than 10 %? Paired, with a confidence interval.

    python benchmarks/controller_hung.py [--guests 100] [--pairs 40] [--seconds 20] [--record FILE]

One controller runs all the time. Monitor and agent of one of its guests answer for a while (A), then they do not (B),
as a stopped QEMU's, then again, A/B/A/B. So each pair of periods has nearly the same host, and what else that does
meets both. In every other pair B comes first. The first seconds of a period belong to neither: the guest is being found
hung, or is coming back.

Of the time from the tick of a cycle to its decision, and of the age of the other guests' newest samples at the
decision, it prints median and 99th percentile over all periods of a kind. What decides is a ratio B / A and its
interval of 95 % (bootstrap over the pairs). Of the median it is the middle one of the pairs' ratios, which a few that
something else disturbed do not move. Of the 99th percentile it is that of all periods of a kind: one period has too few
decisions to tell its own. The claim is shown when the interval lies within 0.9 and 1.1, refuted when it lies outside,
and open otherwise: then more pairs are needed, or a quieter host.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Protocol

import click
import msgspec
import numpy as np
import trio
from controller import configuration_text, open_guests
from numpy.typing import NDArray

from qmpalloc import Controller, RecordWriter, load_policy
from qmpalloc import config as configuration
from qmpalloc.events import AnyEvent, ControlChanged, Decided, Sampled

SETTLE_S = 6.0
"""Longer than a command's time limit."""

WITHIN = 0.1
PAIRS_LEAST = 10
"""With fewer the bootstrap's interval means nothing."""

RESAMPLES = 2_000
HUNG = "g0"


def serve_guests(directory: Path, count: int, ready: Event, hang: Event) -> None:
    """Run the simulated guests until killed; the first one answers while `hang` is not set."""

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            guests = await open_guests(stack, directory, count)
            await trio.sleep(3.0)
            ready.set()
            while True:
                guests[0].qemu.faults.hang = guests[0].agent.faults.hang = hang.is_set()
                await trio.sleep(0.1)

    trio.run(serve)


@dataclass
class Period:
    """What was seen in one period. Times in ms; `cpu_s` is what this process used, in seconds."""

    hung: bool
    cpu_s: float = 0.0
    cycles_ms: list[float] = field(default_factory=list)
    ages_ms: list[float] = field(default_factory=list)


class Watch:
    """A sink that notes the times of decisions in the period at hand; None is none."""

    def __init__(self) -> None:
        self.period: Period | None = None
        self._begin_s = 0.0
        self._sampled_t: dict[str, float] = {}

    def __call__(self, event: AnyEvent) -> None:
        """Note one event."""
        match event:
            case ControlChanged(control="running"):
                self._begin_s = event.t
            case Sampled():
                self._sampled_t[event.guest] = event.t
            case Decided() if self.period is not None:
                # The nearest tick before: cycles that a standstill of the whole process skips are not counted.
                self.period.cycles_ms.append((event.t - self._begin_s) % event.snapshot.interval_s * 1000)
                self.period.ages_ms += [(event.t - t) * 1000 for name, t in self._sampled_t.items() if name != HUNG]


class Switch(Protocol):
    """What makes a period of kind B, and ends it: for example an event that the guest's process waits for."""

    def set(self) -> None:
        """Begin."""

    def clear(self) -> None:
        """End."""


async def conduct(
    controller: Controller, watch: Watch, hang: Switch, pairs: int, seconds: float, settle_s: float = SETTLE_S
) -> list[Period]:
    """Let the guest hang and answer in turn; return the periods, of which two make a pair."""
    periods: list[Period] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(controller.run)
        await trio.sleep(settle_s)
        for pair in range(pairs):
            for hung in (True, False) if pair % 2 else (False, True):
                (hang.set if hung else hang.clear)()
                await trio.sleep(settle_s)
                watch.period = Period(hung, -time.process_time())
                await trio.sleep(seconds)
                watch.period.cpu_s += time.process_time()
                periods.append(watch.period)
                watch.period = None
        nursery.cancel_scope.cancel()
    return periods


def measure(count: int, pairs: int, seconds: float) -> list[Period]:
    """Return the periods of a run among so many guests."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ready, hang = multiprocessing.Event(), multiprocessing.Event()
        guests = multiprocessing.Process(target=serve_guests, args=(directory, count, ready, hang), daemon=True)
        guests.start()
        ready.wait()
        loaded = configuration.parse(configuration_text(count), file=directory / "lab.toml")
        watch = Watch()
        with RecordWriter(directory / "record.jsonl") as record:
            controller = Controller(loaded, load_policy(loaded.policy, loaded.policy_settings), watch, record)
            periods = trio.run(conduct, controller, watch, hang, pairs, seconds)
        guests.kill()
        guests.join()
    return periods


def report(
    title: str,
    answering: Sequence[list[float]],
    hung: Sequence[list[float]],
    words: tuple[str, str] = ("with all answering", "with one hung"),
) -> None:
    """Print one quantity: its percentiles of both kinds, their ratio and what that shows."""
    pairs = len(answering)
    draws = np.random.default_rng(1).integers(pairs, size=(RESAMPLES, pairs))
    for percent in (50, 99):
        here, there = (np.percentile(np.concatenate(periods), percent) for periods in (answering, hung))
        if percent == 50:
            of_pairs = np.array([np.median(b) / np.median(a) for a, b in zip(answering, hung, strict=True)])
            ratio, drawn = np.median(of_pairs), np.median(of_pairs[draws], axis=1)
        else:
            ratio, drawn = there / here, np.array([_of_all(hung, draw) / _of_all(answering, draw) for draw in draws])
        low, high = np.percentile(drawn, [2.5, 97.5])
        verdict = "open"
        if pairs < PAIRS_LEAST:
            verdict = "open, with so few pairs"
        elif low >= 1 - WITHIN and high <= 1 + WITHIN:
            verdict = "shown"
        elif low > 1 + WITHIN or high < 1 - WITHIN:
            verdict = "refuted"
        name = "median" if percent == 50 else f"p{percent}"
        click.echo(
            f"{title}, {name}: {here:.2f} ms {words[0]}, {there:.2f} ms {words[1]}, "
            f"ratio {ratio:.3f} [{low:.3f}, {high:.3f}]: less than {WITHIN:.0%} is {verdict}"
        )


def _of_all(periods: Sequence[list[float]], draw: NDArray[np.int64]) -> float:
    """Return the 99th percentile of the periods drawn."""
    return float(np.percentile(np.concatenate([periods[index] for index in draw]), 99))


@click.command()
@click.option("--guests", default=100, show_default=True)
@click.option("--pairs", default=40, show_default=True, help="Pairs of periods.")
@click.option("--seconds", default=20.0, show_default=True, help="Of each period, after it has settled.")
@click.option("--record", type=click.Path(path_type=Path), help="Keep all times, as JSON.")
def main(guests: int, pairs: int, seconds: float, record: Path | None) -> None:
    """Measure and print."""
    periods = measure(guests, pairs, seconds)
    if record is not None:
        record.write_bytes(msgspec.json.encode(periods))
    answering, hung = ([period for period in periods if period.hung is kind] for kind in (False, True))
    cycles = sum(len(period.cycles_ms) for period in answering)
    click.echo(f"{guests} guests, {pairs} pairs of {seconds:g} s: {cycles} decisions of either kind")
    report("tick to decision", [each.cycles_ms for each in answering], [each.cycles_ms for each in hung])
    report("age of samples", [each.ages_ms for each in answering], [each.ages_ms for each in hung])


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
