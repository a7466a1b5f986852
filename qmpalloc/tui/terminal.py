"""Writing to the terminal without ever waiting for it in the middle of control.

A terminal may stop taking output (a stopped multiplexer, a dead network connection). A blocking write would then hold
up the whole program, control of the guests included. So rich paints into memory, and the bytes go out through a
descriptor of our own that does not block. It is opened anew by name, because ``O_NONBLOCK`` on the inherited one would
also apply to the shell that we return to. Where that is not allowed, as after ``su`` or ``sudo -u``, the inherited one
is used, non-blocking for the moment of each write.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Mapping
from typing import IO, cast

import trio
from rich.console import Console

RESTORE_TIMEOUT_S = 1.0
UNTOLD_SIZE = 80, 24


def write_now(number: int, data: bytes) -> int:
    """Write what a descriptor takes without waiting, and return how much that is.

    That it can be written to does not tell how much it takes: the rest of a large write waits. So it is made
    non-blocking, for this moment only, as other processes may have the same open file.

    Raises:
        BlockingIOError: It takes nothing now.
        OSError: It takes nothing more.
    """
    blocking = os.get_blocking(number)
    os.set_blocking(number, False)
    try:
        return os.write(number, data)
    finally:
        os.set_blocking(number, blocking)


def is_interactive(console: Console | None = None, *, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a console, by default standard output, is a terminal that a dashboard can be drawn on.

    `Console.is_terminal` does not say: it is also true of a pipe when ``FORCE_COLOR`` is set.
    """
    file = sys.stdout if console is None else console.file
    try:
        return os.isatty(file.fileno()) and environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    except (OSError, ValueError):
        return False


class Terminal(io.StringIO):
    """What a `rich.console.Console` writes to: keeps the text until `send`.

    Attributes:
        lost: True once the terminal is gone.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.lost = False
        self._fd, self._own = fd, False
        with contextlib.suppress(OSError):
            self._fd = os.open(os.ttyname(fd), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            self._own = True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of standard output, on which rich decides whether blocks can be drawn."""
        return sys.stdout.encoding or "ascii"

    def isatty(self) -> bool:
        """It stands for a terminal."""
        return True

    def console(self, like: Console | None = None) -> Console:
        """Return a console that paints here, in the colours of another one if given."""
        console = Console(file=cast("IO[str]", self), force_terminal=True, legacy_windows=False)
        if like is not None:
            console.no_color = like.no_color
        return console

    def size(self) -> tuple[int, int]:
        """Return columns and lines as they are now; (0, 0) once the terminal is gone. A serial line tells none."""
        try:
            size = os.get_terminal_size(self._fd)
        except OSError:
            return 0, 0
        return size if all(size) else shutil.get_terminal_size(UNTOLD_SIZE)

    async def send(self) -> None:
        """Write out what was painted. Cancellation may leave half of it written."""
        data = self.getvalue().encode(self.encoding, "replace")
        self.seek(0)
        self.truncate()
        while data and not self.lost:
            await trio.lowlevel.wait_writable(self._fd)
            try:
                data = data[write_now(self._fd, data) :]
            except BlockingIOError:
                continue
            except OSError:
                self.lost = True

    async def restore(self) -> None:
        """Write out what ends the picture, even when cancelled, but wait only a moment for a terminal that is stuck."""
        with trio.move_on_after(RESTORE_TIMEOUT_S, shield=True):
            await self.send()
        if self._own:
            os.close(self._fd)
            self._own = False
