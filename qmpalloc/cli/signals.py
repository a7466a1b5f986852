"""Signals that end a command which has something to leave in order. Before and after, they end the process at once."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, Self, TypeVar

from qmpalloc.cli import EXIT_INTERRUPTED

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

if TYPE_CHECKING:
    import trio

T = TypeVar("T")

LAST_WORDS_S = 1.0
"""What is printed at the end takes milliseconds. Where it takes longer nobody reads it, and one more signal ends it."""


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the stop signals, without SIGHUP where nohup has it ignored: to go on when the terminal is closed."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in STOP_SIGNALS if not (ignored and number == signal.SIGHUP))


class StopSignals:
    """The stop signals of a command that runs in a trio loop, from its first step to its last word.

    A context manager, inside the loop. What comes too late to be heeded does not cut the last words short. (Trio's own
    receiver would send it to the process once more.)

    Args:
        numbers: The signals, which may be others as well.
        once: Rest after the first.

    Attributes:
        received: Those that came, until `rest`.
    """

    received: trio.MemoryReceiveChannel[int]

    def __init__(self, *numbers: int, once: bool = False) -> None:
        self._numbers = numbers or stop_signals()
        self._once = once
        self._former = contextlib.ExitStack()
        self._resting = False
        self._late_s: float | None = None

    def __enter__(self) -> Self:
        import trio

        self._token = trio.lowlevel.current_trio_token()
        self._send, self.received = trio.open_memory_channel[int](math.inf)
        for number in self._numbers:
            self._former.callback(signal.signal, number, signal.signal(number, self._handle))
        return self

    def rest(self) -> None:
        """Receive no more: all that is left to do is to say how it went."""
        self._resting = True

    def __exit__(self, *_: object) -> None:
        self.rest()
        self._former.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's signature
        if not self._resting:
            self._token.run_sync_soon(self._send.send_nowait, number)
            self._resting = self._once
        elif number in STOP_SIGNALS:
            now_s = time.monotonic()
            self._late_s = now_s if self._late_s is None else self._late_s
            if now_s - self._late_s > LAST_WORDS_S:
                os._exit(EXIT_INTERRUPTED)


def run_until_signal(function: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Return what a function returns in a trio loop of its own, which a stop signal cancels.

    For what changes nothing: where that takes long, further signals end the process (a user's policy may hang).

    Raises:
        KeyboardInterrupt: One did.
    """
    import trio

    async def run() -> T:
        result: list[T] = []
        with StopSignals(once=True) as signals:
            async with trio.open_nursery() as nursery:

                async def cancel() -> None:
                    await anext(signals.received)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(cancel)
                result.append(await function(*arguments))
                nursery.cancel_scope.cancel()
        if not result:
            raise KeyboardInterrupt
        return result[0]

    return trio.run(run)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise `KeyboardInterrupt` at a stop signal, so that long work outside of an event loop cleans up after itself."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - signal's signature
        raise KeyboardInterrupt

    with contextlib.ExitStack() as former:
        for number in stop_signals():
            former.callback(signal.signal, number, signal.signal(number, interrupt))
        yield
