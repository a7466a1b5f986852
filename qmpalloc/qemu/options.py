"""What the command line of a QEMU that somebody started says of its name and its QMP sockets. Pure.

All else is asked of its monitor, which also knows what was plugged, and what stood in ``-readconfig`` or as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

ON = frozenset({"on", "yes", "true", "y"})
"""What QEMU takes for on."""


class Address(Struct, frozen=True):
    """Where a QMP monitor is.

    Attributes:
        path: Of the Unix socket that QEMU listens on, as written; empty if it is something else.
        what: What it is otherwise, for people.
    """

    path: str
    what: str = ""


def guest_name(argv: Sequence[str]) -> str:
    """Return the name that ``-name`` gives; empty if there is none."""
    name = ""
    for value in _values(argv, "name"):
        options = _options(value, "guest")
        name = options.get("guest", name)
    return name


def qmp_addresses(argv: Sequence[str]) -> list[Address]:
    """Return where QMP is served, in the order of the command line.

    1. ``-qmp unix:PATH,server=on,wait=off``, or ``-qmp-pretty``;
    2. ``-qmp chardev:ID`` and ``-mon ID,mode=control``, with ``-chardev socket,id=ID,path=PATH,server=on``.
    """
    chardevs = {options.get("id", ""): options for options in map(_chardev, _values(argv, "chardev"))}
    found = []
    for value in _values(argv, "qmp", "qmp-pretty"):
        kind, _, rest = value.partition(":")
        if kind == "chardev":
            found.append(_address(chardevs.get(rest.partition(",")[0], {})))
        elif kind == "unix":
            found.append(_address(_options(f"path={rest}", "path") | {"backend": "socket"}))
        else:
            found.append(Address("", value))
    for value in _values(argv, "mon"):
        options = _options(value, "chardev")
        if options.get("mode") == "control":
            found.append(_address(chardevs.get(options.get("chardev", ""), {})))
    return found


def _values(argv: Sequence[str], *names: str) -> Iterator[str]:
    """Yield the values of options; QEMU takes one dash or two."""
    wanted = {f"{dashes}{name}" for name in names for dashes in ("-", "--")}
    return (argv[index + 1] for index, word in enumerate(argv[:-1]) if word in wanted)


def _options(text: str, first: str) -> dict[str, str]:
    """Return ``key=value,flag`` as a dictionary; a first value without a key is called `first`."""
    options = {}
    for number, part in enumerate(_split(text)):
        key, equals, value = part.partition("=")
        if not equals and number == 0:
            key, value = first, part
        options[key] = value if equals or number == 0 else "off" if key in {"nowait", "noserver"} else "on"
    return options


def _split(text: str) -> list[str]:
    """Return the parts between commas; two commas stand for one in a part."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def _chardev(text: str) -> dict[str, str]:
    return _options(text, "backend")


def _address(chardev: dict[str, str]) -> Address:
    if chardev.get("backend") != "socket":
        return Address("", chardev.get("backend", "a chardev that its command line does not have"))
    if "fd" in chardev:
        return Address("", "a socket that whoever started it (libvirt?) keeps for itself")
    if "path" not in chardev:
        return Address("", "TCP")
    if chardev.get("server", "off") not in ON:
        return Address("", f"a client of {chardev['path']} (server=off)")
    if chardev.get("abstract") in ON:
        return Address("", "an abstract socket")
    return Address(chardev["path"])
