"""TOML tables into structs: every mistake named with file, key and hint, all of them at once."""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec import Struct

from qmpalloc.config.addresses import AddressError
from qmpalloc.config.origin import Origin
from qmpalloc.config.schema import Duration, Size
from qmpalloc.errors import ConfigError
from qmpalloc.units import parse_duration, parse_size


def convert(table: Mapping[str, Any], into: type[Any], *, file: str, key: str) -> Any:
    """Return `table` as the msgspec struct `into`, with sizes and durations parsed.

    Policies validate their settings with this, so that their errors read like all others.

    Raises:
        ConfigError: A key is unknown, missing, or has a wrong value.
    """
    mistakes = Mistakes(file)
    value = mistakes.convert(table, into, key)
    mistakes.raise_if_any()
    return value


_KINDS = {
    "array": "a list, or tables with two brackets ([[…]])",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "object": "a table",
    "str": "text in quotes",
}


class Mistakes:
    """Collects mistakes, so that a user sees all of them at once."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._errors: list[ConfigError] = []

    def add(self, key: str, message: str, *, hint: str = "") -> None:
        """Note a mistake at a dotted key."""
        self._errors.append(ConfigError(message, file=self._file, key=key, hint=hint))

    @contextmanager
    def addressed(self, key: str) -> Iterator[None]:
        """Note it when a block finds that the path at a dotted key is none."""
        try:
            yield
        except AddressError as error:
            self.add(key, error.message, hint=error.hint)

    def raise_if_any(self) -> None:
        """Raise all mistakes noted, as one error.

        Raises:
            ConfigError: There is one.
        """
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            raise ConfigError("\n".join(str(error) for error in self._errors), each=tuple(self._errors))

    def convert(self, table: Any, into: type[Any], key: str, *, missing: str = "") -> Any:
        """Return `table` as the struct `into`, or None if there was a mistake; `missing` hints at an absent table."""
        if table is None:
            self.add(key, "missing", hint=missing)
            return None
        if not isinstance(table, Mapping):
            self.add(key, f"must be a table, not {type(table).__name__}", hint=missing)
            return None
        before = len(self._errors)
        meant = set()
        hints = typing.get_type_hints(into, include_extras=True)
        known = [name for name in into.__struct_fields__ if hints[name] is not Origin]
        for name in table:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                meant.update(close)
                hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                self.add(f"{key}.{name}", "unknown key", hint=hint)
        table = {name: value for name, value in table.items() if name in known}
        # A key at a time, so that two wrong keys give two messages; the nested tables go through here as well.
        values: dict[str, Any] = {name: Origin(self._file, key) for name in hints if hints[name] is Origin}
        for name, raw in table.items():
            nested = _nested_struct(hints[name])
            if nested is not None and not (isinstance(raw, str) and str in _options(hints[name])):
                values[name] = self.convert(raw, nested, f"{key}.{name}")
                continue
            try:
                values[name] = _plain(msgspec.convert(raw, hints[name], dec_hook=_quantity))
            except (msgspec.ValidationError, OverflowError) as error:
                self.add(f"{key}.{name}", _in_words(error, raw, hints[name]))
        required = [field.name for field in msgspec.structs.fields(into) if field.required]
        for name in required:
            if name not in table and name not in meant:
                self.add(f"{key}.{name}", "missing", hint=missing or "see docs/configuration.md")
        return into(**values) if len(self._errors) == before else None


def _nested_struct(hint: Any) -> type[Any] | None:
    for option in _options(hint):
        if isinstance(option, type) and issubclass(option, Struct):
            return option
    return None


def _options(hint: Any) -> tuple[Any, ...]:
    """Return what a hint allows: the members of a union, which typing has two kinds of, or the hint itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in {types.UnionType, typing.Union} else (hint,)


def _quantity(expected: type[Any], value: Any) -> Any:
    """Parse our unit types for msgspec; its message gets the key path around ours."""
    if expected is Size or expected is Duration:
        if not isinstance(value, str):
            example = '"512MiB"' if expected is Size else '"2s"'
            raise ValueError(f"{value!r} has no unit; write for example {example}")
        return Size(parse_size(value)) if expected is Size else Duration(parse_duration(value))
    raise NotImplementedError(expected)


def _in_words(error: Exception, raw: Any, hint: Any) -> str:
    for option in _options(hint):
        if typing.get_origin(option) is typing.Literal:
            return f"{raw!r} is none of {', '.join(map(repr, typing.get_args(option)))}"
    kinds = re.fullmatch(r"Expected `(\w+)`, got `(\w+)`", str(error))
    if kinds:
        expected, got = (_KINDS.get(kind, kind) for kind in kinds.groups())
        return f"must be {expected}, not {got}"
    return str(error).replace(" - at `$", " (at `")


def _plain(value: Any) -> Any:
    """Return quantities as the plain numbers they are; their types only matter while they are read."""
    if isinstance(value, Size):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise msgspec.ValidationError(f"{value} is no number to reckon with")
        return float(value)
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value
