"""qmpalloc: share one host's memory among raw QEMU guests so that their page caches save the most disk reads.

What scripts need is here; the rest of the package may change. See ``examples/``.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # not typing's, which takes long to import: signals are heeded only after this module
if TYPE_CHECKING:
    from typing import Any

    from qmpalloc.config import Config
    from qmpalloc.config import load as load_config
    from qmpalloc.control.controller import Controller
    from qmpalloc.control.handle import GuestHandle, open_guest
    from qmpalloc.errors import QmpallocError
    from qmpalloc.model import (
        Decision,
        GuestDecision,
        GuestSnapshot,
        GuestState,
        Limiter,
        Move,
        Policy,
        Promise,
        Snapshot,
        hold,
    )
    from qmpalloc.policy import load as load_policy
    from qmpalloc.record import RecordWriter, read_record
    from qmpalloc.sample import Sample
    from qmpalloc.units import parse_size

__all__ = [
    "Config",
    "Controller",
    "Decision",
    "GuestDecision",
    "GuestHandle",
    "GuestSnapshot",
    "GuestState",
    "Limiter",
    "Move",
    "Policy",
    "Promise",
    "QmpallocError",
    "RecordWriter",
    "Sample",
    "Snapshot",
    "hold",
    "load_config",
    "load_policy",
    "open_guest",
    "parse_size",
    "read_record",
]

# Imported on first use: trio and rich cost 0.3 s, which `qmpalloc --help` should not pay.
_MODULES = {
    "config": ["Config"],
    "control.controller": ["Controller"],
    "errors": ["QmpallocError"],
    "control.handle": ["GuestHandle", "open_guest"],
    "model": [
        *("Decision", "GuestDecision", "GuestSnapshot", "GuestState", "Limiter", "Move", "Policy", "Promise"),
        *("Snapshot", "hold"),
    ],
    "record": ["RecordWriter", "read_record"],
    "sample": ["Sample"],
    "units": ["parse_size"],
}
_PLACES = {name: (module, name) for module, names in _MODULES.items() for name in names}
_PLACES |= {"load_config": ("config", "load"), "load_policy": ("policy", "load")}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
