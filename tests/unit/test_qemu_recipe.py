"""An image is named after everything it is made from: the digest changes when, and only when, that does."""

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from qmpalloc.config import VmConfig
from qmpalloc.errors import HostError
from qmpalloc.qemu import recipe, rootfs
from qmpalloc.qemu.architecture import native
from qmpalloc.qemu.inputs import write_inputs_tar
from qmpalloc.qemu.recipe import Variant
from qmpalloc.qemu.resources import resource_dir


@pytest.fixture
def sources(tmp_path):
    """Copies of the recipe and the collector, free to be changed."""
    for name in ("vm-images", "guest_agent"):
        shutil.copytree(resource_dir(name), tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def digest(sources, variant=Variant()):  # noqa: B008
    files = recipe.input_files(
        variant, recipe_dir=sources / "vm-images", collector_dir=sources / "guest_agent"
    )  # fmt: skip
    return recipe.inputs_digest(variant, files)


def test_the_same_inputs_give_the_same_digest_wherever_they_are(sources):
    files = recipe.input_files(Variant())
    assert digest(sources) == recipe.inputs_digest(Variant(), files)


@pytest.mark.parametrize(
    "changed",
    ["vm-images/recipe.toml", "vm-images/customize.sh", "guest_agent/program.c", "vm-images/profiles/lab/etc/new.conf"],
)
def test_a_changed_or_new_file_is_another_image(sources, changed):
    before = digest(sources)
    with (sources / changed).open("a") as file:
        file.write("# changed\n")
    assert digest(sources) != before


def test_a_file_that_becomes_a_program_is_another_image(sources):
    before = digest(sources)
    file = sources / "vm-images/overlay/etc/systemd/system/data.mount"
    file.chmod(0o755)
    assert digest(sources) != before


def test_suites_and_profiles_differ():
    variants = [Variant(suite, profile) for suite in ("trixie", "bookworm") for profile in ("base", "lab")]
    assert len({recipe.inputs_digest(variant, recipe.input_files(variant)) for variant in variants}) == 4


def test_the_lab_profile_does_not_touch_the_base_image(sources):
    before = digest(sources, Variant("trixie", "base"))
    (sources / "vm-images/profiles/lab/etc/more.conf").write_text("x")
    assert digest(sources, Variant("trixie", "base")) == before


def test_leftovers_and_words_for_people_change_nothing(sources):
    before = digest(sources)
    (sources / "guest_agent/__pycache__").mkdir()
    (sources / "guest_agent/__pycache__/collector.cpython-311.pyc").write_bytes(b"x")
    (sources / "vm-images/README.md").write_text("x")
    assert digest(sources) == before


def test_files_are_where_the_guest_expects_them():
    files = {file.place: file for file in recipe.input_files(Variant())}
    assert files["tmp/qmpalloc-image/guest_agent/install.sh"].executable
    assert "etc/systemd/system/qmpalloc-lab-agent.service" in files
    assert not any(place.startswith("/") or ".." in Path(place).parts for place in files)
    base = {file.place for file in recipe.input_files(Variant("trixie", "base"))}
    assert "etc/systemd/system/qmpalloc-lab-agent.service" not in base


def test_the_tar_of_the_inputs_is_the_same_each_time_and_belongs_to_root():
    files = recipe.input_files(Variant())
    packed, again = io.BytesIO(), io.BytesIO()
    for target in (packed, again):
        write_inputs_tar(target, files, 1234)
    assert packed.getvalue() == again.getvalue()
    packed.seek(0)
    with tarfile.open(fileobj=packed) as tar:
        members = tar.getmembers()
    assert {(member.uid, member.gid, member.mtime) for member in members} == {(0, 0, 1234)}
    assert {member.mode for member in members} <= {0o644, 0o755}
    # /tmp keeps its own mode.
    assert "tmp" not in {member.name for member in members}


def test_the_standard_agent_only_hands_out_files():
    loaded = recipe.load_recipe(native())
    assert set(loaded.agent.allow) == {
        "guest-sync", "guest-sync-delimited", "guest-ping", "guest-info",
        "guest-file-open", "guest-file-read", "guest-file-close",
    }  # fmt: skip
    assert loaded.profile["base"].allow_lab == ()
    assert "guest-exec" in loaded.profile["lab"].allow_lab


def test_the_bench_profile_is_lab_with_more_packages():
    files = {file.place for file in recipe.input_files(Variant("trixie", "bench"))}
    assert files == {file.place for file in recipe.input_files(Variant())}
    loaded = recipe.load_recipe(native())
    assert loaded.profile["bench"].allow_lab == loaded.profile["lab"].allow_lab
    arguments = {"inputs": Path("/i"), "tar": Path("/t"), "mirror": None, "as_root": True}
    lab, bench = (rootfs.mmdebstrap_argv(loaded, Variant("trixie", name), **arguments) for name in ("lab", "bench"))
    assert any("bpfcc-tools" in word for word in bench)
    assert not any("bpfcc-tools" in word for word in lab)


def test_packages_make_another_image_whatever_their_order(sources):
    more, same = (
        Variant.of(VmConfig(memory=2**30, packages=names)) for names in (("sqlite3", "jq"), ("jq", "sqlite3"))
    )
    assert digest(sources, more) == digest(sources, same)
    assert len({digest(sources, each) for each in (Variant(), more, Variant(packages=("jq",)))}) == 3
    argv = rootfs.mmdebstrap_argv(
        recipe.load_recipe(native()), more, inputs=Path("/i"), tar=Path("/t"), mirror=None, as_root=True
    )
    (included,) = (word for word in argv if word.startswith("--include="))
    assert included.endswith(",jq,sqlite3")


def test_a_broken_recipe_is_named(tmp_path):
    (tmp_path / "recipe.toml").write_text("packages = 3")
    with pytest.raises(HostError, match=r"recipe\.toml: not a usable image recipe"):
        recipe.load_recipe(native(), tmp_path)


def mmdebstrap_argv(**changes):
    arguments = {
        "inputs": Path("/a b/inputs.tar"), "tar": Path("/x/rootfs.tar"), "mirror": None, "as_root": True,
    }  # fmt: skip
    return rootfs.mmdebstrap_argv(recipe.load_recipe(native()), Variant(), **(arguments | changes))


def test_without_a_mirror_mmdebstrap_chooses():
    argv = mmdebstrap_argv()
    assert argv[-2:] == ["trixie", "/x/rootfs.tar"]
    assert not any("://" in word for word in argv)


def test_a_mirror_is_passed_on():
    assert mmdebstrap_argv(mirror="http://mirror.example/debian")[-1] == "http://mirror.example/debian"


def test_the_hosts_apt_settings_are_used():
    option = 'Acquire::http::Proxy "http://proxy.example:3142/";'
    assert f"--aptopt={option}" in mmdebstrap_argv(apt_options=[option])


def test_an_ordinary_user_builds_in_a_namespace():
    assert "--mode=root" in mmdebstrap_argv()
    assert "--mode=unshare" in mmdebstrap_argv(as_root=False)


def test_a_path_with_a_space_survives_the_hook():
    assert "--essential-hook=tar-in '/a b/inputs.tar' /" in mmdebstrap_argv()


def test_packages_and_versions_from_dpkgs_status():
    text = (
        "Package: zlib1g\nStatus: install ok installed\nVersion: 1:1.3\nDescription: x\n Version: lies\n\n"
        "Package: apt\nVersion: 3.0\n"
    )
    assert rootfs.parse_dpkg_status(text) == {"apt": "3.0", "zlib1g": "1:1.3"}


def make_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_boot_files_are_taken_from_the_tar(tmp_path):
    tar = make_tar(
        tmp_path / "rootfs.tar",
        {
            "./boot/vmlinuz-6.12-cloud": b"kernel",
            "./boot/initrd.img-6.12-cloud": b"initrd",
            "./boot/config-6.12-cloud": b"no",
            "./var/lib/dpkg/status": b"Package: a\nVersion: 1\n",
        },
    )
    contents = rootfs.unpack_boot_files(tar, tmp_path)
    assert (contents.kernel_release, contents.packages) == ("6.12-cloud", {"a": "1"})
    assert (tmp_path / "vmlinuz").read_bytes() == b"kernel"
    assert (tmp_path / "initrd.img").read_bytes() == b"initrd"


def test_a_tar_without_a_kernel_is_refused(tmp_path):
    with pytest.raises(HostError, match="0 kernels"):
        rootfs.unpack_boot_files(make_tar(tmp_path / "rootfs.tar", {"./etc/hostname": b"x"}), tmp_path)
