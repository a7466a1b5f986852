"""The tables of a configuration file: keys, units, defaults. Format: ``docs/configuration.md``."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Struct

from qmpalloc.config.keys import (
    FLAT,
    PACKAGE,
    Duration,
    Found,
    GuestPath,
    Name,
    Package,
    Size,
    Weight,
    bounds,
    command_mistakes,
    file_name_mistakes,
    size_mistakes,
)
from qmpalloc.config.origin import Origin
from qmpalloc.errors import ConfigError
from qmpalloc.text import is_visible
from qmpalloc.units import format_size

_Guest = TypeVar("_Guest")

DEFAULT_COUNTERS_FILE = "/run/qmpalloc/counters.json"


VIRTIO_MEM_BASE_BYTES = 192 * 1024 * 1024
"""The least RAM with which the reference guest boots before its virtio_mem driver has plugged more. Measured."""

IMAGE_LEAST_BYTES = 64 * 1024 * 1024
"""Less than the smallest system; mke2fs says what a system needs."""

NOT_ON_DISK = frozenset({"dev", "proc", "run", "sys", "tmp"})
"""Directories of a guest that are empty, or made anew, when it has booted; a build empties ``/tmp``."""

CHANNEL = 'write "agent", or program and arguments: ["ssh", "-p", "2222", "root@127.0.0.1"]'

DISK_OVERHEAD_FACTOR = 1.03
DISK_OVERHEAD_BYTES = 16 * 1024 * 1024
IOPS_MAX = 10**9
"""What ext4 needs on a data disk besides the files: bitmaps, inode tables, extents."""


class HostConfig(Struct, frozen=True, kw_only=True):
    """``[host]``: what this host gives.

    Attributes:
        budget: Bytes all guests share.
        run_dir: Where ``qmpalloc vm up`` keeps sockets and logs; a directory of the user's by default.
    """

    budget: Size
    run_dir: str = ""


class ControlConfig(Struct, frozen=True, kw_only=True):
    """``[control]``: the loop.

    Attributes:
        interval: Time between decisions.
        sample_interval: Time between readings of a guest's counters file.
        late_after: Age of the last sample from which a guest is held.
        lost_after: Age from which it is returned to its baseline.
        command_timeout: Deadline of one QMP or agent command.
        balloon_poll: Time between ``query-balloon`` while a balloon is moving.
        reserve: Kept free in a guest above what it cannot give up (part of the floor).
        on_exit: ``baseline`` returns every guest to its baseline at the end, ``keep`` leaves the sizes.
        exit_timeout: How long the return to baseline may go on without a guest coming closer; 8 times that in all.
    """

    interval: Duration = Duration(5.0)
    sample_interval: Duration = Duration(1.0)
    late_after: Duration = Duration(5.0)
    lost_after: Duration = Duration(20.0)
    command_timeout: Duration = Duration(3.0)
    balloon_poll: Duration = Duration(0.25)
    reserve: Size = Size(64 * 1024 * 1024)
    on_exit: Literal["baseline", "keep"] = "baseline"
    exit_timeout: Duration = Duration(15.0)

    def mistakes(self) -> Found:
        """Yield what cannot be."""
        if not self.sample_interval < self.late_after < self.lost_after:
            yield "late_after", "must be above control.sample_interval and below control.lost_after", ""
        for key in ("interval", "sample_interval", "command_timeout", "balloon_poll", "exit_timeout"):
            if getattr(self, key) <= 0:
                yield key, "must be above 0", 'for example "1s"'


class PolicyConfig(Struct, frozen=True, kw_only=True):
    """``[policy]``: what decides. All other keys are the settings of that policy.

    Attributes:
        name: Of a policy, or ``module:attribute``.
        settings: As written; the policy validates them.
    """

    name: str = "curve"  # the one that has done no guest harm
    settings: Annotated[dict[str, Any], FLAT] = {}


class KernelFiles(Struct, frozen=True, kw_only=True):
    """``kernel`` of an image, when it comes as files: a kernel of the user's own.

    Attributes:
        vmlinuz: The kernel, as QEMU boots it (``bzImage``).
        modules: The directory of its modules, called as ``uname -r`` will say.
        headers: Its source tree as it was built, or the headers alone, which the collector's probes include.
    """

    vmlinuz: str
    modules: str
    headers: str


class ImageConfig(Struct, frozen=True, kw_only=True):
    """``[image]``: what the guests are booted from, besides the reference recipe.

    Attributes:
        packages: Debian packages.
        files: Absolute path in the guest to a file or directory of the host.
        prepare: A script that is run as root in the new system, once, after all else is installed.
        kernel: A package, also as ``NAME/RELEASE``, or files; empty: the recipe's.
        size: Of the root file system; 0: the recipe's.
        origin: Where it was written.
    """

    packages: tuple[Package, ...] = ()
    files: dict[str, str] = {}
    prepare: str = ""
    kernel: str | KernelFiles = ""
    size: Size = Size(0)
    origin: Origin = Origin()

    def mistakes(self) -> Found:
        """Yield what no image can have; whether what it names exists is seen when it is needed."""
        for place, source in self.files.items():
            if not place.startswith("/") or place.endswith("/") or ".." in place.split("/") or not is_visible(place):
                yield (
                    "files",
                    f"{place!r} is no path of a file in the guest",
                    'for example "/etc/app.conf" = "app.conf"',
                )
            elif place.split("/")[1] in NOT_ON_DISK:
                yield "files", f"{place} would not be there after the boot", "choose a directory that is on the disk"
            if not source:
                yield "files", f"nothing is named for {place}", "a file or a directory beside this one"
        if isinstance(self.kernel, KernelFiles):
            for name in ("vmlinuz", "modules", "headers"):
                if not getattr(self.kernel, name):
                    yield f"kernel.{name}", "is empty", "a path, relative to this file"
        elif self.kernel and not re.fullmatch(rf"linux-image-{PACKAGE}(/[a-z-]+)?", self.kernel):
            hint = 'for example "linux-image-amd64" or "linux-image-cloud-amd64/trixie-backports"'
            yield "kernel", f"{self.kernel!r} is not the package of a kernel", hint
        if 0 < self.size < IMAGE_LEAST_BYTES or self.size < 0:
            yield "size", f"{format_size(self.size)} holds no system", "leave it out for the recipe's own"

    @property
    def sources(self) -> tuple[tuple[str, str], ...]:
        """Key and path, as written, of each file and directory of the host that goes into it."""
        named = [("files", source) for source in self.files.values()]
        named += [("prepare", self.prepare)] if self.prepare else []
        if isinstance(self.kernel, KernelFiles):
            named += [(f"kernel.{name}", getattr(self.kernel, name)) for name in ("vmlinuz", "modules", "headers")]
        return tuple(named)


class DataSource(Struct, frozen=True, kw_only=True):
    """What a data disk holds besides files of noise.

    Attributes:
        build: A script that fills the directory it is run in, and its arguments.
        image: An ext4 file system of the user's, in a file.
        origin: Where it was written.
    """

    build: tuple[str, ...] = ()
    image: str = ""
    origin: Origin = Origin()

    def mistakes(self) -> Found:
        """Yield what no data disk can be made from."""
        if self.build and self.image:
            yield "image", "beside build", "a disk is either made by a script or yours"
        if self.build and not self.build[0]:
            yield "build", "the script has no name", 'for example ["fill.sh"]'

    @property
    def sources(self) -> tuple[tuple[str, str], ...]:
        """Key and path, as written, of each file of the host that it is made from."""
        words = [word for word in self.build[1:] if word and self.origin.names_file(word)]
        named = [("build", word) for word in (*self.build[:1], *words)]
        return (*named, ("image", self.image)) if self.image else tuple(named)


class DataDiskConfig(DataSource, frozen=True, kw_only=True):
    """``[guest.vm.data]``: an ext4 disk for loads, made on the host and mounted at ``/data``.

    Attributes:
        size: Of the disk; 0: what it has to hold.
        files: Name to size; filled with incompressible data so that every page is really on disk.
        iops: Throttle of the disk in I/O operations per second; 0 is none.
    """

    size: Size = Size(0)
    files: dict[str, Size] = {}
    iops: Annotated[int, bounds("0 is no limit", ge=0, le=IOPS_MAX)] = 0

    def mistakes(self) -> Found:
        """Yield what cannot be on it."""
        yield from super().mistakes()
        for name in self.files:
            yield from file_name_mistakes("files", name)
        if self.size and self.files_bytes > self.size:
            message = f"the files need {format_size(self.files_bytes)}, the disk has {format_size(self.size)}"
            yield "size", message, "raise it"

    @property
    def files_bytes(self) -> int:
        """What the files of noise need, with the file system's own."""
        return round(sum(self.files.values()) * DISK_OVERHEAD_FACTOR) + DISK_OVERHEAD_BYTES


class VmConfig(Struct, frozen=True, kw_only=True):
    """``[guest.vm]``: how ``qmpalloc vm up`` starts this guest. Not needed for a QEMU that already runs.

    Attributes:
        memory: The most memory the guest can have; the cap cannot exceed it. With a balloon, its RAM (``-m``).
        actuator: What moves its memory: a balloon takes some of its RAM away; ``virtio-mem`` plugs memory on top of
            RAM that is as large as its floor.
        cpus: Virtual CPUs.
        suite: Debian suite of the reference image: ``trixie`` or ``bookworm``.
        profile: Image profile: ``base``; ``lab`` with a second agent that may execute programs; ``bench`` with tools
            to compare with as well.
        arch: Debian's name of its architecture; ``auto`` is the host's.
        accelerator: ``auto`` probes whether a guest really boots under KVM.
        data: The data disk, if any.
        load: Program and arguments to start in the guest once it is observed (profile ``lab``).
        packages: Debian packages that its image has besides the recipe's and those of ``[image]``.
        image: Instead of the file's ``[image]``.
    """

    memory: Size
    actuator: Literal["balloon", "virtio-mem"] = "balloon"
    cpus: Annotated[int, bounds(ge=1)] = 1
    suite: Literal["trixie", "bookworm"] = "trixie"
    profile: Literal["base", "lab", "bench"] = "lab"
    arch: Literal["auto", "amd64", "arm64"] = "auto"
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    data: DataDiskConfig | None = None
    load: tuple[str, ...] = ()
    packages: tuple[Package, ...] = ()
    image: ImageConfig | None = None

    def mistakes(self) -> Found:
        """Yield what cannot be started."""
        if self.load and self.profile == "base":
            hint = 'profile = "lab" has an agent that may execute programs'
            yield "load", f"the profile {self.profile} starts no loads", hint


class GuestConfig(Struct, frozen=True, kw_only=True):
    """``[[guest]]``: one QEMU.

    Attributes:
        name: Letters, digits, ``-``, ``_`` and ``.``.
        monitor: Path of a QMP socket that qmpalloc may hold alone.
        agent: Path of the guest-agent socket.
        floor: The least this guest may be set to.
        cap: The most.
        baseline: Its size while qmpalloc does not control it.
        weight: Relative importance.
        counters_file: Path of the counters file inside the guest.
        samples_file: Path of the file of sampled accesses inside the guest; empty: ``samples.bin`` beside the counters.
        channel: How commands are run in it, for ``vm exec``, ``vm cp`` and ``guest install``: ``agent``, or a command
            of this host that takes a line for a shell.
        vm: How to start it, for ``qmpalloc vm up``.
    """

    name: Name
    monitor: str = ""
    agent: str = ""
    floor: Size
    cap: Size
    baseline: Size
    weight: Weight = 1.0
    counters_file: GuestPath = DEFAULT_COUNTERS_FILE
    samples_file: str = ""
    channel: Literal["agent"] | tuple[str, ...] = "agent"
    vm: VmConfig | None = None

    def mistakes(self) -> Found:
        """Yield what cannot be; its sockets are looked at when it is known where they are."""
        memory = self.vm.memory if self.vm is not None else None
        yield from size_mistakes(self.floor, self.baseline, self.cap, memory, "vm.memory")
        if self.vm is not None and self.vm.actuator == "virtio-mem" and self.floor < VIRTIO_MEM_BASE_BYTES:
            what = (
                f"{format_size(self.floor)} is less RAM than a guest boots with, and virtio-mem adds to that only later"
            )
            yield "floor", what, f'raise it to {format_size(VIRTIO_MEM_BASE_BYTES)}, or take actuator = "balloon"'
        if self.samples_file and not self.samples_file.startswith("/"):
            yield (
                "samples_file",
                "must be an absolute path inside the guest",
                "samples.bin beside the counters by default",
            )
        if self.channel != "agent":
            yield from command_mistakes("channel", self.channel, CHANNEL)

    @property
    def samples_path(self) -> str:
        """Path of the file of sampled accesses inside the guest."""
        return self.samples_file or posixpath.join(posixpath.dirname(self.counters_file), "samples.bin")


class ConfigFile(Struct, frozen=True, kw_only=True):
    """A configuration of qmpalloc."""

    host: HostConfig
    control: ControlConfig = ControlConfig()
    policy: PolicyConfig = PolicyConfig()
    image: ImageConfig | None = None
    guest: tuple[GuestConfig, ...]


class Config(Struct, frozen=True, kw_only=True):
    """A whole configuration, validated.

    Attributes:
        file: Where it came from, absolute.
        host: ``[host]``.
        control: ``[control]``.
        policy: Name of the policy, or ``module:attribute``.
        policy_settings: The rest of ``[policy]``, as written; the policy validates it.
        guests: At least one.
    """

    file: str
    host: HostConfig
    control: ControlConfig
    policy: str
    policy_settings: dict[str, Any]
    guests: tuple[GuestConfig, ...]

    def guest(self, name: str) -> GuestConfig:
        """Return the guest called `name`.

        Raises:
            ConfigError: There is none.
        """
        return called(name, {guest.name: guest for guest in self.guests}, file=self.file)


def called(name: str, guests: Mapping[str, _Guest], *, file: str) -> _Guest:
    """Return the guest called `name`.

    Raises:
        ConfigError: There is none.
    """
    if name not in guests:
        raise ConfigError(f"no guest is called {name!r}", file=file, key="guest", hint=f"known are {', '.join(guests)}")
    return guests[name]


def default_run_dir() -> Path:
    """Return the user's own directory for sockets: ``$XDG_RUNTIME_DIR/qmpalloc``, else one in ``/tmp``."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "qmpalloc" if base else Path(f"/tmp/qmpalloc-{os.getuid()}")
