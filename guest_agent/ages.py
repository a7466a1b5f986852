"""How long memory has not been touched: page frames picked at random, watched by the kernel's DAMON.

DAMON tells at each step which of the frames it watches were accessed through a page table, and with the two-list page
replacement by ``read()`` (Documentation/mm/damon/design.rst, ``paddr``; ``folio_mark_accessed()`` in mm/swap.c). Every
region it is given here is one page frame, one of every aligned block of frames, so there is nothing for it to merge or
split: what it does is to look at a random sample of all memory. program.c keeps since when each has not been touched.
The kernel's own reclaim loses nothing by it: DAMON leaves a mark at each page whose accessed bit it clears.
"""

from __future__ import annotations

import os
import struct

from guest_agent import bpf, procfs

KINDS = ("file", "mapped", "anon", "shmem")
"""What a page frame is used for, in the order of program.c."""

BINS = 10
"""Not touched for less than a step; for 1, 2, 4, … 128 steps and less than twice that; for 256 and more."""

STEP_MS = 1000
FRAMES_MAX = 2048
SHIFT_MIN = 7
"""One of every 128 frames at least; guests of more than 1 GiB have one of a larger block, and never more frames."""

_ADMIN = "/sys/kernel/mm/damon/admin/kdamonds"
_MEMORY_MAP = "/proc/iomem"
"""Zeros for a process without all of root's powers, such as the service: that has a copy in its directory."""

_PLUGGING = "/sys/bus/virtio/drivers/virtio_mem"
_MARK = "ages"
"""A file of this name in the collector's directory says that DAMON runs for a collector, perhaps one that died."""

_RESULT = struct.Struct(f"=QQ{2 * len(KINDS) * BINS}I{len(KINDS) * BINS}Q")
_STALLED_AFTER = 5
"""Files in a row without a new step, after which ages are not told any more."""


class NoAgesError(Exception):
    """Why ages are not told, in a few words."""


def memory_ranges(directory: str, memory_map: str = _MEMORY_MAP, plugging: str = _PLUGGING) -> list[tuple[int, int]]:
    """Return first and last byte of each range that is memory, or may become it by virtio-mem; rising.

    DAMON passes over what is not plugged at a time.

    Args:
        directory: Where the collector's files are, perhaps with a copy of the memory map.
        memory_map: The kernel's.
        plugging: The kernel's driver of virtio-mem; there are its devices by name, as the memory map names them.

    Raises:
        NoAgesError: This kernel does not tell where memory is.
    """
    text = procfs.read(f"{directory}/memory-map") or procfs.read(memory_map)
    if text is None:
        raise NoAgesError(f"no {memory_map}")
    try:
        devices = os.listdir(plugging)  # noqa: PTH208 (pathlib costs 1.5 MB of memory)
    except OSError:
        devices = []
    ranges = []
    for line in text.splitlines():
        where, _, name = line.partition(" : ")
        if name in ("System RAM", *devices):  # what a device has plugged is called otherwise, and lies within its range
            first, _, last = where.strip().partition("-")
            ranges.append((int(first, 16), int(last, 16)))
    if not any(last for _, last in ranges):
        raise NoAgesError(f"{memory_map} does not tell where memory is")
    return sorted(ranges)


def block_shift(ranges: list[tuple[int, int]], page_size: int) -> int:
    """Return which power of two of frames one stands for, so that there are `FRAMES_MAX` at most."""
    frames = sum(last - first + 1 for first, last in ranges) // page_size
    shift = SHIFT_MIN
    while frames >> shift > FRAMES_MAX:
        shift += 1
    return shift


def picked(ranges: list[tuple[int, int]], shift: int, page_size: int, random: bytes) -> list[int]:
    """Return one frame of every whole block of 2 ** `shift` frames, never two neighbours: DAMON would join them.

    Args:
        ranges: As `memory_ranges` returns them.
        shift: As `block_shift` returns it.
        page_size: Bytes of a frame.
        random: Four bytes for each block; used again from the beginning when there are fewer.
    """
    frames: list[int] = []
    for first, last in ranges:
        for block in range(-(-first // page_size) + (1 << shift) - 1 >> shift, (last + 1) // page_size >> shift):
            at = len(frames) * 4 % len(random)
            frame = (block << shift) + int.from_bytes(random[at : at + 4], "little") % (1 << shift)
            if frames and frame <= frames[-1] + 1:
                frame += 1
            frames.append(frame)
    return frames


def start(directory: str, frames: list[int], page_size: int) -> None:
    """Let DAMON watch these frames.

    Raises:
        NoAgesError: There is no DAMON, somebody else uses it, or it refuses.
    """
    if not os.path.isdir(_ADMIN):  # noqa: PTH112
        raise NoAgesError("this kernel has no DAMON (CONFIG_DAMON_PADDR, CONFIG_DAMON_SYSFS)")
    if (procfs.read(f"{_ADMIN}/nr_kdamonds") or "0").strip() != "0":
        if not os.path.exists(f"{directory}/{_MARK}"):  # noqa: PTH110
            raise NoAgesError("somebody else uses DAMON")
        stop(directory)
    try:
        os.close(os.open(f"{directory}/{_MARK}", os.O_WRONLY | os.O_CREAT, 0o644))
        _set("nr_kdamonds", 1)
        _set("0/contexts/nr_contexts", 1)
        _set("0/contexts/0/operations", "paddr")
        attributes = "0/contexts/0/monitoring_attrs"
        # The largest first: none may be below the one before it.
        for name, microseconds in (("update", 1 << 32), ("aggr", STEP_MS * 1000), ("sample", STEP_MS * 1000)):
            _set(f"{attributes}/intervals/{name}_us", microseconds)
        _set(f"{attributes}/nr_regions/max", 2 * len(frames) + 10)
        _set("0/contexts/0/targets/nr_targets", 1)
        regions = "0/contexts/0/targets/0/regions"
        _set(f"{regions}/nr_regions", len(frames))
        for number, frame in enumerate(frames):
            _set(f"{regions}/{number}/start", frame * page_size)
            _set(f"{regions}/{number}/end", (frame + 1) * page_size)
        _set("0/state", "on")
        # The kernel has its own copy now; these are thousands of files.
        _set(f"{regions}/nr_regions", 0)
    except OSError as error:
        stop(directory)
        raise NoAgesError(f"DAMON refuses: {error}") from None


def stop(directory: str) -> None:
    """Let DAMON do nothing any more, and leave no trace of it."""
    for name, value in (("0/state", "off"), ("nr_kdamonds", 0)):
        try:
            _set(name, value)
        except OSError:
            continue
    try:
        os.unlink(f"{directory}/{_MARK}")  # noqa: PTH108
    except OSError:
        return


def _set(name: str, value: object) -> None:
    fd = os.open(f"{_ADMIN}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


class Ages:
    """What program.c knows of the frames that are watched.

    Args:
        map_fd: Descriptor of its map.
        shift: How many frames one stands for, as a power of two.
    """

    def __init__(self, map_fd: int, shift: int) -> None:
        self._element = bpf.Element(map_fd, _RESULT.size)
        self._pages_each = 1 << shift
        self._steps = self._unchanged = 0

    def read(self) -> dict[str, object] | None:
        """Return the part of the counters file; None before a first step is over, or when no step follows any more.

        Raises:
            OSError: The map cannot be read.
        """
        steps, _, *numbers = _RESULT.unpack(self._element.read())
        self._unchanged = self._unchanged + 1 if steps == self._steps else 0
        self._steps = steps
        if steps < 2 or self._unchanged >= _STALLED_AFTER:
            return None
        size = len(KINDS) * BINS
        # The numbers of the step that is over are in one half, those of the present one in the other.
        begin = size if steps % 2 == 0 else 0
        return {
            "step_ms": STEP_MS,
            "pages_each": self._pages_each,
            "steps": steps - 1,
            "idle": _by_kind(numbers[begin : begin + size]),
            "touched": _by_kind(numbers[2 * size :]),
        }


def _by_kind(numbers: list[int]) -> dict[str, list[int]]:
    return {kind: numbers[index * BINS : (index + 1) * BINS] for index, kind in enumerate(KINDS)}
