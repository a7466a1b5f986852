"""Read a configuration file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from qmpalloc.config.addresses import at_home, socket_path
from qmpalloc.config.checks import check, image_mistakes
from qmpalloc.config.convert import Mistakes
from qmpalloc.config.schema import (
    Config,
    ControlConfig,
    GuestConfig,
    HostConfig,
    ImageConfig,
    default_run_dir,
)
from qmpalloc.config.toml import read_tables, read_text
from qmpalloc.errors import ConfigError

DEFAULT_POLICY = "curve"
"""What decides where the file names no policy: the one that has done no guest harm."""


def load(path: str | os.PathLike[str]) -> Config:
    """Read and validate a configuration file.

    Raises:
        ConfigError: With file, dotted key and hint. Several mistakes are reported together, one per line.
    """
    text = read_text(path, example="qmpalloc init -o FILE writes one for the QEMUs that run; others are in {examples}")
    return parse(text, file=Path(path).absolute())


def parse(text: str, *, file: Path) -> Config:
    """Validate the text of a configuration file; `file` gives the base of relative paths.

    Raises:
        ConfigError: As `load`.
    """
    data = read_tables(text, file=file, brackets="a guest is a table with two brackets: [[guest]]")
    if "experiment" in data and "host" not in data:
        hint = f"qmpalloc experiment run {file}"
        raise ConfigError("this is an experiment, not a configuration", file=str(file), hint=hint)
    mistakes = Mistakes(str(file))
    for key in data.keys() - {"host", "control", "policy", "image", "guest"}:
        mistakes.add(key, "unknown table", hint="known are [host], [control], [policy], [image] and [[guest]]")
    host = mistakes.convert(data.get("host"), HostConfig, "host", missing='add [host] with budget = "3GiB"')
    control = mistakes.convert(data.get("control", {}), ControlConfig, "control")
    policy, settings = _policy(data.get("policy", {}), mistakes)
    image = mistakes.convert(data["image"], ImageConfig, "image") if "image" in data else None
    for key, message, hint in image_mistakes(image) if image is not None else ():
        mistakes.add(f"image.{key}", message, hint=hint)
    guests = [_with_image(guest, image) for guest in _guests(data.get("guest"), mistakes)]
    mistakes.raise_if_any()
    assert host is not None
    assert control is not None
    run_dir = default_run_dir()
    if host.run_dir:
        with mistakes.addressed("host.run_dir"):
            run_dir = file.parent / at_home(host.run_dir)
    host = msgspec.structs.replace(host, run_dir=str(run_dir))
    config = Config(
        file=str(file),
        host=host,
        control=control,
        policy=policy,
        policy_settings=settings,
        guests=tuple(_with_paths(guest, index, file.parent, run_dir, mistakes) for index, guest in enumerate(guests)),
    )
    check(config, mistakes)
    mistakes.raise_if_any()
    return config


def _policy(table: Any, mistakes: Mistakes) -> tuple[str, dict[str, Any]]:
    if not isinstance(table, Mapping):
        mistakes.add("policy", "must be a table", hint=f'write [policy] with name = "{DEFAULT_POLICY}"')
        return "", {}
    name = table.get("name", DEFAULT_POLICY)
    if not isinstance(name, str):
        mistakes.add("policy.name", "must be text", hint='for example "curve" or "my_module:my_policy"')
        return "", {}
    return name, {key: value for key, value in table.items() if key != "name"}


def _guests(tables: Any, mistakes: Mistakes) -> list[GuestConfig]:
    if not isinstance(tables, list) or not tables:
        mistakes.add("guest", "no guest is configured", hint="add a [[guest]] table for each QEMU")
        return []
    converted = [mistakes.convert(table, GuestConfig, f"guest[{index}]") for index, table in enumerate(tables)]
    return [guest for guest in converted if guest is not None]


def _with_image(guest: GuestConfig, image: ImageConfig | None) -> GuestConfig:
    """Give a guest that we start the file's image, unless it has one of its own."""
    if guest.vm is None or guest.vm.image is not None:
        return guest
    return msgspec.structs.replace(guest, vm=msgspec.structs.replace(guest.vm, image=image))


def _with_paths(guest: GuestConfig, index: int, base: Path, run_dir: Path, mistakes: Mistakes) -> GuestConfig:
    """Make the socket paths absolute; a guest that we start ourselves has them in the run directory by default."""
    paths = {"monitor": guest.monitor, "agent": guest.agent}
    for key, written in paths.items():
        if not written and guest.vm is not None:
            paths[key] = os.path.normpath(base / run_dir / guest.name / f"{key}.sock")
        elif written:
            with mistakes.addressed(f"guest[{index}].{key}"):
                paths[key] = socket_path(written, base)
    return msgspec.structs.replace(guest, **paths)
