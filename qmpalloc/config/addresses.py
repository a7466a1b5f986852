"""Where a guest's sockets are: the path in a configuration, in the forms that people copy from a QEMU command line."""

from __future__ import annotations

import os
import re
from pathlib import Path

QEMU_OPTION = re.compile(
    r",(server|client|wait|nowait|reconnect(-ms)?|abstract|tight|id|path|host|port|mode|chardev)\b(=|,|$)"
)
"""An option of QEMU's behind an address."""

PORT = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[A-Za-z0-9_.-]*):[0-9]+")
"""A host, or none, and a port: an address as of ``-monitor tcp:…`` without its kind."""

NETWORK = {"tcp": "TCP", "telnet": "TCP", "tn3270": "TCP", "websocket": "TCP", "udp": "UDP", "vsock": "vsock"}
UNIX_HINT = (
    "give QEMU a Unix socket, which has an owner and a mode: -qmp unix:PATH,server=on,wait=off for the monitor, "
    "-chardev socket,id=agent,path=PATH,server=on,wait=off for the agent"
)
OPTIONS_HINT = "server=on and the like tell QEMU to make the socket and serve it, as it must; here write the path alone"


class AddressError(ValueError):
    """What is written is not the path of a Unix socket.

    Attributes:
        message: What it is instead.
        hint: What to write.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def socket_path(address: str, base: Path) -> str:
    """Return the absolute path of a Unix socket.

    Understood are a path, relative to `base`; one that begins with ``~``, the home directory of a user; and
    ``unix:PATH``. Whatever else QEMU can listen on is refused by name: anybody on the host may open a TCP or vsock port
    or an abstract socket, and who opens a guest's sockets owns the guest.

    Raises:
        AddressError: It is none of these.
    """
    kind, colon, rest = address.partition(":")
    if colon and kind in NETWORK:
        raise _open_to_all(address, NETWORK[kind])
    if address.startswith("@"):
        raise _open_to_all(address, "an abstract socket", f", or ./{address} if that is the name of a file")
    if PORT.fullmatch(address):
        raise _open_to_all(address, "TCP", f", or ./{address} if that is the name of a file")
    path = rest.removeprefix("//") if colon and kind == "unix" else address
    option = QEMU_OPTION.search(path)
    if option is not None:
        alone = path[: option.start()] if not path.startswith("socket,") else _option(path, "path")
        raise AddressError(f"{address} holds options of QEMU's", f"{OPTIONS_HINT}: {alone}")
    if not path:
        raise AddressError(f"{address} names no socket", "write unix:PATH, or the path alone")
    return os.path.normpath(base / at_home(path))


def at_home(path: str) -> Path:
    """Return a path with ``~``, or ``~user``, at its beginning replaced by that home directory.

    Raises:
        AddressError: No home directory is known.
    """
    if not path.startswith("~"):
        return Path(path)  # ./~ is the name of a file
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError) as error:  # ValueError: a zero byte in the name
        user = path.split("/")[0]
        raise AddressError(f"{path}: no home directory is known for {user}", f"write it out, or ./{path}") from error


def _open_to_all(address: str, what: str, otherwise: str = "") -> AddressError:
    message = f"{address}: {what} is not supported, for anybody on this host could open it and would own the guest"
    return AddressError(message, UNIX_HINT + otherwise)


def _option(options: str, name: str) -> str:
    """Return the value of one of QEMU's options; an abstract socket, for example, may have no path."""
    values = [part.removeprefix(f"{name}=") for part in options.split(",") if part.startswith(f"{name}=")]
    return values[0] if values else "PATH"
