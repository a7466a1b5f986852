"""What a struct declares of a TOML table, and what the type of a key allows."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import FieldInfo

from qmpalloc.config.keys import FLAT
from qmpalloc.config.origin import Origin


def keys_of(kind: type[Any]) -> Mapping[str, FieldInfo]:
    """Return the keys of a table, and the fields that they are read into."""
    fields = msgspec.structs.fields(kind)
    return {field.encode_name: field for field in fields if field.type is not Origin and not is_flat(field.type)}


def required(kind: type[Any]) -> frozenset[str]:
    """Return the keys that a table must have."""
    return frozenset(name for name, field in keys_of(kind).items() if field.required)


def flat_of(kind: type[Any]) -> FieldInfo | None:
    """Return the field that takes what the keys of a table leave; None: there is none, and all else is unknown."""
    return next((field for field in msgspec.structs.fields(kind) if is_flat(field.type)), None)


def is_flat(hint: Any) -> bool:
    """Return whether a field takes what the other keys of its table leave."""
    return typing.get_origin(hint) is Annotated and FLAT in hint.__metadata__


def bare(hint: Any) -> Any:
    """Return a type without its bounds."""
    return hint.__origin__ if typing.get_origin(hint) is Annotated else hint


def limits_of(hint: Any) -> tuple[Meta, ...]:
    """Return the bounds of a type."""
    return () if bare(hint) is hint or is_flat(hint) else hint.__metadata__


def options_of(hint: Any) -> tuple[Any, ...]:
    """Return what a type allows: the members of a union, which typing has two kinds of, or itself."""
    plain = bare(hint)
    return typing.get_args(plain) if typing.get_origin(plain) in {types.UnionType, typing.Union} else (plain,)


def tables_of(hint: Any) -> list[type[Any]]:
    """Return the structs that a type allows."""
    return [option for option in options_of(hint) if isinstance(option, type) and issubclass(option, Struct)]


def item_of(hint: Any) -> Any:
    """Return the type of what is in the list that a type allows; None if it allows none."""
    return next((typing.get_args(option)[0] for option in options_of(hint) if typing.get_origin(option) is tuple), None)
