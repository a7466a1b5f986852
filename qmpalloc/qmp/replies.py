"""From a reply's JSON to a typed value, or to the error it is."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from qemu.qmp import Message
from qemu.qmp.models import ErrorResponse

from qmpalloc.errors import NonsenseError, RefusedError
from qmpalloc.text import printable

T = TypeVar("T")

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A number that is not negative; JSON's true and 1.0 are not numbers here."""


def unpack(reply: Message, command: str, address: str, *, hint: str = "") -> object:
    """Return what a command returned.

    Args:
        reply: The peer's answer.
        command: The command it answers, for errors.
        address: The peer, for errors.
        hint: For the user, if the peer refused.

    Raises:
        RefusedError: The peer answered with an error.
        NonsenseError: The answer is neither a result nor an error.
    """
    if "error" in reply:
        raise refusal(reply, command, address, hint=hint)
    if "return" not in reply:
        raise NonsenseError(f"{address}: the reply to {command} holds neither a result nor an error")
    return reply["return"]


def refusal(reply: Message, command: str, address: str, *, hint: str = "") -> RefusedError | NonsenseError:
    """Return the error that an error reply stands for. Its text is the peer's: made printable and cut."""
    try:
        info = ErrorResponse(reply).error
    except (KeyError, TypeError) as error:
        return NonsenseError(f"{address}: the reply to {command} is not a well-formed error: {printable(str(error))}")
    return RefusedError(
        f"{address}: {command} was refused: {printable(info.desc)}",
        command=command,
        error_class=printable(info.class_, 64),
        hint=hint,
    )


def typed(value: object, kind: type[T], command: str, address: str) -> T:
    """Return a result as the type it must have.

    Args:
        value: What `unpack` returned.
        kind: A msgspec struct, or anything msgspec converts to. Unknown members are ignored, as QMP asks.
        command: The command it answers, for errors.
        address: The peer, for errors.

    Raises:
        NonsenseError: A member is missing, of another type, or out of range.
    """
    result: T = convert(value, kind, f"{address}: the reply to {command}")
    return result


def convert(value: object, kind: Any, what: str) -> Any:
    """Return `value` as `kind`; `what` names it in the error.

    Raises:
        NonsenseError: It is not of that kind.
    """
    try:
        return msgspec.convert(value, kind)
    # UnicodeError: text with half a surrogate pair, which JSON can hold and msgspec fails to look into.
    except (msgspec.ValidationError, UnicodeError, RecursionError) as error:
        raise NonsenseError(f"{what} is not as documented: {printable(str(error))}") from error
