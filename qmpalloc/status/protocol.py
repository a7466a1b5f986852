"""A request of a person, and the answer to it, as lines of JSON. Pure."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from qmpalloc.events import Answer, Request
from qmpalloc.text import one_line

FORMAT = "qmpalloc-request"
VERSION = 1
LINE_MAX_BYTES = 4096
JUNK_HINT = "qmpalloc set, hold, release, pause and resume write what is understood here"
VERSION_HINT = "use the qmpalloc that the controller runs"


class Line(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request on its way, with the version of this format."""

    format: str = FORMAT
    version: int = VERSION
    request: Request


class _Envelope(Struct, frozen=True, kw_only=True):
    """The part of a request that is the same in all versions."""

    format: str
    version: int


_lines = msgspec.json.Decoder(Line)
_envelopes = msgspec.json.Decoder(_Envelope)


def encode_request(request: Request) -> bytes:
    """Return a request as a line."""
    return msgspec.json.encode(Line(request=request)) + b"\n"


def decode_request(line: bytes) -> Request | Answer:
    """Return the request of a line, or the answer that refuses what is none."""
    try:
        envelope = _envelopes.decode(line)
        if envelope.format != FORMAT:
            raise msgspec.ValidationError(f"the format is {envelope.format!r}")
        if envelope.version != VERSION:
            message = f"this is a request of version {envelope.version}, and the controller knows version {VERSION}"
            return Answer(done=False, message=message, hint=VERSION_HINT)
        return _lines.decode(line).request
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Answer(done=False, message=f"not a request: {one_line(str(error))}", hint=JUNK_HINT)
