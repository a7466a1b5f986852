"""What a record must say of the host and of the configuration, so that a run can be understood and repeated."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from qmpalloc.config import Config, GuestConfig
from qmpalloc.events import GuestHeader, Header, Mode, plain
from qmpalloc.model import Policy

PACKAGES = ("qmpalloc", "trio", "qemu.qmp", "msgspec")


def header(config: Config, mode: Mode, policy: Policy) -> Header:
    """Return the first event of a run."""
    settings = getattr(policy, "settings", None)
    return Header(
        t=0.0,
        wall=round(time.time(), 6),
        mode=mode,
        policy=config.policy,
        policy_settings=to_plain(settings) if settings is not None else dict(config.policy_settings),
        budget_bytes=config.host.budget,
        interval_s=float(config.control.interval),
        guests=guest_headers(config.guests),
        config=to_plain(config),
        versions=versions(),
        host=host_facts(),
    )


def versions() -> dict[str, str]:
    """Return the versions of qmpalloc, of Python and of the libraries that results may depend on."""
    return {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}


def guest_headers(guests: Iterable[GuestConfig]) -> tuple[GuestHeader, ...]:
    """Return the fixed facts of guests."""
    return tuple(
        GuestHeader(name=guest.name, floor_bytes=guest.floor, cap_bytes=guest.cap, baseline_bytes=guest.baseline)
        for guest in guests
    )


def to_plain(value: Any) -> Any:
    """Return a configuration value as plain JSON types; sizes are bytes, durations seconds."""
    return msgspec.to_builtins(value, enc_hook=plain)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def host_facts() -> dict[str, Any]:
    """Return processors, memory and kernel of this host. Not its name: records are shared."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kvm_node": Path("/dev/kvm").exists(),
    }
