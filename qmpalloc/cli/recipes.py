"""The images that a file of the user's names, be it a configuration or an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qmpalloc.config import Config
    from qmpalloc.qemu.recipe import Variant


def variants_of(file: Path) -> list[Variant]:
    """Return the images that `file` names, each once.

    Raises:
        ConfigError: It is neither a configuration nor an experiment, starts no guest, or has mistakes.
    """
    from qmpalloc.qemu.launcher import startable, variant_of

    config = _read(file.absolute())
    return list(dict.fromkeys(variant_of(config, guest) for guest in startable(config)))


def _read(file: Path) -> Config:
    from qmpalloc import config
    from qmpalloc.config.toml import read_tables, read_text
    from qmpalloc.experiment.run.configuration import arm_configuration
    from qmpalloc.experiment.spec import parsing

    text = read_text(file, example="see {examples}/ for a configuration and an experiment")
    if "experiment" not in read_tables(text, file=file, brackets="a guest is a table with two brackets: [[guest]]"):
        return config.parse(text, file=file)
    specification = parsing.parse(text, file=file)
    return arm_configuration(specification, specification.arms[0], run_dir=Path("unused"))
