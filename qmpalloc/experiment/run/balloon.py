"""Waiting for a guest to have a size."""

from __future__ import annotations

import trio

from qmpalloc.qmp import Actuator
from qmpalloc.qmp.actuator import nearest_order

TIMEOUT_S = 120.0
SLACK_BYTES = 1024**2
POLL_S = 0.25


async def reaches(actuator: Actuator, target_bytes: int) -> bool:
    """Wait until a guest has a size that it was asked to have; return False when that takes longer than `TIMEOUT_S`.

    Raises:
        QmpallocError: Its QEMU does not answer.
    """
    with trio.move_on_after(TIMEOUT_S):
        target_bytes = nearest_order(await actuator.memory(), target_bytes)
        while True:
            if abs(await actuator.size_bytes() - target_bytes) <= SLACK_BYTES:
                return True
            await trio.sleep(POLL_S)
    return False
