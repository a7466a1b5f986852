"""The command line of a reference guest: grouped, and each option with its reason. Pure; nothing is started here."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from qmpalloc.config import DataDiskConfig, GuestConfig, VmConfig
from qmpalloc.errors import ConfigError
from qmpalloc.qemu.accelerator import Accelerator
from qmpalloc.qemu.architecture import Architecture
from qmpalloc.qemu.data_disk import DataDisk
from qmpalloc.qemu.image import Image
from qmpalloc.units import KIB, MIB, align_up, format_size

AGENT_PORT = "org.qemu.guest_agent.0"
LAB_PORT = "org.qmpalloc.lab.0"
BALLOON_ID = "balloon0"
VIRTIO_MEM_ID = "virtiomem0"

VIRTIO_MEM_KERNEL_ARGUMENTS = (
    "memhp_default_state=online_movable",  # used at once; and only movable memory can be emptied to be unplugged
    # Device memory lies above 4 GiB, for which the kernel sets 64 MiB of the RAM aside, for devices that cannot reach
    # it. Those of this guest can.
    "swiotlb=noforce",
)
_COMMENT = "#       "


class Option(Struct, frozen=True):
    """One option with its value, as words of the command line, and why it is there."""

    words: tuple[str, ...]
    why: str


class Group(Struct, frozen=True):
    """Options that serve one purpose."""

    title: str
    options: tuple[Option, ...]


class CommandLine(Struct, frozen=True):
    """A guest's whole command line."""

    guest: str
    groups: tuple[Group, ...]

    def argv(self) -> list[str]:
        """Return it for ``exec``."""
        return [word for option in self._options() for word in option.words]

    def shell(self) -> str:
        """Return it for people: the reasons as comments, then the command, one option a line. A shell can run it."""
        lines = [f"# Guest {self.guest}"]
        for group in self.groups:
            lines += ["#", f"# {group.title}"]
            for option in group.options:
                lines += [
                    f"#   {shlex.join(option.words)}",
                    *textwrap.wrap(option.why, 100, initial_indent=_COMMENT, subsequent_indent=_COMMENT),
                ]
        command = " \\\n    ".join(shlex.join(option.words) for option in self._options())
        return "\n".join(lines) + "\n" + command + "\n"

    def _options(self) -> Iterator[Option]:
        return (option for group in self.groups for option in group.options)


class Sockets(Struct, frozen=True):
    """Paths in a guest's directory below the run directory. It is its owner's only, hence so are they.

    Attributes:
        directory: The guest's directory.
        monitor: QMP, for qmpalloc.
        agent: Guest agent, for qmpalloc.
    """

    directory: Path
    monitor: Path
    agent: Path

    @property
    def people(self) -> Path:
        """QMP, for a person with qmp-shell."""
        return self.directory / "people.sock"

    @property
    def lab(self) -> Path:
        """Guest agent that may execute programs (profile ``lab``)."""
        return self.directory / "lab.sock"

    @property
    def console(self) -> Path:
        """Serial console; root logs in without a password."""
        return self.directory / "console.sock"

    @property
    def console_log(self) -> Path:
        """Everything the guest wrote to its serial console."""
        return self.directory / "console.log"


def sockets_of(guest: GuestConfig, run_dir: Path) -> Sockets:
    """Return the paths of a guest that we start."""
    return Sockets(directory=run_dir / guest.name, monitor=Path(guest.monitor), agent=Path(guest.agent))


def build(
    guest: GuestConfig,
    *,
    image: Image,
    data_disk: DataDisk | None,
    accelerator: Accelerator,
    sockets: Sockets,
    die_with_parent: bool,
) -> CommandLine:
    """Return the command line that starts `guest`.

    Args:
        guest: A guest with a ``[guest.vm]`` table.
        image: What it boots.
        data_disk: Its data disk, when it has one.
        accelerator: KVM or emulation, see `qmpalloc.qemu.accelerator`.
        sockets: Where its sockets are to be.
        die_with_parent: End the QEMU when the process (strictly: the thread) that starts it ends, however it ends.

    Raises:
        ConfigError: `guest` has no ``[guest.vm]`` table.
    """
    vm = guest.vm
    if vm is None:
        raise ConfigError("this guest is not started by qmpalloc", key=f"guest {guest.name}", hint="add [guest.vm]")
    groups = [
        _lifetime(image.architecture, die_with_parent),
        _machine(guest, vm, image.architecture, accelerator),
        _kernel(image, VIRTIO_MEM_KERNEL_ARGUMENTS if vm.actuator == "virtio-mem" else ()),
        _disks(image, vm.data, data_disk),
        _virtio_mem(plugged_bytes(guest, vm, image.architecture)) if vm.actuator == "virtio-mem" else _balloon(),
        _monitors(sockets),
        _agents(sockets, image),
        _console(image.architecture, sockets),
    ]
    return CommandLine(guest=guest.name, groups=tuple(groups))


def _lifetime(architecture: Architecture, die_with_parent: bool) -> Group:
    program = Option((architecture.program,), "the emulator")
    if not die_with_parent:
        return Group("Lifetime: until it is stopped", (program,))
    leash = Option(("setpriv", "--pdeathsig", "TERM"), "no QEMU outlives the qmpalloc that started it, even if that is killed")  # noqa: E501  # fmt: skip
    return Group("Lifetime: that of qmpalloc", (leash, program))


def plugged_bytes(guest: GuestConfig, vm: VmConfig, architecture: Architecture) -> int:
    """Return how much a guest's virtio-mem device can plug: what its memory is beyond its floor, in whole blocks."""
    return align_up(vm.memory - base_bytes(guest), architecture.memory_block_bytes)


def base_bytes(guest: GuestConfig) -> int:
    """Return the RAM of a guest whose memory virtio-mem moves: its floor, which it always has."""
    return align_up(guest.floor, 2 * MIB)


def _memory(guest: GuestConfig, vm: VmConfig, architecture: Architecture) -> Option:
    if vm.actuator == "balloon":
        why = f"RAM, {format_size(vm.memory)}: the most it can ever have"
        return Option(("-m", f"size={_qemu_size(vm.memory)}"), why)
    base, most = base_bytes(guest), base_bytes(guest) + plugged_bytes(guest, vm, architecture)
    why = (
        f"RAM, {format_size(base)}: its floor, which it always has; what virtio-mem plugs makes it {format_size(most)}"
    )
    return Option(("-m", f"size={_qemu_size(base)},maxmem={_qemu_size(most)}"), why)


def _machine(guest: GuestConfig, vm: VmConfig, architecture: Architecture, accelerator: Accelerator) -> Group:
    machine, about_machine = architecture.qemu_machine
    options = [
        Option(("-name", f"guest={guest.name},debug-threads=on"), "the name in process lists, named threads in top -H"),
        Option(("-no-user-config",), "nothing from a user's own QEMU configuration"),
        Option(("-nodefaults",), "no device that is not named here: no network card, floppy, CD-ROM or VGA"),
        Option(("-display", "none"), "no window"),
        Option(("-machine", machine), about_machine),
        *(Option(words, why) for words, why in accelerator.options(architecture)),
        Option(("-smp", str(vm.cpus)), "virtual CPUs"),
        _memory(guest, vm, architecture),
        Option(("-no-reboot",), "a guest that panics or reboots ends its QEMU, so that it is seen"),
    ]  # fmt: skip
    return Group("Machine", tuple(options))


def _qemu_size(size_bytes: int) -> str:
    return f"{size_bytes // MIB}M" if size_bytes % MIB == 0 else f"{size_bytes // KIB}K"


def _kernel(image: Image, arguments: tuple[str, ...]) -> Group:
    line = " ".join((*image.manifest.kernel_arguments, *arguments))
    why = "why each: vm-images/recipe.toml" + (", and qmpalloc/qemu/argv.py for virtio-mem's" if arguments else "")
    return Group(
        f"Kernel {image.manifest.kernel_release}, loaded by QEMU itself: no boot loader, no partitions",
        (
            Option(("-kernel", str(image.kernel)), "the kernel"),
            Option(("-initrd", str(image.initrd)), "the drivers to find the root disk"),
            Option(("-append", line), why),
        ),
    )  # fmt: skip


def _disks(image: Image, config: DataDiskConfig | None, disk: DataDisk | None) -> Group:
    root = f"id=root,if=none,format=raw,snapshot=on,cache=unsafe,file={escape(image.disk)}"
    options = [
        Option(("-drive", root), "the system; writes go to a throw-away file in $TMPDIR (or /var/tmp)"),
        Option(("-device", "virtio-blk-pci,drive=root,serial=root"), "as a virtio disk"),
    ]
    if config is not None and disk is not None:
        cache = "none" if disk.direct else "writeback"
        drive = f"id=data,if=none,format=raw,snapshot=on,cache={cache},file={escape(disk.file)}"
        why = (
            "the data; cache=none: a page the guest's cache misses is really read, not served by the host's cache"
            if disk.direct
            else "the data; cache=none is what is wanted, but the file system of the cache has no O_DIRECT: "
            "the host's page cache serves what the guest's misses"
        )
        if config.iops:
            drive += f",throttling.iops-total={config.iops}"
            why += f"; at most {config.iops} requests per second"
        options += [
            Option(("-drive", drive), why),
            Option(("-device", "virtio-blk-pci,drive=data,serial=data"), "as a virtio disk, in the guest at /data"),
        ]  # fmt: skip
    return Group("Disks", tuple(options))


def _balloon() -> Group:
    device = (
        f"virtio-balloon-pci,id={BALLOON_ID},deflate-on-oom=on,free-page-reporting=on,guest-stats-polling-interval=1"
    )
    why = (
        "what moves memory. deflate-on-oom: a guest in need takes memory back before it kills a process. "
        "free-page-reporting: memory the guest frees returns to the host. guest-stats-polling-interval: QEMU asks the "
        "guest for its memory statistics every second. All three are off by default, and fixed when QEMU starts"
    )
    return Group("Balloon", (Option(("-device", device), why),))


def _virtio_mem(most_bytes: int) -> Group:
    backend = f"memory-backend-ram,id=plugged,size={_qemu_size(most_bytes)},reserve=off"
    return Group(
        "virtio-mem",
        (
            Option(
                ("-object", backend), "all that can be plugged. reserve=off: the host promises none of it beforehand"
            ),
            Option(
                ("-device", f"virtio-mem-pci,id={VIRTIO_MEM_ID},memdev=plugged,requested-size=0"),
                "what moves memory: it plugs as much of that as requested-size says, in blocks of 2 MiB",
            ),
        ),
    )


def _monitors(sockets: Sockets) -> Group:
    return Group(
        "Monitors: QEMU serves one client per QMP socket, so there are two",
        (
            Option(("-qmp", f"unix:{escape(sockets.monitor)},server=on,wait=off"), "for qmpalloc"),
            Option(("-qmp", f"unix:{escape(sockets.people)},server=on,wait=off"), "for people: qmp-shell"),
        ),
    )


def _agents(sockets: Sockets, image: Image) -> Group:
    options = [
        Option(("-device", "virtio-serial-pci"), "the bus of the agents' ports"),
        Option(("-chardev", f"socket,id=agent,path={escape(sockets.agent)},server=on,wait=off"), "for qmpalloc"),
        Option(
            ("-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"),
            "where qemu-ga is by default; in the reference guest it hands out files and nothing else",
        ),
    ]
    if image.has_lab_agent:
        options += [
            Option(("-chardev", f"socket,id=lab,path={escape(sockets.lab)},server=on,wait=off"), "for experiments"),
            Option(
                ("-device", f"virtserialport,chardev=lab,name={LAB_PORT}"),
                "a second qemu-ga, which may execute programs; without this port it does not start",
            ),
        ]
    return Group("Guest agents", tuple(options))


def _console(architecture: Architecture, sockets: Sockets) -> Group:
    chardev = (
        f"socket,id=console,path={escape(sockets.console)},server=on,wait=off,"
        f"logfile={escape(sockets.console_log)},logappend=off"
    )
    return Group(
        "Serial console",
        (
            Option(("-chardev", chardev), "root logs in without a password; what is printed is also in the log"),
            Option(("-serial", "chardev:console"), f"{architecture.console} in the guest"),
        ),
    )


def escape(path: Path) -> str:
    """Return a path as QEMU's option parser wants it: a comma is doubled."""
    return str(path).replace(",", ",,")
