"""What the kernel tells in /proc and /sys, in the words and units of the counters file. Unknown is absent, never 0."""

from __future__ import annotations

import os

_READ_MAX_BYTES = 65536

ZONEINFO_MAX_BYTES = 2**20
"""Of ``/proc/zoneinfo``, which has some 170 bytes for each CPU and zone."""

_MEMINFO = {
    "MemTotal": "total",
    "MemFree": "free",
    "MemAvailable": "available",
    "Active(file)": "active_file",
    "Inactive(file)": "inactive_file",
    "Mapped": "mapped",
    "AnonPages": "anon",
    "Shmem": "shmem",
    "SUnreclaim": "slab_unreclaimable",
    "KernelStack": "kernel_stack",
    "PageTables": "page_tables",
    "KReclaimable": "kernel_reclaimable",
    "SwapTotal": "swap_total",
    "SwapFree": "swap_free",
}
_VMSTAT = {
    "pswpin", "pswpout", "swap_ra", "oom_kill", "workingset_refault_file", "workingset_refault_anon",
    "balloon_inflate", "balloon_deflate",
}  # fmt: skip
_BALLOON_DEVICE, _DEFLATE_ON_OOM = 5, 2
"""Number of the device and of the feature, in include/uapi/linux/virtio_ids.h and virtio_balloon.h."""


def read(path: str, most_bytes: int = _READ_MAX_BYTES) -> str | None:
    """Return the content of a small file, or None if it is not there, not readable, or larger.

    Half of a file would be taken for all of it: that of the mounts is long where there are many containers.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        content = b""
        # The kernel hands out a long file, such as /proc/vmstat, a page at a time.
        while (part := os.read(fd, _READ_MAX_BYTES)) and len(content) <= most_bytes:
            content += part
        return content.decode("ascii", "replace") if len(content) <= most_bytes else None
    except OSError:
        return None
    finally:
        os.close(fd)


def memory_bytes(meminfo: str | None) -> dict[str, int]:
    """Return the facts of ``/proc/meminfo`` that the counters file has, in bytes."""
    facts = {}
    for line in (meminfo or "").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if name in _MEMINFO and len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            facts[_MEMINFO[name]] = int(words[0]) * 1024
    return facts


def kept_free_bytes(min_free: str | None, scale_factor: str | None, total_bytes: int | None) -> int | None:
    """Return about how much memory the kernel keeps free: the sum of its high watermarks; None if it does not say.

    As ``__setup_per_zone_wmarks()`` of mm/page_alloc.c sets them.

    Args:
        min_free: ``/proc/sys/vm/min_free_kbytes``.
        scale_factor: ``/proc/sys/vm/watermark_scale_factor``, in fractions of 10,000.
        total_bytes: All memory.
    """
    min_free, scale_factor = (min_free or "").strip(), (scale_factor or "").strip()
    if total_bytes is None or not min_free.isdigit() or not scale_factor.isdigit():
        return None
    least_bytes = int(min_free) * 1024
    return least_bytes + 2 * max(least_bytes // 4, total_bytes * int(scale_factor) // 10_000)


def cpu_free_pages(zoneinfo: str | None) -> int | None:
    """Return how many free pages the CPUs keep at hand, from ``/proc/zoneinfo``; None if it does not say.

    ``MemFree`` does not count them. Since Linux 6.7 they may be an eighth of all memory (mm/page_alloc.c).
    """
    counts = (zoneinfo or "").split(" count:")[1:]
    return sum(int(count.split(None, 1)[0]) for count in counts) if counts else None


def total_has_balloon(devices: str = "/sys/bus/virtio/devices") -> bool:
    """Return whether the memory that a balloon has taken is a part of ``MemTotal``: it is with ``deflate-on-oom``."""
    try:
        paths = [f"{devices}/{name}" for name in os.listdir(devices)]  # noqa: PTH208 (pathlib costs 1.5 MB of memory)
    except OSError:
        return False
    balloons = [path for path in paths if (read(f"{path}/device") or "").strip() == f"0x{_BALLOON_DEVICE:04x}"]
    return any((read(f"{path}/features") or "")[_DEFLATE_ON_OOM:][:1] == "1" for path in balloons)


def tmpfs_paths(mounts: str | None) -> list[str]:
    """Return where tmpfs are mounted, from ``/proc/self/mounts``; none that another mount at the same path covers."""
    lines = [line.split(" ") for line in (mounts or "").splitlines()]
    kinds = {words[1]: words[2] for words in lines if len(words) > 2}
    paths = [path for path, kind in kinds.items() if kind == "tmpfs"]
    # The kernel writes a blank, a tab, a line's end and a backslash in a path as three octal digits.
    return [path.encode("ascii", "replace").decode("unicode_escape") if "\\" in path else path for path in paths]


def used_bytes(paths: list[str]) -> int:
    """Return how much is used on the file systems at these paths; one that is at several of them counts once."""
    used: dict[int, int] = {}
    for path in paths:
        try:
            facts, device = os.statvfs(path), os.stat(path).st_dev  # noqa: PTH116 (pathlib costs 1.5 MB of memory)
        except OSError:
            continue
        used[device] = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    return sum(used.values())


def vmstat(text: str | None) -> dict[str, int]:
    """Return the counters of ``/proc/vmstat`` that the counters file uses, by the kernel's names.

    ``allocstall`` is the sum over all zones.
    """
    facts: dict[str, int] = {}
    for line in (text or "").splitlines():
        name, _, value = line.partition(" ")
        if not value.isdigit():
            continue
        if name in _VMSTAT:
            facts[name] = int(value)
        elif name.startswith("allocstall_"):  # one for each zone
            facts["allocstall"] = facts.get("allocstall", 0) + int(value)
    return facts


def zram_swaps(swaps: str) -> list[str]:
    """Return the names of the zram devices in ``/proc/swaps``."""
    paths = [line.split(" ", 1)[0].partition("\t")[0] for line in swaps.splitlines()[1:]]
    return [path[5:] for path in paths if path.startswith("/dev/zram") and path[9:].isdigit()]


def zram_pages_read(stat: str | None, bd_stat: str | None, page_size: int) -> int | None:
    """Return how many pages a zram device has given back from memory; None if it does not say.

    Args:
        stat: ``/sys/block/zramN/stat``, in sectors of 512 bytes (Documentation/block/stat.rst).
        bd_stat: ``/sys/block/zramN/bd_stat``, in units of 4 KiB: what it had written back to a disk, and read from
            there, is the second number (Documentation/admin-guide/blockdev/zram.rst).
        page_size: Bytes of a page.
    """
    read, written_back = (stat or "").split(), (bd_stat or "").split()
    if len(read) < 3 or not read[2].isdigit():
        return None
    from_disk = int(written_back[1]) * 4096 if len(written_back) > 1 and written_back[1].isdigit() else 0
    return max(0, int(read[2]) * 512 - from_disk) // page_size


def psi_memory(pressure: str | None) -> dict[str, int | float]:
    """Return ``/proc/pressure/memory`` as totals in microseconds and 10 s averages in per cent."""
    facts: dict[str, int | float] = {}
    for line in (pressure or "").splitlines():
        kind, _, rest = line.partition(" ")
        if kind not in ("some", "full"):
            continue
        fields = dict(word.partition("=")[::2] for word in rest.split())
        try:
            total_us, avg10 = int(fields["total"]), float(fields["avg10"])
        except (KeyError, ValueError):
            continue
        facts.update({f"{kind}_total_us": total_us, f"{kind}_avg10": avg10})
    return facts


def lru_flavour(enabled: str | None) -> str:
    """Return which page replacement runs, from ``/sys/kernel/mm/lru_gen/enabled``.

    Bit 0 is the main switch (Documentation/admin-guide/mm/multigen_lru.rst). No such file: not compiled in.
    """
    try:
        return "lru_gen" if int(enabled or "0", 16) & 1 else "two_list"
    except ValueError:
        return "two_list"


def cpu_count(possible: str | None) -> int:
    """Return the number of CPUs in a list like ``0-3,5`` (``/sys/devices/system/cpu/possible``).

    Raises:
        ValueError: It is not such a list.
    """
    count = 0
    for part in (possible or "").strip().split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def resident_bytes(statm: str | None) -> int | None:
    """Return the resident size that ``/proc/self/statm`` tells."""
    words = (statm or "").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 and words[1].isdigit() else None


def has_capabilities(status: str | None, *bits: int) -> bool:
    """Return whether ``/proc/self/status`` lists all these capabilities as effective.

    Args:
        status: The file's content.
        bits: Numbers of include/uapi/linux/capability.h.
    """
    for line in (status or "").splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return all(effective >> bit & 1 for bit in bits)
    return False
