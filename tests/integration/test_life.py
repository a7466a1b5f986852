"""What happens to a real guest under control: squeezed, paused, reset, its agent, collector and QEMU killed."""

import os
import signal

import msgspec
import pytest
import trio

from qmpalloc import Controller
from qmpalloc.events import Commanded, Decided, Ended, Faulted, StateChanged
from qmpalloc.model import Limiter, hold
from qmpalloc.qemu.launcher import open_guests
from qmpalloc.qmp import open_agent, open_monitor
from qmpalloc.units import MIB

pytestmark = pytest.mark.long

CONTROL = """
[control]
interval = "2s"
command_timeout = "2s"
late_after = "3s"
lost_after = "8s"
"""
SQUEEZED = 288 * MIB

ALLOCATE = """
import time
kept = []
while len(kept) < 40:
    kept.append(b"x" * (4 << 20))
    time.sleep(0.2)
time.sleep(5)
"""


class Wish:
    """A policy that wants what the test wants."""

    def __init__(self):
        self.target_bytes = None

    def decide(self, snapshot):
        decision = hold(snapshot, "as wished")
        if self.target_bytes is None:
            return decision
        guests = tuple(msgspec.structs.replace(guest, target_bytes=self.target_bytes) for guest in decision.guests)
        return msgspec.structs.replace(decision, guests=guests)


class Life:
    """One guest under control, and what was reported of it."""

    def __init__(self, guest, config):
        self.guest = guest
        self.wish = Wish()
        self.events = []
        self.controller = Controller(config, self.wish, self.events.append)

    @property
    def charge_bytes(self):
        return self.controller.guests[0].charge_bytes

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, condition, seconds=180):
        with trio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110 - what it waits for has no event
                await trio.sleep(0.1)

    async def until_state(self, state, seconds=180):
        await self.until(lambda: self.of(StateChanged)[-1].state == state, seconds)


async def squeeze(life):
    """Its memory is taken, then a process needs it: the baseline comes back in one command, and the process lives."""
    life.wish.target_bytes = SQUEEZED
    await life.until(lambda: life.controller.guests[0].size.actual_bytes == SQUEEZED)
    life.wish.target_bytes = None
    before = len(life.events)
    async with open_agent(str(life.guest.lab_socket)) as lab:
        pid = await lab.start(["python3", "-c", ALLOCATE])
        with trio.fail_after(180):
            while (ended := await lab.poll(pid)) is None:  # noqa: ASYNC110 - the agent has to be asked
                await trio.sleep(0.5)
    since = life.events[before:]
    told = next(event for event in since if isinstance(event, Faulted) and event.kind == "danger")
    assert "available" in told.message or "by itself" in told.message, told
    decided = next(event for event in since if isinstance(event, Decided) and event.t >= told.t)
    assert decided.decision.guests[0].limiter is Limiter.DANGER
    assert decided.t - told.t < 0.1
    # Before, its floor may have risen with its need; from here on it is the baseline at once.
    commands = [event.target_bytes for event in since if isinstance(event, Commanded) and event.t >= told.t]
    assert commands == [512 * MIB]
    assert ended.exit_code == 0


async def pause(life):
    async with open_monitor(str(life.guest.sockets.people)) as person:
        await person.execute("stop")
        await life.until_state("paused")
        await person.execute("cont")
        await life.until_state("fresh")


async def kill_agent(life):
    async with open_agent(str(life.guest.lab_socket)) as lab:
        await lab.run(["systemctl", "kill", "--signal=KILL", "qemu-guest-agent"])
        await lab.run(["systemctl", "stop", "qemu-guest-agent"])
        await life.until_state("late")
        await lab.run(["systemctl", "start", "qemu-guest-agent"])
    await life.until_state("fresh")


async def kill_collector(life):
    async with open_agent(str(life.guest.lab_socket)) as lab:
        await lab.run(["systemctl", "kill", "--signal=KILL", "qmpalloc-collector"])
        await lab.run(["systemctl", "stop", "qmpalloc-collector"])
        await life.until_state("lost")
        await lab.run(["systemctl", "start", "qmpalloc-collector"])
    await life.until_state("fresh")


async def stop_qemu(life):
    os.kill(life.guest.pid, signal.SIGSTOP)
    try:
        await life.until_state("hung")
        assert life.charge_bytes == 512 * MIB
    finally:
        os.kill(life.guest.pid, signal.SIGCONT)
    await life.until_state("fresh")


async def reset(life):
    """It is charged with all its memory until its driver works; what that tells first is no danger."""
    before = len(life.events)
    async with open_monitor(str(life.guest.sockets.people)) as person:
        await person.execute("set-action", {"reboot": "reset"})  # it was started with -no-reboot
        await person.execute("system_reset")
    await life.until_state("lost")
    assert life.charge_bytes == 768 * MIB  # it may use all of it until its driver works
    await life.until_state("fresh", 180)
    await life.until(lambda: life.charge_bytes == 512 * MIB)
    since = life.events[before:]
    assert not [event for event in since if isinstance(event, Faulted) and event.kind == "danger"]
    assert {event.target_bytes for event in since if isinstance(event, Commanded)} <= {512 * MIB}


async def kill_qemu(life):
    os.kill(life.guest.pid, signal.SIGKILL)
    await life.until_state("gone")
    assert life.charge_bytes == 0
    decisions = len(life.of(Decided))
    await life.until(lambda: len(life.of(Decided)) > decisions)


@pytest.mark.timeout(900)
async def test_a_guests_life_under_control(prepared_in, one_guest, tmp_path):
    config, prepared = prepared_in(one_guest.replace("[[guest]]", CONTROL + "[[guest]]", 1), tmp_path)
    async with open_guests(config, prepared=prepared) as guests, trio.open_nursery() as nursery:
        life = Life(guests[0], config)
        nursery.start_soon(life.controller.run)
        await life.until(lambda: life.of(StateChanged))
        await life.until_state("fresh")
        for happens in (squeeze, pause, kill_agent, kill_collector, stop_qemu, reset, kill_qemu):
            print(f"{trio.current_time():.1f} {happens.__name__}")
            await happens(life)
        print(f"{trio.current_time():.1f} end")
        life.controller.quit()
    assert isinstance(life.events[-1], Ended)
    assert life.events[-1].clean
