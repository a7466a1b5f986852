"""Where the files that are data, not modules, are found: the image recipe, the collector, the demo."""

from __future__ import annotations

from pathlib import Path

from qmpalloc.errors import HostError

PACKAGE_DIR = Path(__file__).resolve().parent.parent


def resource_dir(name: str) -> Path:
    """Return the directory ``vm-images`` or ``guest_agent``, from the installed package or from the source tree.

    Raises:
        HostError: It is in neither place.
    """
    return _resource(name)


def demo_configuration() -> Path:
    """Return the configuration that ``qmpalloc demo`` runs by default.

    Raises:
        HostError: It is missing.
    """
    return _resource("examples/demo.toml")


def _resource(name: str) -> Path:
    for candidate in (PACKAGE_DIR / "_data" / name, PACKAGE_DIR.parent / name):
        if candidate.exists():
            return candidate
    raise HostError(f"{name} is missing from this installation", hint="install qmpalloc anew")
