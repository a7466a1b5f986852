"""What a guest agent answers, typed. All of it is the guest's word."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from msgspec import Meta, Struct

from qmpalloc.errors import NonsenseError
from qmpalloc.qmp.replies import Count
from qmpalloc.text import printable

Handle = Count
Pid = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class AgentInfo(Struct, frozen=True, kw_only=True):
    """What the agent is.

    Attributes:
        version: Its version, printable.
        enabled: Commands it executes.
    """

    version: str
    enabled: frozenset[str]


class ExecResult(Struct, frozen=True, kw_only=True):
    """How a program in the guest ended.

    Attributes:
        exit_code: None when a signal ended it.
        signal: None when it exited by itself.
        out: Standard output; the agent cuts it at 16 MiB.
        err: Standard error, likewise.
    """

    exit_code: int | None
    signal: int | None
    out: bytes
    err: bytes


class CommandInfo(Struct, frozen=True, kw_only=True):
    """An entry of ``supported_commands``."""

    name: str
    enabled: bool


class InfoReply(Struct, frozen=True, kw_only=True):
    """``guest-info``."""

    version: str
    supported_commands: list[CommandInfo]

    def values(self) -> AgentInfo:
        """Return it in the form the rest of qmpalloc sees."""
        enabled = frozenset(command.name for command in self.supported_commands if command.enabled)
        return AgentInfo(version=printable(self.version, 64), enabled=enabled)


class ReadReply(Struct, frozen=True, kw_only=True, rename={"buf_b64": "buf-b64"}):
    """``guest-file-read``."""

    count: Count
    buf_b64: str
    eof: bool


class WriteReply(Struct, frozen=True, kw_only=True):
    """``guest-file-write``."""

    count: Count


class ExecReply(Struct, frozen=True, kw_only=True):
    """``guest-exec``."""

    pid: Pid


class ExecStatusReply(Struct, frozen=True, kw_only=True, rename={"out_data": "out-data", "err_data": "err-data"}):
    """``guest-exec-status``."""

    exited: bool
    exitcode: int | None = None
    signal: int | None = None
    out_data: str = ""
    err_data: str = ""

    def values(self, address: str) -> ExecResult:
        """Return the end of a program that has exited; `address` names the agent in errors."""
        return ExecResult(
            exit_code=self.exitcode,
            signal=self.signal,
            out=decode_base64(self.out_data, address),
            err=decode_base64(self.err_data, address),
        )


def decode_base64(text: str, address: str) -> bytes:
    """Return the bytes that base64 stands for, accepting nothing else.

    Raises:
        NonsenseError: `text` is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NonsenseError(f"{address}: the agent sent data that is not base64") from error
