"""Reading one guest's counters and sampled accesses through its agent, again and again, whatever it answers."""

from __future__ import annotations

from collections.abc import Callable

import trio

from qmpalloc.config import ControlConfig
from qmpalloc.control.guest import Guest
from qmpalloc.control.journal import Journal
from qmpalloc.curves.observer import NOT_SAMPLED
from qmpalloc.curves.samples import FILE_MAX_BYTES as SAMPLES_MAX_BYTES
from qmpalloc.errors import DeadlineError, NonsenseError, RefusedError, SampleError, SampleFault, UnreachableError
from qmpalloc.events import Sampled, SampleRejected, SamplesDropped
from qmpalloc.qmp import Agent, deadline, open_agent
from qmpalloc.sample import FILE_MAX_BYTES, parse

REREAD_SHARE = 0.15
"""Part of the sample interval after which a reading that brought nothing new is repeated."""

RECONNECT_AFTER = 5
"""Readings in a row without an answer, after which the connection is made anew. Until then it is kept, for it knows
which files a slow agent has left open in its guest, and closes them."""

SAMPLES_SHARE = 0.5
"""Part of the sample interval that reading the sampled accesses may take, so that the counters come in time."""

SAMPLES_RETRY_S = 10.0
"""How long a guest whose sampled accesses cannot be read is not asked for them."""


async def run_sampling(guest: Guest, journal: Journal, control: ControlConfig, on_change: Callable[[], None]) -> None:
    """Read samples for ever; what goes wrong is reported, and the guest's age shows it."""
    interval_s, timeout_s = float(control.sample_interval), float(control.command_timeout)
    samples_from_s = 0.0
    while True:
        try:
            async with open_agent(guest.config.agent, timeout_s=timeout_s) as agent:
                next_s, again, silent = trio.current_time(), False, 0
                while True:
                    try:
                        news = await read_sample(agent, guest, journal, timeout_s)
                    except DeadlineError as error:
                        silent += 1
                        if silent == RECONNECT_AFTER:
                            raise
                        journal.fault(guest.name, "agent", error.message, error.hint)
                        await trio.sleep(interval_s)
                        continue
                    silent = 0
                    journal.clear_fault(guest.name, "agent")
                    if news:
                        on_change()
                        if trio.current_time() >= samples_from_s:
                            limit_s = min(timeout_s, interval_s * SAMPLES_SHARE)
                            read = await read_batch(agent, guest, journal, limit_s)
                            samples_from_s = trio.current_time() + (0.0 if read else SAMPLES_RETRY_S)
                    # A reading that came just before the collector wrote is repeated once, soon: from then on readings
                    # follow the writings closely. Else a schedule without drift, and without bursts.
                    again = not news and not again
                    next_s += interval_s * (REREAD_SHARE if again else 1.0)
                    next_s = max(next_s, trio.current_time())
                    await trio.sleep_until(next_s)
        except (UnreachableError, NonsenseError) as error:
            journal.fault(guest.name, "agent", error.message, error.hint)
            await trio.sleep(interval_s)


async def read_sample(agent: Agent, guest: Guest, journal: Journal, timeout_s: float) -> bool:
    """Read the counters file once; return False if the collector has not written since the last time."""
    try:
        with deadline(timeout_s, guest.config.agent, "reading the counters file"):
            data = await agent.read_file(guest.config.counters_file, FILE_MAX_BYTES)
    except RefusedError as error:
        journal.emit(SampleRejected, guest=guest.name, fault=SampleFault.MISSING, message=error.message)
        return True
    try:
        accepted = guest.take_sample(parse(data), journal.now_s())
    except SampleError as error:
        if error.fault is SampleFault.REPEATED:
            return False
        journal.emit(SampleRejected, guest=guest.name, fault=error.fault, message=error.message)
        return True
    journal.emit(Sampled, guest=guest.name, sample=accepted.sample, delta=accepted.delta)
    return True


async def read_batch(agent: Agent, guest: Guest, journal: Journal, limit_s: float) -> bool:
    """Read the sampled accesses once; return False if the guest should not be asked again soon.

    What goes wrong here is told, and weakens the guest's curve; the counters go on without.
    """
    path = guest.config.samples_path
    try:
        with deadline(limit_s, guest.config.agent, "reading the sampled accesses"):
            data = await agent.read_file(path, SAMPLES_MAX_BYTES)
    except RefusedError:
        guest.curves.absent(f"{NOT_SAMPLED} ({path} cannot be read)")
        return False
    except (DeadlineError, NonsenseError) as error:
        _drop(journal, guest, f"cannot read {path}: {error.message}")
        return False
    try:
        lost = guest.curves.take_batch(data)
    except SampleError as error:
        if error.fault is not SampleFault.REPEATED:
            _drop(journal, guest, f"{error.fault}: {error.message}")
        return True
    if lost:
        _drop(journal, guest, f"{lost} sampled accesses were lost", lost)
    return True


def _drop(journal: Journal, guest: Guest, message: str, events: int = 0) -> None:
    journal.emit(SamplesDropped, guest=guest.name, events=events, message=message)
