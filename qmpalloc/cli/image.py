"""``qmpalloc image``: build, list and prune images of the reference guest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.core import ParameterSource

from qmpalloc.cli.signals import interruptible
from qmpalloc.cli.streams import print_json
from qmpalloc.errors import ConfigError, HostError
from qmpalloc.units import format_size

if TYPE_CHECKING:
    from qmpalloc.config import ImageConfig
    from qmpalloc.qemu.recipe import Variant

FLAGS = {
    "suite": "--suite",
    "packages": "--package",
    "files": "--file",
    "prepare": "--prepare",
    "kernel": "--kernel",
    "kernel.vmlinuz": "--kernel",
    "kernel.modules": "--kernel",
    "kernel.headers": "--kernel",
    "size": "--size",
}
"""Keys of ``[image]`` and the flags for them."""

suite_option = click.option(
    "--suite", type=click.Choice(["trixie", "bookworm"]), default="trixie", show_default=True, help="Debian suite."
)
arch_option = click.option(
    "--arch", type=click.Choice(["auto", "amd64", "arm64"]), default="auto", show_default=True,
    help="Architecture, by Debian's name; auto is the host's.",
)  # fmt: skip
profile_option = click.option(
    "--profile", type=click.Choice(["base", "lab", "bench"]), default="lab", show_default=True,
    help="lab has a second agent that may execute programs.",
)  # fmt: skip


@click.group()
def image() -> None:
    """Build and list images of the reference guest.

    An image is named after the digest of everything it is made from, so it is built once per recipe. Images are in
    $XDG_CACHE_HOME/qmpalloc/images.
    """


@image.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@suite_option
@profile_option
@arch_option
@click.option("--package", "packages", multiple=True, metavar="P", help="A Debian package. May be repeated.")
@click.option(
    "--file", "files", multiple=True, metavar="SRC:DST", help="A file or directory, and its path in the guest."
)
@click.option("--prepare", default="", metavar="SCRIPT", help="Run as root in the new system, once.")
@click.option("--kernel", default="", metavar="K", help="A kernel's package, or VMLINUZ,MODULES,HEADERS.")
@click.option("--size", default="", metavar="SIZE", help="Of the root file system, e.g. 6GiB.")
@click.option("--mirror", metavar="URI", help="Package source; by default the one the host's apt uses.")
@click.option("--keep-tar", is_flag=True, help="Keep rootfs.tar, the reproducible form (700 MB).")
@click.option("--rebuild", is_flag=True, help="Build it also if it exists, for newer packages.")
@click.option("--check-reproducible", is_flag=True, help="Build the tar twice and compare; leaves nothing.")
def build(
    file: Path | None,
    suite: str,
    profile: str,
    arch: str,
    packages: tuple[str, ...],
    files: tuple[str, ...],
    prepare: str,
    kernel: str,
    size: str,
    mirror: str | None,
    keep_tar: bool,
    rebuild: bool,
    check_reproducible: bool,
) -> None:
    """Build an image unless it exists, and print its directory. Takes one to two minutes; no root needed.

    The images of FILE, an experiment or a configuration, or the one that the options describe.
    """
    from qmpalloc.cli.recipes import variants_of
    from qmpalloc.qemu import image as images

    flags = {"--package": packages, "--file": files, "--prepare": prepare, "--kernel": kernel, "--size": size}
    source = click.get_current_context().get_parameter_source
    given = [flag for flag, value in flags.items() if value]
    given += [f"--{name}" for name in ("suite", "profile", "arch") if source(name) is not ParameterSource.DEFAULT]
    if file is not None and given:
        raise click.UsageError(f"{file} says what its images are; leave out {', '.join(given)}")
    try:
        if file is not None:
            variants = variants_of(file)
        else:
            variants = [_variant(suite, profile, arch, _wanted(packages, files, prepare, kernel, size))]
        for variant in variants:
            if check_reproducible:
                _check_reproducible(variant, mirror)
                continue
            with interruptible():
                built = images.obtain_image(variant, mirror=mirror, keep_tar=keep_tar, rebuild=rebuild, report=_report)
            click.echo(built.directory)
    except ConfigError as error:
        if error.file or error.key not in FLAGS:
            raise
        raise ConfigError(error.reason, key=FLAGS[error.key], hint=error.hint) from error


def _variant(suite: str, profile: str, arch: str, wanted: ImageConfig) -> Variant:
    """Return the image that options describe."""
    from qmpalloc.config.convert import told
    from qmpalloc.qemu.additions import Additions
    from qmpalloc.qemu.architecture import named
    from qmpalloc.qemu.recipe import Variant

    for key, message, hint in told(wanted):
        raise ConfigError(message, key=key, hint=hint)
    return Variant(suite, profile, tuple(sorted(set(wanted.packages))), Additions.of(wanted), named(arch).name)


def _wanted(packages: tuple[str, ...], files: tuple[str, ...], prepare: str, kernel: str, size: str) -> ImageConfig:
    from qmpalloc.config import ImageConfig, KernelFiles, Size
    from qmpalloc.units import parse_size

    places = {}
    for text in files:
        source, colon, place = text.rpartition(":")
        if not colon:
            raise ConfigError(f"{text!r} names no place in the guest", key="files", hint="write SRC:DST")
        if place in places:
            raise ConfigError(f"{place} is named twice", key="files", hint="one file or directory for each place")
        places[place] = source
    parts = kernel.split(",")
    if len(parts) not in {1, 3}:
        hint = "a package, or three paths: VMLINUZ,MODULES,HEADERS"
        raise ConfigError(f"{kernel!r} is no kernel", key="kernel", hint=hint)
    own = KernelFiles(vmlinuz=parts[0], modules=parts[1], headers=parts[2]) if len(parts) == 3 else kernel
    try:
        size_bytes = parse_size(size) if size else 0
    except ValueError as error:
        raise ConfigError(str(error), key="size", hint="for example 6GiB") from error
    return ImageConfig(packages=packages, files=places, prepare=prepare, kernel=own, size=Size(size_bytes))


def _check_reproducible(variant: Variant, mirror: str | None) -> None:
    """Build the tar twice, say what came out, and end with an error when they differ."""
    from qmpalloc.qemu import image as images

    with interruptible():
        first, second = images.check_reproducible(variant, mirror=mirror, report=_report)
    click.echo(f"build 1: {first}\nbuild 2: {second}")
    click.echo("equal: the root file system is reproducible" if first == second else "DIFFERENT")
    if first != second:
        sys.exit(1)


@image.command("ls")
@click.option("--json", "as_json", is_flag=True, help="All that is known of each image as JSON.")
def list_(as_json: bool) -> None:
    """List the images that are built, and what each is of."""
    from qmpalloc.qemu import image as images
    from qmpalloc.qemu.image_names import recipe_files

    rows: list[dict[str, Any]] = []
    for found in images.list_images(_warn):
        directory = found.directory
        facts = {"name": directory.name, "directory": str(directory), "current": images.is_current(found)}
        facts |= {"extras": found.manifest.extras, "recipe_files": [name for name in recipe_files(directory) if name]}
        rows.append(facts | msgspec.to_builtins(found.manifest))
    if as_json:
        print_json(rows)
        return
    for row in rows:
        used = format_size(sum(file.stat().st_blocks * 512 for file in Path(row["directory"]).iterdir()))
        mark = "current" if row["current"] else "former"
        click.echo(f"{row['name']:<30} {mark:<8} {used:>6}  kernel {row['kernel_release']}, {row['packages']} packages")
        if row["extras"]:
            click.echo(f"  with {', '.join(row['extras'])}")
        for name in row["recipe_files"]:
            click.echo(f"  of {name}")
    if not rows:
        click.echo("no image is built; qmpalloc image build", err=True)


@image.command()
def prune() -> None:
    """Remove images that no recipe names any more: neither this qmpalloc's nor a file of yours that used them."""
    from qmpalloc.cli.recipes import variants_of
    from qmpalloc.qemu import image as images

    def directories_of(file: Path) -> set[Path]:
        return {images.image_dir(variant) for variant in variants_of(file)}

    for verdict in images.prune_images(directories_of, _warn):
        directory = verdict.image.directory
        if not verdict.kept:
            click.echo(f"removed {directory}")
        elif not verdict.image.manifest.variant.is_reference:
            click.echo(f"kept {directory}: {verdict.kept}")


def _warn(error: HostError) -> None:
    click.echo(f"warning: {error.message} ({error.hint})", err=True)


def _report(line: str) -> None:
    click.echo(line, err=True)
