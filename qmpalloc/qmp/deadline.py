"""Time limits that end in an error which says what was waited for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from qmpalloc.errors import DeadlineError

MANY_COMMANDS = 10
"""How many commands' deadlines some twenty questions in a row may take: most are answered at once."""


@contextmanager
def deadline(seconds: float, address: str, what: str) -> Iterator[trio.CancelScope]:
    """Limit the time of a block.

    Args:
        seconds: How long it may take.
        address: Path of the socket it talks to, for the error.
        what: What it does, for the error; for example a command's name.

    Raises:
        DeadlineError: The time was over. Whether a command took effect is then unknown.
    """
    with trio.move_on_after(seconds) as scope:
        yield scope
    if scope.cancelled_caught:
        raise DeadlineError(
            f"{address}: no answer to {what} within {seconds:g} s",
            address=address,
            hint="the process behind the socket is stopped, busy, or not running yet",
        )
