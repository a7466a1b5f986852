"""The system of the reference guest as a tar file, the same byte for byte wherever it is built (mmdebstrap)."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec import Struct

from qmpalloc.errors import HostError
from qmpalloc.qemu.build_errors import PREPARE_BEGINS, translated
from qmpalloc.qemu.host import isolated, remove_tree, require_space, run
from qmpalloc.qemu.inputs import InputFile, write_inputs_tar
from qmpalloc.qemu.mirror import host_mirror, host_transfer_options
from qmpalloc.qemu.recipe import ADDITIONS_SCRIPT, INPUTS_DIR, Recipe, Variant
from qmpalloc.units import GIB

UNPACKED_BYTES = 2 * GIB
"""Room for the unpacked system and the downloaded packages while it is built; measured: 1.2 GiB."""

KEYRING_GLOB = "debian-archive-keyring.*"


class Contents(Struct, frozen=True):
    """What a finished tar holds, besides files.

    Attributes:
        kernel_release: As ``uname -r`` will say.
        packages: Name to version.
    """

    kernel_release: str
    packages: dict[str, str]


def mmdebstrap_argv(
    recipe: Recipe,
    variant: Variant,
    *,
    inputs: Path,
    tar: Path,
    mirror: str | None,
    apt_options: Sequence[str] = (),
    as_root: bool,
) -> list[str]:
    """Return the command that builds the tar.

    Args:
        recipe: What goes in.
        variant: Suite and profile.
        inputs: A tar of overlay, collector and scripts.
        tar: The file to make.
        mirror: Where the packages come from; None is mmdebstrap's own choice.
        apt_options: Lines of an apt.conf, used for the build and removed from the image.
        as_root: False builds in a user namespace.
    """
    inputs_dir = f"/{INPUTS_DIR}"
    profile = recipe.profile[variant.profile]
    rpcs = [",".join(recipe.agent.allow), ",".join(profile.allow_lab)]
    customize = shlex.join(["sh", f"{inputs_dir}/customize.sh", inputs_dir, *rpcs])
    additions = shlex.join(["sh", f"{inputs_dir}/{ADDITIONS_SCRIPT}", inputs_dir])
    return [
        "mmdebstrap",
        "--mode=root" if as_root else "--mode=unshare",
        "--variant=minbase",
        "--format=tar",
        f"--architectures={variant.arch}",
        f"--include={','.join((*_system_packages(recipe, variant), *profile.packages, *variant.packages))}",
        *(f"--dpkgopt=path-exclude={path}" for path in recipe.exclude_paths),
        *(f"--dpkgopt=path-include={path}" for path in recipe.include_paths),
        *(f"--aptopt={option}" for option in apt_options),
        # Before the kernel is installed, so that its initrd is made as configured. The special hook tar-in reads the
        # file as the calling user, which in a namespace the other hooks could not.
        f"--essential-hook=tar-in {shlex.quote(str(inputs))} /",
        *([] if variant.additions.is_empty else [f'--customize-hook=chroot "$1" {additions}']),
        f'--customize-hook=chroot "$1" {customize}',
        variant.suite,
        str(tar),
        *_sources(variant, mirror),
    ]  # fmt: skip


KERNEL_PACKAGES = ("linux-image-", "linux-headers-")


def _system_packages(recipe: Recipe, variant: Variant) -> list[str]:
    """Return the recipe's packages, with those of another kernel where one is asked for, and headers of its version."""
    kernel, additions = variant.additions.kernel, variant.additions
    if not kernel and not additions.kernel_files:
        return list(recipe.packages)
    others = [name for name in recipe.packages if not name.startswith(KERNEL_PACKAGES)]
    if additions.kernel_files:
        return ["initramfs-tools", *others]  # which packages of kernels depend on
    headers = kernel.replace("linux-image-", "linux-headers-", 1).replace("-unsigned", "")
    return [kernel, headers, *others]


def _sources(variant: Variant, mirror: str | None) -> list[str]:
    """Return where packages come from: the mirror, and its archive of backports when the kernel is from there."""
    release = variant.additions.kernel.partition("/")[2]
    if not release or release == variant.suite:
        return [mirror] if mirror else []
    if mirror is None:
        hint = "build it with qmpalloc image build --mirror URI"
        raise variant.additions.origin.error("kernel", f"no mirror is known that has {release}", hint=hint)
    return [f"deb {mirror} {suite} main" for suite in (variant.suite, release)]


def build_tar(
    recipe: Recipe,
    variant: Variant,
    files: Sequence[InputFile],
    directory: Path,
    *,
    mirror: str | None = None,
    on_step: Callable[[str], None],
) -> Path:
    """Build ``rootfs.tar`` in `directory` and return its path. The build's log is ``build.log`` beside it.

    Args:
        recipe: What goes in.
        variant: Suite and profile.
        files: The inputs of the image.
        directory: An existing directory.
        mirror: Where the packages come from; None takes the host's.
        on_step: Told what mmdebstrap does.

    Raises:
        ConfigError: It failed for what the user adds: a package that does not exist, a script that fails.
        HostError: It failed; with mmdebstrap's last lines.
    """
    mirror = mirror or host_mirror()
    tar = directory / "rootfs.tar"
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        inputs = Path(scratch) / "inputs.tar"
        with inputs.open("wb") as target:
            write_inputs_tar(target, list(files), recipe.source_date_epoch)
        argv = mmdebstrap_argv(
            recipe,
            variant,
            inputs=inputs,
            tar=tar,
            mirror=mirror,
            apt_options=host_transfer_options(),
            as_root=os.geteuid() == 0,
        )
        log_path = directory / "build.log"
        try:
            run_mmdebstrap(
                argv,
                what=f"building {variant} with mmdebstrap",
                log_path=log_path,
                env={"SOURCE_DATE_EPOCH": str(recipe.source_date_epoch)},
                on_step=on_step,
                hint="" if mirror else "choose another package source with --mirror",
            )
        except HostError as error:
            raise translated(error, log_path.read_text().splitlines(), variant) from error
    return tar


def run_mmdebstrap(
    argv: Sequence[str],
    *,
    what: str,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    on_step: Callable[[str], None],
    hint: str = "",
) -> None:
    """Run mmdebstrap so that nothing of it is left, however it ends.

    Args:
        argv: Its command line.
        what: What it does, for the error.
        log_path: Where all it says goes.
        env: Added to the environment.
        on_step: Told what it does.
        hint: Of the error.

    Raises:
        HostError: Debian's keys or room are missing, or it failed; with its last lines.
    """
    if not any(Path("/usr/share/keyrings").glob(KEYRING_GLOB)):
        raise HostError("Debian's archive keys are missing", hint="apt install debian-archive-keyring")
    with _workspace() as workspace, log_path.open("w", encoding="utf-8") as log:

        def on_line(line: str) -> None:
            log.write(line + "\n")
            if line.startswith(("I: downloading", "I: extracting", "I: installing")):
                on_step(line.removeprefix("I: ").rstrip("."))
            elif line == PREPARE_BEGINS:
                on_step("preparing the system")
            elif line.startswith("I: running --customize-hook"):
                on_step("configuring the system")

        run(isolated(argv), what=what, env={**(env or {}), "TMPDIR": str(workspace)}, on_line=on_line, hint=hint)


@contextmanager
def _workspace() -> Iterator[Path]:
    """Make the directory in which mmdebstrap unpacks the system, and remove what it leaves there when it is cut off.

    Not in /tmp, which is often a file system in memory. The lock tells a workspace in use from one that a killed build
    left behind.
    """
    base, prefix = Path(os.environ.get("TMPDIR", "/var/tmp")), f"qmpalloc-build-{os.geteuid()}."
    require_space(base, UNPACKED_BYTES)
    for former in base.glob(f"{prefix}*"):
        with suppress(OSError), _locked_directory(former):
            if former.lstat().st_uid == os.geteuid():
                remove_tree(former)
    workspace = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    workspace.chmod(0o1777)  # in a namespace mmdebstrap is another user
    with _locked_directory(workspace):
        try:
            yield workspace
        finally:
            remove_tree(workspace)


@contextmanager
def _locked_directory(directory: Path) -> Iterator[None]:
    """Hold a directory's lock.

    Raises:
        BlockingIOError: Somebody else holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack_boot_files(tar: Path, directory: Path) -> Contents:
    """Copy kernel and initrd out of the tar, as ``vmlinuz`` and ``initrd.img``, and return what else is in it.

    Raises:
        HostError: The tar holds no kernel, or more than one.
    """
    status, releases = "", []
    with tarfile.open(tar) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            kind, _, release = name.removeprefix("boot/").partition("-")
            if name.startswith("boot/") and kind in {"vmlinuz", "initrd.img"}:
                with (directory / kind).open("wb") as target:
                    source = archive.extractfile(member)
                    assert source is not None
                    shutil.copyfileobj(source, target)
                releases += [release] if kind == "vmlinuz" else []
            elif name == "var/lib/dpkg/status":
                source = archive.extractfile(member)
                assert source is not None
                status = source.read().decode()
    if len(releases) != 1 or not (directory / "initrd.img").is_file():
        raise HostError(f"{tar.name} holds {len(releases)} kernels instead of one with its initrd")
    return Contents(kernel_release=releases[0], packages=parse_dpkg_status(status))


def parse_dpkg_status(text: str) -> dict[str, str]:
    """Return name and version of the packages in a dpkg status file, ordered by name."""
    packages = {}
    for stanza in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
        if "Package" in fields and "Version" in fields:
            packages[fields["Package"]] = fields["Version"]
    return dict(sorted(packages.items()))
