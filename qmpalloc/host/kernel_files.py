"""The small files in which Linux tells what it knows. What could not be read is kept, not lost."""

from __future__ import annotations

import errno
from pathlib import Path

_NOT_TOLD = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.EOPNOTSUPP})
"""This kernel, or this control group, has no such file: that is an answer, and no failure to read."""


class KernelFiles:
    """Reads such files. None stands for what the kernel does not tell, and for what could not be read.

    Attributes:
        unread: What the kernel tells and could not be read, with the reason: a clause for each file.
    """

    def __init__(self) -> None:
        self.unread: list[str] = []

    def text(self, path: Path) -> str | None:
        """Return the content of a file."""
        try:
            return path.read_text(errors="surrogateescape")
        except OSError as error:
            if error.errno not in _NOT_TOLD:
                self.miss(f"{path}: {error.strerror}")
            return None

    def lines(self, path: Path) -> list[str]:
        """Return the lines of a file; none where it tells nothing."""
        return (self.text(path) or "").splitlines()

    def limit(self, path: Path) -> int | None:
        """Return the number that a file holds; None also for ``max``, which is no limit."""
        text = self.text(path)
        return None if text is None or text.strip() == "max" else self.number(path, text)

    def fields(self, path: Path, *names: str) -> dict[str, int]:
        """Return the numbers behind those of `names` that a file has, with a name and a number on each line."""
        pairs = (line.partition(" ") for line in self.lines(path))
        numbers = {name: self.number(path, text) for name, _, text in pairs if name in names}
        return {name: number for name, number in numbers.items() if number is not None}

    def sizes(self, path: Path) -> dict[str, int]:
        """Return the sizes in bytes of a file like ``/proc/meminfo``: on each line a name with a colon, and kB."""
        fields = [line.split() for line in self.lines(path)]
        sizes = {name.rstrip(":"): self.number(path, size) for name, size, *_ in (each for each in fields if each[1:])}
        return {name: size * 1024 for name, size in sizes.items() if size is not None}

    def number(self, path: Path, text: str) -> int | None:
        """Return the number that a part of a file is."""
        try:
            return int(text)
        except ValueError:
            self.miss(f"{path}: not as Linux writes it")
            return None

    def miss(self, what: str) -> None:
        """Note what could not be read, and why."""
        if what not in self.unread:
            self.unread.append(what)
