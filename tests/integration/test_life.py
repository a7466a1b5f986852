"""What happens to a real guest while it is controlled: paused, its collector stopped, its QEMU stopped, ended."""

import os
import signal

import pytest
import trio

from qmpalloc import Controller, load_policy
from qmpalloc.events import Decided, Ended, StateChanged
from qmpalloc.qemu.launcher import open_guests
from qmpalloc.qmp import open_agent, open_monitor

CONTROL = """
[control]
interval = "2s"
command_timeout = "2s"
late_after = "3s"
lost_after = "8s"
"""


async def until(condition, seconds=60):
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await trio.sleep(0.1)


@pytest.mark.timeout(600)
async def test_a_guests_life_under_control(prepared_in, one_guest, tmp_path):
    config, prepared = prepared_in(one_guest.replace("[[guest]]", CONTROL + "[[guest]]", 1), tmp_path)
    events = []

    def states():
        return [event.state for event in events if isinstance(event, StateChanged)]

    async with open_guests(config, prepared=prepared) as guests, trio.open_nursery() as nursery:
        guest = guests[0]
        controller = Controller(config, load_policy("static", {}), events.append)
        nursery.start_soon(controller.run)
        await until(lambda: "fresh" in states())

        async with open_monitor(str(guest.sockets.people)) as person:
            await person.execute("stop")
            await until(lambda: states()[-1] == "paused")
            await person.execute("cont")
            await until(lambda: states()[-1] == "fresh")

        async with open_agent(str(guest.lab_socket)) as lab:
            await lab.run(["systemctl", "stop", "qmpalloc-collector"])
            await until(lambda: states()[-1] == "lost")
            await lab.run(["systemctl", "start", "qmpalloc-collector"])
        await until(lambda: states()[-1] == "fresh", 120)

        os.kill(guest.pid, signal.SIGSTOP)
        try:
            await until(lambda: states()[-1] == "hung")
            assert controller.guests[0].charge_bytes == config.guests[0].baseline
        finally:
            os.kill(guest.pid, signal.SIGCONT)
        await until(lambda: states()[-1] == "fresh")

        os.kill(guest.pid, signal.SIGKILL)
        await until(lambda: states()[-1] == "gone")
        assert controller.guests[0].charge_bytes == 0
        decisions = len([event for event in events if isinstance(event, Decided)])
        await until(lambda: len([event for event in events if isinstance(event, Decided)]) > decisions)
        controller.quit()
    assert isinstance(events[-1], Ended)
    assert events[-1].clean
