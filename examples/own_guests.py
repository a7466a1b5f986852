"""Boot the guests of a configuration from Python, and let them go."""

import trio

from qmpalloc import config
from qmpalloc.qemu.launcher import open_guests, prepare

loaded = config.load("lab.toml")
prepared = prepare(loaded, report=print)  # images, disks, accelerator: blocks, minutes at first, then no time


async def main() -> None:
    """Tell where each guest can be reached."""
    async with open_guests(loaded, prepared=prepared, report=print) as guests:
        for guest in guests:
            print(guest.name, guest.pid, guest.sockets.monitor, guest.sample_s)
    # no QEMU is left, whatever happened


trio.run(main)
