"""What must hold between keys and between guests."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator

from qmpalloc.config.convert import Mistakes
from qmpalloc.config.schema import (
    VIRTIO_MEM_BASE_BYTES,
    Config,
    DataDiskConfig,
    DataSource,
    GuestConfig,
    ImageConfig,
    KernelFiles,
    VmConfig,
)
from qmpalloc.text import is_visible
from qmpalloc.units import PAGE_BYTES, align_down, align_up, format_size

MAX_SOCKET_PATH_BYTES = 107  # sun_path of a Unix socket is 108 bytes with its closing zero


def check(config: Config, mistakes: Mistakes) -> None:
    """Check what concerns several keys or several guests."""
    control = config.control
    if not control.sample_interval < control.late_after < control.lost_after:
        mistakes.add("control.late_after", "must be above control.sample_interval and below control.lost_after")
    for name in ("interval", "sample_interval", "command_timeout", "balloon_poll", "exit_timeout"):
        if getattr(control, name) <= 0:
            mistakes.add(f"control.{name}", "must be above 0", hint='for example "1s"')
    for index, guest in enumerate(config.guests):
        for key, message, hint in _guest_mistakes(guest):
            mistakes.add(f"guest[{index}].{key}", message, hint=hint)
    _check_unique(config, mistakes)
    _check_budget(config, mistakes)


def _guest_mistakes(guest: GuestConfig) -> Iterator[tuple[str, str, str]]:
    if not guest.name or not all(char.isascii() and (char.isalnum() or char in "-_.") for char in guest.name):
        yield "name", f"{guest.name!r} is not a name", "use letters, digits, '-', '_' and '.'"
    elif guest.name in {".", ".."} or len(guest.name) > 32:
        yield "name", f"{guest.name!r} is not a name", "use at most 32 characters"
    for key in ("monitor", "agent"):
        path = getattr(guest, key)
        if "\0" in path:
            yield key, f"{path!r} is no path", "remove the zero byte"
        elif not path:
            yield key, "missing", "the path of a Unix socket; README.md shows QEMU's side"
        elif len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            yield key, f"{path} is longer than a Unix socket path may be ({MAX_SOCKET_PATH_BYTES} bytes)", ""
    if guest.floor <= 0:
        yield "floor", "must be above 0", "a guest without memory dies"
    if guest.floor > guest.cap:
        yield (
            "floor",
            f"{format_size(guest.floor)} is above the cap of {format_size(guest.cap)}",
            "lower floor, raise cap",
        )
    elif align_up(guest.floor) > align_down(guest.cap):
        yield "floor", f"no whole page of {PAGE_BYTES} bytes lies between floor and cap", "write both in whole MiB"
    elif not guest.floor <= guest.baseline <= guest.cap:
        hint = f"choose one from {format_size(guest.floor)} to {format_size(guest.cap)}"
        yield "baseline", f"{format_size(guest.baseline)} is not between floor and cap", hint
    if not guest.weight > 0 or not math.isfinite(guest.weight):
        yield "weight", "must be above 0", "1.0 is the weight of a guest that has none configured"
    if not guest.counters_file.startswith("/"):
        yield "counters_file", "must be an absolute path inside the guest", "/run/qmpalloc/counters.json by default"
    if guest.samples_file and not guest.samples_file.startswith("/"):
        yield "samples_file", "must be an absolute path inside the guest", "samples.bin beside the counters by default"
    yield from channel_mistakes("channel", guest.channel)
    if guest.vm is not None:
        yield from _vm_mistakes(guest, guest.vm)


def _vm_mistakes(guest: GuestConfig, vm: VmConfig) -> Iterator[tuple[str, str, str]]:
    if guest.cap > vm.memory:
        memory = format_size(vm.memory)
        yield "cap", f"{format_size(guest.cap)} is above the guest's memory of {memory}", "raise vm.memory"
    if vm.actuator == "virtio-mem" and guest.floor < VIRTIO_MEM_BASE_BYTES:
        message = (
            f"{format_size(guest.floor)} is less RAM than a guest boots with, and virtio-mem adds to that only later"
        )
        yield "floor", message, f'raise it to {format_size(VIRTIO_MEM_BASE_BYTES)}, or take actuator = "balloon"'
    if vm.cpus < 1:
        yield "vm.cpus", "must be at least 1", ""
    if vm.load and vm.profile == "base":
        hint = 'profile = "lab" has an agent that may execute programs'
        yield "vm.load", f"the profile {vm.profile} starts no loads", hint
    yield from (("vm.packages", message, hint) for message, hint in package_mistakes(vm.packages))
    if vm.data is not None:
        yield from _below("vm.data", _disk_mistakes(vm.data))
    if vm.image is not None and vm.image.origin.key != "image":
        yield from _below("vm.image", image_mistakes(vm.image))


def _below(key: str, mistakes: Iterable[Mistake]) -> Iterator[Mistake]:
    return ((f"{key}.{name}", message, hint) for name, message, hint in mistakes)


PACKAGE = r"[a-z0-9][a-z0-9+.-]+"
"""A Debian package's name (Debian Policy, 5.6.1)."""

IMAGE_LEAST_BYTES = 64 * 1024 * 1024
"""Less than the smallest system; mke2fs says what a system needs."""

Mistake = tuple[str, str, str]
"""Key below the table, message and hint."""


def image_mistakes(image: ImageConfig) -> Iterator[Mistake]:
    """Yield what no image can have; whether what it names exists is seen when it is needed."""
    yield from (("packages", message, hint) for message, hint in package_mistakes(image.packages))
    for place, source in image.files.items():
        if not place.startswith("/") or place.endswith("/") or ".." in place.split("/") or not is_visible(place):
            yield "files", f"{place!r} is no path of a file in the guest", 'for example "/etc/app.conf" = "app.conf"'
        elif place.split("/")[1] in NOT_ON_DISK:
            yield "files", f"{place} would not be there after the boot", "choose a directory that is on the disk"
        if not source:
            yield "files", f"nothing is named for {place}", "a file or a directory beside this one"
    if isinstance(image.kernel, KernelFiles):
        for name in ("vmlinuz", "modules", "headers"):
            if not getattr(image.kernel, name):
                yield f"kernel.{name}", "is empty", "a path, relative to this file"
    elif image.kernel and not re.fullmatch(rf"linux-image-{PACKAGE}(/[a-z-]+)?", image.kernel):
        hint = 'for example "linux-image-amd64" or "linux-image-cloud-amd64/trixie-backports"'
        yield "kernel", f"{image.kernel!r} is not the package of a kernel", hint
    if 0 < image.size < IMAGE_LEAST_BYTES or image.size < 0:
        yield "size", f"{format_size(image.size)} holds no system", "leave it out for the recipe's own"


NOT_ON_DISK = frozenset({"dev", "proc", "run", "sys", "tmp"})
"""Directories of a guest that are empty, or made anew, when it has booted; a build empties ``/tmp``."""


def channel_mistakes(key: str, channel: str | tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """Yield key, message and hint if a channel into a guest is a command that cannot be run."""
    if not channel or not channel[0] or any("\0" in word for word in channel):
        hint = 'write "agent", or program and arguments: ["ssh", "-p", "2222", "root@127.0.0.1"]'
        yield key, "is no command", hint


def package_mistakes(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield message and hint for each name that no Debian package can have."""
    for name in names:
        if not re.fullmatch(PACKAGE, name):
            yield f"{name!r} is not the name of a Debian package", 'names, as apt knows them: ["postgresql"]'


def source_mistakes(data: DataSource) -> Iterator[Mistake]:
    """Yield what no data disk can be made from."""
    if data.build and data.image:
        yield "image", "beside build", "a disk is either made by a script or yours"
    if data.build and not data.build[0]:
        yield "build", "the script has no name", 'for example ["fill.sh"]'
    if any("\0" in word for word in (*data.build, data.image)):
        yield "build" if data.build else "image", "holds a NUL", "no file has such a name"


def _disk_mistakes(disk: DataDiskConfig) -> Iterator[Mistake]:
    yield from source_mistakes(disk)
    for name in disk.files:
        if not name or "/" in name or "\0" in name or name in {".", "..", "lost+found"}:
            yield "files", f"{name!r} is not a file name", "files lie directly in /data of the guest"
    if disk.size and disk.files_bytes > disk.size:
        yield (
            "size",
            f"the files need {format_size(disk.files_bytes)}, the disk has {format_size(disk.size)}",
            "raise it",
        )
    if disk.iops < 0:
        yield "iops", "must not be negative", "0 is no limit"


def _check_unique(config: Config, mistakes: Mistakes) -> None:
    seen: dict[str, str] = {}
    for index, guest in enumerate(config.guests):
        for key in ("name", "monitor", "agent"):
            value = getattr(guest, key)
            identity = value if key == "name" or "\0" in value else os.path.realpath(value)
            where = f"guest[{index}].{key}"
            if value and identity in seen:
                hint = "" if key == "name" else "QEMU serves one client per socket; start it with a second -qmp"
                mistakes.add(where, f"{value} is already {seen[identity]}", hint=hint)
            seen.setdefault(identity, where)


def _check_budget(config: Config, mistakes: Mistakes) -> None:
    budget = config.host.budget
    if any(guest.floor > guest.cap for guest in config.guests):
        return
    # A balloon moves whole pages, so that floors are rounded up, and what else a guest may have is rounded down.
    floors = [align_up(guest.floor) for guest in config.guests]
    baselines = [max(align_down(guest.baseline), floor) for guest, floor in zip(config.guests, floors, strict=True)]
    for name, total in (("floor", sum(floors)), ("baseline", sum(baselines))):
        if total > budget:
            mistakes.add(
                "host.budget",
                f"the guests' {name}s add up to {format_size(total)}, the budget is {format_size(budget)}",
                hint=f"lower the {name}s or raise the budget (a guest has whole pages of {PAGE_BYTES} bytes)",
            )
