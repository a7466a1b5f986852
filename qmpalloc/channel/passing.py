"""A program in a guest as if it ran here: its streams and its exit code passed on while it runs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TypeVar

import trio

from qmpalloc.channel.base import Channel
from qmpalloc.channel.command import CommandChannel, last_line
from qmpalloc.errors import HostError, NonsenseError, QmpallocError
from qmpalloc.qmp import Agent, deadline

COMMAND_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 60.0
"""For an answer about a program that runs. An agent that has ended, with its guest or alone, never gives it."""

CLEAN_TIMEOUT_S = 10.0
POLL_FIRST_S, POLL_MAX_S = 0.02, 0.5
DIRECTORY = re.compile(r"/var/tmp/qmpalloc-exec\.[A-Za-z0-9]{6,}")
MAKE_DIRECTORY = "umask 077; exec mktemp -d /var/tmp/qmpalloc-exec.XXXXXX"
RUN = 'd=$1 i=$2; shift 2; exec "$@" <"$i" >"$d/out" 2>"$d/err"'

Take = Callable[[bytes], object]
T = TypeVar("T")


async def pass_through(channel: Channel, argv: Sequence[str], *, stdin: bytes | None, out: Take, err: Take) -> int:
    """Run a program in a guest and return its exit code, as a shell would: 128 and the signal that ended it.

    An agent hands output out at the end only, and not much of it. So through an agent it goes to files, on the guest's
    disk, that are read while they grow, and removed. A command of this host passes our own streams on.

    Args:
        channel: Open.
        argv: Program and arguments.
        stdin: All of its standard input; None for none.
        out: Takes what it writes to standard output, of an agent.
        err: The same of standard error.

    Cancelling ends the program, too, as far as the guest answers.

    Raises:
        QmpallocError: The guest does not answer, or refuses.
    """
    if isinstance(channel, Agent):
        return await _through_agent(channel, argv, stdin, {"out": out, "err": err})
    assert isinstance(channel, CommandChannel)
    process = await trio.run_process(
        channel.argv(argv), cwd=channel.directory, stdin=subprocess.DEVNULL if stdin is None else stdin, check=False
    )
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


async def _through_agent(agent: Agent, argv: Sequence[str], stdin: bytes | None, takers: dict[str, Take]) -> int:
    with deadline(COMMAND_TIMEOUT_S, agent.address, "a directory for the output"):
        made = await agent.run(["/bin/sh", "-c", MAKE_DIRECTORY])
    directory = made.out.decode("utf-8", "replace").strip()
    if made.exit_code != 0 or not DIRECTORY.fullmatch(directory):
        raise HostError(f"{agent.address}: the guest makes no directory in /var/tmp: {last_line(made.err)}")
    pid: int | None = None
    ended = False
    try:
        for name in takers:
            await agent.write_file(f"{directory}/{name}", b"")
        if stdin is not None:
            await agent.write_file(f"{directory}/in", stdin)
        source = f"{directory}/in" if stdin is not None else "/dev/null"
        with deadline(COMMAND_TIMEOUT_S, agent.address, f"starting {argv[0]}"):
            pid = await agent.start(["/bin/sh", "-c", RUN, "sh", directory, source, *argv])
        code = await _follow(agent, directory, pid, takers)
        ended = True
    finally:
        with trio.move_on_after(CLEAN_TIMEOUT_S, shield=True), suppress(QmpallocError):  # it may be gone
            kill = f"kill {pid} 2>/dev/null; " if pid is not None and not ended else ""
            await agent.run(["/bin/sh", "-c", f"{kill}rm -rf {directory}"])
    return code


async def _follow(agent: Agent, directory: str, pid: int, takers: dict[str, Take]) -> int:
    """Pass on what a program writes until it has ended, and return its exit code."""

    async def answer(ask: Callable[[], Awaitable[T]]) -> T:
        with deadline(ANSWER_TIMEOUT_S, agent.address, "how the program goes on"):
            return await ask()

    async with AsyncExitStack() as stack:
        files = [
            (await stack.enter_async_context(agent.follow_file(f"{directory}/{name}")), take)
            for name, take in takers.items()
        ]
        pause_s = POLL_FIRST_S
        while True:
            result = await answer(partial(agent.poll, pid))  # before the last reading, which then misses nothing
            came = False
            for file, take in files:
                while chunk := await answer(file.read):
                    take(chunk)
                    came = True
            if result is not None:
                if result.exit_code is not None:
                    return result.exit_code
                if result.signal is None:
                    raise NonsenseError(f"{agent.address}: the program ended, and the agent does not say how")
                return 128 + result.signal
            pause_s = POLL_FIRST_S if came else min(2 * pause_s, POLL_MAX_S)
            await trio.sleep(pause_s)
