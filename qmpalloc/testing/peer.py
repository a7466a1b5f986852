"""What the fakes have in common: commands by name, what was asked, and how it is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from qmpalloc.errors import NonsenseError
from qmpalloc.qmp.framing import Mark, decode
from qmpalloc.testing.faults import Faults

Command = Callable[[dict[str, Any]], object]


class Refusal(Exception):
    """Raised by a command of a fake to answer with an error."""

    def __init__(self, desc: str, error_class: str = "GenericError") -> None:
        super().__init__(desc)
        self.body = {"class": error_class, "desc": desc}


class FakePeer:
    """Executes what one client after the other asks.

    Attributes:
        faults: What goes wrong.
        requests: Every command received, with its arguments, in order.
        commands: Commands by name; add to it, or replace one. A command gets the arguments, returns the result, and
            raises `Refusal` to answer with an error.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.commands: dict[str, Command] = {}
        self._one_client = trio.Lock()

    def _reply(self, frame: bytes | Mark) -> tuple[str, dict[str, object]]:
        """Execute what was sent; return the command, empty if it is none, and the answer."""
        try:
            request = decode(frame) if isinstance(frame, bytes) else None
        except NonsenseError:
            request = None
        if request is None or not isinstance(request.get("execute"), str):
            # A real agent's parser, too, reports 0xFF and the half line it ends as an error, without an id.
            return "", {"error": Refusal("JSON parse error").body}
        command, arguments = str(request["execute"]), request.get("arguments", {})
        echo = {"id": request["id"]} if "id" in request else {}
        try:
            return command, {"return": self._execute(command, arguments), **echo}
        except Refusal as refusal:
            return command, {"error": refusal.body, **echo}

    def _execute(self, command: str, arguments: object) -> object:
        if not isinstance(arguments, dict):
            raise Refusal("QMP input member 'arguments' must be an object")
        self.requests.append((command, arguments))
        self._check(command)
        if command not in self.commands:
            raise Refusal(f"The command {command} has not been found", "CommandNotFound")
        return self.commands[command](arguments)

    def _check(self, command: str) -> None:
        """Refuse what cannot be done now."""
