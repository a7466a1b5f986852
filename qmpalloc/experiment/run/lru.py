"""Which page replacement a guest runs: its kernel's own choice, or the one that an experiment asks for."""

from __future__ import annotations

from qmpalloc.channel import Channel
from qmpalloc.errors import HostError
from qmpalloc.experiment.spec.schema import Guest
from qmpalloc.qmp import deadline
from qmpalloc.text import printable

SWITCH_FILE = "/sys/kernel/mm/lru_gen/enabled"
"""Takes ``y`` and ``n``; reads as a mask, bit 0 the main switch (Documentation/admin-guide/mm/multigen_lru.rst)."""

TIMEOUT_S = 30.0


async def choose_lru(channel: Channel, guest: Guest) -> None:
    """Give a guest the page replacement that it is to have. What the cache holds is kept.

    Args:
        channel: Into the guest, as root there.
        guest: As the experiment describes it.

    Raises:
        HostError: Its kernel cannot switch.
        QmpallocError: The guest does not answer.
    """
    if guest.lru is None:
        return
    wanted = guest.lru == "multi-gen"
    script = f"echo {'y' if wanted else 'n'} > {SWITCH_FILE} && cat {SWITCH_FILE}"
    with deadline(TIMEOUT_S, channel.address, "the choice of page replacement"):
        result = await channel.run(["/bin/sh", "-c", script])
    if result.exit_code == 0 and _is_multi_gen(result.out) == wanted:
        return
    said = printable((result.err or result.out).decode("utf-8", "replace").strip())
    raise HostError(
        f"guest {guest.name}: its kernel does not switch to lru = {guest.lru!r}: {said}",
        hint="Linux 6.1 and later can when built with CONFIG_LRU_GEN; leave lru out for the kernel's own choice",
    )


def _is_multi_gen(text: bytes) -> bool | None:
    try:
        return bool(int(text, 16) & 1)
    except ValueError:
        return None
