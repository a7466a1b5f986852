"""The data disk of a guest: an ext4 file system with files for loads to read, made once for all guests alike.

It holds files of noise, and what a script of the user's fills a directory with, or an ext4 file system of the user's,
which is copied. Its name is made from all of that.
"""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

from msgspec import Struct

from qmpalloc.config import DISK_OVERHEAD_BYTES, DataDiskConfig
from qmpalloc.qemu import cache
from qmpalloc.qemu.data_source import adopt, build_parts, image_digest, image_file, run_build
from qmpalloc.qemu.host import as_root, remove_tree, require, require_namespace, require_space, run
from qmpalloc.qemu.image import FullError, make_ext4
from qmpalloc.qemu.progress import Report, Stopwatch, silent
from qmpalloc.qemu.recipe import DIGEST_CHARS
from qmpalloc.units import MIB, align_up, format_size

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
    parts += [f"build {part}" for part in build_parts(config)]
    parts += [f"image {image_digest(config)}"] if config.image else []
    return cache.cache_dir() / "data" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:DIGEST_CHARS]


def least_bytes(config: DataDiskConfig) -> int:
    """Return the least that the files of a disk take; what a script makes is not known.

    Raises:
        ConfigError: The user's image is not there.
    """
    image_bytes = image_file(config).stat().st_size if config.image else 0
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
            run_build(config, tree)
        for name, size_bytes in sorted(config.files.items()):
            if (tree / name).exists():
                raise config.origin.error("build", f"makes {name}, which is also a file of noise", hint="rename one")
            write_noise(tree / name, size_bytes, seed=f"{FORMAT} {name}")
        if config.image:
            adopt(disk, tree, config, label=LABEL)
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


def write_noise(file: Path, size_bytes: int, *, seed: str) -> None:
    """Fill `file` with bytes that look random and are the same each time.

    Zeros would become holes in the disk image, and what compresses might be compressed by the host's file system; both
    would make a miss cheaper than it is.
    """
    noise = random.Random(seed)
    with file.open("wb") as target:
        for start in range(0, size_bytes, CHUNK_BYTES):
            target.write(noise.randbytes(min(CHUNK_BYTES, size_bytes - start)))
