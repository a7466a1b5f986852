"""Measured curves in a file of their own, for the policy ``oracle``: too long for a configuration.

::

    {"format": "qmpalloc-curves", "version": 1,
     "curves": {"web": [{"sizes": ["192MiB", "256MiB"], "miss_ratio": [0.4, 0.1]}]}}

The keys are names of guests, or others that the setting ``names`` maps them to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qmpalloc.errors import ConfigError

FORMAT = "qmpalloc-curves"
VERSION = 1

FILE_MAX_BYTES = 16 * 1024 * 1024

HINT = "benchmarks/guest_curves.py writes one; see docs/experiments.md"


def read_curves(name: str, *, beside: str) -> dict[str, Any]:
    """Return the curves that a file holds, not validated yet.

    Args:
        name: Of the file; relative to the directory of `beside`.
        beside: The configuration file; empty: relative to the working directory.

    Raises:
        ConfigError: There is none, or it is no such file.
    """
    path = Path(beside).parent / name if beside else Path(name)
    key = "file"
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise ConfigError(f"{path} is longer than {FILE_MAX_BYTES >> 20} MiB", key=key, hint=HINT)
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file", key=key, hint=HINT) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", key=key) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}", key=key, hint=HINT) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
        raise ConfigError(f"{path} is not of the format {FORMAT} {VERSION}", key=key, hint=HINT)
    curves = data.get("curves")
    if not isinstance(curves, dict):
        raise ConfigError(f"{path} has no table of curves", key=key, hint=HINT)
    return curves


def chosen(curves: Mapping[str, Any], names: Mapping[str, str], *, file: str) -> dict[str, Any]:
    """Return guest to curves, where `names` maps guests to keys of the file.

    Raises:
        ConfigError: The file has no such key.
    """
    found = dict(curves)
    for guest, key in names.items():
        if key not in curves:
            known = ", ".join(sorted(curves)) or "none"
            raise ConfigError(f"{file} has no curve {key!r}", key=f"names.{guest}", hint=f"it has {known}")
        found[guest] = curves[key]
    return found
