"""Keys of a terminal: its mode while we read them, and what the bytes mean."""

from __future__ import annotations

import contextlib
import re
import termios
from collections.abc import Iterator

_NAMES = {
    "\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace", "\x1b": "escape",
    "A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end",
    "1~": "home", "4~": "end", "5~": "page-up", "6~": "page-down", "7~": "home", "8~": "end",
}  # fmt: skip
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[A-~])")
_CUT_OFF = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|O)")
_PENDING_MAX_CHARS = 32


class Decoder:
    """Turns bytes into names of keys: ``q``, ``up``, ``page-down``, ``enter``. What it does not know it drops."""

    def __init__(self) -> None:
        self._pending = ""

    def feed(self, data: bytes) -> list[str]:
        """Return the keys that `data` completes; a sequence cut off at its end waits for the rest."""
        text, self._pending = self._pending + data.decode("ascii", "replace"), ""
        keys = []
        while text:
            match = _SEQUENCE.match(text)
            if match is not None:
                name = _NAMES.get(match.group()[2:])
                keys += [name] if name else []
                text = text[match.end() :]
            elif _CUT_OFF.fullmatch(text) and len(text) < _PENDING_MAX_CHARS:
                self._pending, text = text, ""
            else:
                keys += [text[0]] if text[0].isprintable() else [_NAMES[text[0]]] if text[0] in _NAMES else []
                text = text[1:]
        return keys


@contextlib.contextmanager
def key_mode(fd: int) -> Iterator[None]:
    """Have the terminal `fd` hand over keys as they are pressed, without echo; restore it whatever happens.

    Keys that make signals (Ctrl-C, Ctrl-Z) stay as they are. Flow control is off: with it, a stray Ctrl-S would block
    what we write, and with that, in the end, us.
    """
    before = termios.tcgetattr(fd)
    mode = termios.tcgetattr(fd)
    mode[0] &= ~termios.IXON
    mode[3] &= ~(termios.ICANON | termios.ECHO)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSANOW, mode)
    try:
        yield
    finally:
        # After a hang-up there is no terminal to restore.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSANOW, before)
