"""The run record: one JSON event per line, append only. Writing and reading."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

import msgspec

from qmpalloc import events
from qmpalloc.errors import ConfigError, NonsenseError
from qmpalloc.events import AnyEvent, Ended, Header
from qmpalloc.files import create, make_directory
from qmpalloc.text import one_line

LINE_MAX_BYTES = 32 * 1024 * 1024
"""A decision about a hundred guests with their curves takes less than one."""

NO_RECORD_HINT = "is this a qmpalloc record? 'qmpalloc run' leaves them as record.jsonl"


class RecordWriter:
    """A sink that appends every event to a file and flushes it, so that a crash loses at most the line being written.

    A full disk does not stop control: the first failure is kept in `failure`, and `on_failure` is called once.

    Raises:
        ConfigError: The file exists (a record is never rewritten) or cannot be created.
    """

    def __init__(self, path: str | os.PathLike[str], *, on_failure: Callable[[OSError], None] | None = None) -> None:
        self.path = Path(path)
        self.failure: OSError | None = None
        self._on_failure = on_failure
        try:
            make_directory(self.path.parent)
            self._file: IO[bytes] = create(self.path)
        except FileExistsError as error:
            hint = "a record is never rewritten: name another file, or move this one"
            raise ConfigError("exists already", file=str(path), hint=hint) from error
        except OSError as error:
            hint = "name a file where you may write, and where there is room"
            raise ConfigError(f"cannot be created: {error.strerror}", file=str(path), hint=hint) from error

    def __call__(self, event: AnyEvent) -> None:
        """Append one event."""
        if self.failure is not None:
            return
        try:
            self._file.write(events.encode(event) + b"\n")
            self._file.flush()
        except OSError as error:
            self.failure = error
            if self._on_failure is not None:
                self._on_failure(error)

    def close(self) -> None:
        """Close the file; what could not be written is lost, as `failure` says."""
        try:
            self._file.close()
        except OSError as error:
            self.failure = self.failure or error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_record(path: str | os.PathLike[str]) -> Iterator[AnyEvent]:
    """Yield the events of a record in order. A cut-off last line is left out.

    Raises:
        ConfigError: The file cannot be read.
        NonsenseError: A line other than the last is not an event, the first is not a header, or there is none.
    """
    number = 0
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; opening has an error of its own
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path), hint=NO_RECORD_HINT) from error
    with file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_MAX_BYTES + 1), b""), start=1):
            if len(line) > LINE_MAX_BYTES:
                message = f"{path}: line {number} is longer than {LINE_MAX_BYTES} bytes"
                raise NonsenseError(message, hint=NO_RECORD_HINT)
            try:
                event = events.decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                if not line.endswith(b"\n") and number > 1:
                    return
                if number == 1:
                    raise _no_header(path, line, error) from error
                raise NonsenseError(f"{path}: line {number} is not an event: {error}") from error
            if number == 1 and not isinstance(event, Header):
                raise NonsenseError(f"{path}: the first line is not a header", hint=NO_RECORD_HINT)
            yield event
    if number == 0:
        raise NonsenseError(f"{path}: the file is empty", hint=NO_RECORD_HINT)


class _Versioned(msgspec.Struct):
    format: Literal["qmpalloc-record"]
    version: int
    versions: dict[str, str] = {}


def _no_header(path: str | os.PathLike[str], line: bytes, error: Exception) -> NonsenseError:
    """Return why a first line is no header: the record may be of another version."""
    try:
        found = msgspec.json.decode(line, type=_Versioned)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return NonsenseError(f"{path}: line 1 is not an event: {error}", hint=NO_RECORD_HINT)
    if found.version == events.VERSION:
        return NonsenseError(f"{path}: the header is not understood: {error}", hint="was it changed by hand?")
    message = f"{path}: a record of version {found.version}; this qmpalloc reads version {events.VERSION}"
    wrote = one_line(found.versions.get("qmpalloc", "another"))
    return NonsenseError(message, hint=f"read it with the qmpalloc that wrote it: {wrote}")


class GrowingRecord:
    """A record that is being written: gives what has been added since it was asked last.

    Args:
        path: The record; it must exist.

    Raises:
        ConfigError: It cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._number = 0
        self._rest = b""
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", file=str(path), hint=NO_RECORD_HINT) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def more(self) -> Iterator[AnyEvent]:
        """Yield the events that are whole now and were not given yet.

        Raises:
            NonsenseError: A line is not an event, or the first is not a header.
        """
        while data := self._file.readline(LINE_MAX_BYTES + 1 - len(self._rest)):
            self._rest += data
            if not self._rest.endswith(b"\n"):
                if len(self._rest) > LINE_MAX_BYTES:
                    message = f"{self._path}: line {self._number + 1} is longer than {LINE_MAX_BYTES} bytes"
                    raise NonsenseError(message, hint=NO_RECORD_HINT)
                return
            line, self._rest = self._rest, b""
            self._number += 1
            yield self._event(line)

    def _event(self, line: bytes) -> AnyEvent:
        hint = NO_RECORD_HINT if self._number == 1 else ""
        try:
            event = events.decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if self._number == 1:
                raise _no_header(self._path, line, error) from error
            raise NonsenseError(f"{self._path}: line {self._number} is not an event: {error}") from error
        if self._number == 1 and not isinstance(event, Header):
            raise NonsenseError(f"{self._path}: the first line is not a header", hint=hint)
        return event


def ended(path: str | os.PathLike[str]) -> Ended | None:
    """Return the closing event of a record, or None when the run was cut off."""
    last = None
    for last in read_record(path):  # noqa: B007 - the last one is what we want
        pass
    return last if isinstance(last, Ended) else None
