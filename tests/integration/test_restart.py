"""A controller that is killed in mid-move and started again: real processes, fake guests on real sockets, real time."""

import json
import signal
import subprocess
import sys

import pytest
import trio

from qmpalloc.sim import Load
from qmpalloc.testing import FakeBalloon, open_simulated_guest
from qmpalloc.units import MIB

pytestmark = pytest.mark.long

BUDGET = 1000
CONFIG = """
[host]
budget = "1000MiB"
[control]
interval = "500ms"
sample_interval = "200ms"
late_after = "2s"
[policy]
name = "paper"
step = "64MiB"
threshold = 1e12
"""
GUEST = """
[[guest]]
name = "{name}"
monitor = "{name}.qmp"
agent = "{name}.agent"
floor = "200MiB"
cap = "800MiB"
baseline = "500MiB"
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    file = tmp_path / "lab.toml"
    file.write_text(CONFIG + GUEST.format(name="small") + GUEST.format(name="large"))
    return file


def start(config, out):
    arguments = [sys.executable, "-m", "qmpalloc", "run", str(config), "--headless", "--out", str(out)]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def events(out, kind):
    try:
        lines = (out / "record.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in whole if event["type"] == kind]


async def until(condition):
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await trio.sleep(0.05)


async def wait_for(process):
    with trio.fail_after(30):
        return await trio.to_thread.run_sync(process.communicate)


async def guest(nursery, directory, name, file_mib):
    balloon = FakeBalloon(800 * MIB, inflate_bytes_per_s=80 * MIB, deflate_bytes_per_s=300 * MIB)
    balloon.request(500 * MIB)
    load = Load(file_pages=file_mib * 256, accesses_per_s=2000.0)

    async def live(*, task_status):
        async with open_simulated_guest(
            name, directory, load=load, memory_bytes=800 * MIB, balloon=balloon, interval_s=0.2
        ) as simulated:
            task_status.started(simulated)
            await trio.sleep_forever()

    return await nursery.start(live)


async def test_a_controller_killed_in_mid_move_and_started_again(config, tmp_path):
    async with trio.open_nursery() as nursery:
        small = await guest(nursery, tmp_path, "small", 100)
        large = await guest(nursery, tmp_path, "large", 900)
        balloons = [small.qemu.balloon, large.qemu.balloon]
        await until(lambda: sum(balloon.actual_bytes for balloon in balloons) == BUDGET * MIB)
        worst = 0

        async def watch():
            nonlocal worst
            while True:
                worst = max(worst, sum(max(each.actual_bytes, each.target_bytes) for each in balloons))
                await trio.sleep(0.01)

        nursery.start_soon(watch)
        first = start(config, tmp_path / "first")
        # In mid-move: the donor was told, and is on its way.
        await until(lambda: small.qemu.balloon.moving and small.qemu.balloon.target_bytes < 500 * MIB)
        first.send_signal(signal.SIGKILL)
        await wait_for(first)
        left = {"small": small.qemu.balloon.target_bytes, "large": large.qemu.balloon.target_bytes}

        second = start(config, tmp_path / "second")
        await until(lambda: len(events(tmp_path / "second", "decision")) >= 2)
        third = start(config, tmp_path / "third")
        _, message = await wait_for(third)
        assert third.returncode == 1
        assert f"process {second.pid}" in message
        assert not (tmp_path / "third").exists()

        adopted = [event for event in events(tmp_path / "second", "command") if event["purpose"] == "adopt"]
        assert {event["guest"] for event in adopted} == {"small", "large"}
        assert all(left["small"] - MIB <= event["target_bytes"] <= 800 * MIB for event in adopted)
        config.write_text(config.read_text().replace('cap = "800MiB"', 'cap = "790MiB"', 1))
        second.send_signal(signal.SIGUSR1)
        await until(lambda: events(tmp_path / "second", "reload"))
        assert events(tmp_path / "second", "reload")[0]["guests"][0]["cap_bytes"] == 790 * MIB

        second.send_signal(signal.SIGTERM)
        _, message = await wait_for(second)
        assert second.returncode == 130, message
        assert [balloon.actual_bytes for balloon in balloons] == [500 * MIB] * 2
        assert worst <= BUDGET * MIB
        nursery.cancel_scope.cancel()
