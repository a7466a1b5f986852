"""What this host cannot do is refused before anything is built or booted."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qmpalloc.config import DISK_OVERHEAD_BYTES, Config
from qmpalloc.config.keys import MAX_SOCKET_PATH_BYTES
from qmpalloc.errors import ConfigError, HostError
from qmpalloc.experiment.run.configuration import arm_configuration
from qmpalloc.experiment.spec.attached import SOCKETS
from qmpalloc.experiment.spec.checks import check_memory
from qmpalloc.experiment.spec.schema import Guest, Specification
from qmpalloc.host.memory import read_host_memory
from qmpalloc.qemu.cache import cache_dir
from qmpalloc.qemu.data_disk import data_disk_dir, least_bytes
from qmpalloc.qemu.host import require_space
from qmpalloc.qemu.image import image_dir
from qmpalloc.qemu.image import needed_bytes as needed_bytes_of
from qmpalloc.qemu.recipe import Variant

RUN_DIR_PREFIX = "qmpalloc-"
"""Of the directory with a run's sockets, in the directory for temporary files: their paths must be short."""

EXAMPLE_RUN_DIR = f"{RUN_DIR_PREFIX}12345678"


def preflight(specification: Specification) -> None:
    """Check memory, room on disk and the length of paths.

    Raises:
        ConfigError: The guests need more memory than this host has available.
        HostError: There is no room for images and data disks, or the directory for temporary files has a long name.
    """
    left_bytes = read_host_memory().left_bytes
    if left_bytes is not None:
        check_memory(specification, left_bytes)
    config = arm_configuration(
        specification, specification.arms[0], run_dir=Path(tempfile.gettempdir(), EXAMPLE_RUN_DIR)
    )
    check_room(config)
    check_attached(specification)
    for path in (path for guest in config.guests for path in (guest.monitor, guest.agent)):
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            message = f"{path} is longer than the path of a Unix socket may be ({MAX_SOCKET_PATH_BYTES} bytes)"
            raise HostError(message, hint="set TMPDIR to a directory with a shorter path")


def check_attached(specification: Specification) -> None:
    """Check that the sockets of guests that run are there, and the programs of this host that lead to guests.

    Raises:
        ConfigError: One is not.
    """
    for index, guest in enumerate(specification.guests):
        for key, message, hint in _absent(guest, Path(specification.home)):
            where = f"guest[{index}].{key}"
            raise ConfigError(f"guest {guest.name}: {message}", file=specification.file, key=where, hint=hint)


def _absent(guest: Guest, beside: Path) -> Iterator[tuple[str, str, str]]:
    """Yield key, message and hint of what is not there."""
    if guest.attach is None:
        return
    if guest.start is None:
        for name in SOCKETS:
            path = getattr(guest.attach, name)
            if not Path(path).exists():
                yield f"attach.{name}", f"{path}: no such socket", "does the guest run? [guest.start] starts it"
    commands = {"attach.channel": () if guest.attach.channel == "agent" else guest.attach.channel}
    if guest.start is not None:
        commands |= {"start.command": guest.start.command, "start.stop": guest.start.stop}
    for key, command in commands.items():
        if command and shutil.which(beside / command[0] if "/" in command[0] else command[0]) is None:
            yield key, f"{command[0]}: no such program on this host", "a path is relative to the experiment's file"


def check_room(config: Config) -> None:
    """Check that images and data disks that are not in the cache yet have room in it.

    Raises:
        HostError: They have not.
    """
    machines = [guest.vm for guest in config.guests if guest.vm is not None]
    variants = {image_dir(variant): variant for variant in (Variant.of(vm) for vm in machines)}
    disks = {data_disk_dir(vm.data): least_bytes(vm.data) for vm in machines if vm.data is not None}
    missing = [size_bytes for directory, size_bytes in disks.items() if not directory.is_dir()]
    to_build = [needed_bytes_of(variant) for directory, variant in variants.items() if not directory.is_dir()]
    needed_bytes = max(to_build, default=0)
    if missing:  # the files of a disk are written twice: to a tree, which goes, and into the disk
        needed_bytes += sum(missing) + len(missing) * DISK_OVERHEAD_BYTES + max(missing)
    if needed_bytes:
        place = cache_dir()
        require_space(next(each for each in (place, *place.parents) if each.exists()), needed_bytes)
