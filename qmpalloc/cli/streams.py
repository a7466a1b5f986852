"""Standard streams that are closed, full, or read by nobody.

What standard output does not take is an error: the command ends in order, with exit code 1. What standard error does
not take is lost and changes nothing. A standard input that is closed is empty.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import IO, TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_output: _Output | None = None

UNBOUNDED_WIDTH = 240


class _Output(io.FileIO):
    """Standard output. Once it has failed it takes no more, and `failure` is the error, whoever heeded that."""

    failure: OSError | None = None
    given_up = False

    def write(self, data: Any) -> int:
        if self.given_up:
            return len(data)
        if self.failure is not None:
            raise self.failure
        try:
            left = memoryview(data).cast("B")
            while left:  # all of it: without a buffer (python -u) nobody else writes what a full disk did not take
                written = super().write(left)
                if written is None:  # somebody made it non-blocking
                    select.select([], [self], [])
                left = left[written or 0 :]
        except OSError as error:
            self.failure = error
            raise
        return len(data)


class _Messages(io.FileIO):
    """Standard error, which takes everything."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            super().write(data)
        return len(data)


def prepare() -> None:
    """Give closed streams a stand-in, and let the others behave as described above. Before any file is opened.

    Else the next file or socket that is opened would get the number of a closed stream, and with it what is printed.
    Streams that a caller has replaced stay as they are, but show signs that they do not have as others.
    """
    global _output
    # Opened the wrong way round, standard output fails when it is written to.
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # Opening takes the lowest number that is free. Programs that we start, QEMU for one, have it too.
            os.set_inheritable(os.open(os.devnull, flags), True)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    if sys.stdout is sys.__stdout__:
        _output = _Output(1, "w", closefd=False)
        sys.stdout = _text(_output, sys.__stdout__)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Messages(2, "w", closefd=False), sys.__stderr__)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _text(raw: io.FileIO, former: TextIO | None) -> TextIO:
    """Return a text stream that writes to `raw` as `former` did."""
    if not isinstance(former, io.TextIOWrapper):
        return io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=raw.isatty())
    return io.TextIOWrapper(
        # python -u has no buffer
        raw if former.write_through else io.BufferedWriter(raw),
        encoding=former.encoding,
        line_buffering=former.line_buffering,
        write_through=former.write_through,
    )


def flush() -> OSError | None:
    """Write out what is still to be written; return why standard output did not take everything, or None."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    return None if _output is None else _output.failure


def write_at_once(file: IO[str], data: bytes) -> int:
    """Write what `file` takes of `data` without waiting; return how much that is."""
    try:
        number = file.fileno()
    except (OSError, ValueError):  # not a file of the operating system
        return file.write(data.decode(errors="replace")) and len(data)
    from qmpalloc.tui.terminal import write_now

    try:
        return write_now(number, data)
    except BlockingIOError:
        return 0
    except OSError as error:
        if _output is not None and number == _output.fileno():
            _output.failure = error
        raise


def table_console(*, stderr: bool = False) -> Console:
    """Return a console for tables. Where there is no terminal, there is no edge to cut or break their lines at."""
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = max(console.width, UNBOUNDED_WIDTH)
    return console


def print_json(value: object) -> None:
    """Write a value to standard output as indented JSON."""
    import click
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def give_up() -> None:
    """Let what is still to be written go nowhere, so that Python does not fail when it flushes at exit."""
    if _output is not None:
        _output.given_up = True
