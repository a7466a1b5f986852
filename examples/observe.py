"""Use qmpalloc from a script: open a guest, read its samples, set a target, watch it come about.

python examples/observe.py MONITOR.sock AGENT.sock [TARGET, for example 512MiB]
"""

from __future__ import annotations

import sys

import trio

import qmpalloc


async def main(monitor: str, agent: str, target: str = "") -> None:
    """Print ten lines of what the guest's page cache does."""
    async with qmpalloc.open_guest(monitor, agent) as guest:
        print(f"RAM {guest.facts.ram_bytes >> 20} MiB, floor now {await guest.floor_bytes() >> 20} MiB")
        if target:
            await guest.set_target(qmpalloc.parse_size(target))
        for _ in range(10):
            accepted = await guest.next_delta(2.0)
            size_bytes = await guest.size_bytes()
            delta = accepted.delta
            if delta is not None:
                print(
                    f"size {size_bytes >> 20} MiB, hits {delta.hits}, misses {delta.misses} in {delta.interval_s:.1f} s"
                )


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1], sys.argv[2], "".join(sys.argv[3:4]))
    except qmpalloc.QmpallocError as error:
        sys.exit(str(error))
