"""TOML tables into structs: every mistake named with file, key and hint, all of them at once.

How a struct declares a table is told in `qmpalloc.config.keys`.
"""

from __future__ import annotations

import difflib
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import Struct

from qmpalloc.config.addresses import AddressError
from qmpalloc.config.keys import Duration, Found, Mistake, Size
from qmpalloc.config.origin import Origin
from qmpalloc.config.tables import bare, flat_of, is_flat, item_of, keys_of, limits_of, options_of, required, tables_of
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
EXAMPLES = {Size: '"512MiB"', Duration: '"2s"'}
EMPTY: Mapping[str, str] = MappingProxyType({})
LIMITS = (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))


class Mistakes:
    """Collects mistakes, so that a user sees all of them at once.

    Args:
        file: That is read.
        docs: Where its keys are described.
    """

    def __init__(self, file: str, docs: str = "docs/configuration.md") -> None:
        self._file = file
        self._docs = docs
        self._errors: list[ConfigError] = []

    def add(self, key: str, message: str, *, hint: str = "") -> None:
        """Note a mistake at a dotted key."""
        self._errors.append(ConfigError(message, file=self._file, key=key, hint=hint))

    def add_all(self, found: Iterable[Mistake]) -> None:
        """Note mistakes."""
        for key, message, hint in found:
            self.add(key, message, hint=hint)

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

    def convert(self, table: Any, into: type[Any], key: str, *, elsewhere: Mapping[str, str] = EMPTY) -> Any:
        """Return `table` as the struct `into`, or None if there was a mistake. Each key is read by itself.

        Args:
            table: As it was read.
            into: The struct; what lies in its tables goes through here as well.
            key: Dotted; empty for a whole file.
            elsewhere: Keys that tables have which this could have been, to what is wrong with them here.
        """
        if not isinstance(table, Mapping):
            self.add(key, f"must be a table, not {type(table).__name__}", hint=self._example([into], key))
            return None
        before, fields = len(self._errors), keys_of(into)
        rest = {name: value for name, value in table.items() if name not in fields}
        rest.pop(into.__struct_config__.tag_field, None)
        flat = flat_of(into)
        values = {field.name: Origin(self._file, key) for field in msgspec.structs.fields(into) if field.type is Origin}
        meant: set[str] = set()
        if flat is not None:
            values[flat.name] = self._read(rest, flat.type, key)
        else:
            for name in rest:
                if name in elsewhere:
                    self.add(below(key, name), elsewhere[name], hint="leave one of them out")
                    continue
                hint, close = _meant(name, fields)
                meant.update(close)
                self.add(below(key, name), "unknown key" if key else "unknown table", hint=hint)
        for name, field in fields.items():
            if name in table:
                values[field.name] = self._read(table[name], field.type, below(key, name))
            elif field.required and name not in meant:
                self._missing(field.type, below(key, name))
        return into(**values) if len(self._errors) == before else None

    def _missing(self, hint: Any, key: str) -> None:
        plain = re.sub(r"\[[0-9]+\]", "", key)
        if tables_of(item_of(hint)):
            self.add(key, f"no {plain.rpartition('.')[2]} is given", hint=f"add a [[{plain}]] table for each")
        else:
            self.add(key, "missing", hint=self._example(options_of(hint), key))

    def _example(self, options: Sequence[Any], key: str) -> str:
        """Return a hint at what a key is to be."""
        name, see = re.sub(r"\[[0-9]+\]", "", key).rpartition(".")[2], f"see {self._docs}"
        if options[0] in EXAMPLES:
            return f"for example {name} = {EXAMPLES[options[0]]}; {see}"
        if not tables_of(options[0]):
            return see
        config = options[0].__struct_config__
        if config.tag_field is not None:
            return f'for example {name} = {{ {config.tag_field} = "{config.tag}" }}; {see}'
        needed = " and ".join(sorted(required(options[0])))
        return f"a table with {needed}; {see}" if needed else see

    def _read(self, raw: Any, hint: Any, key: str) -> Any:
        """Return a value as a key's type allows it; what is returned after a mistake does not matter."""
        kinds, item = tables_of(hint), item_of(hint)
        # 1. a table, unless a text in its place is allowed and given
        if kinds and not (isinstance(raw, str) and str in options_of(hint)):
            return self._table(raw, kinds, key)
        # 2. an array of tables, of which there is one at least
        if tables_of(item) and not (isinstance(raw, list) and raw):
            return self._missing(hint, key)
        # 3. a list of tables or of values
        if item is not None and isinstance(raw, list):
            return tuple([self._read(each, item, f"{key}[{index}]") for index, each in enumerate(raw)])
        # 4. a value
        try:
            return _plain(msgspec.convert(raw, bare(hint), dec_hook=_quantity))
        except (msgspec.ValidationError, OverflowError) as error:
            return self.add(key, _in_words(error, raw, hint))

    def _table(self, raw: Any, kinds: Sequence[type[Any]], key: str) -> Any:
        """Return a table of one of several kinds: by its tag, or the first whose required keys it has."""
        tag = kinds[0].__struct_config__.tag_field
        if len(kinds) == 1 or not isinstance(raw, Mapping):  # which says so
            return self.convert(raw, kinds[0], key)
        if tag is None:
            kind = next((kind for kind in kinds if required(kind) <= raw.keys()), kinds[-1])
            beside = f"beside a {' and a '.join(sorted(required(kind)))}"
            others = {name: beside for each in kinds for name in keys_of(each)} if kind is not kinds[-1] else EMPTY
            return self.convert(raw, kind, key, elsewhere=others)
        by_tag = {str(kind.__struct_config__.tag): kind for kind in kinds}
        name = raw.get(tag)
        if isinstance(name, str) and name in by_tag:
            return self.convert(raw, by_tag[name], key)
        hint, _ = _meant(str(name), by_tag)
        return self.add(f"{key}.{tag}", "missing" if name is None else f"unknown {tag} {name!r}", hint=hint)


def told(value: Any, key: str = "", hint: Any = Any) -> Found:
    """Yield what is beyond its bounds, what tables find wrong with themselves, and tables of an array with one name.

    Args:
        value: A table, as it was read or made, or what is in one.
        key: Dotted; empty for a whole file.
        hint: The type of the key, with its bounds.
    """
    if isinstance(value, Struct):
        if (mistakes := getattr(value, "mistakes", None)) is not None:
            yield from ((below(key, name), message, advice) for name, message, advice in mistakes())
        for field in msgspec.structs.fields(type(value)):
            where = key if is_flat(field.type) else below(key, field.encode_name)
            yield from told(getattr(value, field.name), where, field.type)
        return
    names: dict[str, str] = {}
    for index, each in enumerate(value) if isinstance(value, tuple) else ():
        where = f"{key}[{index}]" if isinstance(each, Struct) else key
        yield from told(each, where, item_of(hint))
        if isinstance(name := getattr(each, "name", None), str) and name:
            if name in names:
                yield f"{where}.name", f"{name} is already {names[name]}", "names tell them apart"
            names.setdefault(name, f"{where}.name")
    for limits in limits_of(hint):
        try:
            msgspec.convert(value, Annotated[type(value), limits])
        except msgspec.ValidationError:
            words = [f"{word} {limit:g}" for name, word in LIMITS if (limit := getattr(limits, name)) is not None]
            said = (
                f"{value!r} is not {limits.title}" if limits.title else f"must be {' and '.join(words)}, not {value:g}"
            )
            yield key, said, (limits.extra or {}).get("hint", "")


def below(key: str, name: str) -> str:
    """Return the dotted key of a key of a table; that of a whole file is empty."""
    return f"{key}.{name}" if key and name else key or name


def _meant(name: str, known: Iterable[str]) -> tuple[str, list[str]]:
    """Return a hint at a name that is not known, and the name that is meant, if one is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"), close


def _quantity(expected: type[Any], value: Any) -> Any:
    """Parse our unit types for msgspec; its message gets the key path around ours."""
    if expected is Size or expected is Duration:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} has no unit; write for example {EXAMPLES[expected]}")
        return Size(parse_size(value)) if expected is Size else Duration(parse_duration(value))
    raise NotImplementedError(expected)


def _in_words(error: Exception, raw: Any, hint: Any) -> str:
    for option in options_of(hint):
        if typing.get_origin(option) is typing.Literal:
            return f"{raw!r} is none of {', '.join(map(repr, typing.get_args(option)))}"
    kinds = re.fullmatch(r"Expected `(\w+)`, got `(\w+)`", str(error))
    if kinds:
        expected, got = (_KINDS.get(kind, kind) for kind in kinds.groups())
        return f"must be {expected}, not {got}"
    return str(error).replace(" - at `$", " (at `")


def _plain(value: Any) -> Any:
    """Return quantities as the plain numbers they are; their types only matter while they are read.

    Raises:
        msgspec.ValidationError: One is no number, or a text holds a NUL.
    """
    if isinstance(value, Size):
        return int(value)
    if isinstance(value, str) and "\0" in value:
        raise msgspec.ValidationError(f"{value!r} holds a NUL, which no path, name or argument can")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise msgspec.ValidationError(f"{value} is no number to reckon with")
        return float(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
