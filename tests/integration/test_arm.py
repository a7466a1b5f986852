"""A guest of arm64, on any host: what it reads is counted exactly, and a controller moves its memory."""

import msgspec
import pytest
import trio

from qmpalloc import Controller, open_guest
from qmpalloc.model import hold
from qmpalloc.qmp import open_agent, open_monitor
from qmpalloc.units import MIB

pytestmark = [pytest.mark.arm, pytest.mark.timeout(3600)]
FILE_PAGES = 25_600
MOVED = 384 * MIB


@pytest.fixture(scope="module")
def far(one_guest, prepared_in, run_in_background, tmp_path_factory):
    """The configuration, and its guest."""
    text = one_guest.replace('memory = "768MiB"', 'memory = "768MiB"\narch = "arm64"')
    loaded, prepared = prepared_in(text, tmp_path_factory.mktemp("far"))
    with run_in_background(loaded, prepared) as guests:
        yield loaded, guests[0]


async def test_it_is_what_it_should_be_and_all_of_it_started(far):
    async with open_agent(str(far[1].lab_socket)) as lab:
        assert (await lab.run(["uname", "-m"])).out == b"aarch64\n"
        failed = await lab.run(["systemctl", "list-units", "--failed", "--no-legend", "--plain"])
        assert failed.out == b""
        assert b"ttyAMA0" in (await lab.run(["systemctl", "list-units", "serial-getty@*"])).out


async def test_a_cold_read_misses_and_a_warm_one_hits(far):
    async def read():
        await guest.next_delta(1.5)
        result = await lab.run(["dd", "if=/data/exact.dat", "of=/dev/null", "bs=1M"])
        assert result.exit_code == 0, result.err
        return (await guest.next_delta(2.5)).delta

    async with (
        open_guest(str(far[1].sockets.monitor), str(far[1].sockets.agent)) as guest,
        open_agent(str(far[1].lab_socket)) as lab,
    ):
        await read()  # dd and its libraries are in memory now
        assert (await lab.run(["dd", "if=/data/exact.dat", "iflag=nocache", "count=0"])).exit_code == 0
        cold, warm = await read(), await read()
    print(cold, warm)
    tolerance = FILE_PAGES * 5 // 1000
    assert abs(cold.misses - FILE_PAGES) <= tolerance
    assert abs(cold.accesses - FILE_PAGES) <= tolerance
    assert abs(warm.hits - FILE_PAGES) <= tolerance
    assert warm.misses <= tolerance
    assert cold.events_lost == warm.events_lost == 0


class Wish:
    """A policy that wants one size."""

    def decide(self, snapshot):
        decision = hold(snapshot, "as wished")
        guests = tuple(msgspec.structs.replace(guest, target_bytes=MOVED) for guest in decision.guests)
        return msgspec.structs.replace(decision, guests=guests)


async def test_a_controller_moves_its_memory(far):
    loaded, guest = far
    controller = Controller(loaded, Wish(), lambda event: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(controller.run)
        with trio.fail_after(600):
            while controller.guests[0].size.actual_bytes != MOVED:  # noqa: ASYNC110 - it has no event
                await trio.sleep(0.5)
        controller.quit()
    async with open_monitor(str(guest.sockets.monitor)) as monitor:
        assert await monitor.query_balloon() == guest.config.baseline
