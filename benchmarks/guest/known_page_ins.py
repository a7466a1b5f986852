"""Loads that bring in a known number of pages: of mapped files, from swap, from zram. Runs inside a guest.

    python3 known_page_ins.py --swap DEVICE [--lru y] [--lru n] DIRECTORY

DIRECTORY lies on a file system and has room for 110 MiB; DEVICE is a disk that nothing else uses. Run as root; the
collector must be running. Started and stepped by benchmarks/exactness.py, which reads QEMU's own counts of the disks
before and after each load: a step's number in `GO` lets the load run, its outcome is in `STATE`.

What is evicted and swapped is chosen page by page (MADV_PAGEOUT), and what is out is asked of the kernel (mincore), so
that what must come back is known. Each load touches every page of it once, at random.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import known_loads
from count_known_loads import COUNTERS_FILE, LRU_SWITCH, keep_resident
from known_loads import FILE_BYTES, PAGE_BYTES, PAGES

STATE, GO = Path("/run/known-page-ins.json"), Path("/run/known-page-ins.go")
GROUP = Path("/sys/fs/cgroup/known-page-ins")
MADV_PAGEOUT = 21
ANON_PAGES = 12_800
SMALL_SWAP_PAGES = 4_096
TOUCHED = 5_000
AROUND_PAGES, AROUND_FAULTS = 32, 100
"""What a fault without advice reads around itself (read_ahead_kb is 128), and how often before the kernel gives that up
for a file that it does not help (MMAP_LOTSAMISS)."""

Expected = dict[str, int | None]
_libc = ctypes.CDLL(None, use_errno=True)


class Step(NamedTuple):
    """A load that is ready to run.

    Attributes:
        expected: Pages by count; those not named are 0, None is anything.
        act: The load.
    """

    expected: Expected
    act: Callable[[], None]


def counts() -> dict[str, int]:
    """Return what a counters file says that was begun after this call."""
    earlier = json.loads(COUNTERS_FILE.read_text())["sequence"]
    while True:
        content = json.loads(COUNTERS_FILE.read_text())
        if content["sequence"] >= earlier + 2:
            break
        time.sleep(0.02)
    counters, swap = content["counters"], content["swap_pages"]
    return {
        **{name: counters[name] for name in ("inserts_read", "inserts_fault", "faults_major", "refaults")},
        "refaults_anon": counters["refaults_anon"],
        "swap_in": swap["in"],
        "in_zram": swap["in_zram"],
        "read_ahead": swap["read_ahead"],
        "events_lost": counters["events_lost"],
    }


def kernel_major_faults() -> int:
    """Return the major faults of all kinds since boot, by the kernel's own count."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("pgmajfault "))


def in_memory(mapping: mmap.mmap, pages: int) -> bytes:
    """Return a byte for each page of a mapping, odd where touching it needs no read."""
    found = ctypes.create_string_buffer(pages)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    if _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(pages * PAGE_BYTES), found):
        raise OSError(ctypes.get_errno(), "mincore")
    return found.raw


def out_pages(mapping: mmap.mmap, pages: int) -> list[int]:
    """Return which pages of a mapping are not in memory, in random order."""
    found = [page for page, byte in enumerate(in_memory(mapping, pages)) if not byte & 1]
    random.Random(3).shuffle(found)
    return found


def push_out(mapping: mmap.mmap, pages: int) -> list[int]:
    """Have the kernel reclaim a mapping; return the pages that went, in random order.

    What was written to a swap disk stays in memory until the kernel looks at it again, which it is asked to do.
    """
    mapping.madvise(MADV_PAGEOUT)
    for _ in range(20):
        out = out_pages(mapping, pages)
        if len(out) == pages:
            break
        time.sleep(0.1)  # for what is still being written
        try:
            (GROUP / "memory.reclaim").write_text(str((pages - len(out)) * PAGE_BYTES))
        except OSError:
            continue  # less than that could be had
    return out_pages(mapping, pages)


def touch(mapping: mmap.mmap, pages: list[int]) -> None:
    """Read a byte of each of these pages."""
    for page in pages:
        mapping[page * PAGE_BYTES]


def map_file(path: Path) -> mmap.mmap:
    """Return a mapping of the file; writable, as only then its pages can be told to be in memory."""
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), FILE_BYTES)


def cold(path: Path, advice: int, pages: list[int], expected: Expected) -> Step:
    """Return the load that touches pages of the file, none of which is in memory."""
    known_loads.drop(path)
    mapping = map_file(path)
    mapping.madvise(advice)
    return Step(expected, lambda: touch(mapping, pages))


def mixed(path: Path) -> Step:
    """Return the load that reads one page and touches the next one, at random, all cold."""
    known_loads.drop(path)
    mapping, half = map_file(path), PAGES // 2
    mapping.madvise(mmap.MADV_RANDOM)
    order = random.Random(4).sample(range(half), half)

    def act() -> None:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for pair in order:
            os.pread(fd, PAGE_BYTES, 2 * pair * PAGE_BYTES)
            mapping[(2 * pair + 1) * PAGE_BYTES]
        os.close(fd)

    return Step({"inserts_read": half, "inserts_fault": half, "faults_major": half, "root_disk": PAGES}, act)


def evicted(path: Path, *, read: bool) -> Step:
    """Return the load that reads, or touches, what was in memory and has been reclaimed."""
    mapping = map_file(path)
    mapping.madvise(mmap.MADV_RANDOM)
    touch(mapping, list(range(PAGES)))
    out = push_out(mapping, PAGES)
    if read:
        known: Expected = {"inserts_read": len(out)}
        offsets = [page * PAGE_BYTES for page in out]
        return Step({**known, **back(out)}, lambda: known_loads.read_at(path, offsets, PAGE_BYTES))
    return Step({"inserts_fault": len(out), "faults_major": len(out), **back(out)}, lambda: touch(mapping, out))


def back(out: list[int]) -> Expected:
    """Return what is expected of any evicted pages of a file that come back."""
    return {"refaults": len(out), "root_disk": len(out)}


def swapped(device: str, *, disk: bool, cluster: int, full: bool = False) -> Step:
    """Return the load that touches anonymous memory, all of which has been swapped out.

    Args:
        device: The swap device.
        disk: Whether it is a disk that QEMU serves.
        cluster: ``vm.page-cluster``: the kernel reads ahead up to 2 ** cluster pages.
        full: Use a part of the device only, and fill what the load leaves of it.
    """
    Path("/proc/sys/vm/page-cluster").write_text(str(cluster))
    size = [str(SMALL_SWAP_PAGES * PAGE_BYTES // 1024)] if full else []
    run("mkswap", "--quiet", "--force", device, *size)
    run("swapon", device)
    pages = SMALL_SWAP_PAGES - 96 if full else ANON_PAGES
    mapping = anonymous(pages)
    out = push_out(mapping, pages)
    if cluster:
        out.sort()  # at random hardly anything is read ahead
    if full:
        others = anonymous(1024)
        others.madvise(MADV_PAGEOUT)  # what is swapped out of it stays in memory, too, with nothing free
        assert swap_free() == 0
    expected: Expected = {
        "swap_in": len(out),
        "refaults_anon": len(out),
        "swap_disk" if disk else "in_zram": len(out),
        "read_ahead": 0 if cluster == 0 or not disk else None,
    }
    held = (mapping, others) if full else (mapping,)
    return Step(expected, lambda: touch(held[0], out))


def anonymous(pages: int) -> mmap.mmap:
    """Return so much memory, filled with what no kernel takes for empty or for one value."""
    mapping = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block = os.urandom(16 * PAGE_BYTES)
    for offset in range(0, len(mapping), len(block)):
        mapping[offset : offset + len(block)] = block
    return mapping


def swap_free() -> int:
    """Return the bytes free on all swap devices."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("SwapFree:"))


def run(*command: str) -> None:
    """Run a program."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def end_swap(device: str) -> None:
    """Take a swap device away; what is left in it comes back."""
    if device in Path("/proc/swaps").read_text():
        run("swapoff", device)


def make_zram() -> str:
    """Return a new zram device of 128 MiB."""
    run("modprobe", "zram", "num_devices=1")
    reset = Path("/sys/block/zram0/reset")
    reset.write_text("1")
    Path("/sys/block/zram0/disksize").write_text(str(128 << 20))
    return "/dev/zram0"


def steps(path: Path, disk: str) -> Iterator[tuple[str, Callable[[], Step]]]:
    """Yield the name of each load, and what makes it ready."""
    some = random.Random(1).sample(range(PAGES), TOUCHED)
    apart = list(range(PAGES // AROUND_FAULTS // 2, PAGES, PAGES // AROUND_FAULTS))
    around = AROUND_FAULTS * AROUND_PAGES
    each: Expected = {"inserts_fault": TOUCHED, "faults_major": TOUCHED, "root_disk": TOUCHED}
    whole: Expected = {"inserts_fault": PAGES, "faults_major": None, "root_disk": PAGES}
    read_around: Expected = {"inserts_fault": around, "faults_major": AROUND_FAULTS, "root_disk": around}
    yield "mmap, cold, at random, MADV_RANDOM", lambda: cold(path, mmap.MADV_RANDOM, some, each)
    yield "mmap, cold, in order, read-ahead", lambda: cold(path, mmap.MADV_SEQUENTIAL, list(range(PAGES)), whole)
    yield "mmap, cold, far apart, read-around", lambda: cold(path, mmap.MADV_NORMAL, apart, read_around)
    yield "read and mmap in turn, cold", lambda: mixed(path)
    yield "mmap, evicted, touched again", lambda: evicted(path, read=False)
    yield "evicted, read again", lambda: evicted(path, read=True)
    yield "swap disk, no read-ahead", lambda: swapped(disk, disk=True, cluster=0)
    yield "swap disk, read-ahead", lambda: swapped(disk, disk=True, cluster=3)
    yield "swap disk, full, read-ahead", lambda: swapped(disk, disk=True, cluster=3, full=True)
    yield "zram", lambda: swapped(make_zram(), disk=False, cluster=0)


def tell(step: int, **more: object) -> None:
    """Tell the host which step is ready, or done."""
    new = STATE.with_suffix(".new")
    new.write_text(json.dumps({"step": step, **more}))
    new.rename(STATE)


def wait_for_host(step: int) -> None:
    """Return when the host has let this step run."""
    while not GO.exists() or GO.read_text().strip() != str(step):
        time.sleep(0.02)


def measure(step: int, make: Callable[[], Step]) -> dict[str, object]:
    """Run one load, and return what was expected and counted but for the disks."""
    load = make()
    before, majors = counts(), kernel_major_faults()
    tell(step, ready=True)
    wait_for_host(step)
    load.act()
    after, majors = counts(), kernel_major_faults() - majors
    counted = {name: after[name] - before[name] for name in after}
    expected = {**dict.fromkeys([*counted, "root_disk", "swap_disk"], 0), **load.expected}
    # What no arithmetic tells, the kernel does: each fault that is not read ahead for is a major one.
    if expected["faults_major"] is None:
        expected["faults_major"] = majors
    if expected["read_ahead"] is None:
        expected["read_ahead"] = (expected["swap_in"] or 0) - majors
    return {"expected": expected, "counted": counted}


def main() -> None:
    """Run all loads, a step at a time."""
    parser = argparse.ArgumentParser(description="Bring in known numbers of pages.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--swap", required=True, metavar="DEVICE")
    parser.add_argument("--lru", action="append", choices="yn")
    options = parser.parse_args()
    keep_resident()
    GROUP.mkdir(exist_ok=True)
    (GROUP / "cgroup.procs").write_text(str(os.getpid()))
    path, disk = options.directory / "known-page-ins.dat", os.path.realpath(options.swap)
    step = 0
    for lru in options.lru or [None]:
        if lru is not None:
            LRU_SWITCH.write_text(lru)
        known_loads.write(path)
        for name, make in steps(path, disk):
            flavour = "lru_gen" if LRU_SWITCH.exists() and int(LRU_SWITCH.read_text(), 16) & 1 else "two_list"
            step += 1
            try:
                row = {"case": name, "lru": flavour, **measure(step, make)}
            except Exception as error:  # for the host to tell
                tell(step, error=f"{name}: {error!r}")
                raise
            tell(step, row=row)
            wait_for_host(-step)
            for device in (disk, "/dev/zram0"):
                end_swap(device)
        path.unlink()
    tell(step, finished=True)


if __name__ == "__main__":
    main()
