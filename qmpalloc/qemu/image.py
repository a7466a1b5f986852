"""Reference guest images: found in the cache, or built.

An image is a directory ``$XDG_CACHE_HOME/qmpalloc/images/SUITE-PROFILE-DIGEST`` whose name holds the digest of
everything it is made from, so that a changed recipe or collector means another image. Nothing ever writes to it again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from qmpalloc.errors import ConfigError, HostError
from qmpalloc.qemu import cache
from qmpalloc.qemu.additions import Additions
from qmpalloc.qemu.architecture import Architecture
from qmpalloc.qemu.host import as_root, remove_tree, require, require_namespace, require_space, run
from qmpalloc.qemu.image_names import DirectoriesOf, forget, named_by, note_name, recipe_files
from qmpalloc.qemu.progress import Report, Stopwatch, silent
from qmpalloc.qemu.recipe import DIGEST_CHARS, Variant, input_files, inputs_digest, load_recipe
from qmpalloc.qemu.rootfs import build_tar, digest_of, unpack_boot_files
from qmpalloc.units import GIB, format_size

NEEDED_BYTES = 4 * GIB
"""Room in the cache while an image is built: the tar, its unpacked copy and the disk. About 1.2 GiB stay."""

COPIES = 4
"""Of each file that a user adds, while an image is built: among the inputs and in those three."""


class Manifest(Struct, frozen=True, kw_only=True):
    """``manifest.json`` of an image.

    Attributes:
        suite: Debian suite.
        profile: Image profile.
        inputs_sha256: Of everything the image is made from.
        rootfs_sha256: Of the reproducible tar; two builds from the same packages agree on it.
        kernel_release: As ``uname -r`` says in the guest.
        kernel_arguments: Kernel command line.
        source_date_epoch: Clock of the build.
        packages: How many; ``packages.txt`` lists them with their versions.
        sizes_bytes: Of the image's files.
        more_packages: Names of those that were asked for besides the recipe's.
        additions: What else was asked for, and where.
        arch: Debian's name of its architecture.
    """

    suite: str
    profile: str
    inputs_sha256: str
    rootfs_sha256: str
    kernel_release: str
    kernel_arguments: tuple[str, ...]
    source_date_epoch: int
    packages: int
    sizes_bytes: dict[str, int]
    more_packages: tuple[str, ...] = ()
    additions: Additions = Additions()
    arch: str = "amd64"

    @property
    def variant(self) -> Variant:
        """Which image it is."""
        return Variant(self.suite, self.profile, self.more_packages, self.additions, self.arch)

    @property
    def extras(self) -> list[str]:
        """What it has besides the recipe, in words."""
        more = self.additions
        words = [*self.more_packages, *(place for place, _ in more.files)]
        words += [f"prepared by {Path(more.prepare).name}"] if more.prepare else []
        words += [f"kernel {more.kernel}"] if more.kernel else []
        words += [f"kernel of {more.kernel_files[0]}"] if more.kernel_files else []
        return words + ([f"size {format_size(more.size_bytes)}"] if more.size_bytes else [])


class Image(Struct, frozen=True, kw_only=True):
    """A finished image. Its files are read only by all."""

    directory: Path
    manifest: Manifest

    @property
    def architecture(self) -> Architecture:
        """What can run it."""
        return self.manifest.variant.architecture

    @property
    def kernel(self) -> Path:
        """The kernel, for ``-kernel``."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initial RAM disk, for ``-initrd``."""
        return self.directory / "initrd.img"

    @property
    def disk(self) -> Path:
        """The root file system, ext4 without a partition table."""
        return self.directory / "root.ext4"

    @property
    def has_lab_agent(self) -> bool:
        """True when a second agent may execute programs."""
        return self.manifest.profile != "base"


class Verdict(Struct, frozen=True):
    """What becomes of an image.

    Attributes:
        image: Which.
        kept: Why it stays; empty: it may go.
    """

    image: Image
    kept: str


def images_dir() -> Path:
    """Return the directory of all images."""
    return cache.cache_dir() / "images"


def image_dir(variant: Variant, *, recipe_dir: Path | None = None) -> Path:
    """Return where the image of a recipe, by default the present one, is or would be."""
    files = input_files(variant, recipe_dir=recipe_dir)
    return images_dir() / f"{variant}-{inputs_digest(variant, files)[:DIGEST_CHARS]}"


def read_image(directory: Path) -> Image:
    """Return the image in `directory`.

    Raises:
        HostError: It holds no image, or one of another format.
    """
    try:
        manifest = msgspec.json.decode((directory / "manifest.json").read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise HostError(f"{directory} is not an image: {error}", hint="remove it, then qmpalloc image build") from error
    return Image(directory=directory, manifest=manifest)


def planned_image(variant: Variant) -> Image:
    """Return the image of the present recipe, as it would be if it is not built yet."""
    recipe, files, directory = load_recipe(variant.architecture), input_files(variant), image_dir(variant)
    if directory.is_dir():
        return read_image(directory)
    manifest = Manifest(
        suite=variant.suite,
        profile=variant.profile,
        inputs_sha256=inputs_digest(variant, files),
        rootfs_sha256="",
        kernel_release="(not built yet)",
        kernel_arguments=recipe.kernel_arguments,
        source_date_epoch=recipe.source_date_epoch,
        packages=0,
        sizes_bytes={},
        more_packages=variant.packages,
        additions=variant.additions,
        arch=variant.arch,
    )
    return Image(directory=directory, manifest=manifest)


def list_images(unusable: Callable[[HostError], None]) -> list[Image]:
    """Return all cached images, of present and former recipes.

    Args:
        unusable: Is told of each that cannot be read: it is spoilt, or another qmpalloc's.
    """
    images = []
    for file in sorted(images_dir().glob("[!.]*/manifest.json")):
        try:
            images.append(read_image(file.parent))
        except HostError as error:
            unusable(error)
    return images


def prune_images(directories_of: DirectoriesOf, unusable: Callable[[HostError], None]) -> list[Verdict]:
    """Remove the images that nothing names any more, and return what became of all. Those it cannot read stay.

    Args:
        directories_of: The images that a file names.
        unusable: Is told of each that cannot be read.
    """
    verdicts = [Verdict(image, _kept(image, directories_of)) for image in list_images(unusable)]
    for verdict in verdicts:
        if not verdict.kept:
            directory = verdict.image.directory
            with cache.locked(directory):
                remove_tree(directory)
                forget(directory)
    return verdicts


def _kept(image: Image, directories_of: DirectoriesOf) -> str:
    """Return why an image is to stay; empty: it may go."""
    # 1. The reference guest, for whoever wants it next.
    if image.manifest.variant.is_reference:
        return "the present recipe" if is_current(image) else ""
    # 2. What a file names.
    files = list(named_by(image.directory, directories_of))
    if files:
        return f"named by {', '.join(files)}"
    # 3. What was given by flags; or before names were kept.
    by_flags = "" in (recipe_files(image.directory) or [""])
    return "as its flags say" if by_flags and is_current(image) else ""


def is_current(image: Image) -> bool:
    """Return whether its recipe, as it is now, still makes this very image."""
    try:
        return image_dir(image.manifest.variant) == image.directory
    except ConfigError:  # something that was added is gone
        return False


def needed_bytes(variant: Variant) -> int:
    """Return the room in the cache that building an image takes.

    Raises:
        ConfigError: What the user adds is not there.
    """
    more = sum(file.size_bytes for file in input_files(variant)) if not variant.additions.is_empty else 0
    return NEEDED_BYTES + COPIES * more


def obtain_image(
    variant: Variant,
    *,
    recipe_dir: Path | None = None,
    mirror: str | None = None,
    keep_tar: bool = False,
    rebuild: bool = False,
    report: Report = silent,
) -> Image:
    """Return the image of a recipe, built now if it is not cached (one to two minutes).

    Args:
        variant: Which image.
        recipe_dir: Where the recipe is; None takes the one that comes with this qmpalloc.
        mirror: Where packages come from; None is the host's own mirror.
        keep_tar: Keep ``rootfs.tar`` (700 MB) in the image when it is built.
        rebuild: Build it also if it is cached, for newer packages.
        report: Progress lines.

    Raises:
        ConfigError: What the user adds is not there, or does not work.
        HostError: A program, a privilege or room is missing, or the build failed. Nothing is left then.
    """
    directory = cache.obtain(
        image_dir(variant, recipe_dir=recipe_dir),
        lambda partial: _make(partial, variant, recipe_dir=recipe_dir, mirror=mirror, keep_tar=keep_tar, report=report),
        replace=rebuild,
        report=report,
    )
    image = read_image(directory)
    if not variant.is_reference:
        note_name(image.directory, variant.additions.origin.file)
    return image


def check_reproducible(variant: Variant, *, mirror: str | None = None, report: Report = silent) -> tuple[str, str]:
    """Build the root file system twice from nothing and return the two digests, which must be equal.

    Raises:
        HostError: As `obtain_image`.
    """
    _check(variant)
    recipe, files, watch = load_recipe(variant.architecture), input_files(variant), Stopwatch(report)
    cache.make_place(images_dir())
    digests = []
    for number in (1, 2):
        watch.step(f"build {number} of 2: {variant}")
        with tempfile.TemporaryDirectory(prefix=".check.", dir=images_dir()) as directory:
            tar = build_tar(recipe, variant, files, Path(directory), mirror=mirror, on_step=watch.step)
            digests.append(digest_of(tar))
        watch.step(f"build {number} of 2: sha256 {digests[-1]}")
    return digests[0], digests[1]


def _check(variant: Variant) -> None:
    """Check that the image can be built on this host, and that its guests can be observed."""
    architecture = variant.architecture
    if variant.suite not in architecture.suites:
        message = f"in the kernel of {variant.suite} for {architecture.name} nothing can be counted"
        raise variant.additions.origin.error("suite", message, hint=f"take {' or '.join(architecture.suites)}")
    require(["mmdebstrap", "mke2fs", "setpriv", "tar", "unshare"])
    require_namespace()
    if architecture.is_native:
        return
    # Its packages run their own programs when they are installed, as the kernel does with a user-mode emulator's help.
    require(["arch-test"])
    run(
        ["arch-test", architecture.name],
        what=f"running programs of {architecture.name} here, which building its images takes,",
        hint="apt install qemu-user-static; where systemd does not run, also binfmt-support, "
        f"then update-binfmts --enable qemu-{architecture.machine}",
    )


def _make(
    partial: Path, variant: Variant, *, recipe_dir: Path | None, mirror: str | None, keep_tar: bool, report: Report
) -> None:
    """Fill the empty directory `partial` with an image."""
    watch = Stopwatch(report)
    watch.step(f"building the guest image {variant} for {variant.arch}, once for this recipe")
    _check(variant)
    require_space(partial, needed_bytes(variant))
    recipe = load_recipe(variant.architecture, recipe_dir)
    files = input_files(variant, recipe_dir=recipe_dir)
    tar = build_tar(recipe, variant, files, partial, mirror=mirror, on_step=watch.step)
    watch.step("reading the system's tar")
    rootfs_sha256 = digest_of(tar)
    contents = unpack_boot_files(tar, partial)
    (partial / "packages.txt").write_text("".join(f"{name} {version}\n" for name, version in contents.packages.items()))
    watch.step("making the root file system")
    size_bytes = variant.additions.size_bytes or recipe.disk.size
    try:
        _make_disk(tar, partial / "root.ext4", size_bytes=size_bytes, label=recipe.disk.label)
    except FullError as error:
        message = f"the system does not fit into {format_size(size_bytes)}"
        raise variant.additions.origin.error("size", message, hint="give the image a larger size") from error
    if not keep_tar:
        tar.unlink()
    names = sorted(path.name for path in partial.iterdir())
    manifest = Manifest(
        suite=variant.suite,
        profile=variant.profile,
        inputs_sha256=inputs_digest(variant, files),
        rootfs_sha256=rootfs_sha256,
        kernel_release=contents.kernel_release,
        kernel_arguments=recipe.kernel_arguments,
        source_date_epoch=recipe.source_date_epoch,
        packages=len(contents.packages),
        sizes_bytes={name: (partial / name).stat().st_size for name in names},
        more_packages=variant.packages,
        additions=variant.additions,
        arch=variant.arch,
    )
    (partial / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    for path in partial.iterdir():
        path.chmod(0o444)
    partial.chmod(0o755)
    watch.step(f"done: kernel {manifest.kernel_release}, {manifest.packages} packages, rootfs sha256 {rootfs_sha256}")


def _make_disk(tar: Path, disk: Path, *, size_bytes: int, label: str) -> None:
    """Make an ext4 file system from a tar. Not bit-reproducible (mke2fs is not), unlike the tar."""
    tree = disk.parent / "tree"
    tree.mkdir()
    try:
        # Device nodes cannot be made in a namespace, and the guest's kernel makes its own (devtmpfs).
        unpack = ["tar", "--extract", "--numeric-owner", "--exclude=./dev/*", f"--directory={tree}", f"--file={tar}"]
        run(as_root(unpack), what="unpacking the root file system")
        make_ext4(disk, tree, size_bytes=size_bytes, label=label)
    finally:
        remove_tree(tree)


def make_ext4(disk: Path, tree: Path, *, size_bytes: int, label: str, inodes: int = 0) -> None:
    """Make the sparse file `disk`, an ext4 file system that holds `tree`.

    Args:
        disk: The file.
        tree: What it is to hold.
        size_bytes: Of the file system.
        label: By which it is found.
        inodes: How many files it may hold; 0: mke2fs's own choice.

    Raises:
        FullError: The tree does not fit.
        HostError: mke2fs failed.
    """
    with disk.open("wb") as file:
        os.truncate(file.fileno(), size_bytes)
    options = [
        "-t", "ext4", "-L", label, "-q", "-F",
        "-b", "4096",  # a block is a page; mke2fs would choose 1 KiB for a small disk
        "-m", "0",  # no blocks reserved for root, who is the only user
        # The disk is thrown away after each run: a journal would only add writes.
        "-O", "^has_journal",
        # Finished now, so that no kernel thread finishes it in the guest while loads are measured.
        "-E", "lazy_itable_init=0,nodiscard,root_owner=0:0",
    ]  # fmt: skip
    options += ["-N", str(inodes)] if inodes else []
    try:
        run(
            as_root(["mke2fs", *options, "-d", str(tree), str(disk)]),
            what=f"making the file system {label} with mke2fs",
        )
    except HostError as error:
        if any(words in error.message for words in NO_ROOM):
            raise FullError(error.message, hint=error.hint) from error
        raise


class FullError(HostError):
    """What a file system is to hold does not fit into it."""


NO_ROOM = ("Could not allocate block", "Could not allocate inode", "No space left on device", "too small")
"""What mke2fs says of a file system that is too small for its tree."""
