"""The data disk of a guest: an ext4 file system with files for loads to read, made once for all guests alike.

It holds files of noise, and what a script of the user's fills a directory with, or an ext4 file system of the user's,
which is copied. Its name is made from all of that.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from qmpalloc.config import DISK_OVERHEAD_BYTES, DataDiskConfig
from qmpalloc.errors import HostError
from qmpalloc.qemu import cache
from qmpalloc.qemu.host import (
    NO_SPACE_HINT,
    as_root,
    is_full,
    last_lines,
    remove_tree,
    require,
    require_namespace,
    require_space,
    run,
)
from qmpalloc.qemu.image import FullError, make_ext4
from qmpalloc.qemu.progress import Report, Stopwatch, silent
from qmpalloc.qemu.recipe import DIGEST_CHARS
from qmpalloc.units import MIB, PAGE_BYTES, align_up, format_size

FORMAT = 2
"""To be raised when the same configuration makes another disk."""

LABEL = "qmpalloc-data"
"""By which the guest finds it, and mounts it at ``/data``."""

CHUNK_BYTES = MIB


class DataDisk(Struct, frozen=True, kw_only=True):
    """A finished data disk. Its file is read only by all.

    Attributes:
        file: The ext4 file system.
        direct: True when the host's file system lets QEMU read it around the host's page cache (``O_DIRECT``).
    """

    file: Path
    direct: bool


def data_disk_dir(config: DataDiskConfig) -> Path:
    """Return where the disk is, or would be: its name is made from everything it holds.

    Raises:
        ConfigError: A file that it is made from is not there.
    """
    parts = [f"qmpalloc data {FORMAT}", str(int(config.size))]
    parts += [f"{name}={int(size)}" for name, size in sorted(config.files.items())]
    parts += [f"build {part}" for part in _build_parts(config)]
    parts += [f"image {_image_digest(config)}"] if config.image else []
    return cache.cache_dir() / "data" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:DIGEST_CHARS]


def least_bytes(config: DataDiskConfig) -> int:
    """Return the least that the files of a disk take; what a script makes is not known.

    Raises:
        ConfigError: The user's image is not there.
    """
    image_bytes = _image_file(config).stat().st_size if config.image else 0
    return sum(config.files.values()) + image_bytes


def obtain_data_disk(config: DataDiskConfig, *, report: Report = silent) -> DataDisk:
    """Return the disk that `config` describes, made now if it is not cached (some 100 MB/s).

    Raises:
        HostError: A program or room is missing, or mke2fs failed.
    """
    directory = cache.obtain(data_disk_dir(config), lambda partial: _make(partial, config, report), report=report)
    file = directory / "data.ext4"
    return DataDisk(file=file, direct=supports_direct_io(file))


def planned_data_disk(config: DataDiskConfig) -> DataDisk:
    """Return the disk that `config` describes, as it would be if it is not made yet."""
    file = data_disk_dir(config) / "data.ext4"
    return DataDisk(file=file, direct=not file.exists() or supports_direct_io(file))


def supports_direct_io(file: Path) -> bool:
    """Return whether `file` can be opened with ``O_DIRECT``; some file systems in memory or on networks refuse."""
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def _make(partial: Path, config: DataDiskConfig, report: Report) -> None:
    watch = Stopwatch(report)
    total_bytes = least_bytes(config)
    watch.step(f"making a data disk with {format_size(total_bytes)} of files, once")
    require(["mke2fs"])
    require_namespace()
    require_space(partial, 2 * total_bytes + DISK_OVERHEAD_BYTES)
    tree, disk = partial / "tree", partial / "data.ext4"
    tree.mkdir(mode=0o755)
    try:
        if config.build:
            watch.step(f"running {config.build[0]}, which fills it")
            _run_build(config, tree)
        for name, size_bytes in sorted(config.files.items()):
            if (tree / name).exists():
                raise config.origin.error("build", f"makes {name}, which is also a file of noise", hint="rename one")
            write_noise(tree / name, size_bytes, seed=f"{FORMAT} {name}")
        if config.image:
            _adopt(disk, tree, config)
        else:
            _make_disk(disk, tree, config)
    finally:
        remove_tree(tree)
    disk.chmod(0o444)
    partial.chmod(0o755)
    watch.step("the data disk is ready")


def _make_disk(disk: Path, tree: Path, config: DataDiskConfig) -> None:
    files, used_bytes = _usage(tree) if config.build else (0, 0)
    size_bytes = config.size or align_up(max(config.files_bytes, _needed_bytes(files, used_bytes)), MIB)
    try:
        make_ext4(disk, tree, size_bytes=size_bytes, label=LABEL, inodes=files + SPARE_INODES if config.build else 0)
    except FullError as error:
        message = f"what it is to hold does not fit into {format_size(size_bytes)}"
        raise config.origin.error("size", message, hint="raise it, or leave it out") from error


INODE_BYTES = 256
SPARE_INODES = 1024
"""For files that the loads make."""

SPARE_SHARE = 0.1
"""Of a disk that a script fills, for what loads write beside it."""


def _needed_bytes(files: int, used_bytes: int) -> int:
    """Return how large a file system is to be for so many files and directories of so many bytes on disk."""
    return round(used_bytes * (1 + SPARE_SHARE)) + (files + SPARE_INODES) * INODE_BYTES + DISK_OVERHEAD_BYTES


def _usage(tree: Path) -> tuple[int, int]:
    """Return how many files and directories a tree has, and the bytes of their pages."""
    found = run(as_root(["find", str(tree), "-printf", "%s\\n"]), what="measuring the data").split()
    sizes = [int(line) for line in found]
    return len(sizes), sum(align_up(size) for size in sizes)


# ---------------------------------------------------------------------------------------------------------- by a script


def _build_parts(config: DataDiskConfig) -> Iterator[str]:
    """Yield what makes another disk: each word, and the content of those that name files beside the configuration."""
    for number, word in enumerate(config.build):
        file = config.origin.path(word)
        if number == 0 or file.is_file():
            yield f"{word} {_digest(config, 'build', file)}"
        else:
            yield word


def _digest(config: DataDiskConfig, key: str, file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        hint = "relative paths are relative to this file"
        raise config.origin.error(key, f"{file}: {error.strerror}", hint=hint) from error


def _run_build(config: DataDiskConfig, tree: Path) -> None:
    """Run the user's script in the empty directory `tree`; as root, or as root of a namespace."""
    words = [str(file) if (file := config.origin.path(word)).is_file() else word for word in config.build]
    shell = [] if os.access(words[0], os.X_OK) else ["sh"]
    # As a program is found by env, so that the directory is the script's alone to leave.
    argv = as_root(["env", f"--chdir={tree}", *shell, *words])
    said: list[str] = []
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

SUPERBLOCK_AT, EXT_MAGIC_AT, EXT_MAGIC = 1024, 1024 + 0x38, 0xEF53


class _Known(Struct, frozen=True):
    """The digest of a large file, and how the file looked when it was taken."""

    stamp: tuple[int, ...]
    sha256: str


def _image_file(config: DataDiskConfig) -> Path:
    """Return the user's file system.

    Raises:
        ConfigError: It is not there, or is none that the guest can mount.
    """
    file = config.origin.path(config.image)
    try:
        with file.open("rb") as content:
            head = content.read(EXT_MAGIC_AT + 2)
    except OSError as error:
        hint = "relative paths are relative to this file"
        raise config.origin.error("image", f"{file}: {error.strerror}", hint=hint) from error
    if len(head) < EXT_MAGIC_AT + 2 or struct.unpack_from("<H", head, EXT_MAGIC_AT) != (EXT_MAGIC,):
        hint = "mke2fs -t ext4 -d DIR FILE SIZE makes one; of another format: qemu-img convert -O raw"
        raise config.origin.error("image", f"{file} is not an ext4 file system without partitions", hint=hint)
    return file


def _image_digest(config: DataDiskConfig) -> str:
    """Return the digest of the user's file system; kept, as reading it takes long, until the file changes."""
    file = _image_file(config)
    state = file.stat()
    stamp = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    kept = cache.cache_dir() / "data" / "digests" / hashlib.sha256(str(file).encode()).hexdigest()[:DIGEST_CHARS]
    try:
        known = msgspec.json.decode(kept.read_bytes(), type=_Known)
    except (OSError, msgspec.DecodeError):
        known = None
    if known is None or known.stamp != stamp:
        known = _Known(stamp, _digest(config, "image", file))
        cache.make_place(kept.parent)
        kept.write_bytes(msgspec.json.encode(known))
    return known.sha256


def _adopt(disk: Path, tree: Path, config: DataDiskConfig) -> None:
    """Copy the user's file system, make it as large as is wanted, and put the files of noise into it."""
    file = _image_file(config)
    require(["e2fsck", "resize2fs", "tune2fs", "debugfs"])
    what = f"{config.origin.key}.image: {file}: "
    run(["cp", "--sparse=always", "--reflink=auto", str(file), str(disk)], what=what + "copying it")
    disk.chmod(0o600)
    size_bytes = align_up(max(config.size, file.stat().st_size + config.files_bytes), PAGE_BYTES)
    _check_file_system(disk, what)
    os.truncate(disk, size_bytes)
    run(["resize2fs", str(disk)], what=what + "making it larger")
    run(["tune2fs", "-L", LABEL, str(disk)], what=what + "naming it")
    for name in sorted(config.files):
        said = run(["debugfs", "-w", "-R", f'write "{tree / name}" "{name}"', str(disk)], what=what + f"adding {name}")
        if "Could not allocate" in said or "already exists" in said:
            raise config.origin.error(
                "image", f"{file} cannot take {name}:\n{last_lines(said)}", hint="rename the file"
            )


def _check_file_system(disk: Path, what: str) -> None:
    """Have e2fsck look through the copy, which resize2fs asks for. 1: it has mended something, as of one in use."""
    run(["sh", "-c", 'e2fsck -f -y "$0" || [ $? -le 1 ]', str(disk)], what=what + "checking it")


def write_noise(file: Path, size_bytes: int, *, seed: str) -> None:
    """Fill `file` with bytes that look random and are the same each time.

    Zeros would become holes in the disk image, and what compresses might be compressed by the host's file system; both
    would make a miss cheaper than it is.
    """
    noise = random.Random(seed)
    with file.open("wb") as target:
        for start in range(0, size_bytes, CHUNK_BYTES):
            target.write(noise.randbytes(min(CHUNK_BYTES, size_bytes - start)))
