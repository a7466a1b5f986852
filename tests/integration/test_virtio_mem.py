"""A guest with virtio-mem, as 'vm up' starts it: what is plugged is used, what is asked back comes back to the host."""

import re
from pathlib import Path

import pytest
import trio

from qmpalloc.control.handle import open_guest
from qmpalloc.qemu.launcher import open_guests
from qmpalloc.qmp import deadline, open_agent, open_monitor
from qmpalloc.units import MIB

pytestmark = pytest.mark.long

CONFIG = """
[host]
budget = "1GiB"
run_dir = "run"

[[guest]]
name = "plugged"
floor = "256MiB"
cap = "768MiB"
baseline = "512MiB"
[guest.vm]
memory = "768MiB"
actuator = "virtio-mem"
suite = "{suite}"
"""
LIMIT_S = 240


@pytest.mark.parametrize("suite", ["trixie", "bookworm"])
async def test_memory_is_plugged_used_and_given_back(prepared_in, tmp_path, suite):
    loaded, prepared = prepared_in(CONFIG.format(suite=suite), tmp_path)
    async with open_guests(loaded, prepared=prepared) as [guest]:
        sockets = guest.sockets
        async with (
            open_guest(str(sockets.monitor), str(sockets.agent), timeout_s=60.0) as handle,
            open_monitor(str(sockets.people)) as people,
            open_agent(str(sockets.lab)) as lab,
        ):
            assert handle.facts.actuator == "virtio-mem"
            await reaches(handle, 512)
            # All of it is online, in the zone from which it can be taken again.
            assert await total_mib(handle, lab) > 512 - 150
            with people.subscribe() as events:
                await handle.set_target(704 * MIB)
                await reaches(handle, 704)
                with trio.fail_after(LIMIT_S):
                    event = await events.receive()
            assert event.name == "MEMORY_DEVICE_SIZE_CHANGE"
            assert set(event.data) == {"id", "size", "qom-path"}
            assert await total_mib(handle, lab) > 704 - 150
            await output_of(
                lab, "dd if=/dev/urandom of=/tmp/full bs=1M count=480 2>/dev/null; cat /tmp/full >/dev/null"
            )
            before_mib = resident_mib(guest.pid)
            await handle.set_target(384 * MIB)
            await reaches(handle, 384)
            assert resident_mib(guest.pid) < before_mib - 200
            assert resident_mib(guest.pid) <= 128


async def reaches(handle, size_mib):
    with trio.fail_after(LIMIT_S):
        while await handle.size_bytes() != size_mib * MIB:  # noqa: ASYNC110 - not every step is told
            await trio.sleep(0.5)


async def total_mib(handle, lab):
    """Return what the guest's kernel counts as its memory, once it has taken what was plugged."""
    await trio.sleep(2.0)
    return int((await output_of(lab, "awk '/MemTotal/ {print $2}' /proc/meminfo")).strip()) // 1024


async def output_of(lab, script):
    with deadline(LIMIT_S, lab.address, script):
        result = await lab.run(["/bin/sh", "-c", script])
    assert result.exit_code == 0, result.err
    return result.out.decode()


def resident_mib(process_id):
    """Return how much of what virtio-mem can plug (512 MiB) the host has in memory."""
    text = Path(f"/proc/{process_id}/smaps").read_text()
    mappings = re.findall(r"^Size: +(\d+) kB$.*?^Rss: +(\d+) kB$", text, re.DOTALL | re.MULTILINE)
    return sum(int(rss) for size, rss in mappings if int(size) == 512 * 1024) // 1024
