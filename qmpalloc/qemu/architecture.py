"""What differs between the architectures that guests can have. All that knows one of them asks here."""

from __future__ import annotations

import platform
from typing import Literal

from msgspec import Struct

from qmpalloc.units import MIB


class Architecture(Struct, frozen=True, kw_only=True):
    """An architecture of guests.

    Attributes:
        name: Debian's, which ends the names of its kernels: ``linux-image-cloud-NAME``.
        machine: What ``uname -m`` says.
        suites: Debian suites in whose kernels the collector can count: Linux attaches its probes on arm64 from 6.4 on
            ("arm64: ftrace: Add direct call support").
        qemu: The emulator, and the Debian package that has it.
        qemu_machine: For ``-machine``, and what that is.
        emulated_cpu: For ``-cpu`` where there is no KVM, and why.
        console: The first serial port's name in the guest.
        early_console: Kernel arguments that make it print from the first message on.
        kernel_directory: Below ``arch/`` of the kernel's sources.
        kernel_format: Of a kernel that QEMU loads, see `qmpalloc.qemu.kernel_image`.
        memory_block_bytes: Linux adds memory in blocks of this size; what a virtio-mem device has beyond the last whole
            one it cannot use. With pages of 4 KiB.
    """

    name: str
    machine: str
    suites: tuple[str, ...]
    qemu: tuple[str, str]
    qemu_machine: tuple[str, str]
    emulated_cpu: tuple[str, str]
    console: str
    early_console: str
    kernel_directory: str
    kernel_format: Literal["bzImage", "Image"]
    memory_block_bytes: int

    @property
    def program(self) -> str:
        """The emulator's name."""
        return self.qemu[0]

    @property
    def is_native(self) -> bool:
        """Whether this host can run its programs, and guests under KVM."""
        return self.machine == platform.machine()

    def filled(self, text: bytes) -> bytes:
        """Return a file of the recipe with what differs put in: ``@ARCH@`` and ``@CONSOLE@``."""
        return text.replace(b"@ARCH@", self.name.encode()).replace(b"@CONSOLE@", self.console.encode())


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="amd64",
            machine="x86_64",
            suites=("trixie", "bookworm"),
            qemu=("qemu-system-x86_64", "qemu-system-x86"),
            qemu_machine=("q35", "the PC with PCI Express"),
            emulated_cpu=("max", "everything the emulator can do"),
            console="ttyS0",
            early_console="earlyprintk=serial,ttyS0,115200",
            kernel_directory="x86",
            kernel_format="bzImage",
            memory_block_bytes=128 * MIB,
        ),
        Architecture(
            name="arm64",
            machine="aarch64",
            suites=("trixie",),
            qemu=("qemu-system-aarch64", "qemu-system-arm"),
            qemu_machine=("virt,gic-version=max", "QEMU's own board with PCI Express, and its newest interrupts"),
            emulated_cpu=(
                "max,pauth-impdef=on",
                "everything the emulator can do, with signed pointers as it computes them fastest",
            ),
            console="ttyAMA0",
            early_console="earlycon",
            kernel_directory="arm64",
            kernel_format="Image",
            memory_block_bytes=128 * MIB,
        ),
    )
}


def native() -> Architecture:
    """Return this host's; on a host that is of none of them, the one whose emulation is best known."""
    return next((found for found in ARCHITECTURES.values() if found.is_native), ARCHITECTURES["amd64"])


def named(name: str) -> Architecture:
    """Return the one that a configuration names; ``auto`` is this host's."""
    return native() if name == "auto" else ARCHITECTURES[name]
