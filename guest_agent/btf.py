"""Reads the kernel's type information (``/sys/kernel/btf/vmlinux``): functions, offsets of members, enumerators.

With it, program.c needs no kernel headers: compiling them takes bcc ten times longer than everything else together, and
what the running kernel says of itself is right by definition. The format: Documentation/bpf/btf.rst, "BTF Type and
String Encoding".
"""

from __future__ import annotations

import struct
from array import array

_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")
_MEMBER = struct.Struct("=III")
_ENUMERATOR = struct.Struct("=Ii")
_MAGIC = 0xEB9F

_STRUCT, _UNION, _ENUM, _TYPEDEF, _FUNC = 4, 5, 6, 8, 12
_MODIFIERS = (_TYPEDEF, 9, 10, 11, 18)  # typedef, volatile, const, restrict, type tag
# Bytes that follow the common part of a type: fixed, and for each of its members, by kind.
_FIXED_BYTES = (0, 4, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 4, 0, 0)
_ENTRY_BYTES = (0, 0, 0, 0, 12, 12, 8, 0, 0, 0, 0, 0, 0, 8, 0, 12, 0, 0, 0, 12)


class BtfError(Exception):
    """The bytes are not type information of a known format."""


class Btf:
    """Looks up named types.

    Args:
        data: The whole type information.
        names: Every structure, enumeration and function that will be asked for; all others are passed over.

    Raises:
        BtfError: `data` cannot be understood.
    """

    def __init__(self, data: bytes, names: set[str]) -> None:
        try:
            magic, _, _, header_bytes, types_at, types_bytes, strings_at, strings_bytes = _HEADER.unpack_from(data)
        except struct.error:
            raise BtfError("no header") from None
        if magic != _MAGIC:
            raise BtfError("wrong magic number")
        self._types = memoryview(data)[header_bytes + types_at :][:types_bytes]
        self._strings = data[header_bytes + strings_at :][:strings_bytes]
        wanted = {offset: name for name in names if (offset := self._string_offset(name)) is not None}
        self._at = array("I", [0])  # of each type in _types, by type number; number 0 is void
        self._by_name: dict[tuple[int, str], int] = {}
        try:
            self._index(wanted)
        except (struct.error, IndexError):
            raise BtfError("a type of unknown kind") from None

    def _string_offset(self, name: str) -> int | None:
        found = self._strings.find(b"\0" + name.encode() + b"\0")
        return None if found < 0 else found + 1

    def _index(self, wanted: dict[int, str]) -> None:
        at, end, unpack = 0, len(self._types), _TYPE.unpack_from
        while at < end:
            name, info, _ = unpack(self._types, at)
            self._at.append(at)
            kind = info >> 24 & 31
            if name in wanted:
                self._by_name.setdefault((kind, wanted[name]), at)
            at += 12 + _FIXED_BYTES[kind] + _ENTRY_BYTES[kind] * (info & 0xFFFF)

    def argument_count(self, tracepoint: str) -> int | None:
        """Return how many arguments a raw tracepoint passes on; None if it is not there.

        Its type is ``btf_trace_<name>``, a pointer to a function of one parameter more (include/trace/bpf_probe.h).
        """
        at = self._by_name.get((_TYPEDEF, f"btf_trace_{tracepoint}"))
        for _ in ("typedef", "pointer"):
            at = None if at is None else self._at[_TYPE.unpack_from(self._types, at)[2]]
        return None if at is None else int(_TYPE.unpack_from(self._types, at)[1] & 0xFFFF) - 1

    def parameter_count(self, function: str) -> int | None:
        """Return how many parameters a function has; None if a program cannot be attached to it, or it is not there."""
        at = self._by_name.get((_FUNC, function))
        if at is None:
            return None
        prototype = _TYPE.unpack_from(self._types, at)[2]
        return int(_TYPE.unpack_from(self._types, self._at[prototype])[1] & 0xFFFF)

    def member_offset(self, structure: str, member: str) -> int | None:
        """Return where in a structure a member lies, in bytes; None if it has none of that name."""
        at, name = self._by_name.get((_STRUCT, structure)), self._string_offset(member)
        return None if at is None or name is None else self._member_offset(at, name)

    def size_bytes(self, structure: str) -> int | None:
        """Return the size of a structure; None if there is none of that name."""
        at = self._by_name.get((_STRUCT, structure))
        return None if at is None else int(_TYPE.unpack_from(self._types, at)[2])

    def _member_offset(self, at: int, wanted: int) -> int | None:
        _, info, _ = _TYPE.unpack_from(self._types, at)
        for index in range(info & 0xFFFF):
            name, number, bits = _MEMBER.unpack_from(self._types, at + 12 + 12 * index)
            offset: int = (bits & 0xFFFFFF if info >> 31 else bits) // 8  # with bit fields, the top byte is a width
            if name == wanted:
                return offset
            if name == 0 and (inner := self._structure(number)) is not None:
                below = self._member_offset(inner, wanted)
                if below is not None:
                    return offset + below
        return None

    def _structure(self, number: int) -> int | None:
        """Return where the structure or union of this type number is, modifiers removed."""
        at = self._at[number]
        _, info, target = _TYPE.unpack_from(self._types, at)
        kind = info >> 24 & 31
        if kind in _MODIFIERS:
            return self._structure(target)
        return at if kind in (_STRUCT, _UNION) else None

    def enumerator(self, enumeration: str, name: str) -> int | None:
        """Return the value of a name in an enumeration; None if it is not there."""
        at, wanted = self._by_name.get((_ENUM, enumeration)), self._string_offset(name)
        if at is None or wanted is None:
            return None
        _, info, _ = _TYPE.unpack_from(self._types, at)
        entries = (_ENUMERATOR.unpack_from(self._types, at + 12 + 8 * index) for index in range(info & 0xFFFF))
        return next((value for offset, value in entries if offset == wanted), None)
