"""The program that reads in the guests, run here: as a module, and as a program of its own on temporary files."""

import ast
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpalloc.experiment.analysis import latency
from qmpalloc.experiment.run.generator import loops, service
from qmpalloc.experiment.run.generator.progress import GaveUpError
from qmpalloc.experiment.run.generator.tally import BUCKETS, Tally, bucket
from qmpalloc.experiment.run.shipping import GENERATOR, packed_generator
from qmpalloc.experiment.run.traces import footprint
from qmpalloc.experiment.spec import parsing, references
from qmpalloc.experiment.store.records import LoadProgress, Service
from qmpalloc.units import PAGE_BYTES

PAGES = 2048


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_the_host_knows_what_a_bucket_counts(latency_ns):
    number = bucket(latency_ns)
    assert number < BUCKETS
    assert latency.lower_bound_ns(number) <= latency_ns < latency.lower_bound_ns(number + 1)


def test_it_stands_alone(program, tmp_path):
    """It is shipped as one file: nothing but the standard library, and no other file is needed."""
    modules = [ast.parse(path.read_text()) for path in GENERATOR.glob("*.py")]
    for node in (node for tree in modules for node in ast.walk(tree)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert all(name.split(".")[0] in sys.stdlib_module_names for name in names)
    done = subprocess.run([sys.executable, "-I", program, "--help"], cwd=tmp_path, capture_output=True, check=True)
    assert b"read-through" in done.stdout


def test_it_is_the_same_at_any_time():
    assert packed_generator() == packed_generator()


# --- the loop that waits for its reads ----------------------------------------------------------------------


class Disk:
    """Reads that take as long as it is told, on a clock that only they and sleeping move."""

    def __init__(self, *, takes_ns=0, bad=()):
        self.now_ns = 0
        self.takes_ns = takes_ns
        self.bad = set(bad)
        self.read_pages = []
        self.sleeps = []

    def clock(self):
        return self.now_ns

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now_ns += round(seconds * 1e9)

    def read(self, offset):
        page, rest = divmod(offset, PAGE_BYTES)
        assert rest == 0
        self.read_pages.append(page)
        self.now_ns += self.takes_ns
        if page in self.bad:
            raise OSError(5, "Input/output error")
        return PAGE_BYTES


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 511, 512, 513, 5000])
def test_every_reference_is_read_once_in_order_and_every_eighth_timed(count):
    pages = array("I", [random.Random(count).randrange(PAGES) for _ in range(count)])
    disk, tally = Disk(takes_ns=20_000), Tally()
    loops.closed_loop(disk.read, pages, tally, clock=disk.clock)
    assert disk.read_pages == list(pages)
    assert (tally.reads, tally.errors) == (count, 0)
    assert sum(tally.buckets) == tally.buckets[bucket(20_000)] == -(-count // 8)


def test_reads_that_fail_are_counted_and_the_others_go_on():
    disk, tally = Disk(bad={3, 8}), Tally()
    loops.closed_loop(disk.read, array("I", range(20)), tally, clock=disk.clock)
    assert (tally.reads, tally.errors) == (20, 2)
    assert disk.read_pages == list(range(20))


def test_short_reads_are_errors():
    tally = Tally()
    loops.closed_loop(lambda offset: 4096 if offset < 16 * 4096 else 0, array("I", range(20)), tally)
    assert (tally.reads, tally.errors) == (20, 4)


def test_when_nothing_works_it_gives_up_early():
    disk, tally = Disk(bad=range(PAGES)), Tally()
    with pytest.raises(GaveUpError, match="Input/output error"):
        loops.closed_loop(disk.read, array("I", [1]) * 100_000, tally, clock=disk.clock)
    assert tally.reads < 1000


# --- the loop with a rate -----------------------------------------------------------------------------------


@given(st.floats(min_value=0.1, max_value=1e6))
def test_bursts_keep_the_rate_and_are_no_further_apart_than_they_need_be(rate):
    bursts = loops.Bursts(rate, 5)
    assert bursts.due_ns(0) == 5
    number = 1000
    assert (bursts.due_ns(number) - 5) / 1e9 == pytest.approx(number * bursts.reads / rate, rel=1e-6)
    apart_s = bursts.reads / rate
    assert apart_s <= loops.BURST_S * 1.5 or bursts.reads == 1


def open_loop(disk, **others):
    return loops.OpenLoop(disk.read, disk.read, clock=disk.clock, sleep=disk.sleep, **others)


def total(loop):
    reads = sum(tally.reads for tally in loop.tallies)
    buckets = [sum(counts) for counts in zip(*(tally.buckets for tally in loop.tallies), strict=True)]
    return reads, {number: count for number, count in enumerate(buckets) if count}


def test_reads_are_due_at_the_rate_whatever_they_take():
    disk = Disk(takes_ns=10_000)
    loop = open_loop(disk)
    loop.run(array("I", range(400)), 4000.0)
    assert disk.read_pages == list(range(400))
    # Ten bursts of 40: the last is due after 90 ms and takes 0.4 ms.
    assert disk.now_ns == 90_000_000 + 400_000
    assert len(disk.sleeps) == 9
    reads, counts = total(loop)
    assert reads == sum(counts.values()) == 400
    assert max(counts) == bucket(400_000)  # who is last in a burst has waited for the others


def test_what_falls_behind_queues_and_its_waiting_counts():
    disk = Disk(takes_ns=1_000_000)  # one a millisecond, but four are due
    loop = open_loop(disk)
    loop.run(array("I", range(400)), 4000.0)
    assert disk.read_pages == list(range(400))
    assert not disk.sleeps
    reads, counts = total(loop)
    assert reads == 400
    # The last read ends at 400 ms and was due at 90 ms.
    assert max(counts) == bucket(310_000_000)


def test_a_slow_read_holds_no_other_up():
    """All reads of one page wait for the disk; the others, and each other, they do not keep."""
    together = threading.Barrier(loops.WORKERS)

    def read(_offset):
        together.wait(timeout=30)  # returns when all workers are in a read at the same time
        return PAGE_BYTES

    cached = []

    def read_now(offset):
        if offset == 0:
            raise BlockingIOError
        cached.append(offset)
        return PAGE_BYTES

    loop = loops.OpenLoop(read, read_now)
    loop.run(array("I", ([0] * loops.WORKERS + [1] * 100) * 2), 1e6)
    assert len(cached) == 200
    assert loop.tallies[0].reads == 200
    assert total(loop)[0] == 2 * (loops.WORKERS + 100)


def test_an_open_loop_counts_errors_and_gives_up_when_nothing_works():
    disk = Disk(bad={3})
    loop = open_loop(disk)
    loop.run(array("I", [3, 4, 5]), 1000.0)
    assert (sum(tally.reads for tally in loop.tallies), loop.tallies[0].errors) == (3, 1)
    disk = Disk(bad=range(PAGES))
    with pytest.raises(GaveUpError, match="Input/output error"):
        open_loop(disk).run(array("I", [1]) * 10_000, 1000.0)
    assert len(disk.read_pages) < 2000


# --- as a program -------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "load.dat"
    path.write_bytes(os.urandom(PAGE_BYTES) * PAGES)
    return path


@pytest.fixture
def start(tmp_path, file, program):
    """Return a function that starts the program on phases, given as dicts with references under ``pages``."""
    processes = []

    def start(*phases, go=True):
        described = []
        for number, phase in enumerate(phases):
            trace = tmp_path / f"trace{number}"
            trace.write_bytes(array("I", phase["pages"]).tobytes())
            defaults = {"name": f"p{number}", "file": str(file), "readahead": False, "rate": 0.0,
                        "duration": 0.0}  # fmt: skip
            described.append(defaults | {k: v for k, v in phase.items() if k != "pages"} | {"trace": str(trace)})
        plan = {"progress": str(tmp_path / "progress"), "go": str(tmp_path / "go"), "phases": described}
        (tmp_path / "plan").write_text(json.dumps(plan))
        if go:
            (tmp_path / "go").touch()
        process = subprocess.Popen([sys.executable, program, "run", tmp_path / "plan"], stderr=subprocess.PIPE)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def progress(tmp_path):
    def progress():
        try:
            return msgspec.json.decode((tmp_path / "progress").read_bytes(), type=LoadProgress)
        except FileNotFoundError:
            return None

    return progress


def test_phases_run_one_after_the_other(tmp_path, start, progress):
    references = [random.Random(1).randrange(PAGES) for _ in range(5000)]
    process = start({"pages": references}, {"pages": references[:400], "rate": 4000.0, "readahead": True})
    assert process.wait(30) == 0
    found = progress()
    assert found.finished
    assert not found.error
    first, second = found.phases
    assert (first.name, first.reads, first.errors, first.done) == ("p0", 5000, 0, True)
    assert (second.name, second.reads, second.errors, second.done) == ("p1", 400, 0, True)
    assert sum(first.latency.values()) == 625
    assert sum(second.latency.values()) == 400
    assert first.started_s + first.seconds <= second.started_s <= found.monotonic_s
    assert second.seconds >= 0.09
    assert sorted(path.name for path in tmp_path.iterdir()) == ["go", "load.dat", "plan", "progress"]


def test_it_waits_for_the_go_file(tmp_path, start, progress):
    process = start({"pages": [1] * 10}, go=False)
    while progress() is None:
        assert process.poll() is None
    armed = progress()
    assert (armed.sequence, armed.phases, armed.finished) == (0, (), False)
    assert not (tmp_path / "trace0").exists()
    (tmp_path / "go").touch()
    assert process.wait(30) == 0
    assert progress().finished


def test_sigterm_ends_it_and_is_no_finished_load(start, progress):
    process = start({"pages": [1] * 100_000, "rate": 100.0})
    while not (found := progress()) or not found.phases or not found.phases[0].reads:
        assert process.poll() is None
    process.terminate()
    assert process.wait(30) == 1
    found = progress()
    assert found.error == f"stopped by signal {signal.SIGTERM.value}"
    assert not found.finished
    assert not found.phases[0].done
    assert 0 < found.phases[0].reads < 100_000


def test_a_missing_file_is_said_before_anything_is_read(tmp_path, start, progress):
    process = start({"pages": [1]}, {"pages": [1], "file": str(tmp_path / "none")}, go=False)
    assert process.wait(30) == 1
    found = progress()
    assert "No such file" in found.error
    assert str(tmp_path / "none") in found.error
    assert found.phases == ()


def test_a_file_that_is_too_short_is_counted(start, progress):
    process = start({"pages": [1, PAGES, PAGES + 1, 2]})
    assert process.wait(30) == 0
    assert (progress().phases[0].reads, progress().phases[0].errors) == (4, 2)


def test_read_through_and_service(tmp_path, file, program):
    assert subprocess.run([sys.executable, program, "read-through", file], check=False).returncode == 0
    missing = subprocess.run(
        [sys.executable, program, "read-through", tmp_path / "none"], capture_output=True, check=False
    )
    assert missing.returncode == 1
    assert b"No such file" in missing.stderr


def test_service_measures_both_kinds_of_reads(monkeypatch, file):
    monkeypatch.setattr(service, "HIT_S", 0.01)
    found = msgspec.convert(service.measure_service(str(file)), Service)
    assert found.hits >= 64
    assert 1 <= found.misses <= service.MISS_MAX  # though the file is read before the disk can have settled
    assert found.hit_s > 0
    assert found.miss_s > 0


def test_misses_that_ride_on_a_burst_are_not_counted():
    """A bucket like QEMU's: a tenth of a second of requests at once, then one every 2 ms."""
    disk, level, seen_s = Disk(), 0.0, 0.0
    limit = 500.0

    def read(_offset):
        nonlocal level, seen_s
        now_s = disk.now_ns / 1e9
        level, seen_s = max(0.0, level - (now_s - seen_s) * limit), now_s
        wait_s = max(0.0, level - limit / 10) / limit
        level += 1
        disk.now_ns += round((wait_s + 400e-6) * 1e9)
        return PAGE_BYTES

    misses, miss_s = service._time_misses(read, range(0, 2_000 * 4096, 4096), lambda: disk.now_ns / 1e9)
    assert misses == service.MISS_MAX
    assert miss_s == pytest.approx(1 / limit, rel=0.02)


# --- what is read -------------------------------------------------------------------------------------------


def recorded(phase, guest="g1"):
    """Return the pages that the generator reads for a phase, as they come to the disk."""
    text = """
        [experiment]
        name = "try"
        budget = "256MiB"
        [[guest]]
        name = "{guest}"
        memory = "256MiB"
        floor = "128MiB"
        cap = "256MiB"
        baseline = "128MiB"
        [[guest.phase]]
        {phase}
        [[arm]]
        name = "static"
        policy = "static"
    """
    text = "\n".join(line.strip() for line in text.format(guest=guest, phase=phase).splitlines())
    specification = parsing.parse(text, file=Path("/try.toml"))
    described = specification.guests[0]
    pages = array("I", references.phase_pages(specification, described, described.phases[0]))
    disk = Disk()
    loops.closed_loop(disk.read, pages, Tally(), clock=disk.clock)
    return disk.read_pages, described.phases[0]


NORMAL = 'file = "32MiB"\naccess = { distribution = "normal", deviation = 0.125 }\nreads = 10000\nrounds = 20'


def test_a_normal_load_is_really_normal_around_the_middle():
    pages, phase = recorded(NORMAL)
    count, middle, deviation = len(pages), phase.pages / 2, 0.125 * phase.pages
    shifted = [page + 0.5 for page in pages]
    # Four deviations fit into the file on each side: what is truncated shows in no digit here.
    assert statistics.fmean(shifted) == pytest.approx(middle, abs=4 * deviation / count**0.5)
    assert statistics.stdev(shifted) == pytest.approx(deviation, rel=0.01)
    normal = statistics.NormalDist(middle, deviation)
    for share, value in zip(range(1, 20), statistics.quantiles(shifted, n=20), strict=True):
        assert value == pytest.approx(normal.inv_cdf(share / 20), abs=0.02 * deviation)
    skewness = statistics.fmean(((page - middle) / deviation) ** 3 for page in shifted)
    kurtosis = statistics.fmean(((page - middle) / deviation) ** 4 for page in shifted)
    assert skewness == pytest.approx(0, abs=0.03)
    assert kurtosis == pytest.approx(3, abs=0.1)
    # Neighbours are about equally popular: nothing is hashed. In eight bands of the file, left and right alike.
    bands = [
        sum(band * phase.pages // 8 <= page < (band + 1) * phase.pages // 8 for page in pages) for band in range(8)
    ]
    for left, right in zip(bands[:4], reversed(bands[4:]), strict=True):
        assert left == pytest.approx(right, abs=5 * (left + right) ** 0.5)


def test_the_whole_file_is_reachable_and_the_footprint_is_what_was_computed():
    pages, phase = recorded(NORMAL.replace("0.125", "0.3").replace('"32MiB"', '"4MiB"'))
    assert set(pages) == set(range(phase.pages))
    pages, phase = recorded(NORMAL)
    computed = footprint(array("I", pages), phase.pages)
    assert computed.distinct_pages == len(set(pages))
    # Expected number of pages touched: sum over pages of 1 - (1 - p) ** n.
    normal = statistics.NormalDist(phase.pages / 2, 0.125 * phase.pages)
    inside = normal.cdf(phase.pages) - normal.cdf(0)
    chances = [(normal.cdf(page + 1) - normal.cdf(page)) / inside for page in range(phase.pages)]
    expected = sum(1 - (1 - chance) ** len(pages) for chance in chances)
    assert computed.distinct_pages == pytest.approx(expected, rel=0.01)


def test_equal_seeds_give_equal_reads_and_guests_differ():
    short = NORMAL.replace("rounds = 20", "rounds = 1")
    assert recorded(short) == recorded(short)
    assert recorded(short)[0] != recorded(short, guest="g2")[0]


def test_progress_is_written_while_it_runs(tmp_path, start, progress):
    """By a timer in the generator; this waits for two writings of a load that lasts."""
    process = start({"pages": [1] * 100_000, "rate": 1000.0})
    sequences = set()
    until = time.monotonic() + 30
    while len(sequences) < 3:
        assert process.poll() is None
        assert time.monotonic() < until
        if (found := progress()) is not None:
            sequences.add(found.sequence)
        time.sleep(0.01)
    assert not (tmp_path / "progress.new").exists() or process.poll() is None


# --- by time ------------------------------------------------------------------------------------------------


def test_reads_by_time_go_over_their_references_until_it_is_over(start, progress):
    process = start({"pages": [1, 2, 3] * 40, "duration": 0.5}, {"pages": [4] * 10})
    assert process.wait(30) == 0
    timed, last = progress().phases
    assert timed.reads > 120
    assert timed.seconds > 0.45
    assert (timed.done, last.reads) == (True, 10)


def test_reads_with_a_rate_by_time_are_as_many_as_there_is_time_for(start, progress):
    process = start({"pages": [1, 2, 3] * 40, "rate": 1000.0, "duration": 0.5})
    assert process.wait(30) == 0
    (timed,) = progress().phases
    assert 120 < timed.reads <= 500


def test_time_ends_within_the_references_and_what_was_read_is_counted():
    disk, tally = Disk(takes_ns=1_000), Tally()
    loops.closed_loop(disk.read, array("I", range(2000)), tally, until_ns=800_000, clock=disk.clock)
    assert tally.reads == len(disk.read_pages) == 800


def test_reads_that_wait_when_the_time_is_over_are_not_begun():
    disk, began, over = Disk(), threading.Event(), threading.Event()

    def read(offset):
        began.set()
        over.wait(30)
        return disk.read(offset)

    def read_now(_offset):
        raise BlockingIOError

    def sleep(seconds):
        began.wait(30)
        disk.sleep(seconds)

    loop = loops.OpenLoop(read, read_now, clock=disk.clock, sleep=sleep)
    threading.Timer(0.2, over.set).start()
    loop.run(array("I", range(1000)), 1e5, until_ns=20_000_000)
    assert 1 <= sum(tally.reads for tally in loop.tallies) <= loops.WORKERS
