"""A fake guest agent on a fake virtio-serial port.

Behaviours are those of qemu-ga 7.2 as observed; ``tests/contract`` holds the fake against a real one.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Literal

import trio

from qmpalloc.qmp.agent_types import ExecResult
from qmpalloc.qmp.framing import SENTINEL
from qmpalloc.testing.faults import PeerDied, Wire
from qmpalloc.testing.peer import FakePeer, Refusal
from qmpalloc.testing.requests import RequestSplitter
from qmpalloc.testing.serving import serve_unix

READ_DEFAULT_BYTES = 4096
READ_MAX_BYTES = 48_000_000
FIRST_HANDLE = 1000
FROZEN_COMMANDS = frozenset(
    {"guest-ping", "guest-info", "guest-sync", "guest-sync-delimited", "guest-fsfreeze-status", "guest-fsfreeze-thaw"}
)
"""What an agent executes while file systems are frozen."""

FileContent = bytes | Callable[[], bytes]
Program = Callable[[list[str], bytes], ExecResult]
Lie = Literal["count", "more", "base64", "endless", "nothing"]


class FakeAgent(FakePeer):
    """A guest agent with files that exist only here. Its state outlives the clients, open files included.

    Args:
        files: Path to content, or to a function that makes the content whenever the file is opened; such a file cannot
            be written to. Files that are written appear here.
        running: False is a guest that still boots: it reads nothing until `start`, and then all that was sent.
        program: Runs what ``guest-exec`` is asked to; without it that command is disabled.

    Attributes:
        lie: How ``guest-file-read`` lies: a wrong ``count``, ``more`` bytes than asked for, data that is not
            ``base64``, or an ``endless`` file that delivers nothing; and ``guest-file-write``: a wrong ``count``, or
            ``nothing`` written without an error. None is the truth.
        refusal: Why ``guest-file-open`` refuses, in the words of the guest's C library; empty when it does not.
        frozen: True while a backup has frozen the guest's file systems.
        handles: Files open now, by handle.
        program_s: How long a program runs.
        write_max_bytes: The most one ``guest-file-write`` takes; what is beyond has to be written again.
    """

    def __init__(
        self,
        *,
        files: dict[str, FileContent] | None = None,
        running: bool = True,
        program: Program | None = None,
        version: str = "7.2.22",
    ) -> None:
        super().__init__()
        self.files = files if files is not None else {}
        self.lie: Lie | None = None
        self.refusal = ""
        self.frozen = False
        self.handles: dict[int, bytes] = {}
        self.program_s = 0.0
        self.write_max_bytes: int | None = None
        self._program = program
        self._version = version
        self._positions: dict[int, int] = {}
        self._written: dict[int, str] = {}
        self._next_handle = FIRST_HANDLE
        self._programs: dict[int, tuple[float, ExecResult, bool]] = {}
        self._running = trio.Event()
        if running:
            self._running.set()
        self.commands |= {
            "guest-ping": lambda _: {},
            "guest-sync": lambda arguments: arguments["id"],
            "guest-sync-delimited": lambda arguments: arguments["id"],
            "guest-info": self._info,
            "guest-fsfreeze-status": lambda _: "frozen" if self.frozen else "thawed",
            "guest-file-open": self._open,
            "guest-file-read": self._read,
            "guest-file-write": self._write,
            "guest-file-close": self._close,
        }
        if program is not None:
            self.commands |= {"guest-exec": self._exec, "guest-exec-status": self._exec_status}

    def start(self) -> None:
        """Let the agent run; it answers everything that was sent before."""
        self._running.set()

    def stop(self) -> None:
        """Kill the agent, or reboot its guest: open files are gone, what is sent from now on waits for `start`."""
        self._running = trio.Event()
        self.handles.clear()
        self._written.clear()

    async def serve_path(self, path: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on a Unix socket and serve one client after the other, until cancelled."""
        await serve_unix(path, self.serve, task_status=task_status)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one client to its end. A second one waits for the first to go."""
        async with self._one_client, stream:
            splitter, wire = RequestSplitter(), Wire(stream, self.faults)
            try:
                while True:
                    await self._running.wait()
                    data = await stream.receive_some(65536)
                    if not data:
                        return
                    await self._running.wait()
                    for frame in splitter.feed(data):
                        command, body = self._reply(frame)
                        prefix = SENTINEL if command == "guest-sync-delimited" else b""
                        await wire.answer(command, body, prefix=prefix)
            except (PeerDied, trio.BrokenResourceError, trio.ClosedResourceError):
                return

    def _check(self, command: str) -> None:
        if self.frozen and command not in FROZEN_COMMANDS:
            raise Refusal(f"Command {command} has been disabled: the agent is in frozen state", "CommandNotFound")

    def _info(self, _: dict[str, Any]) -> object:
        names = [*self.commands, "guest-shutdown"]
        enabled = FROZEN_COMMANDS if self.frozen else self.commands.keys()
        commands = [{"name": name, "enabled": name in enabled, "success-response": True} for name in names]
        return {"version": self._version, "supported_commands": commands}

    def _open(self, arguments: dict[str, Any]) -> object:
        path, mode = arguments["path"], arguments.get("mode", "r")
        if mode == "w":
            self._truncate(path)
        elif mode != "r":
            raise Refusal(f"invalid file open mode '{mode}'")
        elif self.refusal or path not in self.files:
            why = self.refusal or "No such file or directory"
            raise Refusal(f"failed to open file '{path}' (mode: 'r'): {why}")
        content = self.files[path]
        handle = self._next_handle
        self._next_handle += 1
        self.handles[handle] = content if isinstance(content, bytes) else content()
        self._positions[handle] = 0
        if mode == "w":
            self._written[handle] = path
        return handle

    def _truncate(self, path: str) -> None:
        if callable(self.files.get(path)):
            raise Refusal(f"failed to open file '{path}' (mode: 'w'): Permission denied")
        self.files[path] = b""

    def _write(self, arguments: dict[str, Any]) -> object:
        handle, data = arguments["handle"], base64.b64decode(arguments["buf-b64"])
        self._require(handle)
        if handle not in self._written:
            raise Refusal("failed to write to file: Bad file descriptor")
        taken = data[: self.write_max_bytes]
        path = self._written[handle]
        self.handles[handle] += taken
        self.files[path] = self.handles[handle]
        return {"count": {"count": len(data) + 1, "nothing": 0}.get(self.lie or "", len(taken)), "eof": False}

    def _read(self, arguments: dict[str, Any]) -> object:
        handle, count = arguments["handle"], arguments.get("count", READ_DEFAULT_BYTES)
        self._require(handle)
        if not 0 <= count < READ_MAX_BYTES:
            raise Refusal(f"value '{count}' is invalid for argument count")
        position = self._positions[handle]
        data = self.handles[handle][position : position + count]
        self._positions[handle] = position + len(data)
        # True only when the read was short: the end is not noticed by reading up to it.
        reply = {"count": len(data), "buf-b64": _base64(data), "eof": len(data) < count}
        return reply | self._lies(len(data), count)

    def _lies(self, length: int, count: int) -> dict[str, object]:
        match self.lie:
            case "count":
                return {"count": length + 1}
            case "more":
                return {"count": count + 1, "buf-b64": _base64(bytes(count + 1))}
            case "base64":
                return {"buf-b64": "!" * 8}
            case "endless":
                return {"count": 0, "buf-b64": "", "eof": False}
            case _:
                return {}

    def _close(self, arguments: dict[str, Any]) -> object:
        self._require(arguments["handle"])
        del self.handles[arguments["handle"]]
        self._written.pop(arguments["handle"], None)
        return {}

    def _require(self, handle: int) -> None:
        if handle not in self.handles:
            raise Refusal(f"handle '{handle}' has not been found")

    def _exec(self, arguments: dict[str, Any]) -> object:
        assert self._program is not None
        argv = [arguments["path"], *arguments.get("arg", [])]
        result = self._program(argv, base64.b64decode(arguments.get("input-data", "")))
        pid = 1 + len(self.requests)
        self._programs[pid] = (trio.current_time() + self.program_s, result, bool(arguments.get("capture-output")))
        return {"pid": pid}

    def _exec_status(self, arguments: dict[str, Any]) -> object:
        pid = arguments["pid"]
        if pid not in self._programs:
            raise Refusal("Invalid parameter 'pid'")
        ends_s, result, captured = self._programs[pid]
        if trio.current_time() < ends_s:
            return {"exited": False}
        del self._programs[pid]  # asking for the end reaps the process
        status: dict[str, object] = {"exited": True}
        if result.exit_code is not None:
            status["exitcode"] = result.exit_code
        if result.signal is not None:
            status["signal"] = result.signal
        if captured:
            status |= {"out-data": _base64(result.out), "err-data": _base64(result.err)}
        return status


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
