"""What the collector costs in this guest, as JSON. Run by benchmarks/cost.py, as root, in a guest that is idle.

Under QEMU's -icount shift=0 each executed instruction takes one nanosecond of guest time. So every time below is a
number of instructions there, the same in every run but for what else the guest does meanwhile.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COUNTERS_FILE = Path("/run/qmpalloc/counters.json")
SETTINGS = Path("/etc/default/qmpalloc-collector")
OPTIONS = {
    "with samples and ages": "",
    "with samples": "--no-ages",
    "a tenth of the time, between bursts": "--duty 0.1",
    "without samples": "--no-samples --no-ages",
}
DAMON = Path("/sys/kernel/mm/damon/admin/kdamonds/0/pid")
"""The collector's, by what it is called in the result."""

DATA = Path("/var/tmp/cost.dat")
DATA_BYTES = 64 << 20
FEW_READS, MANY_READS = 20_000, 170_000
SECONDS_OF_READS = 1_000_000
"""So many take some of the seconds of which a duty cycle counts a part."""
REPETITIONS = 2
EVENTS = 5_000
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
BCC, CORRECTED = Path("/usr/sbin/cachestat-bpfcc"), Path("/run/cachestat")
# Debian 13 and 12 name it differently.
LIBBPF = next(filter(os.path.exists, ("/usr/sbin/cachestat-libbpf", "/usr/sbin/cachestat")), "cachestat-libbpf")
# What is left of any tool when its program does nothing: what it costs to be called.
EMPTY = "import time; from bcc import BPF; bpf = BPF(text='{}'); print('1 attached'); time.sleep(9999)"
PROGRAMS = {
    "an empty program before filemap_read (fentry)": "KFUNC_PROBE(filemap_read) { return 0; }",
    "an empty program after filemap_read (fexit)": "KRETFUNC_PROBE(filemap_read) { return 0; }",
    "an empty kprobe of filemap_read": "int kprobe__filemap_read(void *ctx) { return 0; }",
}
TOOLS = {
    **{name: ["python3", "-uc", EMPTY.format(program)] for name, program in PROGRAMS.items()},
    "bcc cachestat": ["python3", "-u", str(BCC), "1"],
    # As it would be if it hooked the functions that reads call since Linux 5.16.
    "bcc cachestat with today's function names": ["python3", "-u", str(CORRECTED), "1"],
    "libbpf-tools cachestat": ["stdbuf", "-oL", LIBBPF, "1"],
}
RENAMED = {"add_to_page_cache_lru": "filemap_add_folio", "mark_page_accessed": "folio_mark_accessed"}


def sh(command: str) -> str:
    """Run a shell command and return its output."""
    return subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout


def prepare_file() -> None:
    """Make the file and have all of it in the cache."""
    block = os.urandom(1 << 20)
    with DATA.open("wb") as file:
        for _ in range(DATA_BYTES // len(block)):
            file.write(block)
        os.fsync(file.fileno())


def fio_ns(reads: int) -> float:
    """Return the CPU time of fio for so many random 4 KiB reads of the cached file, its own start included.

    Not the time that passes: fio looks only every 10 ms whether its thread is done.
    """
    command = (
        "fio --name=c --rw=randread --bs=4k --ioengine=psync --invalidate=0 --norandommap --randseed=1 --thread "
        f"--gtod_reduce=1 --disable_bw=1 --filename={DATA} --size={DATA_BYTES} --io_size={reads * 4096} "
        "--output=/dev/null"
    ).split()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e9 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def ns_per_read(many: int = MANY_READS) -> float:
    """Return the time of one cached random 4 KiB read: what more reads take longer, so that fio's start cancels out."""
    fio_ns(FEW_READS)
    return statistics.mean((fio_ns(many) - fio_ns(FEW_READS)) / (many - FEW_READS) for _ in range(REPETITIONS))


def end_burst() -> None:
    """Have a duty cycle count as much as it wants to at first: until it does not sample any more."""
    sampled, before = 0, -1
    while sampled != before:
        for _ in range(20):
            DATA.read_bytes()
        time.sleep(2.2)
        sampled, before = sample()["duty"]["sampled"], sampled


def sample() -> dict[str, Any]:
    """Return the content of the counters file; empty when there is none or it has no counters."""
    try:
        content = json.loads(COUNTERS_FILE.read_text())
    except (OSError, ValueError):
        return {}
    return dict(content) if content["counters"] else {}


def start_collector(options: str) -> dict[str, float]:
    """Start the collector anew; return how long it takes until it counts, and until its first sample."""
    sh("systemctl stop qmpalloc-collector")
    SETTINGS.write_text(f"OPTIONS={options}\n")
    started = time.monotonic_ns()
    sh("systemctl start qmpalloc-collector")
    ready = time.monotonic_ns()
    while not sample():
        time.sleep(0.005)
    first = sample()["monotonic_ns"]
    return {
        "counting_ns": ready - started,
        "first_sample_ns": first - started,
        "cpu_ns": sample()["collector"]["cpu_ns"],
    }


def import_ns() -> float:
    """Return how long Python takes to load bcc."""
    command = "import time; t = time.monotonic_ns(); import bcc; print(time.monotonic_ns() - t)"
    return float(sh(f'python3 -IB -c "{command}"'))


def kdamond_ns() -> int:
    """Return the CPU time of the kernel's thread that looks at page frames; 0 when there is none."""
    try:
        return int(Path(f"/proc/{DAMON.read_text().strip()}/schedstat").read_text().split()[0])
    except OSError:
        return 0


def idle(seconds: float) -> dict[str, float]:
    """Return what the collector takes while nothing happens: CPU time for each sample and in all, and memory."""
    before, damon_ns = sample(), kdamond_ns()
    time.sleep(seconds)
    after = sample()
    damon_ns = kdamond_ns() - damon_ns
    samples = after["sequence"] - before["sequence"]
    cpu_ns = after["collector"]["cpu_ns"] - before["collector"]["cpu_ns"]
    return {
        "ns_per_sample": cpu_ns / samples,
        "cpu_percent": 100 * cpu_ns / (after["monotonic_ns"] - before["monotonic_ns"]),
        "damon_percent": 100 * damon_ns / (after["monotonic_ns"] - before["monotonic_ns"]),
        "rss_bytes": after["collector"]["rss_bytes"],
        "file_bytes": COUNTERS_FILE.stat().st_size,
    }


def program_stats() -> tuple[int, int]:
    """Return runs and run time, in nanoseconds, of all BPF programs that the collector holds."""
    pid = sh("systemctl show -P MainPID qmpalloc-collector").strip()
    runs = time_ns = 0
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        facts = dict(line.split(":", 1) for line in entry.read_text().splitlines() if ":" in line)
        if "run_cnt" in facts:
            runs += int(facts["run_cnt"])
            time_ns += int(facts["run_time_ns"])
    return runs, time_ns


def pages() -> list[int]:
    """Return different random pages of the file."""
    return random.Random(3).sample(range(DATA_BYTES // mmap.PAGESIZE), EVENTS)


def read_pages(*, cold: bool) -> None:
    """Read the pages one by one, without read-ahead."""
    fd = os.open(DATA, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    if cold:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for page in pages():
        os.pread(fd, mmap.PAGESIZE, page * mmap.PAGESIZE)
    os.close(fd)


def fault_pages() -> None:
    """Touch the pages of the mapped file, none of which is in the cache."""
    fd = os.open(DATA, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    with mmap.mmap(fd, DATA_BYTES, prot=mmap.PROT_READ) as mapping:
        mapping.madvise(mmap.MADV_RANDOM)
        for page in pages():
            mapping[page * mmap.PAGESIZE]
    os.close(fd)


def write_pages() -> None:
    """Write whole pages, one by one, to a new file."""
    path = DATA.with_suffix(".new")
    block = bytes(mmap.PAGESIZE)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    for number in range(EVENTS):
        os.pwrite(fd, block, number * mmap.PAGESIZE)
    os.close(fd)
    path.unlink()


def per_event(act: Callable[[], None]) -> dict[str, float]:
    """Return how often programs ran for each page of a load, and how long, by the kernel's own run-time statistics."""
    runs, time_ns = program_stats()
    act()
    runs_after, time_after_ns = program_stats()
    return {"runs": (runs_after - runs) / EVENTS, "ns": (time_after_ns - time_ns) / EVENTS}


def all_events() -> dict[str, dict[str, float]]:
    """Return what each kind of event costs in the programs."""
    STATS.write_text("1")
    events = {
        "cached read": per_event(lambda: read_pages(cold=False)),
        "read that misses": per_event(lambda: read_pages(cold=True)),
        "page fault that misses": per_event(fault_pages),
        "write of a new page": per_event(write_pages),
    }
    STATS.write_text("0")
    return events


def with_tool(command: list[str]) -> float | str:
    """Return the time of a cached read while another tool counts, or what it says when it does not run here."""
    said = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[:1] and line.split()[0].isdigit():
                break
            said = line.strip() or said
        else:
            return said or "ended without a word"
        result = ns_per_read()
        process.send_signal(signal.SIGINT)
    return result


def main() -> int:
    """Measure what is asked for and print it as JSON."""
    parser = argparse.ArgumentParser(description="Measure what the collector costs.")
    parser.add_argument("--reads", action="store_true", help="the slow-down of cached reads, too (meant for -icount)")
    options = parser.parse_args()
    prepare_file()
    result: dict[str, Any] = {"kernel": os.uname().release, "import_ns": import_ns(), "collector": {}}
    reads: dict[str, float | str] = {}
    for name, words in OPTIONS.items():
        figures: dict[str, Any] = {"start": start_collector(words)}
        time.sleep(3)
        figures["idle"] = idle(30)
        if options.reads:
            prepare_file()
            figures["events"] = all_events()
            prepare_file()
            if "--duty" in words:
                end_burst()
                prepare_file()
            reads[f"the collector, {name}"] = ns_per_read(SECONDS_OF_READS if "--duty" in words else MANY_READS)
        result["collector"][name] = figures
    if options.reads:
        sh("systemctl stop qmpalloc-collector")
        reads["none"] = ns_per_read()
        CORRECTED.write_text(re.sub("|".join(RENAMED), lambda found: RENAMED[found[0]], BCC.read_text()))
        for name, command in TOOLS.items():
            reads[name] = with_tool(command)
        reads["none again"] = ns_per_read()
        result["reads_ns"] = reads
    DATA.unlink()
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
