"""Which QEMUs run on this host, by what the kernel tells of its processes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

PROC = Path("/proc")

_PROGRAM = re.compile(r"\.?(qemu-system-[\w-]+|qemu-kvm|kvm)(-wrapped)?")
"""What QEMU is called: by itself, by Red Hat and old Debian, and wrapped by Nix."""


class Qemu(Struct, frozen=True, kw_only=True):
    """A QEMU that runs.

    Attributes:
        pid: Its process id.
        uid: Of the user who runs it.
        argv: Its command line.
        directories: What relative paths of its command line may be relative to: where it is now, and where it was
            started, which differ with ``-daemonize``.
    """

    pid: int
    uid: int
    argv: tuple[str, ...]
    directories: tuple[Path, ...] = ()

    @property
    def program(self) -> str:
        """Its name, without a directory."""
        return Path(self.argv[0]).name


def find_qemus(proc: Path = PROC) -> list[Qemu]:
    """Return all QEMUs that this ``/proc`` shows, the oldest process id first. Of other users' the directories lack."""
    return sorted(_qemus(proc), key=lambda qemu: qemu.pid)


def hides_others(proc: Path = PROC) -> bool:
    """Tell whether this ``/proc`` shows only the processes of its reader (``hidepid=2``)."""
    return not (proc / "1").exists()


def _qemus(proc: Path) -> Iterator[Qemu]:
    for place in proc.iterdir():
        if not place.name.isdecimal():
            continue
        try:
            argv = tuple(os.fsdecode(word) for word in (place / "cmdline").read_bytes().split(b"\0")[:-1])
            uid = place.stat().st_uid
        except OSError:  # it has ended, or its command line is not shown (hidepid=1)
            continue
        if argv and _PROGRAM.fullmatch(Path(argv[0]).name):
            yield Qemu(pid=int(place.name), uid=uid, argv=argv, directories=tuple(_directories(place)))


def _directories(place: Path) -> Iterator[Path]:
    try:
        yield (place / "cwd").readlink()
        environment = (place / "environ").read_bytes()
    except OSError:  # another user's
        return
    yield from (Path(os.fsdecode(word[4:])) for word in environment.split(b"\0") if word.startswith(b"PWD=/"))
