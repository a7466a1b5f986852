"""What a user puts on a data disk: what a script fills a directory with, or an ext4 file system in a file."""

from __future__ import annotations

import hashlib
import os
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from qmpalloc.config import DataDiskConfig
from qmpalloc.errors import HostError
from qmpalloc.qemu import cache
from qmpalloc.qemu.host import KEPT_LINES, NO_SPACE_HINT, as_root, is_full, last_lines, require, run
from qmpalloc.qemu.recipe import DIGEST_CHARS
from qmpalloc.units import PAGE_BYTES, align_up

# ---------------------------------------------------------------------------------------------------------- by a script


def build_parts(config: DataDiskConfig) -> Iterator[str]:
    """Yield what makes another disk: each word, and the content of those that name files beside the configuration."""
    for number, word in enumerate(config.build):
        file = config.origin.path(word)
        if number == 0 or config.origin.names_file(word):
            yield f"{word} {_digest(config, 'build', file)}"
        else:
            yield word


def _digest(config: DataDiskConfig, key: str, file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise config.origin.error(key, f"{file}: {error.strerror}", hint=config.origin.relative) from error


def run_build(config: DataDiskConfig, tree: Path) -> None:
    """Run the user's script in the empty directory `tree`; as root, or as root of a namespace."""
    at = config.origin
    words = [str(at.path(word)) if at.names_file(word) else word for word in config.build]
    shell = [] if os.access(words[0], os.X_OK) else ["sh"]
    # As a program is found by env, so that the directory is the script's alone to leave.
    argv = as_root(["env", f"--chdir={tree}", *shell, *words])
    said: deque[str] = deque(maxlen=KEPT_LINES)
    try:
        run(argv, what="the script", on_line=said.append)
    except HostError as error:
        text = "\n".join(said)
        message = f"{words[0]} failed; its last lines:\n{last_lines(text) or '    (nothing)'}"
        hint = NO_SPACE_HINT if is_full(text) else "it runs on this host, in the directory that it fills"
        raise config.origin.error("build", message, hint=hint) from error
    if not any(tree.iterdir()):
        hint = "it is to fill the directory that it is run in"
        raise config.origin.error("build", f"{words[0]} has made no file", hint=hint)


# ----------------------------------------------------------------------------------------- a file system of the user's

EXT_MAGIC_AT, EXT_MAGIC = 1024 + 0x38, 0xEF53


class _Known(Struct, frozen=True):
    """The digest of a large file, and how the file looked when it was taken."""

    stamp: tuple[int, ...]
    sha256: str


def image_file(config: DataDiskConfig) -> Path:
    """Return the user's file system.

    Raises:
        ConfigError: It is not there, or is none that the guest can mount.
    """
    file = config.origin.path(config.image)
    try:
        with file.open("rb") as content:
            head = content.read(EXT_MAGIC_AT + 2)
    except OSError as error:
        raise config.origin.error("image", f"{file}: {error.strerror}", hint=config.origin.relative) from error
    if len(head) < EXT_MAGIC_AT + 2 or struct.unpack_from("<H", head, EXT_MAGIC_AT) != (EXT_MAGIC,):
        hint = "mke2fs -t ext4 -d DIR FILE SIZE makes one; of another format: qemu-img convert -O raw"
        raise config.origin.error("image", f"{file} is not an ext4 file system without partitions", hint=hint)
    return file


def image_digest(config: DataDiskConfig) -> str:
    """Return the digest of the user's file system; kept, as reading it takes long, until the file changes."""
    file = image_file(config)
    state = file.stat()
    stamp = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    kept = cache.cache_dir() / "data" / "digests" / hashlib.sha256(str(file).encode()).hexdigest()[:DIGEST_CHARS]
    try:
        known = msgspec.json.decode(kept.read_bytes(), type=_Known)
    except (OSError, msgspec.DecodeError):
        known = None
    if known is None or known.stamp != stamp:
        known = _Known(stamp, _digest(config, "image", file))
        with suppress(OSError):  # then it is read again next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(msgspec.json.encode(known))
    return known.sha256


def adopt(disk: Path, tree: Path, config: DataDiskConfig, *, label: str) -> None:
    """Copy the user's file system, make it as large as is wanted, and put the files of noise into it."""
    file = image_file(config)
    require(["e2fsck", "resize2fs", "tune2fs", "debugfs"])
    what = f"{config.origin.key}.image: {file}: "
    run(["cp", "--sparse=always", "--reflink=auto", str(file), str(disk)], what=what + "copying it")
    disk.chmod(0o600)
    size_bytes = align_up(max(config.size, file.stat().st_size + config.files_bytes), PAGE_BYTES)
    _check_file_system(disk, what)
    os.truncate(disk, size_bytes)
    run(["resize2fs", str(disk)], what=what + "making it larger")
    run(["tune2fs", "-L", label, str(disk)], what=what + "naming it")
    for name in sorted(config.files):
        said = run(["debugfs", "-w", "-R", f'write "{tree / name}" "{name}"', str(disk)], what=what + f"adding {name}")
        if "Could not allocate" in said or "already exists" in said:
            raise config.origin.error(
                "image", f"{file} cannot take {name}:\n{last_lines(said)}", hint="rename the file"
            )


def _check_file_system(disk: Path, what: str) -> None:
    """Have e2fsck look through the copy, which resize2fs asks for. 1: it has mended something, as of one in use."""
    run(["sh", "-c", 'e2fsck -f -y "$0" || [ $? -le 1 ]', str(disk)], what=what + "checking it")
