"""What the host sees of a guest is what the guest did, through the whole path: kernel, collector, file, agent, host.

Run on both kernels that the reference images have: 6.12 with the multi-generational LRU, 6.1 with two lists.
"""

import math

import numpy as np
import pytest

from qmpalloc import open_guest
from qmpalloc.qmp import open_agent
from qmpalloc.returns import EDGES

FILE_PAGES = 25_600
TOLERANCE = FILE_PAGES * 5 // 1000
SUITES = {"trixie": ("6.12.", "lru_gen"), "bookworm": ("6.1.", "two_list")}


@pytest.fixture(scope="module", params=["trixie", pytest.param("bookworm", marks=pytest.mark.long)])
def suite(request):
    return request.param


@pytest.fixture(scope="module")
def running(suite, one_guest, prepared_in, run_in_background, tmp_path_factory):
    text = one_guest.replace('memory = "768MiB"', f'memory = "768MiB"\nsuite = "{suite}"')
    with run_in_background(*prepared_in(text, tmp_path_factory.mktemp(suite))) as guests:
        yield guests[0]


async def read_whole_file(lab, guest):
    """Return what the host sees of one sequential read of the file."""
    await guest.next_delta(1.5)
    result = await lab.run(["dd", "if=/data/exact.dat", "of=/dev/null", "bs=1M"])
    assert result.exit_code == 0, result.err
    return (await guest.next_delta(2.5)).delta


async def test_a_cold_read_misses_and_a_warm_one_hits(running, suite):
    async with (
        open_guest(str(running.sockets.monitor), str(running.sockets.agent)) as guest,
        open_agent(str(running.lab_socket)) as lab,
    ):
        assert (await lab.run(["sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches"])).exit_code == 0
        await read_whole_file(lab, guest)  # dd and its libraries are in memory now
        assert (await lab.run(["dd", "if=/data/exact.dat", "iflag=nocache", "count=0"])).exit_code == 0
        cold = await read_whole_file(lab, guest)
        warm = await read_whole_file(lab, guest)
        sample = await guest.read_sample()
    print(suite, sample.kernel, cold, warm)
    release, lru = SUITES[suite]
    assert sample.kernel.startswith(release)
    assert sample.lru == lru
    assert abs(cold.misses - FILE_PAGES) <= TOLERANCE
    assert abs(cold.accesses - FILE_PAGES) <= TOLERANCE
    assert abs(warm.hits - FILE_PAGES) <= TOLERANCE
    assert warm.misses <= TOLERANCE
    assert cold.events_lost == warm.events_lost == 0


PAGES = 2_000
BRING_IN = f"""
import mmap, random
pages = random.Random(1).sample(range({FILE_PAGES}), {PAGES})
with open("/data/exact.dat", "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
mapped.madvise(mmap.MADV_RANDOM)
for page in pages:
    mapped[page * mmap.PAGESIZE]
own = mmap.mmap(-1, {PAGES} * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range({PAGES}):
    own[page * mmap.PAGESIZE] = 1
own.madvise(21)  # MADV_PAGEOUT: to swap
for page in range({PAGES}):
    own[page * mmap.PAGESIZE]
"""
ZRAM = "modprobe zram && echo 64M >/sys/block/zram0/disksize && mkswap -q /dev/zram0 && swapon /dev/zram0"


async def test_page_ins_are_told_by_cause(running):
    async with (
        open_guest(str(running.sockets.monitor), str(running.sockets.agent)) as guest,
        open_agent(str(running.lab_socket)) as lab,
    ):
        for command in (["sh", "-c", ZRAM], ["python3", "-c", "import mmap, random"]):
            result = await lab.run(command)
            assert result.exit_code == 0, result.err
        assert (await lab.run(["dd", "if=/data/exact.dat", "iflag=nocache", "count=0"])).exit_code == 0
        await guest.next_delta(1.5)
        result = await lab.run(["python3", "-c", BRING_IN])
        assert result.exit_code == 0, result.err
        seen = (await guest.next_delta(2.5)).delta
        sample = await guest.read_sample()
    assert seen is not None
    print(sample.kernel, seen)
    tolerance = PAGES // 20  # programs are mapped files, too
    assert abs(seen.page_ins.faults - PAGES) <= tolerance
    assert abs(seen.faults_major - PAGES) <= tolerance
    assert abs(seen.page_ins.swap_ins - PAGES) <= tolerance
    assert abs(seen.page_ins.swap_ins_zram - PAGES) <= tolerance
    assert abs(seen.refaults_anon - PAGES) <= tolerance
    assert abs(seen.page_ins.from_disks - PAGES) <= tolerance
    assert sample.memory_bytes.swap_total > 60 << 20


GONE = 12_800
TOUCH = f"""
import mmap
with open("/data/exact.dat", "r+b") as file:
    mapped = mmap.mmap(file.fileno(), {GONE} * mmap.PAGESIZE)
mapped.madvise(mmap.MADV_RANDOM)
for page in range({GONE}):
    mapped[page * mmap.PAGESIZE]
"""
EVICT = f"{TOUCH}mapped.madvise(21)  # MADV_PAGEOUT"
EVICTED_BY_BIN = np.histogram(np.arange(GONE // 64), np.append(16 * np.array(EDGES), math.inf))[0]
"""Watched pages, which had gone for 0 to 199 others."""


async def test_how_far_evicted_pages_had_gone_is_told(running):
    """Evicted in order and touched again in order, each page had gone for one less than the one before it."""
    async with (
        open_guest(str(running.sockets.monitor), str(running.sockets.agent)) as guest,
        open_agent(str(running.lab_socket)) as lab,
    ):
        result = await lab.run(["python3", "-c", EVICT])
        assert result.exit_code == 0, result.err
        await guest.next_delta(1.5)
        result = await lab.run(["python3", "-c", TOUCH])
        assert result.exit_code == 0, result.err
        seen = (await guest.next_delta(2.5)).delta
    told = seen.refault_distances
    print(seen, told)
    assert told.pages_each * EVICTED_BY_BIN.sum() == GONE
    assert np.abs(np.array(told.fault) - EVICTED_BY_BIN).sum() <= 5  # programs are evicted, too
    assert sum(told.read) <= 5
