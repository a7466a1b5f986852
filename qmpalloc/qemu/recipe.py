"""The recipe of the reference guest (``vm-images/``): read, and reduced to the digest that names an image."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from qmpalloc.config import Size, VmConfig
from qmpalloc.errors import HostError
from qmpalloc.qemu.resources import resource_dir
from qmpalloc.units import parse_size

BUILDER_FORMAT = 2
"""To be raised when the builder makes another image from the same recipe."""

INPUTS_DIR = "tmp/qmpalloc-image"
"""Where the build's inputs are inside the system while it is built, relative to its root; mmdebstrap empties /tmp."""

PROFILE_OVERLAYS = {"bench": ("lab", "bench")}
"""Directories below ``profiles/`` whose files a profile has, where it is not just its own."""

DIGEST_CHARS = 12
"""Of the inputs' digest, in the name of an image."""


class Variant(Struct, frozen=True, order=True):
    """Which of the reference images: Debian suite and profile, and packages besides the recipe's."""

    suite: str = "trixie"
    profile: str = "lab"
    packages: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.suite}-{self.profile}"

    @classmethod
    def of(cls, vm: VmConfig) -> Variant:
        """Return the image that a guest is booted from; the order of its packages does not matter."""
        return cls(vm.suite, vm.profile, tuple(sorted(set(vm.packages))))


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


class InputFile(Struct, frozen=True, order=True):
    """A file that an image is made from: its place in the build, its content, and whether it is a program."""

    place: str
    content: bytes
    executable: bool


def load_recipe(directory: Path | None = None) -> Recipe:
    """Return the recipe in `directory`, by default the one that comes with this qmpalloc.

    Raises:
        HostError: It is missing or not a recipe.
    """
    file = (directory or resource_dir("vm-images")) / "recipe.toml"
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        return msgspec.convert(table, Recipe, dec_hook=lambda kind, text: kind(parse_size(text)))
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise HostError(f"{file}: not a usable image recipe: {error}") from error


def input_files(
    variant: Variant, *, recipe_dir: Path | None = None, collector_dir: Path | None = None
) -> list[InputFile]:
    """Return every file the image `variant` is made from, in order of their places.

    Files of ``overlay/`` and of the profile go where they are named; all else into `INPUTS_DIR`.
    """
    recipe_dir = recipe_dir or resource_dir("vm-images")
    collector_dir = collector_dir or resource_dir("guest_agent")
    files = {file.place: file for file in _tree(collector_dir, f"{INPUTS_DIR}/guest_agent/")}
    for name in ("boot.sh", "customize.sh", "recipe.toml"):
        files[f"{INPUTS_DIR}/{name}"] = _input_file(recipe_dir / name, f"{INPUTS_DIR}/{name}")
    profiles = PROFILE_OVERLAYS.get(variant.profile, (variant.profile,))
    for overlay in (recipe_dir / "overlay", *(recipe_dir / "profiles" / name for name in profiles)):
        files |= {file.place: file for file in _tree(overlay, "")}
    return sorted(files.values())


def _tree(directory: Path, prefix: str) -> Iterator[InputFile]:
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        # What Python leaves behind when the collector's tests run changes no image.
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in relative.parts:
            yield _input_file(path, prefix + relative.as_posix())


def _input_file(path: Path, place: str) -> InputFile:
    return InputFile(place, path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR))


def inputs_digest(variant: Variant, files: list[InputFile]) -> str:
    """Return the SHA-256 that changes when, and only when, the recipe would make another image.

    The mirror is not part of it: all mirrors hold the same packages.
    """
    digest = hashlib.sha256()
    for text in (f"qmpalloc image {BUILDER_FORMAT}", variant.suite, variant.profile, *variant.packages):
        digest.update(text.encode() + b"\0")
    for file in files:
        # Lengths first, so that no two lists of files read the same.
        digest.update(f"{file.place}\0{file.executable:d}\0{len(file.content)}\0".encode())
        digest.update(file.content)
    return digest.hexdigest()


def inputs_tar(files: list[InputFile], mtime_s: int) -> bytes:
    """Return the files as a tar that is the same wherever it is made: root's, fixed modes, one time stamp."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for directory in sorted({parent for file in files for parent in _parents(file.place)}):
            member = tarfile.TarInfo(directory)
            member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, mtime_s
            tar.addfile(member)
        for file in files:
            member = tarfile.TarInfo(file.place)
            member.size, member.mtime = len(file.content), mtime_s
            member.mode = 0o755 if file.executable else 0o644
            tar.addfile(member, io.BytesIO(file.content))
    return buffer.getvalue()


def _parents(place: str) -> Iterator[str]:
    # /tmp exists, with a mode of its own.
    return (os.fspath(parent) for parent in Path(place).parents if os.fspath(parent) not in {".", "tmp"})
