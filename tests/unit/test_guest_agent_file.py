"""What the collector writes: the host must accept every bit of it, and nothing may be left behind when it cannot."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent import counters_file, probes, procfs
from guest_agent.counters_file import CountersFile, Series, printable, publish, to_json
from guest_agent.reader import COUNTERS, SLOTS, combine, missed_ticks, next_tick_ns
from qmpalloc.errors import SampleError, SampleFault
from qmpalloc.sample import FILE_MAX_BYTES, FORMAT, VERSION, Counters, SwapPages, parse

SOURCES = Path(counters_file.__file__).parent
COUNTS = dict.fromkeys((*COUNTERS, "events_lost"), 2**63 - 1)

MEMINFO = """\
MemTotal:         990152 kB
MemFree:          828000 kB
MemAvailable:     791000 kB
Active(file):      54280 kB
Inactive(file):    10948 kB
AnonPages:         16548 kB
Shmem:               276 kB
KernelStack:        1144 kB
PageTables:          704 kB
KReclaimable:      12368 kB
SwapTotal:        262140 kB
SwapFree:              0 kB
SUnreclaim:        22368 kB
HugePages_Total:       0
"""
VMSTAT = (
    "nr_free_pages 207000\nworkingset_refault_anon 17\nworkingset_refault_file 42\npswpin 3\npswpout 4\nswap_ra 2\n"
    "allocstall_dma 0\nallocstall_normal 5\nallocstall_movable 6\noom_kill 1\n"
    "balloon_inflate 5000\nballoon_deflate 1000\nballoon_migrate 7\n"
)
ZONEINFO = """\
Node 0, zone    DMA32
  per-node stats
      nr_inactive_anon 1
        present  126862
  pagesets
    cpu: 0
              count:    659
              high:     0
    cpu: 1
              count: 41
Node 0, zone   Normal
  pagesets
    cpu: 0
              count:    0
"""
SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
PRESSURE = "some avg10=1.25 avg60=0.00 avg300=0.00 total=96\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=90\n"


@pytest.fixture
def kernel_files(monkeypatch):
    """The files of a guest, by path; a test may take some away."""
    files = {
        "/proc/meminfo": MEMINFO,
        "/proc/vmstat": VMSTAT,
        "/proc/zoneinfo": ZONEINFO,
        "/proc/pressure/memory": PRESSURE,
        "/proc/swaps": SWAPS,
        "/proc/self/statm": "5000 2792 1500 1 0 1300 0\n",
        "/proc/sys/kernel/random/boot_id": "de9d2e88-11fa-4a03-8f4c-421442911772\n",
        "/sys/kernel/mm/lru_gen/enabled": "0x0007\n",
    }
    monkeypatch.setattr(procfs, "read", lambda path, _most_bytes=0: files.get(path))
    return files


@pytest.fixture
def series(kernel_files):
    return Series("00112233aabbccdd", 1000)


def test_the_host_agrees_on_format_and_names():
    assert (counters_file.FORMAT, counters_file.VERSION) == (FORMAT, VERSION)
    assert {*COUNTERS, "events_lost", "refaults", "refaults_anon"} == set(Counters.__struct_fields__)


def test_a_file_with_every_field_at_its_largest_is_accepted_and_small(series):
    content = series.render(COUNTS)
    sample = parse(content)
    assert len(content) < FILE_MAX_BYTES / 2
    assert sample.counters == Counters(**COUNTS, refaults=42, refaults_anon=17)
    assert sample.memory_bytes.total == 990152 * 1024
    assert sample.memory_bytes.kernel_reclaimable == 12368 * 1024
    assert (sample.memory_bytes.balloon, sample.memory_bytes.cpu_free) == (0, 700 * os.sysconf("SC_PAGE_SIZE"))
    assert (sample.swap_pages.in_, sample.swap_pages.out, sample.oom_kills) == (3, 4, 1)
    assert (sample.swap_pages.in_zram, sample.swap_pages.read_ahead) == (0, 2)
    assert sample.allocation_stalls == 5 + 6
    assert (sample.psi_memory.some_total_us, sample.psi_memory.some_avg10) == (96, 1.25)
    assert (sample.lru, sample.interval_ms, sample.sequence) == ("lru_gen", 1000, 0)
    assert sample.collector.rss_bytes == 2792 * os.sysconf("SC_PAGE_SIZE")
    assert parse(series.render(COUNTS)).sequence == 1


def test_unknown_is_absent(series, kernel_files):
    for path in (
        "/proc/vmstat",
        "/proc/pressure/memory",
        "/proc/meminfo",
        "/proc/self/statm",
        "/proc/swaps",
        "/proc/zoneinfo",
    ):
        del kernel_files[path]
    sample = parse(series.render({"events_lost": 0}))
    assert sample.counters == Counters(events_lost=0)
    assert sample.memory_bytes.total is sample.memory_bytes.cpu_free is None
    assert sample.swap_pages == SwapPages()
    assert sample.psi_memory.full_avg10 is None
    assert sample.oom_kills is None
    assert sample.allocation_stalls is None
    assert sample.collector.rss_bytes is None


@pytest.mark.parametrize(("features", "pages"), [("0110", 4000), ("01", 0), ("0100", 0), (None, 0)])
def test_what_the_balloon_has_of_all_memory_is_told(kernel_files, monkeypatch, features, pages):
    monkeypatch.setattr(procfs.os, "listdir", lambda _path: ["virtio0", "virtio1"])
    kernel_files["/sys/bus/virtio/devices/virtio0/device"] = "0x0002\n"
    kernel_files["/sys/bus/virtio/devices/virtio1/device"] = "0x0005\n"
    if features is not None:
        kernel_files["/sys/bus/virtio/devices/virtio1/features"] = f"{features}\n"
    told = parse(Series("00112233aabbccdd", 1000).render(COUNTS))
    assert told.memory_bytes.balloon == pages * os.sysconf("SC_PAGE_SIZE")


def test_what_the_kernel_keeps_free_is_told_and_may_be_more_than_there_is(series, kernel_files):
    assert parse(series.render(COUNTS)).memory_bytes.kept_free is None
    for least_kb, factor, kept in ((67584, 10, 67584 * 1536), (4096, 100, 4096 * 1024 + 990152 * 1024 // 100 * 2)):
        kernel_files["/proc/sys/vm/min_free_kbytes"] = f"{least_kb}\n"
        kernel_files["/proc/sys/vm/watermark_scale_factor"] = f"{factor}\n"
        told = Series("00112233aabbccdd", 1000)
        assert parse(told.render(COUNTS)).memory_bytes.kept_free == pytest.approx(kept, abs=2)
    kernel_files["/proc/sys/vm/min_free_kbytes"] = "1048576\n"
    assert parse(Series("00112233aabbccdd", 1000).render(COUNTS)).memory_bytes.kept_free > 990152 * 1024


def zram(kernel_files, pages, *names, from_disk=None):
    """A guest that uses these zram devices as swap beside a disk, each of which has given back so many pages."""
    used = "".join(f"/dev/{name:<40}partition\t524284\t\t0\t\t100\n" for name in ("vdb", *names))
    kernel_files["/proc/swaps"] = SWAPS + used
    for name in names:
        kernel_files[f"/sys/block/{name}/stat"] = f"  {pages} 0 {pages * 8} 12 0 0 0 0 0 0 0\n"
        if from_disk is not None:
            kernel_files[f"/sys/block/{name}/bd_stat"] = f"  90 {from_disk} 0\n"


def in_zram(series):
    return parse(series.render(COUNTS)).swap_pages.in_zram


def test_what_zram_keeps_in_memory_is_told(series, kernel_files):
    zram(kernel_files, 0, "zram0", "zram1")
    assert parse(series.render(COUNTS)).memory_bytes.zram == 0  # neither says
    kernel_files["/sys/block/zram1/mm_stat"] = "8192 300 40960 0 40960 0 0 0 0\n"
    assert parse(series.render(COUNTS)).memory_bytes.zram == 40960
    kernel_files["/proc/swaps"] = "Filename Type Size Used Priority\n"
    assert parse(series.render(COUNTS)).memory_bytes.zram in (None, 40960)  # one that is in use no more is asked once
    assert parse(series.render(COUNTS)).memory_bytes.zram is None


def test_what_comes_back_from_zram_is_told_apart(series, kernel_files):
    zram(kernel_files, 1000, "zram0")
    assert in_zram(series) == 0  # what it gave before anybody looked is not known to be swap's
    zram(kernel_files, 1500, "zram0", "zram1")
    assert in_zram(series) == 500
    zram(kernel_files, 1700, "zram0", "zram1", from_disk=60)  # written back to a disk, and read from there
    assert in_zram(series) == 500 + 140 + 140


def test_zram_that_is_not_there_gives_nothing_back(series, kernel_files):
    zram(kernel_files, 0)
    assert in_zram(series) == 0
    del kernel_files["/proc/swaps"]
    assert in_zram(series) is None
    kernel_files["/proc/meminfo"] = MEMINFO.replace("262140", "0")  # no swap at all: there is nothing to ask for
    assert in_zram(series) == 0


def test_zram_that_goes_or_is_reset_takes_nothing_back(series, kernel_files):
    zram(kernel_files, 1000, "zram0")
    assert in_zram(series) == 0
    zram(kernel_files, 1300, "zram0")
    kernel_files["/proc/swaps"] = SWAPS  # swapoff has read what was left
    assert in_zram(series) == 300
    zram(kernel_files, 10, "zram0")  # reset, and used again
    assert [in_zram(series), in_zram(series)] == [300, 300]
    zram(kernel_files, 4, "zram0")  # reset meanwhile
    assert in_zram(series) == 300
    del kernel_files["/sys/block/zram0/stat"]
    assert in_zram(series) == 300


@given(message=st.text(max_size=1000))
def test_any_error_message_reaches_the_host_printable(message):
    content = Series("00112233aabbccdd", 1000).render(None, f"bcc: {message}")
    with pytest.raises(SampleError, match="the collector reports: bcc:") as caught:
        parse(content)
    assert caught.value.fault is SampleFault.COLLECTOR
    assert len(content) < FILE_MAX_BYTES


def test_printable_makes_one_line():
    assert printable('two\n  lines\x1b[31m "\\é', 400) == 'two lines?[31m "\\?'
    assert to_json({"a": 'x"\\y'}) == '{"a":"x\\"\\\\y"}'


def test_absent_hooks_are_absent_counters():
    slots = {name: index + 1 for index, name in enumerate(SLOTS)}
    assert combine(slots, {"accesses", "evictions"}, skipped=5) == {
        "accesses": slots["accesses_read"] + slots["accesses_splice"],
        "evictions": slots["evictions"],
        "events_lost": slots["scopes_lost"] + 5,
    }


@pytest.mark.parametrize(("now", "expected"), [(100, 110), (109, 110), (110, 120), (135, 140), (99, 110)])
def test_ticks_stay_on_their_grid(now, expected):
    assert next_tick_ns(100, now, 10) == expected


@pytest.mark.parametrize(("later", "missed"), [(110, 0), (120, 1), (150, 4)])
def test_what_is_left_out_is_counted(later, missed):
    assert missed_ticks(100, later, 10) == missed


def test_the_hooks_that_a_kernel_lacks_are_named(kernel_files):
    assert parse(Series("00112233aabbccdd", 1000).render(COUNTS)).missing_hooks == ()
    series = Series("00112233aabbccdd", 1000, 0, ["filemap_splice_read", "filemap_fault"])
    assert parse(series.render(COUNTS)).missing_hooks == ("filemap_splice_read", "filemap_fault")


def test_a_file_with_every_hook_missing_is_still_small(kernel_files):
    names = [*probes._FUNCTIONS, *probes._TRACEPOINTS]
    content = Series("00112233aabbccdd", 1000, 0, names).render(COUNTS, "x" * 1000)
    assert len(content) < FILE_MAX_BYTES / 2
    assert len(names) <= 32  # what the host accepts


# ------------------------------------------------------------------------------------------------------------- writing


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def test_replacing_leaves_one_file_that_all_may_read(tmp_path):
    old_umask = os.umask(0o077)
    try:
        file = CountersFile(str(tmp_path))
        file.replace(b"one")
        before = (tmp_path / "counters.json").stat()
        file.replace(b"two, longer")
    finally:
        os.umask(old_umask)
    after = (tmp_path / "counters.json").stat()
    assert (tmp_path / "counters.json").read_bytes() == b"two, longer"
    assert after.st_ino != before.st_ino  # a reader that has the old one open still sees all of it
    assert after.st_mode & 0o777 == 0o644
    assert names_in(tmp_path) == ["counters.json"]
    file.remove()
    file.remove()
    assert names_in(tmp_path) == []


@pytest.fixture
def fill_tmpfs(monkeypatch):
    """Make every new page fail, as on a full tmpfs: an existing file's first page can still be written."""
    real_pwrite = os.pwrite

    def full_pwrite(fd, data, offset):
        if os.fstat(fd).st_blocks == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_pwrite(fd, data, offset)

    return lambda: monkeypatch.setattr(os, "pwrite", full_pwrite)


def test_a_full_tmpfs_is_reported_in_the_old_file(tmp_path, series, fill_tmpfs):
    file = CountersFile(str(tmp_path))
    assert publish(file, series, COUNTS) == ""
    with (tmp_path / "counters.json").open("rb") as written:
        os.fsync(written)  # so that the file has its block, where blocks are allocated late
    fill_tmpfs()
    problem = publish(file, series, COUNTS)
    assert problem == f"cannot replace {tmp_path}/counters.json: No space left on device"
    assert names_in(tmp_path) == ["counters.json"]
    with pytest.raises(SampleError, match="No space left on device") as caught:
        parse((tmp_path / "counters.json").read_bytes())
    assert caught.value.fault is SampleFault.COLLECTOR


def test_a_tmpfs_full_from_the_start_leaves_nothing_behind(tmp_path, series, fill_tmpfs):
    fill_tmpfs()
    problem = publish(CountersFile(str(tmp_path)), series, COUNTS)
    assert "No space left on device; nor can it be written over" in problem
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_directory_that_cannot_be_written_is_said_and_the_interval_counted(tmp_path, series, monkeypatch, code):
    file = CountersFile(str(tmp_path))
    publish(file, series, COUNTS)
    before = (tmp_path / "counters.json").read_bytes()

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        problem = publish(file, series, COUNTS)
    assert f"{os.strerror(code)}; nor can it be written over" in problem
    assert (tmp_path / "counters.json").read_bytes() == before  # old, and the host sees that it is
    assert publish(file, series, COUNTS) == ""
    sample = parse((tmp_path / "counters.json").read_bytes())
    assert sample.collector.intervals_missed == 1
    assert sample.sequence > parse(before).sequence


def test_a_directory_that_is_gone(tmp_path, series):
    directory = tmp_path / "run"
    directory.mkdir()
    file = CountersFile(str(directory))
    directory.rmdir()
    assert "No such file or directory" in publish(file, series, COUNTS)
    directory.mkdir()
    assert publish(file, series, COUNTS) == ""


def test_does_not_follow_a_planted_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".counters.json.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        CountersFile(str(tmp_path)).replace(b"data")
    assert victim.read_bytes() == b"precious"


# ------------------------------------------------------------------------------------------------------- kernel's files


@pytest.mark.parametrize(
    ("text", "flavour"), [("0x0007", "lru_gen"), ("0x0000", "two_list"), (None, "two_list"), ("y", "two_list")]
)
def test_lru_flavour(text, flavour):
    assert procfs.lru_flavour(text) == flavour


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-3\n", 4), ("0-3,8,10-11\n", 7)])
def test_cpu_count(text, count):
    assert procfs.cpu_count(text) == count


def test_lines_out_of_shape_are_passed_over():
    assert procfs.memory_bytes("MemTotal: x kB\nMemFree: 1 MB\nShmem: -3 kB\nMemAvailable:\nAnonPages: 2 kB\n") == {
        "anon": 2048
    }
    assert procfs.vmstat("oom_kill\npswpin x\npswpout 1\n") == {"pswpout": 1}
    assert procfs.psi_memory("some avg10=0.00\nfull avg10=x total=1\nnone\n") == {}


def test_capabilities():
    assert procfs.has_capabilities("CapEff:\t000001ffffffffff\n", 21, 39)
    assert not procfs.has_capabilities("CapEff:\t0000000000000000\n", 21)
    assert not procfs.has_capabilities(None, 21)


def test_a_file_that_the_kernel_hands_out_in_parts_is_read_whole(tmp_path, monkeypatch):
    (tmp_path / "vmstat").write_text("pswpin 3\noom_kill 1\n")
    real_read = os.read
    monkeypatch.setattr(os, "read", lambda fd, count: real_read(fd, 9))
    assert procfs.vmstat(procfs.read(str(tmp_path / "vmstat"))) == {"pswpin": 3, "oom_kill": 1}


def test_reads_nothing_where_there_is_nothing(tmp_path):
    assert procfs.read(str(tmp_path / "absent")) is None
    assert procfs.read(str(tmp_path)) is None  # a directory
    (tmp_path / "mounts").write_text("tmpfs /run tmpfs rw 0 0\n" * 3000)
    assert procfs.read(str(tmp_path / "mounts")) is None  # half of it would be wrong
    (tmp_path / "file").write_text("x")
    assert procfs.read(str(tmp_path / "file")) == "x"


def test_the_reader_stays_small():
    """The reader and what it imports keep their hands off the parts of the library that cost memory."""
    code = f"import sys; sys.path.insert(0, {str(SOURCES.parent)!r}); import guest_agent.reader; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-ISB", "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "guest_agent.reader" in modules
    heavy = {"json", "pathlib", "typing", "re", "dataclasses", "inspect", "socket", "argparse", "logging", "subprocess"}
    assert not heavy & set(modules)
