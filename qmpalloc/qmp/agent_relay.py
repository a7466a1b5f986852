"""One guest agent for several clients of this host: a socket of ours whose commands go through one connection.

QEMU serves one client per socket, and a guest of the user's has one agent. While an experiment runs programs through
it, the controller reads the counters through it as well: each as if it were alone, one command after the other.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import trio

from qmpalloc.errors import NonsenseError, QmpallocError, RefusedError
from qmpalloc.qmp.agent import Agent
from qmpalloc.qmp.agent_channel import SYNC
from qmpalloc.qmp.deadline import deadline
from qmpalloc.qmp.framing import SENTINEL, Framer, decode, encode

RECEIVE_BYTES = 65536

COMMAND_TIMEOUT_S = 30.0
"""For an answer of the guest, which may never come: an agent that was restarted has forgotten the command. Then its
client is disconnected, and the others go on."""


async def relay_agent(
    agent: Agent, path: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Listen on a Unix socket, for this user only, and pass its clients' commands to `agent`, until cancelled.

    Clients are disconnected when the agent is gone. What the guest answers is passed on: the client judges it.

    Args:
        agent: Open for as long as this runs.
        path: Of the socket, in a directory that only this user may enter.
        task_status: Started when clients can connect.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - a path as text
        bound.bind(path)
        bound.listen(8)
    except OSError:
        bound.close()
        raise
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound))

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await _serve(agent, stream)

    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(trio.serve_listeners, serve, [listener])
            task_status.started()
            await agent.closed.wait()
            nursery.cancel_scope.cancel()
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108


async def _serve(agent: Agent, stream: trio.SocketStream) -> None:
    framer = Framer()
    while data := await stream.receive_some(RECEIVE_BYTES):
        for frame in framer.feed(data):
            if not isinstance(frame, bytes):  # the sentinel before a synchronisation
                continue
            try:
                request = decode(frame)
            except NonsenseError:
                continue
            answer = await _answer(agent, str(request.get("execute")), request.get("arguments"))
            if answer is None:
                return
            if "id" in request:
                answer["id"] = request["id"]
            prefix = SENTINEL if request.get("execute") == SYNC else b""
            await stream.send_all(prefix + encode(answer))


async def _answer(agent: Agent, command: str, arguments: object) -> dict[str, object] | None:
    """Return what a command brings; None when the guest does not answer, or the connection to it is over."""
    given = arguments if isinstance(arguments, dict) else None
    if command == SYNC:  # each client's own matter: the connection to the guest has its own
        return {"return": given.get("id") if given is not None else None}
    try:
        with deadline(COMMAND_TIMEOUT_S, agent.address, command):
            return {"return": await agent.forward(command, given)}
    except RefusedError as error:
        return {"error": {"class": error.error_class, "desc": error.message}}
    except NonsenseError as error:
        return {"error": {"class": "GenericError", "desc": error.message}}
    except QmpallocError:
        return None
