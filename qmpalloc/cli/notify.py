"""Tells systemd how a run does (``Type=notify``): sd_notify(3), which is a datagram."""

from __future__ import annotations

import contextlib
import math
import os
import socket

import trio

from qmpalloc.events import AnyEvent, ControlChanged
from qmpalloc.text import one_line


def notify(*assignments: str) -> None:
    """Tell systemd, where it asked for that."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.sendto("\n".join(assignments).encode(), "\0" + address[1:] if address.startswith("@") else address)


def notify_control(event: AnyEvent) -> None:
    """Tell systemd what control does: a sink. It is ready as soon as it looks at the guests."""
    if isinstance(event, ControlChanged):
        first = "STOPPING=1" if event.control in {"returning", "stopped"} else "READY=1"
        notify(first, f"STATUS={one_line(f'{event.control} {event.detail}'.strip())}")


async def run_watchdog() -> None:
    """Tell systemd that this loop runs, as often as its ``WatchdogSec`` needs."""
    interval_s = int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6 / 3 or math.inf
    while True:
        await trio.sleep(interval_s)
        notify("WATCHDOG=1")
