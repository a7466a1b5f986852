"""A guest in the hands of a script: read samples, watch its size, set a target. For what the controller does not do."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from qmpalloc.config import DEFAULT_COUNTERS_FILE, ControlConfig, GuestConfig, Size
from qmpalloc.control.guest import Guest
from qmpalloc.control.inspection import ask_facts, choose_actuator, measure
from qmpalloc.control.memory import Facts
from qmpalloc.errors import ConfigError
from qmpalloc.qmp import MANY_COMMANDS, Actuator, Agent, Monitor, deadline, open_agent, open_monitor
from qmpalloc.sample import FILE_MAX_BYTES, Accepted, Sample, parse
from qmpalloc.units import format_size


class GuestHandle:
    """One guest, connected. Made by `open_guest`.

    Attributes:
        monitor: The QMP connection, for everything this class does not offer.
        agent: The guest-agent connection.
        actuator: What moves its memory.
        facts: What QEMU was started with; its memory as it was when the size was last asked for.
    """

    def __init__(self, guest: Guest, actuator: Actuator, agent: Agent, facts: Facts, timeout_s: float) -> None:
        self._guest = guest
        self._timeout_s = timeout_s
        self.actuator = actuator
        self.monitor: Monitor = actuator.monitor
        self.agent = agent
        self.facts = facts

    async def size_bytes(self) -> int:
        """Return the guest's size now, as QEMU tells it."""
        with deadline(self._timeout_s, self.monitor.address, self.actuator.query):
            facts = self.facts.with_memory(await self.actuator.memory())
            self.facts, self._guest.size.actual_bytes = await measure(self.actuator, facts)
        self._guest.memory.given(self.facts)
        return self._guest.size.actual_bytes

    async def read_sample(self) -> Sample:
        """Return the newest sample of the guest's collector.

        Raises:
            RefusedError: The agent cannot read the counters file.
            SampleError: The file cannot be used.
            DeadlineError: The agent did not answer in time.
        """
        with deadline(self._timeout_s, self.agent.address, "reading the counters file"):
            return parse(await self.agent.read_file(self._guest.config.counters_file, FILE_MAX_BYTES))

    async def next_delta(self, interval_s: float = 1.0) -> Accepted:
        """Wait `interval_s`, then return the newest sample and what happened since the one read before.

        Raises:
            SampleError: As `read_sample`; also when the collector has not written since, or was restarted.
        """
        if self._guest.samples.newest is None:
            await self._take_sample()
        await trio.sleep(interval_s)
        return await self._take_sample()

    async def _take_sample(self) -> Accepted:
        sample = await self.read_sample()
        if self._guest.memory.claims_too_much(sample):
            await self.size_bytes()  # memory may have been plugged
        return self._guest.take_sample(sample, trio.current_time())

    async def floor_bytes(self) -> int:
        """Return the least size the guest can live with now, from its newest sample."""
        size_bytes = await self.size_bytes()
        self._guest.memory.learn_need(await self.read_sample(), size_bytes, size_bytes)
        return self._guest.memory.floor_bytes

    async def set_target(self, target_bytes: int) -> None:
        """Ask QEMU for a size. It comes about slowly, or never: watch `size_bytes`.

        QEMU accepts any value, also one that kills the guest; this does not. It is rounded down to whole pages with a
        balloon, to whole blocks with virtio-mem.

        Raises:
            ConfigError: `target_bytes` is below `floor_bytes` or above the guest's RAM.
            RefusedError: QEMU refused.
        """
        floor_bytes = await self.floor_bytes()
        ram_bytes = self.facts.ram_bytes
        if not floor_bytes <= target_bytes <= ram_bytes:
            raise ConfigError(
                f"{format_size(target_bytes)} is not between {format_size(floor_bytes)} and {format_size(ram_bytes)}",
                key="target_bytes",
                hint="below the floor the guest could die; above its RAM QEMU would clamp silently",
            )
        with deadline(self._timeout_s, self.monitor.address, self.actuator.command):
            await self.actuator.order(self.facts.grid.fit(target_bytes))


@asynccontextmanager
async def open_guest(
    monitor: str,
    agent: str,
    *,
    counters_file: str = DEFAULT_COUNTERS_FILE,
    floor_bytes: int = 64 * 1024 * 1024,
    timeout_s: float = 5.0,
) -> AsyncIterator[GuestHandle]:
    """Connect to a guest.

    Args:
        monitor: Path of a QMP socket that nobody else holds.
        agent: Path of the guest-agent socket.
        counters_file: Path of the counters file inside the guest.
        floor_bytes: A floor of your own, below the one computed.
        timeout_s: Deadline of every command.

    Raises:
        UnreachableError: A socket is missing, refused or held by another client.
    """
    async with AsyncExitStack() as stack:
        the_monitor = await stack.enter_async_context(open_monitor(monitor, timeout_s=timeout_s))
        the_agent = await stack.enter_async_context(open_agent(agent, timeout_s=timeout_s))
        with deadline(MANY_COMMANDS * timeout_s, monitor, "the questions at connection"):
            actuator = await choose_actuator(the_monitor)
            facts, actual_bytes = await measure(actuator, await ask_facts(actuator))
        most = Size(sys.maxsize)  # all RAM that there is, also what is plugged later
        config = GuestConfig(
            name="guest", monitor=monitor, agent=agent, floor=Size(floor_bytes), cap=most, baseline=most,
            counters_file=counters_file,
        )  # fmt: skip
        guest = Guest(config, ControlConfig())
        guest.connected(facts, actual_bytes, trio.current_time(), paused=False)
        yield GuestHandle(guest, actuator, the_agent, facts, timeout_s)
