"""The data disk of a guest: an ext4 file system with files for loads to read, made once for all guests alike."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

from msgspec import Struct

from qmpalloc.config import DISK_OVERHEAD_BYTES, DataDiskConfig
from qmpalloc.qemu import cache
from qmpalloc.qemu.host import require, require_namespace, require_space
from qmpalloc.qemu.image import make_ext4
from qmpalloc.qemu.progress import Report, Stopwatch, silent
from qmpalloc.qemu.recipe import DIGEST_CHARS
from qmpalloc.units import MIB, format_size

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
    """Return where the disk is, or would be: its name is made from everything it holds."""
    parts = [f"qmpalloc data {FORMAT}", str(int(config.size))]
    parts += [f"{name}={int(size)}" for name, size in sorted(config.files.items())]
    return cache.cache_dir() / "data" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:DIGEST_CHARS]


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
    total_bytes = sum(config.files.values())
    watch.step(f"making a data disk of {format_size(config.size)} with {format_size(total_bytes)} of files, once")
    require(["mke2fs"])
    require_namespace()
    require_space(partial, 2 * total_bytes + DISK_OVERHEAD_BYTES)
    tree, disk = partial / "tree", partial / "data.ext4"
    tree.mkdir()
    for name, size_bytes in sorted(config.files.items()):
        write_noise(tree / name, size_bytes, seed=f"{FORMAT} {name}")
    make_ext4(disk, tree, size_bytes=config.size, label=LABEL)
    for name in config.files:
        (tree / name).unlink()
    tree.rmdir()
    disk.chmod(0o444)
    partial.chmod(0o755)
    watch.step("the data disk is ready")


def write_noise(file: Path, size_bytes: int, *, seed: str) -> None:
    """Fill `file` with bytes that look random and are the same each time.

    Zeros would become holes in the disk image, and what compresses might be compressed by the host's file system; both
    would make a miss cheaper than it is.
    """
    noise = random.Random(seed)
    with file.open("wb") as target:
        for start in range(0, size_bytes, CHUNK_BYTES):
            target.write(noise.randbytes(min(CHUNK_BYTES, size_bytes - start)))
