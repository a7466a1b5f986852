"""Every error qmpalloc raises, split by whose fault it is.

::

    QmpallocError
    ├── ConfigError         the user's configuration or arguments are wrong      (exit code 2)
    ├── HostError           this machine lacks something: a program, a privilege, room
    ├── UnreachableError    nobody answers behind a socket
    │   ├── BusyError           connected, but another client holds the socket
    │   ├── DeadlineError       connected, but no answer in time
    │   └── DisconnectedError   the connection ended while we needed it
    ├── PolicyError         a policy returned what is no decision
    ├── RefusedError        the peer answered, and said no
    └── NonsenseError       the peer sent what its protocol does not allow
        ├── FloodError          and so much of it that reading it would cost the others
        └── SampleError         a guest's counters file cannot be used

What is not in this tree is a bug of ours. Foreign exceptions (``OSError``, qemu.qmp's, msgspec's) are translated by the
module whose call raises them; no module sees those of another.
"""

from __future__ import annotations

from enum import StrEnum


class QmpallocError(Exception):
    """Base of all errors a user may meet.

    Attributes:
        message: What is wrong, one sentence that names the file, key, socket or guest.
        hint: What to do about it; empty when there is nothing to say.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(QmpallocError):
    """A configuration file, or a value on the command line, is wrong.

    Attributes:
        file: The file, or ``""`` for the command line.
        key: Dotted path of the key, for example ``guest[1].floor``; ``""`` when the whole file is meant.
        reason: The message without file and key.
        each: The errors that this one sums up; empty for a single one.
    """

    def __init__(
        self, message: str, *, file: str = "", key: str = "", hint: str = "", each: tuple[ConfigError, ...] = ()
    ) -> None:
        where = ": ".join(part for part in (file, key) if part)
        super().__init__(f"{where}: {message}" if where else message, hint=hint)
        self.file = file
        self.key = key
        self.reason = message
        self.each = each


class HostError(QmpallocError):
    """This machine cannot do what was asked: a program, a privilege or disk space is missing."""


class UnreachableError(QmpallocError):
    """Nobody answers on a socket: it does not exist, refuses, or is not ours to open.

    Attributes:
        address: Path of the Unix socket.
        absent: True when the operating system says that no process listens (no such file, or refused), which for a
            QEMU socket means that the QEMU is gone. False when that is not known.
    """

    def __init__(self, message: str, *, address: str, absent: bool = False, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.address = address
        self.absent = absent


class BusyError(UnreachableError):
    """The socket accepted us but stays silent: QEMU serves one client per socket, and another one is there."""


class DeadlineError(UnreachableError):
    """A command was sent and no reply came in time. Whether it took effect is unknown."""


class DisconnectedError(UnreachableError):
    """The connection ended while a reply was awaited, or before the command was sent."""


class RefusedError(QmpallocError):
    """The peer understood a command and answered with an error.

    Attributes:
        command: Name of the QMP or guest-agent command.
        error_class: QMP error class, for example ``DeviceNotActive``; stable, unlike the text.
    """

    def __init__(self, message: str, *, command: str, error_class: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.command = command
        self.error_class = error_class


class NonsenseError(QmpallocError):
    """The peer's bytes break its protocol, for example a socket that is not QMP at all."""


class FloodError(NonsenseError):
    """The peer sends more that nobody asked for than it may. Connecting again at once would only repeat it."""


class PolicyError(QmpallocError):
    """A policy returned something that is not a decision about the guests it was shown."""


class SampleFault(StrEnum):
    """Why a counters file was not used. The value is what the TUI and the record show."""

    MISSING = "missing"  # no such file: the collector is not installed or has not started
    REFUSED = "refused"  # the agent did not open it for another reason, which its message tells
    HUGE = "huge"  # more bytes than the format allows
    TORN = "torn"  # not JSON: empty, cut off, or not UTF-8
    MALFORMED = "malformed"  # JSON, but not of the format: types, ranges, unknown shape
    VERSION = "version"  # another format version
    COLLECTOR = "collector"  # the collector itself reports that it cannot count
    REPEATED = "repeated"  # the same sequence number as before: the collector did not write since
    RESET = "reset"  # another boot or another collector: counters began anew, no delta exists
    BACKWARDS = "backwards"  # a sequence, clock or counter that went back
    ABSURD = "absurd"  # more pages than any machine could read in that time


class SampleError(NonsenseError):
    """A guest's counters file was read but cannot be used.

    Attributes:
        fault: The kind of defect.
    """

    def __init__(self, fault: SampleFault, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.fault = fault
