"""A guest that a command of this host reaches: ``ssh root@guest``, or any that takes a line for a shell.

The command gets one more word, a line for a POSIX shell, as ssh hands it to the shell of the user who logs in. One that
takes a program and its arguments instead is given a shell: ``["docker", "exec", "-i", "vm", "sh", "-c"]``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from qmpalloc.errors import HostError, RefusedError, UnreachableError
from qmpalloc.qmp import ExecResult, deadline
from qmpalloc.text import printable

OUTPUT_MAX_BYTES = 16 * 1024**2
"""Kept of each of a program's outputs, the file that is read not among them; the rest is read and thrown away. As much
as a guest agent keeps."""

CHUNK_BYTES = 64 * 1024
PROBE_TIMEOUT_S = 60.0
"""For the first word from the guest; an emulated one takes seconds to greet ssh."""

KILL_GRACE_S = 2.0
PROBE = "qmpalloc-reaches-it"
BROKEN = 255
"""What ssh ends with when it is ssh that failed."""

HINTS = {
    "Permission denied": (
        "no password can be typed here: let root log in with a key (ssh-copy-id), and try the command by hand with "
        "-o BatchMode=yes"
    ),
    "Host key verification failed": "run the command by hand once and accept the guest's key",
    "IDENTIFICATION HAS CHANGED": "the guest has another key than before: ssh-keygen -R removes the old one",
    "Connection refused": "does sshd run in the guest, and does QEMU forward the port (hostfwd=)?",
    "Connection closed": "the guest does not greet yet, or its sshd refuses: try the command by hand with -v",
    "Could not resolve": "the name of the guest is unknown to this host",
    "not found": "the line for the shell came apart: should the prefix end with sh -c?",
}


class CommandChannel:
    """A guest behind a command of this host. Open one with `open_command`.

    Attributes:
        address: The words of the command.
        directory: In which it is run; None is ours.
    """

    def __init__(self, prefix: Sequence[str], directory: Path | None = None) -> None:
        self.directory = directory
        self.address = printable(shlex.join(prefix), 200)
        self._prefix = tuple(prefix)
        self._started: dict[int, subprocess.Popen[bytes]] = {}

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Return what this host runs to have the guest run `argv`."""
        return [*self._prefix, shlex.join(argv)]

    async def run(self, argv: Sequence[str], *, input_data: bytes | None = None) -> ExecResult:
        """Run a program in the guest to its end; see `qmpalloc.channel.Channel`. Cancelling ends the host's command.

        Raises:
            HostError: The command itself cannot be run on this host.
        """
        return await self._run(argv, input_data, OUTPUT_MAX_BYTES)

    async def _run(self, argv: Sequence[str], input_data: bytes | None, most_bytes: int) -> ExecResult:
        process = await self._open(argv, input_data)
        out, err = bytearray(), bytearray()
        try:
            async with trio.open_nursery() as nursery:
                if input_data is not None:
                    nursery.start_soon(_feed, process, input_data)
                nursery.start_soon(_collect, process.stdout, out, most_bytes)
                nursery.start_soon(_collect, process.stderr, err, OUTPUT_MAX_BYTES)
                await process.wait()
                # What it has left behind may hold the streams open: a master connection of ssh (ControlPersist).
                nursery.cancel_scope.deadline = trio.current_time() + KILL_GRACE_S
        finally:
            await _end(process)
        code = process.returncode
        assert code is not None
        return ExecResult(
            exit_code=code if code >= 0 else None, signal=-code if code < 0 else None, out=bytes(out), err=bytes(err)
        )

    async def _open(self, argv: Sequence[str], input_data: bytes | None) -> trio.Process:
        # In a session of its own it has no terminal: ssh then fails instead of asking for a password, and a Ctrl-C
        # reaches us alone.
        try:
            return await trio.lowlevel.open_process(
                self.argv(argv),
                cwd=self.directory,
                stdin=subprocess.DEVNULL if input_data is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise self._cannot_run(error) from error

    def _cannot_run(self, error: OSError) -> HostError:
        message = f"{self._prefix[0]} cannot be run on this host: {error.strerror}"
        return HostError(message, hint="the first word of `channel` is a program of this host")

    async def start(self, argv: Sequence[str]) -> int:
        """Start a program in the guest; see `qmpalloc.channel.Channel`. The host's command lives as long as it."""
        await trio.lowlevel.checkpoint()
        process = self._popen(argv)
        self._started[process.pid] = process
        return process.pid

    def _popen(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        null = subprocess.DEVNULL
        try:
            return subprocess.Popen(
                self.argv(argv), cwd=self.directory, stdin=null, stdout=null, stderr=null, start_new_session=True
            )
        except OSError as error:
            raise self._cannot_run(error) from error

    async def poll(self, pid: int) -> ExecResult | None:
        """Return how a program that was started ended; see `qmpalloc.channel.Channel`.

        Raises:
            RefusedError: No such program was started, or its end was told before.
        """
        await trio.lowlevel.checkpoint()
        process = self._started.get(pid)
        if process is None:
            message = f"{self.address}: no program with the number {pid} was started"
            raise RefusedError(message, command="poll", error_class="GenericError")
        code = process.poll()
        if code is None:
            return None
        del self._started[pid]
        # A shell says 128 and the signal's number of what a signal ended.
        by_signal = -code if code < 0 else code - 128 if 128 < code < BROKEN else None
        return ExecResult(exit_code=None if by_signal else code, signal=by_signal, out=b"", err=b"")

    async def write_file(self, path: str, data: bytes) -> None:
        """Make a file in the guest; see `qmpalloc.channel.Channel`."""
        result = await self.run(["/bin/sh", "-c", 'exec cat > "$1"', "sh", path], input_data=data)
        self._check(result, "write", path)

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Return a file of the guest; see `qmpalloc.channel.Channel`."""
        result = await self._run(["head", "-c", str(max_bytes + 1), path], None, max_bytes + 1)
        self._check(result, "read", path)
        return result.out

    def _check(self, result: ExecResult, command: str, path: str) -> None:
        if result.exit_code == 0:
            return
        said = last_line(result.err)
        if result.exit_code in {BROKEN, None}:
            raise UnreachableError(f"{self.address}: {said}", address=self.address, hint=_hint(said))
        raise RefusedError(f"{self.address}: {path}: {said}", command=command, error_class="GenericError")

    async def probe(self, guest: str) -> None:
        """Check that the guest answers.

        Raises:
            UnreachableError: It does not, with the last words of the command.
            DeadlineError: The command hangs.
            HostError: The command cannot be run.
        """
        with deadline(PROBE_TIMEOUT_S, self.address, f"a first command in guest {guest}"):
            result = await self.run(["printf", "%s", PROBE])
        if result.exit_code == 0 and result.out == PROBE.encode():
            return
        how = f"ended with {result.exit_code}" if result.exit_code is not None else f"was killed ({result.signal})"
        said = last_line(result.err or result.out)
        message = f"guest {guest}: no command can be run in it by {self.address}, which {how}: {said}"
        hint = _hint(said) or "a line for a shell is added to the words of `channel`: try it by hand"
        raise UnreachableError(message, address=self.address, hint=hint)

    async def close(self) -> None:
        """End the commands of programs that were started and still run; the programs themselves may go on."""
        for process in self._started.values():
            process.terminate()
            with trio.move_on_after(KILL_GRACE_S):
                await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            process.kill()
            process.wait()
        self._started.clear()


@asynccontextmanager
async def open_command(
    prefix: Sequence[str], guest: str, directory: Path | None = None
) -> AsyncIterator[CommandChannel]:
    """Reach a guest by a command of this host; checks that it answers.

    Args:
        prefix: The command, without the line for the guest's shell.
        guest: Its name, for errors.
        directory: In which the command is run; by default ours.

    Raises:
        QmpallocError: As `CommandChannel.probe`.
    """
    channel = CommandChannel(prefix, directory)
    try:
        await channel.probe(guest)
        yield channel
    finally:
        with trio.CancelScope(shield=True):  # limited in time by itself
            await channel.close()


async def _feed(process: trio.Process, data: bytes) -> None:
    assert process.stdin is not None
    with suppress(trio.BrokenResourceError):  # it does not want the rest
        await process.stdin.send_all(data)
    await process.stdin.aclose()


async def _collect(stream: trio.abc.ReceiveStream | None, into: bytearray, most_bytes: int) -> None:
    assert stream is not None
    while chunk := await stream.receive_some(CHUNK_BYTES):
        into += chunk[: max(0, most_bytes - len(into))]


async def _end(process: trio.Process) -> None:
    """End a command that was cancelled, with all that it has started, and close what connects us."""
    with trio.CancelScope(shield=True):
        if process.returncode is None:
            for number in (15, 9):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with trio.move_on_after(KILL_GRACE_S):
                    await process.wait()
                    break
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                await stream.aclose()


def last_line(data: bytes) -> str:
    """Return the last line that a program said, fit for a message."""
    lines = data.decode("utf-8", "replace").strip().splitlines()
    return printable(lines[-1], 300) if lines else "no output"


def _hint(said: str) -> str:
    return next((hint for words, hint in HINTS.items() if words in said), "")
