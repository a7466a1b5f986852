"""Opening a guest's channel as a file describes it."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import trio

from qmpalloc.channel.base import Channel
from qmpalloc.channel.command import open_command
from qmpalloc.errors import BusyError, DeadlineError
from qmpalloc.host.sockets import holders
from qmpalloc.qmp import Agent, open_agent

Written = Literal["agent"] | tuple[str, ...]
"""A channel in a file: ``"agent"``, or the words of a command."""

SILENCE_S = 2.0
"""A running agent that serves nobody else answers sooner, also in an emulated guest."""


@asynccontextmanager
async def open_channel(
    written: Written,
    *,
    guest: str,
    agent: Path | str,
    wait_s: float = math.inf,
    report: Callable[[str], None] = print,
    directory: Path | None = None,
) -> AsyncIterator[Channel]:
    """Open the channel of a guest, and check that it answers.

    Args:
        written: As in the file.
        guest: Its name, for errors.
        agent: The socket of the agent that may run programs, for ``"agent"``.
        wait_s: How long to wait for an agent, which serves one client after the other.
        report: Takes a line that says whom we wait for.
        directory: In which a command is run; by default ours.

    Raises:
        BusyError: Another process held the agent's socket all the time; says which.
        QmpallocError: There is no such socket or command, or the guest does not answer.
    """
    if written != "agent":
        async with open_command(written, guest, directory) as command:
            yield command
        return
    path = str(agent)
    async with open_agent(path, timeout_s=min(wait_s, 1e6)) as client:
        await _wait_for_answer(client, guest, wait_s, report)
        yield client


async def others(path: str) -> list[str]:
    """Return ``name (pid N)`` of every other process that is connected to a socket, or waits for its turn."""
    found = await trio.to_thread.run_sync(holders, path)
    return [each for each in found if not each.endswith(f"(pid {os.getpid()})")]


async def _wait_for_answer(agent: Agent, guest: str, wait_s: float, report: Callable[[str], None]) -> None:
    with trio.move_on_after(min(SILENCE_S, wait_s)):
        await agent.sync()
        return
    held = await others(agent.address)
    if held and wait_s > SILENCE_S:
        report(f"{guest}: {', '.join(held)} holds {agent.address}; waiting for its turn")
    with trio.move_on_after(wait_s - SILENCE_S):
        await agent.sync()
        return
    held = await others(agent.address)
    if held:
        message = f"guest {guest}: {', '.join(held)} still holds {agent.address} after {wait_s:g} s"
        hint = "an agent serves one client after the other: wait longer, or end that process"
        raise BusyError(message, address=agent.address, hint=hint)
    message = f"guest {guest}: its agent at {agent.address} does not answer within {wait_s:g} s"
    hint = "the guest still boots, hangs, or runs no agent on this port"
    raise DeadlineError(message, address=agent.address, hint=hint)
