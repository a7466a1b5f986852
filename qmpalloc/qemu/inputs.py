"""The files that an image is made from, as one tar that is the same wherever it is made."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from qmpalloc.qemu.architecture import Architecture

CHUNK_BYTES = 1024 * 1024


class InputFile(Struct, frozen=True, order=True):
    """A file that an image is made from.

    Attributes:
        place: In the build.
        content: Its bytes, or the file that holds them.
        executable: Whether it is a program.
        link: Where it points to, when it is a symbolic link.
    """

    place: str
    content: bytes | Path
    executable: bool
    link: str = ""

    @property
    def size_bytes(self) -> int:
        """How long it is."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def open(self) -> IO[bytes]:
        """Return its content as a file."""
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb")

    def update(self, digest: Any) -> None:
        """Add all of it to a digest of hashlib's."""
        # Lengths first, so that no two lists of files read the same.
        kind = f"link {self.link}" if self.link else f"{self.executable:d}"
        digest.update(f"{self.place}\0{kind}\0{self.size_bytes}\0".encode())
        with self.open() as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)


def read_input(path: Path, place: str, architecture: Architecture) -> InputFile:
    """Return a file of the recipe as it is for an architecture."""
    return InputFile(place, architecture.filled(path.read_bytes()), bool(path.stat().st_mode & stat.S_IXUSR))


def write_inputs_tar(target: IO[bytes], files: list[InputFile], mtime_s: int) -> None:
    """Write the files as a tar: root's, fixed modes, one time stamp."""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for directory in sorted({parent for file in files for parent in _parents(file.place)}):
            member = tarfile.TarInfo(directory)
            member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, mtime_s
            tar.addfile(member)
        for file in files:
            member = tarfile.TarInfo(file.place)
            member.mtime = mtime_s
            member.mode = 0o755 if file.executable else 0o644
            if file.link:
                member.type, member.linkname = tarfile.SYMTYPE, file.link
                tar.addfile(member)
                continue
            member.size = file.size_bytes
            with file.open() as content:
                tar.addfile(member, content)


def _parents(place: str) -> Iterator[str]:
    # /tmp exists, with a mode of its own.
    return (os.fspath(parent) for parent in Path(place).parents if os.fspath(parent) not in {".", "tmp"})
