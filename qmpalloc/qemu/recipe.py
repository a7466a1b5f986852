"""The recipe of the reference guest (``vm-images/``): read, and reduced to the digest that names an image."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from qmpalloc.config import Origin, Size, VmConfig
from qmpalloc.errors import HostError
from qmpalloc.qemu.additions import Additions
from qmpalloc.qemu.architecture import ARCHITECTURES, Architecture, named, native
from qmpalloc.qemu.inputs import InputFile, read_input
from qmpalloc.qemu.resources import resource_dir
from qmpalloc.units import parse_size

BUILDER_FORMAT = 2
"""To be raised when the builder makes another image from the same recipe."""

INPUTS_DIR = "tmp/qmpalloc-image"
"""Where the build's inputs are inside the system while it is built, relative to its root; mmdebstrap empties /tmp."""

PROFILE_OVERLAYS = {"bench": ("lab", "bench")}
"""Directories below ``profiles/`` whose files a profile has, where it is not just its own."""

ADDITIONS_SCRIPT = "additions.sh"
"""Of the recipe; an input of those images only that have additions."""

DIGEST_CHARS = 12
"""Of the inputs' digest, in the name of an image."""


class Variant(Struct, frozen=True, order=True):
    """Which image: Debian suite, profile and architecture, and what it has besides the recipe."""

    suite: str = "trixie"
    profile: str = "lab"
    packages: tuple[str, ...] = ()
    additions: Additions = Additions()
    arch: str = native().name

    def __str__(self) -> str:
        return f"{self.suite}-{self.profile}"

    @property
    def architecture(self) -> Architecture:
        """What it is made for."""
        return ARCHITECTURES[self.arch]

    @property
    def is_reference(self) -> bool:
        """True when nothing is added to the recipe."""
        return not self.packages and self.additions.is_empty

    @classmethod
    def of(cls, vm: VmConfig, origin: Origin | None = None) -> Variant:
        """Return the image that a guest is booted from; the order of its packages does not matter.

        Args:
            vm: How the guest is started.
            origin: Where that was written, when it was in a file.
        """
        own, additions = vm.packages, Additions(origin=origin or Origin())
        if vm.image is not None:
            own, additions = (*own, *vm.image.packages), Additions.of(vm.image)
        return cls(vm.suite, vm.profile, tuple(sorted(set(own))), additions, named(vm.arch).name)


class DiskRecipe(Struct, frozen=True, forbid_unknown_fields=True):
    """``[disk]``: size and label of the root file system."""

    size: Size
    label: str


class AgentRecipe(Struct, frozen=True, forbid_unknown_fields=True):
    """``[agent]``: the commands that the agent on the standard port answers."""

    allow: tuple[str, ...]


class ProfileRecipe(Struct, frozen=True, forbid_unknown_fields=True):
    """``[profile.NAME]``: commands of the second agent (none: there is no second agent), and further packages."""

    allow_lab: tuple[str, ...]
    packages: tuple[str, ...] = ()


class Recipe(Struct, frozen=True, forbid_unknown_fields=True):
    """``recipe.toml``; the file says what each key is for."""

    source_date_epoch: int
    packages: tuple[str, ...]
    exclude_paths: tuple[str, ...]
    include_paths: tuple[str, ...]
    kernel_arguments: tuple[str, ...]
    disk: DiskRecipe
    agent: AgentRecipe
    profile: dict[str, ProfileRecipe]


def load_recipe(architecture: Architecture, directory: Path | None = None) -> Recipe:
    """Return the recipe in `directory`, by default the one that comes with this qmpalloc, for an architecture.

    Raises:
        HostError: It is missing or not a recipe.
    """
    file = (directory or resource_dir("vm-images")) / "recipe.toml"
    try:
        table = tomllib.loads(architecture.filled(file.read_bytes()).decode())
        return msgspec.convert(table, Recipe, dec_hook=lambda kind, text: kind(parse_size(text)))
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise HostError(f"{file}: not a usable image recipe: {error}") from error


def input_files(
    variant: Variant, *, recipe_dir: Path | None = None, collector_dir: Path | None = None
) -> list[InputFile]:
    """Return every file the image `variant` is made from, in order of their places.

    Files of ``overlay/`` and of the profile go where they are named; all else into `INPUTS_DIR`.

    Raises:
        ConfigError: What the user adds is not there.
    """
    recipe_dir = recipe_dir or resource_dir("vm-images")
    collector_dir = collector_dir or resource_dir("guest_agent")
    architecture = variant.architecture
    files = {file.place: file for file in _tree(collector_dir, f"{INPUTS_DIR}/guest_agent/", architecture)}
    for name in ("boot.sh", "customize.sh", "recipe.toml"):
        files[f"{INPUTS_DIR}/{name}"] = read_input(recipe_dir / name, f"{INPUTS_DIR}/{name}", architecture)
    profiles = PROFILE_OVERLAYS.get(variant.profile, (variant.profile,))
    for overlay in (recipe_dir / "overlay", *(recipe_dir / "profiles" / name for name in profiles)):
        files |= {file.place: file for file in _tree(overlay, "", architecture)}
    added = variant.additions.input_files(INPUTS_DIR, recipe_dir / ADDITIONS_SCRIPT, architecture)
    files |= {file.place: file for file in added}
    return sorted(files.values())


def _tree(directory: Path, prefix: str, architecture: Architecture) -> Iterator[InputFile]:
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        # What Python leaves behind when the collector's tests run changes no image.
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in relative.parts:
            yield read_input(path, prefix + relative.as_posix(), architecture)


def inputs_digest(variant: Variant, files: list[InputFile]) -> str:
    """Return the SHA-256 that changes when, and only when, the recipe would make another image.

    The mirror is not part of it: all mirrors hold the same packages. The architecture is by what it puts into files.
    """
    digest = hashlib.sha256()
    words = (f"qmpalloc image {BUILDER_FORMAT}", variant.suite, variant.profile, *variant.packages)
    for text in (*words, *variant.additions.words):
        digest.update(text.encode() + b"\0")
    for file in files:
        file.update(digest)
    return digest.hexdigest()
