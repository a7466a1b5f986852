"""What must hold between the tables of a configuration."""

from __future__ import annotations

import os

from qmpalloc.config.convert import Mistakes
from qmpalloc.config.keys import MAX_SOCKET_PATH_BYTES
from qmpalloc.config.schema import Config
from qmpalloc.units import PAGE_BYTES, align_down, align_up, format_size


def check(config: Config, mistakes: Mistakes) -> None:
    """Check where the guests' sockets are, and that their sizes fit into the budget."""
    _check_sockets(config, mistakes)
    _check_budget(config, mistakes)


def _check_sockets(config: Config, mistakes: Mistakes) -> None:
    seen: dict[str, str] = {}
    for index, guest in enumerate(config.guests):
        for key, path in (("monitor", guest.monitor), ("agent", guest.agent)):
            where = f"guest[{index}].{key}"
            if not path:
                mistakes.add(where, "missing", hint="the path of a Unix socket; README.md shows QEMU's side")
            elif len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
                message = f"{path} is longer than a Unix socket path may be ({MAX_SOCKET_PATH_BYTES} bytes)"
                mistakes.add(where, message)
            elif (real := os.path.realpath(path)) in seen:
                hint = "QEMU serves one client per socket; start it with a second -qmp"
                mistakes.add(where, f"{path} is already {seen[real]}", hint=hint)
            else:
                seen[real] = where


def _check_budget(config: Config, mistakes: Mistakes) -> None:
    budget = config.host.budget
    if any(guest.floor > guest.cap for guest in config.guests):
        return
    # A balloon moves whole pages, so that floors are rounded up, and what else a guest may have is rounded down.
    floors = [align_up(guest.floor) for guest in config.guests]
    baselines = [max(align_down(guest.baseline), floor) for guest, floor in zip(config.guests, floors, strict=True)]
    for name, total in (("floor", sum(floors)), ("baseline", sum(baselines))):
        if total > budget:
            mistakes.add(
                "host.budget",
                f"the guests' {name}s add up to {format_size(total)}, the budget is {format_size(budget)}",
                hint=f"lower the {name}s or raise the budget (a guest has whole pages of {PAGE_BYTES} bytes)",
            )
