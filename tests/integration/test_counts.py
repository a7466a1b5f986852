"""What the host sees of a guest is what the guest did, through the whole path: kernel, collector, file, agent, host.

Run on both kernels that the reference images have: 6.12 with the multi-generational LRU, 6.1 with two lists.
"""

import pytest

from qmpalloc import open_guest
from qmpalloc.qmp import open_agent

FILE_PAGES = 25_600
TOLERANCE = FILE_PAGES * 5 // 1000
SUITES = {"trixie": ("6.12.", "lru_gen"), "bookworm": ("6.1.", "two_list")}


@pytest.fixture(scope="module", params=list(SUITES))
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
