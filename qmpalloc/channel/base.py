"""What every way into a guest can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qmpalloc.qmp import ExecResult


class Channel(Protocol):
    """Runs programs in one guest, and brings files in and out, as root there. `qmpalloc.qmp.Agent` is one.

    No call has a time limit of its own: wrap it in `qmpalloc.qmp.deadline`. All that is returned is the guest's word.
    """

    @property
    def address(self) -> str:
        """Names it in errors: the path of a socket, or the words of a command."""

    async def run(self, argv: Sequence[str], *, input_data: bytes | None = None) -> ExecResult:
        """Run a program to its end and return its exit code and output. Cancelling stops waiting.

        Raises:
            RefusedError: There is no such program, or none may be run.
            UnreachableError: The guest cannot be reached any more.
        """

    async def start(self, argv: Sequence[str]) -> int:
        """Start a program, its output thrown away, and return a number for `poll`. Errors as `run`."""

    async def poll(self, pid: int) -> ExecResult | None:
        """Return how a program that was started ended; None while it runs. The end is told once only."""

    async def write_file(self, path: str, data: bytes) -> None:
        """Make a file, or replace the content of one; not atomic.

        Raises:
            RefusedError: There is no such directory, no permission, or no room. Otherwise as `run`.
        """

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Return a file's content, or its first ``max_bytes + 1`` bytes if it is longer.

        Raises:
            RefusedError: There is no such file, or no permission. Otherwise as `run`.
        """
