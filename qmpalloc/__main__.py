"""The program ``qmpalloc``, also as ``python -m qmpalloc``: signals first, then what takes time to import."""

import os
import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command that the arguments name, and end the process.

    A signal ends the process at once and without a word, until a command has something to leave in order: that heeds
    signals itself (`qmpalloc.cli.signals`).
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _leave)
    try:
        from qmpalloc import cli

        cli.main()
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # all is done: the exit code stays what it is


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
    os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
