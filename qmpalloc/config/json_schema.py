"""JSON Schemas of the TOML files: from the structs that they are read into, and what their docstrings say. Pure.

A schema knows keys, types, bounds and words. It is never stricter than what reads the files.
"""

from __future__ import annotations

import re
import typing
from inspect import getdoc
from typing import Any

from qmpalloc.config.keys import Duration, Size
from qmpalloc.config.tables import flat_of, item_of, keys_of, limits_of, options_of, required, tables_of
from qmpalloc.units import DURATION_UNITS, SIZE_UNITS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum", "pattern": "pattern"}

Schema = dict[str, Any]


def schema_of(kind: type[Any]) -> Schema:
    """Return the schema of a file by the struct that it is read into."""
    defined: Schema = {}
    found = _struct(kind, defined)
    return {"$schema": DIALECT, "title": found.pop("description"), **found, "$defs": defined}


def _struct(kind: type[Any], defined: Schema) -> Schema:
    """Return the schema of a table, with what its docstring says; the tables in it go to `defined`."""
    said, properties, tag = _described(kind), {}, kind.__struct_config__.tag_field
    if tag is not None:
        properties[tag] = {"const": kind.__struct_config__.tag}
    needed = [*properties, *sorted(required(kind))]
    for name, field in keys_of(kind).items():
        properties[name] = _of(field.type, defined)
        if field.name in said:
            properties[name]["description"] = said[field.name]
        if isinstance(field.default, str | bool) or type(field.default) in {int, float}:
            properties[name]["default"] = field.default
    flat = flat_of(kind)
    if flat is not None and tables_of(flat.type):
        within = [_struct(each, defined) for each in tables_of(flat.type)]
        return {"anyOf": [_with(each, properties, needed) for each in within]}
    return {
        "type": "object",
        "properties": properties,
        "required": needed,
        "additionalProperties": flat is not None,
        "description": said[""],
    }


def _with(table: Schema, properties: Schema, needed: list[str]) -> Schema:
    """Return the schema of a table with more keys."""
    return table | {"properties": table["properties"] | properties, "required": [*table["required"], *needed]}


def _of(hint: Any, defined: Schema) -> Schema:
    """Return the schema of a type with its bounds."""
    tables = tables_of(hint)
    if len(tables) > 1 and tables[0].__struct_config__.tag is None:
        # Which of the two it is, is seen by its required keys; so an editor tells what is wrong with that one.
        condition = {"required": sorted(required(tables[0]))}
        return {"if": condition, "then": _option(tables[0], defined), "else": _option(tables[-1], defined)}
    options = [_option(option, defined) for option in options_of(hint)]
    found = options[0] if len(options) == 1 else {"anyOf": options}
    limits = [(word, getattr(each, name)) for each in limits_of(hint) for name, word in BOUNDS.items()]
    return found | {word: limit for word, limit in limits if limit is not None}


def _option(option: Any, defined: Schema) -> Schema:
    """Return the schema of one member of a union."""
    if tables_of(option):
        flat = flat_of(option)
        if flat is not None and tables_of(flat.type):
            return _struct(option, defined)
        if option.__name__ not in defined:
            defined[option.__name__] = {}  # a table may hold one of its kind
            defined[option.__name__] = _struct(option, defined)
        return {"$ref": f"#/$defs/{option.__name__}"}
    if (item := item_of(option)) is not None:
        return {"type": "array", "items": _of(item, defined)} | ({"minItems": 1} if tables_of(item) else {})
    if typing.get_origin(option) is typing.Literal:
        return {"enum": list(typing.get_args(option))}
    if typing.get_origin(option) is dict:
        return {"type": "object", "additionalProperties": _of(typing.get_args(option)[1], defined)}
    if option in {Size, Duration}:
        return _quantity(option)
    return {"type": PLAIN[option]} if option in PLAIN else {}


def _described(kind: type[Any]) -> dict[str, str]:
    """Return what a docstring says of each attribute, those of bases included, and at ``""`` of the whole."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = getdoc(each) if each.__doc__ and each.__module__.startswith("qmpalloc") else None
        if text is None:
            continue
        found[""] = text.partition("\n")[0].replace("``", "")
        attributes = text.partition("\nAttributes:\n")[2].partition("\n\n")[0]
        for name, said in re.findall(r"^    (\w+): ((?:.|\n {8})+)", attributes, re.MULTILINE):
            found[name] = re.sub(r"\s+", " ", said).replace("``", "").strip()
    return found


def _quantity(kind: type[Any]) -> Schema:
    """Return the schema of a size or a duration."""
    units, example = {Size: (tuple(SIZE_UNITS), "512MiB"), Duration: (tuple(DURATION_UNITS), "2s")}[kind]
    return {"type": "string", "pattern": rf"^\s*[0-9]+(\.[0-9]+)?\s*({'|'.join(units)})\s*$", "examples": [example]}
