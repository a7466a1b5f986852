"""``qmpalloc image``: build, list and prune images of the reference guest."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from qmpalloc.cli.signals import interruptible
from qmpalloc.units import format_size

suite_option = click.option(
    "--suite", type=click.Choice(["trixie", "bookworm"]), default="trixie", show_default=True, help="Debian suite."
)
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
@suite_option
@profile_option
@click.option("--mirror", metavar="URI", help="Package source; by default the one the host's apt uses.")
@click.option("--keep-tar", is_flag=True, help="Keep rootfs.tar, the reproducible form (700 MB).")
@click.option("--rebuild", is_flag=True, help="Build it also if it exists, for newer packages.")
@click.option("--check-reproducible", is_flag=True, help="Build the tar twice and compare; leaves nothing.")
def build(
    suite: str, profile: str, mirror: str | None, keep_tar: bool, rebuild: bool, check_reproducible: bool
) -> None:
    """Build an image unless it exists, and print its directory. Takes one to two minutes; no root needed."""
    from qmpalloc.qemu import image as images
    from qmpalloc.qemu.recipe import Variant

    variant = Variant(suite, profile)
    if check_reproducible:
        with interruptible():
            first, second = images.check_reproducible(variant, mirror=mirror, report=_report)
        click.echo(f"build 1: {first}\nbuild 2: {second}")
        click.echo("equal: the root file system is reproducible" if first == second else "DIFFERENT")
        sys.exit(0 if first == second else 1)
    with interruptible():
        built = images.obtain_image(variant, mirror=mirror, keep_tar=keep_tar, rebuild=rebuild, report=_report)
    click.echo(built.directory)


@image.command("ls")
@click.option("--json", "as_json", is_flag=True, help="All that is known of each image as JSON.")
def list_(as_json: bool) -> None:
    """List the images that are built."""
    from qmpalloc.qemu import image as images

    rows: list[dict[str, Any]] = []
    for found in images.list_images():
        current = images.image_dir(found.manifest.variant) == found.directory
        facts = {"name": found.directory.name, "directory": str(found.directory), "current": current}
        rows.append(facts | msgspec.to_builtins(found.manifest))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
        return
    for row in rows:
        used = format_size(
            sum(file.stat().st_blocks * 512 for file in images.images_dir().joinpath(row["name"]).iterdir())
        )
        mark = "current" if row["current"] else "former"
        click.echo(f"{row['name']:<30} {mark:<8} {used:>6}  kernel {row['kernel_release']}, {row['packages']} packages")
    if not rows:
        click.echo("no image is built; qmpalloc image build", err=True)


@image.command()
def prune() -> None:
    """Remove the images of former recipes."""
    from qmpalloc.qemu import image as images

    for directory in images.prune_images():
        click.echo(f"removed {directory}")


def _report(line: str) -> None:
    click.echo(line, err=True)
