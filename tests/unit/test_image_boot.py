"""What the reference image does at boot takes nothing from packages: what they bring starts, with what it needs."""

import subprocess
from pathlib import Path

import pytest

from qmpalloc.qemu.recipe import Variant, input_files
from qmpalloc.qemu.resources import resource_dir

MASKED = {"tmp.mount", "systemd-udev-load-credentials.service"}
BROUGHT = {
    # As packages of Debian 13 bring them.
    "usr/lib/systemd/system-generators/systemd-sysv-generator": "",
    "usr/lib/systemd/system-generators/postgresql-generator": "",
    "usr/lib/systemd/system/redis-server.service": "",
    "usr/lib/systemd/system/systemd-modules-load.service": "",
    "etc/init.d/uml-utilities": "",
    "etc/modules-load.d/open-vm-tools.conf": "fuse\n",
    "usr/lib/binfmt.d/qemu-arm.conf": ":qemu-arm:\n",
    # Of the base system.
    "usr/lib/binfmt.d/python3.13.conf": ":python3.13:\n",
    "etc/modules": "# /etc/modules is obsolete\n#\n",
    "etc/modules-load.d/modules.conf": "",
    "var/lib/dpkg/status": "",
}


@pytest.fixture
def configured(tmp_path):
    """Return a function that runs boot.sh in a tree with the given files, and returns the tree."""

    def run(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        subprocess.run(["sh", resource_dir("vm-images") / "boot.sh", tmp_path], check=True)
        return tmp_path

    return run


def links_to_nothing(tree):
    return [
        path.relative_to(tree) for path in tree.rglob("*") if path.is_symlink() and path.readlink() == Path("/dev/null")
    ]


def test_no_generator_is_masked(configured):
    tree = configured(BROUGHT)
    assert not any("generators" in path.as_posix() for path in links_to_nothing(tree))


def test_no_unit_is_masked_but_those_that_no_package_needs(configured):
    tree = configured(BROUGHT)
    units = {path.name for path in links_to_nothing(tree) if path.parent == Path("etc/systemd/system")}
    assert units == MASKED


def test_what_is_not_wanted_is_so_by_a_target_of_the_base_system_alone(configured):
    tree = configured(BROUGHT)
    wishes = [path for path in links_to_nothing(tree) if path.name not in MASKED]
    assert wishes
    assert {path.parent.suffixes[-2:] == [".target", ".wants"] for path in wishes} == {True}
    assert {path.parent.parent for path in wishes} == {Path("etc/systemd/system")}


@pytest.mark.parametrize(
    "needed",
    [
        "systemd-modules-load.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
        "kmod-static-nodes.service", "systemd-tmpfiles-setup-dev-early.service", "systemd-tmpfiles-setup-dev.service",
        "systemd-tmpfiles-setup.service", "systemd-sysctl.service", "systemd-user-sessions.service", "run-lock.mount",
        "remote-fs.target",
    ],
)  # fmt: skip
def test_what_packages_count_on_without_asking_for_it_stays_wanted(configured, needed):
    """Modules, binary formats, device nodes, a directory for locks, users let in: no package names these units."""
    assert needed not in {path.name for path in links_to_nothing(configured(BROUGHT))}


def test_nothing_that_packages_bring_is_removed(configured):
    tree = configured(BROUGHT)
    gone = {name for name in BROUGHT if not (tree / name).exists()}
    assert gone == {"usr/lib/binfmt.d/python3.13.conf", "etc/modules-load.d/modules.conf"}


def test_modules_that_somebody_listed_the_old_way_are_loaded(configured):
    tree = configured(BROUGHT | {"etc/modules": "# old\nloop\n"})
    assert (tree / "etc/modules-load.d/modules.conf").exists()


def test_it_can_be_run_again(configured):
    before = sorted(links_to_nothing(configured(BROUGHT)))
    assert sorted(links_to_nothing(configured({}))) == before


@pytest.mark.parametrize("profile", ["base", "lab", "bench"])
def test_files_that_are_copied_into_the_image_mask_nothing_either(profile):
    files = input_files(Variant(profile=profile))
    assert "tmp/qmpalloc-image/boot.sh" in {file.place for file in files}
    copied = [file for file in files if not file.place.startswith("tmp/")]
    assert not any("generators" in file.place for file in copied)
    # An empty unit file masks as well as a link to /dev/null.
    assert all(file.content for file in copied)


def test_only_boot_sh_makes_links_to_nothing():
    """What is tested above is all there is."""
    assert "/dev/null" not in (resource_dir("vm-images") / "customize.sh").read_text().replace(">/dev/null", "")
