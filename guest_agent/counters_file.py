"""The counters file: its content and its replacement. The format is documented in ``docs/counters-file.md``."""

from __future__ import annotations

import os
import sys
import time

from guest_agent import procfs
from guest_agent.zram import Zram

FORMAT = "qmpalloc-counters"
VERSION = 1
DIRECTORY = "/run/qmpalloc"
NAME = "counters.json"
_ERROR_MAX_CHARS = 400
_SELDOM = 60
"""Files between two looks at what hardly changes: mounts, what the kernel keeps free, how it counts the balloon."""
_KERNEL_MAX_CHARS = 64
_REFAULTS = {"refaults": "workingset_refault_file", "refaults_anon": "workingset_refault_anon"}
_SWAP = {"in": "pswpin", "out": "pswpout", "read_ahead": "swap_ra"}
"""Fields of the file, by the names that /proc/vmstat has for them."""


def log(message: str) -> None:
    """Write one line to the log."""
    print(f"qmpalloc-collector: {message}", file=sys.stderr, flush=True)


def printable(text: str, max_chars: int) -> str:
    """Return `text` on one line of printable ASCII, cut to `max_chars`."""
    line = " ".join(text.split())
    return "".join(char if " " <= char <= "~" else "?" for char in line)[:max_chars]


def to_json(value: object) -> str:
    """Return `value` as JSON. Strings must be printable ASCII.

    (The ``json`` module costs 0.7 MB of memory.)
    """
    if isinstance(value, dict):
        return "{" + ",".join(f'"{key}":{to_json(item)}' for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(to_json, value)) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


class Series:
    """What is the same in all files of one collector, and their numbering.

    Attributes:
        boot_id: That of the guest's kernel, as text; empty if the kernel does not say.
        start_id: 16 hexadecimal digits, new for every start of a collector.
        interval_ms: How often the file is replaced.
        sequence: Number of the next file.
        missing_hooks: Kernel functions and tracepoints that program.c uses and this kernel does not have.
        intervals_missed: Intervals for which no file was written: this process did not run, or could not write.
    """

    def __init__(
        self, start_id: str, interval_ms: int, sequence: int = 0, missing_hooks: list[str] | None = None
    ) -> None:
        self.start_id = start_id
        self.interval_ms = interval_ms
        self.sequence = sequence
        self.missing_hooks = missing_hooks or []
        self.intervals_missed = 0
        self.boot_id = (procfs.read("/proc/sys/kernel/random/boot_id") or "").strip()
        self._kernel = printable(os.uname().release, _KERNEL_MAX_CHARS)
        self._page_size = os.sysconf("SC_PAGE_SIZE")
        self._zram = Zram(self._page_size)
        self._tmpfs: list[str] = []
        self._kept_free: int | None = None
        self._total_has_balloon = False
        self._look_at = sequence

    def render(
        self,
        counters: dict[str, int] | None = None,
        error: str | None = None,
        parts: dict[str, dict[str, object] | None] | None = None,
    ) -> bytes:
        """Return the content of the next file.

        Args:
            counters: The cumulative counts, without those that are unknown; None while nothing is counted.
            error: Why nothing, or not everything, is counted.
            parts: What else is told, by its name; None where that is not known.
        """
        vmstat = procfs.vmstat(procfs.read("/proc/vmstat"))
        if counters is not None:
            counters = {**counters, **{name: vmstat[key] for name, key in _REFAULTS.items() if key in vmstat}}
        swap = {name: vmstat[key] for name, key in _SWAP.items() if key in vmstat}
        memory = self._memory_bytes(vmstat)
        in_zram = self._zram.pages(memory.get("swap_total"))
        if in_zram is not None:
            swap["in_zram"] = in_zram
        held_bytes = self._zram.held_bytes()
        if held_bytes is not None:
            memory["zram"] = held_bytes
        collector = {"cpu_ns": time.process_time_ns(), "intervals_missed": self.intervals_missed}
        rss_bytes = procfs.resident_bytes(procfs.read("/proc/self/statm"))
        if rss_bytes is not None:
            collector["rss_bytes"] = rss_bytes
        content: dict[str, object] = {
            "format": FORMAT,
            "version": VERSION,
            "boot_id": self.boot_id,
            "start_id": self.start_id,
            "sequence": self.sequence,
            "monotonic_ns": time.monotonic_ns(),
            "interval_ms": self.interval_ms,
            "kernel": self._kernel,
            "page_size": self._page_size,
            "lru": procfs.lru_flavour(procfs.read("/sys/kernel/mm/lru_gen/enabled")),
            "counters": counters or {},
            "memory_bytes": memory,
            "swap_pages": swap,
            "psi_memory": procfs.psi_memory(procfs.read("/proc/pressure/memory")),
            "collector": collector,
        }
        content.update((name, part) for name, part in (parts or {}).items() if part is not None)
        if self.missing_hooks:
            content["missing_hooks"] = self.missing_hooks
        for name, key in (("oom_kills", "oom_kill"), ("allocation_stalls", "allocstall")):
            if key in vmstat:
                content[name] = vmstat[key]
        if error is not None:
            content["error"] = printable(error, _ERROR_MAX_CHARS)
        self.sequence += 1
        return to_json(content).encode() + b"\n"

    def _memory_bytes(self, vmstat: dict[str, int]) -> dict[str, int]:
        facts = procfs.memory_bytes(procfs.read("/proc/meminfo"))
        if self.sequence >= self._look_at:
            self._tmpfs = procfs.tmpfs_paths(procfs.read("/proc/self/mounts"))
            least, factor = map(procfs.read, ("/proc/sys/vm/min_free_kbytes", "/proc/sys/vm/watermark_scale_factor"))
            self._kept_free = procfs.kept_free_bytes(least, factor, facts.get("total"))
            self._total_has_balloon = procfs.total_has_balloon()
            self._look_at = self.sequence + _SELDOM
        if self._kept_free is not None:
            facts["kept_free"] = self._kept_free
        if self._tmpfs and "shmem" in facts:
            # Never more than that: part of a tmpfs may be in swap, and another file system may cover one.
            facts["tmpfs"] = min(procfs.used_bytes(self._tmpfs), facts["shmem"])
        at_hand = procfs.cpu_free_pages(procfs.read("/proc/zoneinfo", procfs.ZONEINFO_MAX_BYTES))
        if at_hand is not None:
            facts["cpu_free"] = at_hand * self._page_size
        inflated, deflated = vmstat.get("balloon_inflate"), vmstat.get("balloon_deflate")
        if inflated is not None and deflated is not None:
            pages = max(0, inflated - deflated) if self._total_has_balloon else 0
            facts["balloon"] = pages * self._page_size
        return facts


class CountersFile:
    """The file in its directory. Readers see one whole content or another, as long as there is room for two.

    Args:
        directory: Where it lies; must exist.
        name: Its name there.
    """

    def __init__(self, directory: str, name: str = NAME) -> None:
        self.path = os.path.join(directory, name)  # noqa: PTH118 (pathlib costs 1.5 MB of memory)
        self._new_path = os.path.join(directory, f".{name}.new")  # noqa: PTH118

    def replace(self, content: bytes) -> None:
        """Put `content` in place of the present one, atomically.

        Raises:
            OSError: There is no room, or no right to write. The present file stays and nothing else is left behind.
        """
        try:
            _write(self._new_path, os.O_CREAT | os.O_TRUNC, content)
            os.rename(self._new_path, self.path)  # noqa: PTH104
        except OSError:
            _unlink(self._new_path)
            raise

    def overwrite(self, content: bytes) -> None:
        """Write `content` over the present one: on a full tmpfs a page that the file has already is still writable.

        Raises:
            OSError: There is no present file, or it cannot be written.
        """
        _write(self.path, 0, content)

    def remove(self) -> None:
        """Remove the file: nobody counts any more."""
        _unlink(self.path)


def _write(path: str, flags: int, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o644)
    try:
        os.fchmod(fd, 0o644)  # whatever the umask is
        written = os.pwrite(fd, content, 0)
        if written != len(content):
            raise OSError(28, "No space left on device")
        os.ftruncate(fd, written)
    finally:
        os.close(fd)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108
    except OSError:
        return


def publish(
    file: CountersFile,
    series: Series,
    counters: dict[str, int] | None,
    error: str | None = None,
    parts: dict[str, dict[str, object] | None] | None = None,
) -> str:
    """Write the next file; if that fails, say so in the old one.

    Returns:
        What failed, or the empty string.
    """
    try:
        file.replace(series.render(counters, error, parts))
    except OSError as failure:
        problem = f"cannot replace {file.path}: {os.strerror(failure.errno or 0)}"
    else:
        return ""
    try:
        file.overwrite(series.render(counters, error or problem))
    except OSError:
        series.intervals_missed += 1
        return f"{problem}; nor can it be written over"
    return problem
