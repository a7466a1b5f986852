"""Where the files that are data, not modules, are found: the image recipe and the collector."""

from __future__ import annotations

from pathlib import Path

from qmpalloc.errors import HostError

PACKAGE_DIR = Path(__file__).resolve().parent.parent


def resource_dir(name: str) -> Path:
    """Return the directory ``vm-images`` or ``guest_agent``, from the installed package or from the source tree.

    Raises:
        HostError: It is in neither place.
    """
    for candidate in (PACKAGE_DIR / "_data" / name, PACKAGE_DIR.parent / name):
        if candidate.is_dir():
            return candidate
    raise HostError(f"the directory {name} is missing from this installation", hint="install qmpalloc anew")
