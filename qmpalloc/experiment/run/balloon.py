"""Waiting for a guest's balloon."""

from __future__ import annotations

import trio

from qmpalloc.qmp import Monitor

TIMEOUT_S = 120.0
SLACK_BYTES = 1024**2
POLL_S = 0.25


async def reaches(monitor: Monitor, target_bytes: int) -> bool:
    """Wait until a guest has a size that it was asked to have; return False when that takes longer than `TIMEOUT_S`.

    Raises:
        QmpallocError: Its QEMU does not answer.
    """
    with trio.move_on_after(TIMEOUT_S):
        while True:
            if abs(await monitor.query_balloon() - target_bytes) <= SLACK_BYTES:
                return True
            await trio.sleep(POLL_S)
    return False
