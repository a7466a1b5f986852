"""JSON Schemas of the TOML files: from the structs that they are read into, and what their docstrings say. Pure.

A schema knows keys, types and words. It is never stricter than what reads the files.
"""

from __future__ import annotations

import re
from inspect import getdoc
from typing import Any

from msgspec import inspect

from qmpalloc.config import ImageConfig
from qmpalloc.config.origin import Origin
from qmpalloc.config.schema import ControlConfig, Duration, GuestConfig, HostConfig, Size
from qmpalloc.experiment.spec.access import SIMPLE
from qmpalloc.experiment.spec.program import Metric, ProgramPhaseKeys
from qmpalloc.experiment.spec.schema import Arm, Disk, Frame, GuestKeys, PhaseKeys
from qmpalloc.units import DURATION_UNITS, SIZE_UNITS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TABLES = (HostConfig, ControlConfig, ImageConfig, GuestConfig, Frame, Disk, GuestKeys, PhaseKeys, ProgramPhaseKeys)

Schema = dict[str, Any]


def configuration() -> Schema:
    """Return the schema of a configuration."""
    policy = {
        "type": "object",
        "description": "What decides. The rest are the settings of that policy.",
        "properties": {
            "name": {"type": "string", "description": "Of a policy, or module:attribute.", "default": "curve"}
        },
    }
    properties = {
        "host": _table(HostConfig),
        "control": _table(ControlConfig),
        "policy": policy,
        "image": _table(ImageConfig),
        "guest": _tables(_table(GuestConfig)),
    }
    return _file("A configuration of qmpalloc", properties, ["host", "guest"], _defined())


def experiment() -> Schema:
    """Return the schema of an experiment."""
    defined = _defined()
    parts = [_with(defined[kind.__name__], weight={"type": "number"}) for kind in SIMPLE.values()]
    mixture = {
        "distribution": {"const": "mixture"},
        "parts": {"type": "array", "minItems": 1, "items": {"anyOf": parts}},
    }
    access = {"anyOf": [*map(_table, SIMPLE.values()), _object(mixture, ["distribution", "parts"])]}
    reads = _with(defined["PhaseKeys"], access=access)
    program = _with(defined["ProgramPhaseKeys"], metric=_tables(_table(Metric)), required=["command"])
    # Which of the two it is, is seen by its command; so an editor tells what is wrong with that one.
    phase = {"if": {"required": ["command"]}, "then": program, "else": reads}
    properties = {
        "experiment": _table(Frame),
        "disk": _table(Disk),
        "image": _table(ImageConfig),
        "guest": _tables(_with(defined["GuestKeys"], phase=_tables(phase))),
        "arm": _tables(_table(Arm)),
    }
    return _file("An experiment of qmpalloc", properties, ["experiment", "guest", "arm"], defined)


def _defined() -> Schema:
    """Return the schemas of all tables by name."""
    defined: Schema = {}
    for kind in (*TABLES, Arm, Metric, *SIMPLE.values()):
        _of(inspect.type_info(kind), defined)
    return defined


def _of(kind: inspect.Type, defined: Schema) -> Schema:
    """Return the schema of a type; tables go to `defined`. msgspec's own fails at defaults of our quantities."""
    match kind:
        case inspect.StructType(cls=cls):
            if cls.__name__ not in defined:
                defined[cls.__name__] = {}  # a table may hold one of its kind
                defined[cls.__name__] = _struct(kind, defined)
            return _table(cls)
        case inspect.UnionType(types=types):
            return {"anyOf": [_of(each, defined) for each in types]}
        case inspect.LiteralType(values=values):
            return {"enum": list(values)}
        case inspect.VarTupleType(item_type=item):
            return {"type": "array", "items": _of(item, defined)}
        case inspect.DictType(value_type=value):
            return {"type": "object", "additionalProperties": _of(value, defined)}
        case inspect.CustomType(cls=cls):
            return _quantity(cls)
    plain = {inspect.StrType: "string", inspect.IntType: "integer", inspect.FloatType: "number"}
    plain |= {inspect.BoolType: "boolean", inspect.NoneType: "null"}
    return {"type": plain[type(kind)]} if type(kind) in plain else {}


def _struct(kind: inspect.StructType, defined: Schema) -> Schema:
    """Return the schema of a table, with what its docstring says."""
    said = _described(kind.cls)
    properties: Schema = {}
    if kind.tag is not None:
        properties[str(kind.tag_field)] = {"const": kind.tag}
    for field in kind.fields:
        if isinstance(field.type, inspect.StructType) and field.type.cls is Origin:
            continue
        properties[field.name] = _of(field.type, defined) | {"description": said.get(field.name, "")}
        if isinstance(field.default, str | bool) or type(field.default) in {int, float}:
            properties[field.name]["default"] = field.default
    required = [name for name in properties if "const" in properties[name]]
    required += [field.name for field in kind.fields if field.required]
    return _object(properties, required) | {"description": said[""]}


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


def _table(kind: type[Any]) -> Schema:
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _tables(item: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": item}


def _with(schema: Schema, *, required: list[str] | None = None, **properties: Schema) -> Schema:
    """Return a schema with more properties, which it needs unless `required` says otherwise."""
    needed = [*schema.get("required", ()), *(properties if required is None else required)]
    more = {"properties": schema["properties"] | properties, "required": list(dict.fromkeys(needed))}
    return schema | more


def _object(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _file(title: str, properties: Schema, required: list[str], defined: Schema) -> Schema:
    return {"$schema": DIALECT, "title": title, **_object(properties, required), "$defs": defined}
