"""Ages of memory in the guest: which frames are watched, how DAMON is told, what becomes of it in the file."""

import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent import ages, bpf, collector, ghosts
from guest_agent.counters_file import Series
from qmpalloc import sample as host

PAGE = 4096
HALVES = ages.BINS * len(ages.KINDS)


MEMORY_MAP = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-13fd9fff : System RAM
  0d000000-0dffffff : Kernel code
febec000-febeffff : 0000:00:01.0
100000000-11fffffff : virtio2
  100000000-10fffffff : System RAM (virtio_mem)
140000000-93fffffff : PCI Bus 0000:00
"""
"""Of a guest with 320 MiB of RAM and a device that has plugged 256 of 512 MiB."""


@pytest.mark.parametrize(
    ("devices", "plugged"), [((), []), (("virtio2", "module"), [(0x100000000, 0x11FFFFFFF)]), (("virtio7",), [])]
)
def test_memory_is_ram_and_all_that_virtio_mem_may_plug(tmp_path, devices, plugged):
    (tmp_path / "iomem").write_text(MEMORY_MAP)
    for name in devices:
        (tmp_path / "virtio_mem" / name).mkdir(parents=True)
    found = ages.memory_ranges(str(tmp_path), str(tmp_path / "iomem"), str(tmp_path / "virtio_mem"))
    assert found == [(0x1000, 0x9FBFF), (0x100000, 0x13FD9FFF), *plugged]


def test_a_copy_of_the_memory_map_tells_more_than_the_kernel_does(tmp_path):
    (tmp_path / "memory-map").write_text(MEMORY_MAP)
    (tmp_path / "iomem").write_text("00000000-00000000 : System RAM\n")
    assert len(ages.memory_ranges(str(tmp_path), str(tmp_path / "iomem"), str(tmp_path / "absent"))) == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, r"no .*iomem"), ("", "does not tell"), ("00000000-00000000 : System RAM\n", "does not tell")],
)
def test_no_memory_map(tmp_path, content, problem):
    """To others than root the kernel shows zeros."""
    if content is not None:
        (tmp_path / "iomem").write_text(content)
    with pytest.raises(ages.NoAgesError, match=problem):
        ages.memory_ranges(str(tmp_path), str(tmp_path / "iomem"), str(tmp_path / "absent"))


@pytest.mark.parametrize(("gib", "shift"), [(0.5, 7), (1, 7), (1.1, 8), (64, 13)])
def test_no_more_frames_than_the_kernel_is_to_look_at(gib, shift):
    ranges = [(0, int(gib * 2**30) - 1)]
    assert ages.block_shift(ranges, PAGE) == shift
    assert len(ages.picked(ranges, shift, PAGE, b"\0\0\0\0")) <= ages.FRAMES_MAX


@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 4000)), min_size=1, max_size=4),
    st.integers(7, 9),
    st.binary(min_size=4, max_size=64).filter(lambda data: len(data) % 4 == 0),
)
def test_one_frame_of_each_whole_block_and_no_neighbours(parts, shift, random):
    ranges, at = [], 0
    for gap, pages in parts:
        at += gap * PAGE
        ranges.append((at, at + pages * PAGE - 1))
        at += pages * PAGE
    frames = ages.picked(ranges, shift, PAGE, random)
    assert all(later - earlier > 1 for earlier, later in pairwise(frames))
    assert all(any(first <= frame * PAGE <= last + PAGE for first, last in ranges) for frame in frames)
    assert len({frame >> shift for frame in frames}) >= len(frames) - 1
    ends = [(-(-first // PAGE) + (1 << shift) - 1 >> shift, (last + 1) // PAGE >> shift) for first, last in ranges]
    whole = sum(max(0, last - first) for first, last in ends)
    assert len(frames) == whole


class Kernel:
    """DAMON's directory, with a note of what was written."""

    def __init__(self, directory, monkeypatch, frames=3, kdamonds="0", refuses=""):
        self.written, self.directory, self.refuses = [], directory, refuses
        (directory / "admin").mkdir()
        (directory / "admin/nr_kdamonds").write_text(kdamonds)
        monkeypatch.setattr(ages, "_ADMIN", str(directory / "admin"))
        monkeypatch.setattr(ages, "_set", self.set)

    def set(self, name, value):
        if name == self.refuses:
            raise OSError(22, "Invalid argument")
        self.written.append((name, value))


def test_every_frame_is_a_region_and_the_directories_go_again(tmp_path, monkeypatch):
    kernel = Kernel(tmp_path, monkeypatch)
    ages.start(str(tmp_path), [5, 130, 300], PAGE)
    regions = "0/contexts/0/targets/0/regions"
    assert (f"{regions}/1/start", 130 * PAGE) in kernel.written
    assert (f"{regions}/1/end", 131 * PAGE) in kernel.written
    assert kernel.written[-2:] == [("0/state", "on"), (f"{regions}/nr_regions", 0)]
    assert (tmp_path / "ages").exists()
    ages.stop(str(tmp_path))
    assert kernel.written[-2:] == [("0/state", "off"), ("nr_kdamonds", 0)]
    assert not (tmp_path / "ages").exists()


def test_somebody_elses_damon_is_left_alone(tmp_path, monkeypatch):
    kernel = Kernel(tmp_path, monkeypatch, kdamonds="1\n")
    with pytest.raises(ages.NoAgesError, match="somebody else uses DAMON"):
        ages.start(str(tmp_path), [5], PAGE)
    assert kernel.written == []


def test_what_a_collector_that_was_killed_left_is_taken_over(tmp_path, monkeypatch):
    kernel = Kernel(tmp_path, monkeypatch, kdamonds="1\n")
    (tmp_path / "ages").touch()
    ages.start(str(tmp_path), [5], PAGE)
    assert kernel.written[:3] == [("0/state", "off"), ("nr_kdamonds", 0), ("nr_kdamonds", 1)]


@pytest.mark.parametrize("refused", ["nr_kdamonds", "0/contexts/0/operations", "0/state"])
def test_a_damon_that_refuses_is_said_and_left_off(tmp_path, monkeypatch, refused):
    kernel = Kernel(tmp_path, monkeypatch, refuses=refused)
    with pytest.raises(ages.NoAgesError, match=r"DAMON refuses: .*Invalid argument"):
        ages.start(str(tmp_path), [5], PAGE)
    assert not (tmp_path / "ages").exists()
    assert refused == "nr_kdamonds" or kernel.written[-1] == ("nr_kdamonds", 0)


def test_no_damon(tmp_path, monkeypatch):
    monkeypatch.setattr(ages, "_ADMIN", str(tmp_path / "absent"))
    with pytest.raises(ages.NoAgesError, match="no DAMON"):
        ages.start(str(tmp_path), [5], PAGE)


class FakeMap:
    """What program.c keeps, as bytes."""

    def __init__(self, monkeypatch):
        self.steps, self.idle, self.touched = 0, [0] * (2 * HALVES), [0] * HALVES
        monkeypatch.setattr(bpf, "Element", lambda map_fd, size: self)

    def read(self):
        return struct.pack(f"=QQ{2 * HALVES}I{HALVES}Q", self.steps, 0, *self.idle, *self.touched)


def test_the_step_that_is_over_is_told_and_the_host_reads_it(monkeypatch):
    fake = FakeMap(monkeypatch)
    told = ages.Ages(9, 7)
    assert told.read() is None
    fake.steps = 5  # the present step is 5, whose numbers are in the second half; 4 is complete, in the first
    fake.idle[:HALVES] = list(range(HALVES))
    fake.idle[HALVES:] = [999] * HALVES
    fake.touched = [7] * HALVES
    content = told.read()
    read = host.parse(Series("00112233aabbccdd", 1000).render({}, None, {"ages": content})).ages
    assert (read.steps, read.pages_each, read.step_ms) == (4, 128, 1000)
    assert read.idle.file == tuple(range(10))
    assert read.idle.shmem == tuple(range(30, 40))
    assert read.touched.anon == (7,) * 10
    fake.steps = 6
    assert told.read()["idle"]["file"] == [999] * 10


def test_steps_that_do_not_come_any_more_are_told_for_a_while_only(monkeypatch):
    fake = FakeMap(monkeypatch)
    told = ages.Ages(9, 7)
    fake.steps = 5
    assert [told.read() is not None for _ in range(7)] == [True] * 5 + [False] * 2
    fake.steps = 6
    assert told.read() is not None


@pytest.mark.parametrize(
    ("content", "address"), [("ffff0 D vmemmap_base\n", 0xFFFF0), ("1 D vmemmap_base_x\n", 0), ("", 0)]
)
def test_symbols_are_found_by_their_whole_name(tmp_path, content, address):
    (tmp_path / "kallsyms").write_text("0 t x\n" + content)
    assert collector.address_of("vmemmap_base", str(tmp_path / "kallsyms")) == address


class Probed:
    can_tell_ages = True

    def ages_flags(self, **facts):
        return [f"{name}={value}" for name, value in facts.items()]


def test_what_is_watched(monkeypatch):
    monkeypatch.setattr(ages, "memory_ranges", lambda _: [(0, 2**29 - 1)])
    monkeypatch.setattr(collector, "address_of", lambda _: 0x1234)
    watch = collector.Watch(Probed(), Path())
    assert watch.shift == 7
    assert watch.flags == ["shift=7", "frames=1024", "step_ms=1000", "vmemmap=4660"]


def test_a_kernel_that_does_not_say_where_its_pages_are(monkeypatch):
    monkeypatch.setattr(ages, "memory_ranges", lambda _: [(0, 2**29 - 1)])
    monkeypatch.setattr(collector, "address_of", lambda _: 0)
    with pytest.raises(ages.NoAgesError, match="vmemmap_base"):
        collector.Watch(Probed(), Path())


def test_what_the_kernel_does_not_take_is_left_out_the_last_part_first(monkeypatch, capsys):
    tried = []

    def attach(flags):
        tried.append(flags)
        if "-DAGES" in flags:
            raise collector.CannotCountError("bcc: too complex")
        return "module"

    monkeypatch.setattr(collector, "compile_and_attach", attach)
    parts = [("samples", ["-DSAMPLES"]), ("ages", ["-DAGES"])]
    assert collector.compile_most(["-DX"], parts) == ("module", ["samples"])
    assert tried == [["-DX", "-DSAMPLES", "-DAGES"], ["-DX", "-DSAMPLES"]]
    assert "ages of memory are not told: bcc: too complex" in capsys.readouterr().err


def test_refault_distances_are_told_and_the_host_reads_them(monkeypatch):
    class FakeDistances:
        def __init__(self, _, size):
            assert size == 8 * (1 + 2 * ghosts.BINS)

        def read(self):
            return struct.pack(f"={1 + 2 * ghosts.BINS}Q", 999, *range(2 * ghosts.BINS))

    monkeypatch.setattr(bpf, "Element", FakeDistances)
    content = ghosts.Ghosts(9).read()
    read = host.parse(Series("00112233aabbccdd", 1000).render({}, None, {"refault_distances": content, "ages": None}))
    assert read.ages is None
    assert read.refault_distances.read == tuple(range(40))
    assert read.refault_distances.fault == tuple(range(40, 80))
    assert (read.refault_distances.pages_each, read.refault_distances.pages_first) == (64, 1024)
