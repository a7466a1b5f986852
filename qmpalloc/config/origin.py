"""Where a table was written: errors name its file and key, and what it names lies beside that file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from qmpalloc.errors import ConfigError


class Origin(Struct, frozen=True, order=True):
    """Where a table was written. A struct with a field of this type gets it when it is read; it is no key.

    Attributes:
        file: The file; empty for the command line.
        key: Dotted path of the table.
    """

    file: str = ""
    key: str = ""

    @property
    def relative(self) -> str:
        """What relative paths are relative to, as a hint."""
        return f"relative paths are relative to {'this file' if self.file else 'the current directory'}"

    def path(self, name: str) -> Path:
        """Return the absolute path of what a key of the table names; relative ones are relative to the file."""
        at_home = os.path.expanduser(name)  # noqa: PTH111 - leaves it as it is where no home is known
        return Path(os.path.normpath(Path.cwd() / Path(self.file).parent / at_home))

    def names_file(self, name: str) -> bool:
        """Return whether a word of the table is the path of a file; some words are too long to be one."""
        with suppress(OSError):
            return self.path(name).is_file()
        return False

    def error(self, name: str, message: str, *, hint: str = "") -> ConfigError:
        """Return an error at a key of the table."""
        return ConfigError(message, file=self.file, key=".".join(filter(None, (self.key, name))), hint=hint)
