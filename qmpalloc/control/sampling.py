"""Reading one guest's counters and sampled accesses through its agent, again and again, whatever it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from qmpalloc.config import ControlConfig
from qmpalloc.control.guest import Guest
from qmpalloc.control.journal import Journal
from qmpalloc.curves.observer import NOT_SAMPLED
from qmpalloc.curves.samples import FILE_MAX_BYTES as SAMPLES_MAX_BYTES
from qmpalloc.errors import (
    DeadlineError,
    FloodError,
    NonsenseError,
    RefusedError,
    SampleError,
    SampleFault,
    UnreachableError,
)
from qmpalloc.events import Sampled, SampleRejected, SamplesDropped
from qmpalloc.qmp import Agent, FileTrouble, NoiseAllowance, deadline, file_trouble, open_agent
from qmpalloc.sample import FILE_MAX_BYTES, parse

ABSENT_HINT = "install guest_agent/ in the guest (docs/guests.md), or start it: systemctl start qmpalloc-collector"

REREAD_SHARE = 0.15
"""Part of the sample interval after which a reading that brought nothing new is repeated."""

RECONNECT_AFTER = 5
"""Readings in a row without an answer, after which the connection is made anew. Until then it is kept, for it knows
which files a slow agent has left open in its guest, and closes them."""

SAMPLES_SHARE = 0.5
"""Part of the sample interval that reading the sampled accesses may take, so that the counters come in time."""

SAMPLES_RETRY_S = 10.0
SAMPLES_RETRY_MOST_S = 300.0
"""How long a guest whose sampled accesses cannot be read or used is not asked for them; twice as long each time they
cannot be used."""

SAMPLES_LATE_FIRST_S = 1.0
"""How long one that has not answered in time is left alone: twice as long each time, up to `SAMPLES_RETRY_S`. The file
holds the last three intervals at least: nothing is lost when a busy guest is late once."""

SAMPLES_CHUNK_BYTES = 64 * 1024
SAMPLES_BYTES_PER_S = 128 * 1024
"""The most of the samples file that is asked for at once, and in a second on average; a collector that samples as
much as it may ships 48,000 bytes a second."""

FLOOD_RETRY_FIRST_S = 1.0
FLOOD_RETRY_MOST_S = 60.0
"""How long a guest that floods its agent channel is left alone: twice as long each time, until a connection has lasted
for the longest of these times."""


async def run_sampling(
    guest: Guest,
    journal: Journal,
    control: ControlConfig,
    on_change: Callable[[], None],
    ask_memory: Callable[[], Awaitable[None]],
) -> None:
    """Read samples for ever; what goes wrong is reported, and the guest's age shows it.

    Args:
        guest: Whose samples.
        journal: For what goes wrong.
        control: For its times.
        on_change: Called when there is news.
        ask_memory: Asks QEMU anew how much memory the guest has, before a sample is refused for claiming too much.
    """
    interval_s, timeout_s = float(control.sample_interval), float(control.command_timeout)
    batches, noise, flood_retry_s = BatchReading(guest, journal), NoiseAllowance(), FLOOD_RETRY_FIRST_S
    while True:
        began_s = trio.current_time()
        try:
            async with open_agent(guest.config.agent, timeout_s=timeout_s, noise=noise) as agent:
                next_s, again, silent = trio.current_time(), False, 0
                while True:
                    try:
                        news = await read_sample(agent, guest, journal, timeout_s, ask_memory)
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
                        await batches.read(agent, min(timeout_s, interval_s * SAMPLES_SHARE))
                    # A reading that came just before the collector wrote is repeated once, soon: from then on readings
                    # follow the writings closely. Else a schedule without drift, and without bursts.
                    again = not news and not again
                    next_s += interval_s * (REREAD_SHARE if again else 1.0)
                    next_s = max(next_s, trio.current_time())
                    await trio.sleep_until(next_s)
        except FloodError as error:
            if trio.current_time() - began_s >= FLOOD_RETRY_MOST_S:
                flood_retry_s = FLOOD_RETRY_FIRST_S
            wait_s = max(interval_s, flood_retry_s)
            message = f"{error.message}; it is left alone for {wait_s:g} s"
            journal.fault(guest.name, "agent", message, error.hint)
            await trio.sleep(wait_s)
            flood_retry_s = min(2 * flood_retry_s, FLOOD_RETRY_MOST_S)
        except (UnreachableError, NonsenseError) as error:
            journal.fault(guest.name, "agent", error.message, error.hint)
            await trio.sleep(interval_s)


async def read_sample(
    agent: Agent, guest: Guest, journal: Journal, timeout_s: float, ask_memory: Callable[[], Awaitable[None]]
) -> bool:
    """Read the counters file once; return False if the collector has not written since the last time."""
    try:
        with deadline(timeout_s, guest.config.agent, "reading the counters file"):
            data = await agent.read_file(guest.config.counters_file, FILE_MAX_BYTES)
    except RefusedError as error:
        absent = file_trouble(error) is FileTrouble.ABSENT
        fault, hint = (SampleFault.MISSING, ABSENT_HINT) if absent else (SampleFault.REFUSED, error.hint)
        if hint:
            journal.fault(guest.name, "counters", error.message, hint)
        journal.emit(SampleRejected, guest=guest.name, fault=fault, message=error.message)
        return True
    journal.clear_fault(guest.name, "counters")
    try:
        sample = parse(data)
        if guest.memory.claims_too_much(sample):
            await ask_memory()
        accepted = guest.take_sample(sample, journal.now_s())
    except SampleError as error:
        if error.fault is SampleFault.REPEATED:
            return False
        journal.emit(SampleRejected, guest=guest.name, fault=error.fault, message=error.message)
        return True
    journal.emit(
        Sampled,
        guest=guest.name,
        sample=accepted.sample,
        delta=accepted.delta,
        disk_read_pages=guest.samples.curves.disk_read_pages,
    )
    return True


class BatchReading:
    """Reading one guest's sampled accesses, as often as they are worth it.

    What goes wrong here is told, and weakens the guest's curve; the counters go on without.
    """

    def __init__(self, guest: Guest, journal: Journal) -> None:
        self._guest = guest
        self._journal = journal
        self._from_s = 0.0
        self._retry_s, self._late_s = SAMPLES_RETRY_S, SAMPLES_LATE_FIRST_S
        self._told: str | None = None

    async def read(self, agent: Agent, limit_s: float) -> None:
        """Read them once, in so much time, unless it is too early for that."""
        if trio.current_time() < self._from_s:
            return
        data = await self._fetch(agent, limit_s)
        if data is None:
            return
        self._late_s = SAMPLES_LATE_FIRST_S
        self._from_s = trio.current_time() + len(data) / SAMPLES_BYTES_PER_S
        self._use(data)

    async def _fetch(self, agent: Agent, limit_s: float) -> bytes | None:
        path, retry_s = self._guest.config.samples_path, SAMPLES_RETRY_S
        try:
            with deadline(limit_s, agent.address, "reading the sampled accesses"):
                return await agent.read_file(path, SAMPLES_MAX_BYTES, chunk_bytes=SAMPLES_CHUNK_BYTES)
        except FloodError:
            raise  # this connection has ended
        except RefusedError as error:
            if file_trouble(error) in {FileTrouble.ABSENT, FileTrouble.OTHER}:
                self._guest.samples.curves.absent(f"{NOT_SAMPLED} ({path} cannot be read)")
            else:
                self._refuse(f"cannot read {path}: {error.message}")
                return None
        except DeadlineError as error:
            retry_s, self._late_s = self._late_s, min(2 * self._late_s, SAMPLES_RETRY_S)
            self._drop(f"cannot read {path}: {error.message}")
        except NonsenseError as error:
            self._drop(f"cannot read {path}: {error.message}")
        self._from_s = trio.current_time() + retry_s
        return None

    def _use(self, data: bytes) -> None:
        try:
            lost = self._guest.samples.curves.take_batch(data, trio.current_time())
        except SampleError as error:
            if error.fault is not SampleFault.REPEATED:
                self._refuse(f"{error.fault}: {error.message}")
            return
        self._retry_s, self._told = SAMPLES_RETRY_S, None
        if lost:
            self._drop(f"{lost} sampled accesses were lost", lost)

    def _refuse(self, message: str) -> None:
        """Do without for a while; what is told once is told again only after samples that could be used."""
        self._from_s = trio.current_time() + self._retry_s
        self._retry_s = min(2 * self._retry_s, SAMPLES_RETRY_MOST_S)
        if message != self._told:
            self._told = message
            self._drop(message)

    def _drop(self, message: str, events: int = 0) -> None:
        self._journal.emit(SamplesDropped, guest=self._guest.name, events=events, message=message)
