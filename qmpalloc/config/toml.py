"""TOML files, with what is wrong with the file itself told in our words."""

from __future__ import annotations

import codecs
import os
import tomllib
from pathlib import Path
from typing import Any

from qmpalloc.errors import ConfigError

FILE_MAX_BYTES = 4 * 1024 * 1024
"""No person writes more; a device or a pipe without end is not read for ever."""


def examples() -> Path:
    """Return where the examples are: in the package, or beside it where it is run from its source."""
    package = Path(__file__).parents[1]
    return package / "_data" / "examples" if (package / "_data").is_dir() else package.parent / "examples"


def read_text(path: str | os.PathLike[str], *, example: str) -> str:
    """Return the text of a file that a person wrote; `example` says where to see one, with `examples` filled in.

    A mark before the text that says that it is UTF-8 (BOM), as some editors write it, is left out.

    Raises:
        ConfigError: There is none, or it cannot be read as text.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
        if len(data) > FILE_MAX_BYTES:
            raise ConfigError(f"longer than {FILE_MAX_BYTES} bytes", file=str(path), hint="it should be a TOML file")
        return data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError("no such file", file=str(path), hint=example.format(examples=examples())) from error
    except UnicodeDecodeError as error:
        utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        hint = "it is UTF-16: save it as UTF-8" if utf_16 else "it should be a TOML file"
        raise ConfigError("not a text file in UTF-8", file=str(path), hint=hint) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from error


def read_tables(text: str, *, file: Path, brackets: str) -> dict[str, Any]:
    """Return the tables of a TOML text; `brackets` explains which tables have two brackets.

    Raises:
        ConfigError: It is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}", file=str(file), hint=brackets) from error
    except RecursionError as error:
        raise ConfigError("not valid TOML: nested too deeply", file=str(file), hint=brackets) from error
