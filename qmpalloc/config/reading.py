"""Read a configuration file."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from qmpalloc.config.addresses import at_home, socket_path
from qmpalloc.config.checks import check
from qmpalloc.config.convert import Mistakes, told
from qmpalloc.config.schema import Config, ConfigFile, GuestConfig, ImageConfig, default_run_dir
from qmpalloc.config.toml import read_tables, read_text
from qmpalloc.errors import ConfigError


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
    found: ConfigFile = mistakes.convert(data, ConfigFile, "")
    mistakes.raise_if_any()
    mistakes.add_all(told(found))
    run_dir = default_run_dir()
    if found.host.run_dir:
        with mistakes.addressed("host.run_dir"):
            run_dir = file.parent / at_home(found.host.run_dir)
    guests = (_with_image(guest, found.image) for guest in found.guest)
    config = Config(
        file=str(file),
        host=msgspec.structs.replace(found.host, run_dir=str(run_dir)),
        control=found.control,
        policy=found.policy.name,
        policy_settings=found.policy.settings,
        guests=tuple(_with_paths(guest, index, file.parent, run_dir, mistakes) for index, guest in enumerate(guests)),
    )
    check(config, mistakes)
    mistakes.raise_if_any()
    return config


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
