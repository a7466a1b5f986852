"""KVM or emulation, decided by booting a guest: a ``/dev/kvm`` that exists and opens may still run no kernel."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from qmpalloc.errors import HostError
from qmpalloc.files import write_json
from qmpalloc.qemu import cache
from qmpalloc.qemu.architecture import Architecture
from qmpalloc.qemu.host import find_program, last_lines, qemu_version
from qmpalloc.qemu.image import Image

KVM_DEVICE = Path("/dev/kvm")
MARKER = b"reboot: Power down"
"""The kernel's last words when its first process has run and switched the machine off."""

SILENCE_S = 4.0
"""With all kernel messages on, a kernel under KVM prints many lines a second; the longest pause is its unpacking."""

DEADLINE_S = 20.0
"""For the whole boot, which takes one or two seconds."""

OUTPUT_MAX_BYTES = 1 << 20


class Accelerator(Struct, frozen=True, kw_only=True):
    """What runs the guest's instructions.

    Attributes:
        name: ``kvm`` or ``tcg`` (emulation).
        reason: Why this one, for people.
        forced: The configuration demands it; nothing was probed.
    """

    name: Literal["kvm", "tcg"]
    reason: str
    forced: bool = False

    def options(self, architecture: Architecture) -> list[tuple[tuple[str, ...], str]]:
        """Return the options of the command line of a guest of that architecture, each with its reason."""
        if self.name == "kvm":
            return [(("-accel", "kvm"), self.reason), (("-cpu", "host"), "the host's CPU as it is")]
        return [
            (("-accel", "tcg,thread=multi"), f"emulation, one host thread per virtual CPU: {self.reason}"),
            (("-cpu", architecture.emulated_cpu[0]), architecture.emulated_cpu[1]),
        ]

    @property
    def warning(self) -> str:
        """What a user should be told, or nothing."""
        if self.name == "kvm" or self.forced:
            return ""
        return f"guests are emulated (TCG), many times slower: counts are right, times are not ({self.reason})"


class ProbeResult(Struct, frozen=True):
    """Whether a guest booted under KVM, and else why not."""

    booted: bool
    reason: str


Probe = Callable[[Image], ProbeResult]


def choose(
    wanted: Literal["auto", "kvm", "tcg"], image: Image, *, probe: Probe | None = None, refresh: bool = False
) -> Accelerator:
    """Return the accelerator for a guest that boots `image`.

    The outcome of a probe is remembered until the host reboots, or QEMU or the kernel changes.

    Args:
        wanted: What the configuration says; only ``auto`` probes.
        image: The kernel to try.
        probe: How to try; for tests.
        refresh: Probe again.
    """
    known_beforehand = _without_probe(wanted, image)
    if known_beforehand is not None:
        return known_beforehand
    key, known = _key(image), _read()
    if refresh or key not in known:
        known = {**known, key: (probe or boot_under_kvm)(image)}
        _write({kept: result for kept, result in known.items() if kept.startswith(_boot_id())})
    result = known[key]
    return Accelerator(name="kvm" if result.booted else "tcg", reason=result.reason)


def expected(wanted: Literal["auto", "kvm", "tcg"], image: Image) -> Accelerator:
    """Return what `choose` would return, without starting anything: what is not known yet is said to be."""
    known_beforehand = _without_probe(wanted, image)
    if known_beforehand is not None:
        return known_beforehand
    result = _read().get(_key(image))
    if result is None:
        return Accelerator(name="kvm", reason="if a probe shows that a guest boots; it has not been made yet")
    return Accelerator(name="kvm" if result.booted else "tcg", reason=result.reason)


def _without_probe(wanted: Literal["auto", "kvm", "tcg"], image: Image) -> Accelerator | None:
    """Return the accelerator where no probe can change it."""
    if wanted != "auto":
        return Accelerator(name=wanted, reason="the configuration says so", forced=True)
    if not image.architecture.is_native:
        return Accelerator(
            name="tcg", reason=f"this host is not of the guest's architecture, {image.architecture.name}"
        )
    usable, reason = kvm_usable()
    return None if usable else Accelerator(name="tcg", reason=reason)


def known() -> ProbeResult | None:
    """Return what probes have shown since the host booted, with any image and this QEMU; None if none was made.

    One guest that boots is enough: what others lack is then not KVM.
    """
    results = [result for key, result in _read().items() if key.startswith(_boot_id()) and key.endswith(qemu_version())]
    return max(results, key=lambda result: result.booted, default=None)


def kvm_usable(device: Path = KVM_DEVICE) -> tuple[bool, str]:
    """Return whether this user may open ``/dev/kvm``, and else why not."""
    if not device.exists():
        return False, f"this host has no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return False, f"{device} is not yours to use (join the group kvm)"
    return True, ""


def probe_argv(image: Image) -> list[str]:
    """Return the command line of the probe: the guest's kernel and initrd, whose first process is ``poweroff``."""
    architecture = image.architecture
    console = f"console={architecture.console} {architecture.early_console}"
    return [
        architecture.program, "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
        "-machine", architecture.qemu_machine[0], "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "256M",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd),
        # All messages, from the first on: silence is how a hang shows.
        "-append", f"{console} ignore_loglevel panic=-1 rdinit=/bin/poweroff -f",
        "-serial", "stdio",
    ]  # fmt: skip


def boot_under_kvm(image: Image) -> ProbeResult:
    """Boot `image`'s kernel under KVM until it switches itself off. A hang costs `SILENCE_S` seconds."""
    return watch_boot(probe_argv(image), silence_s=SILENCE_S, deadline_s=DEADLINE_S)


def watch_boot(argv: Sequence[str], *, silence_s: float, deadline_s: float) -> ProbeResult:
    """Run a QEMU until its guest prints the marker, falls silent, or ends without it.

    Args:
        argv: The command, whose standard output is the guest's serial port.
        silence_s: How long the guest may print nothing.
        deadline_s: How long it may take in all.
    """
    program = find_program(argv[0])
    if program is None:
        return ProbeResult(False, f"{argv[0]} is not installed")
    start_s, output = time.monotonic(), b""
    with subprocess.Popen(
        [program, *argv[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            assert process.stdout is not None
            while True:
                left_s = min(silence_s, start_s + deadline_s - time.monotonic())
                if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
                    return ProbeResult(False, _describe_hang(output, time.monotonic() - start_s))
                chunk = os.read(process.stdout.fileno(), 65536)
                output = (output + chunk)[-OUTPUT_MAX_BYTES:]
                if MARKER in output:
                    return ProbeResult(True, f"a guest boots under KVM, in {time.monotonic() - start_s:.1f} s")
                if not chunk:
                    said = last_lines(output.decode(errors="replace"), count=1).strip()
                    return ProbeResult(False, f"QEMU under KVM ended without booting a guest ({said or 'no message'})")
        finally:
            process.kill()


def _describe_hang(output: bytes, elapsed_s: float) -> str:
    lines = output.count(b"\n")
    said = f"after {lines} lines" if lines else "without a word"
    return f"a guest under KVM hangs {said} ({elapsed_s:.0f} s)"


def _key(image: Image) -> str:
    return " | ".join([_boot_id(), image.directory.name, image.manifest.rootfs_sha256, qemu_version()])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _file() -> Path:
    return cache.cache_dir() / "accelerator.json"


def _read() -> dict[str, ProbeResult]:
    try:
        return msgspec.json.decode(_file().read_bytes(), type=dict[str, ProbeResult])
    except (OSError, msgspec.DecodeError):
        return {}


def _write(results: dict[str, ProbeResult]) -> None:
    file = _file()
    with suppress(HostError):  # a cache that is only read: it is tried again next time
        cache.make_place(file.parent)
        write_json(file, results)
