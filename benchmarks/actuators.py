"""How long memory takes to move: by a balloon, and by virtio-mem. Real guests, one after the other.

    python benchmarks/actuators.py [--repeat 3] [--suite trixie] [balloon|virtio-mem ...]

Each guest has 1,024 MiB, and reads a file of 1,152 MiB again and again, so that its page cache fills what it has. When
less than a tenth is free, 128 or 512 MiB are taken, and given back when the cache is full again. Told is the time from
the command to the size that was asked for, as QEMU tells it, and how far a move came that did not end within
`LIMIT_S`. Under emulation, and on a busy host, times tell the order of things only.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import click
import trio

from qmpalloc import config as configuration
from qmpalloc.control.handle import GuestHandle, open_guest
from qmpalloc.qemu.launcher import RunningGuest, open_guests, prepare
from qmpalloc.qmp import deadline, open_agent
from qmpalloc.units import MIB

FULL_MIB = 1024
TAKEN_MIB = (128, 512)
LIMIT_S = 180.0
FILL_LIMIT_S = 300.0
POLL_S = 0.05
CONFIG = """
[host]
budget = "2GiB"
[[guest]]
name = "{name}"
floor = "256MiB"
cap = "1280MiB"
baseline = "{full}MiB"
[guest.vm]
memory = "1280MiB"
actuator = "{name}"
suite = "{suite}"
data = {{ size = "1300MiB", files = {{ "load.dat" = "1152MiB" }} }}
"""
READER = "while :; do cat /data/load.dat > /dev/null; done"


async def move(guest: GuestHandle, target_mib: int) -> tuple[float, float]:
    """Resize the guest; return the seconds that took, and how many MiB are missing at the end."""
    began_s = time.monotonic()
    await guest.set_target(target_mib * MIB)
    while True:
        missing = abs(await guest.actuator.size_bytes() - target_mib * MIB) / MIB
        seconds = time.monotonic() - began_s
        if missing < 1.0 or seconds > LIMIT_S:
            return seconds, missing
        await trio.sleep(POLL_S)


async def fill(guest: GuestHandle) -> None:
    """Wait until less than a tenth of the guest's memory is free."""
    with trio.move_on_after(FILL_LIMIT_S) as waiting:
        while True:
            memory = (await guest.read_sample()).memory_bytes
            if (memory.free or 0) * 10 < await guest.size_bytes():
                return
            await trio.sleep(1.0)
    if waiting.cancelled_caught:
        click.echo("  the page cache did not fill in time")


async def measure(running: RunningGuest, repeat: int) -> None:
    """Take and give, and print a line of the table for each kind of move."""
    assert running.lab_socket is not None
    async with open_agent(str(running.lab_socket)) as lab:
        with deadline(60.0, lab.address, "starting the reader"):
            await lab.start(["/bin/sh", "-c", READER])
    sockets, times = running.sockets, dict[tuple[str, int], list[tuple[float, float]]]()
    async with open_guest(str(sockets.monitor), str(sockets.agent), timeout_s=60.0) as guest:
        while abs(await guest.size_bytes() - FULL_MIB * MIB) > MIB:  # noqa: ASYNC110 - not every step is told
            await trio.sleep(0.5)
        for taken_mib in TAKEN_MIB * repeat:
            for how, target_mib in (("take", FULL_MIB - taken_mib), ("give", FULL_MIB)):
                await fill(guest)
                times.setdefault((how, taken_mib), []).append(await move(guest, target_mib))
    for (how, taken_mib), each in sorted(times.items()):
        seconds = [second for second, _ in each]
        missing = max(miss for _, miss in each)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        click.echo(
            f"| {running.name} | {how} | {taken_mib} | {statistics.median(seconds):.2f} | {spread} | {len(each)} "
            f"| {missing:.0f} |"
        )


@click.command()
@click.option("--repeat", default=3, show_default=True, help="Moves of each kind.")
@click.option("--suite", type=click.Choice(["trixie", "bookworm"]), default="trixie", show_default=True)
@click.argument("names", metavar="[balloon|virtio-mem ...]", nargs=-1)
def main(repeat: int, suite: str, names: tuple[str, ...]) -> None:
    """Boot a guest with each, and print a table."""
    load = os.getloadavg()[0]
    click.echo(f"{suite}; {os.cpu_count()} CPUs, load average {load:.1f} before")
    click.echo("| actuator | move | MiB | seconds, median | least to most | n | MiB missing |")
    click.echo("|---" * 7 + "|")
    for name in names or ("balloon", "virtio-mem"):
        with tempfile.TemporaryDirectory(prefix="actuators-") as directory:
            text = CONFIG.format(name=name, full=FULL_MIB, suite=suite)
            text = text.replace("[host]\n", f'[host]\nrun_dir = "{directory}/run"\n')
            loaded = configuration.parse(text, file=Path(directory) / "actuators.toml")
            prepared = prepare(loaded)

            async def run() -> None:
                async with open_guests(loaded, prepared=prepared) as guests:  # noqa: B023 - run in this turn
                    await measure(guests[0], repeat)

            trio.run(run)


if __name__ == "__main__":
    main()
