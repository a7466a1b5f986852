"""Of each architecture everything is known, and nothing but its own is in what is made for it."""

import platform
from typing import get_args

import msgspec
import pytest

from qmpalloc import config
from qmpalloc.cli.image import image as command
from qmpalloc.config import Origin, VmConfig
from qmpalloc.errors import ConfigError, HostError
from qmpalloc.qemu import accelerator, host, image, recipe, rootfs
from qmpalloc.qemu.architecture import ARCHITECTURES, named, native
from qmpalloc.qemu.image import Image, Manifest
from qmpalloc.qemu.kernel_image import kernel_release
from qmpalloc.qemu.launcher import plan
from qmpalloc.qemu.recipe import Variant

CONFIG = """
[host]
budget = "1GiB"
[[guest]]
name = "far"
floor = "256MiB"
cap = "1GiB"
baseline = "512MiB"
vm = { memory = "1GiB", arch = "%s" }
"""


@pytest.fixture
def this_host_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return lambda machine: monkeypatch.setattr(platform, "machine", lambda: machine)


@pytest.mark.parametrize(("machine", "name"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "amd64")])
def test_the_default_is_the_hosts_own(this_host_is, machine, name):
    this_host_is(machine)
    assert named("auto") is native() is ARCHITECTURES[name]
    assert native().is_native == (machine != "riscv64")
    assert Variant.of(VmConfig(memory=2**30)).arch == name


def test_configuration_and_flag_know_those_of_the_table():
    known = ["auto", *ARCHITECTURES]
    (hint,) = (field.type for field in msgspec.structs.fields(VmConfig) if field.name == "arch")
    assert list(get_args(hint)) == known
    (flag,) = (option for option in command.commands["build"].params if option.name == "arch")
    assert list(flag.type.choices) == known


def test_an_architecture_that_is_not_known_is_named_with_those_that_are(tmp_path):
    with pytest.raises(ConfigError) as caught:
        config.parse(CONFIG % "sparc", file=tmp_path / "x.toml")
    assert "guest[0].vm.arch" in str(caught.value)
    assert "sparc" in str(caught.value)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_recipe_is_filled_with_its_own_words_alone(arch):
    (other,) = ARCHITECTURES.keys() - {arch}
    variant = Variant(arch=arch)
    loaded = recipe.load_recipe(variant.architecture)
    assert f"linux-image-cloud-{arch}" in loaded.packages
    assert f"console={ARCHITECTURES[arch].console}" in loaded.kernel_arguments
    never = (b"@ARCH@", b"@CONSOLE@", other.encode(), ARCHITECTURES[other].console.encode())
    for file in recipe.input_files(variant):
        if "guest_agent" not in file.place:
            assert not [word for word in never if word in file.content], file.place


def test_each_has_an_image_of_its_own():
    assert len({image.image_dir(Variant(arch=arch)) for arch in ARCHITECTURES}) == len(ARCHITECTURES)


def test_mmdebstrap_is_told(tmp_path):
    for arch, architecture in ARCHITECTURES.items():
        words = rootfs.mmdebstrap_argv(
            recipe.load_recipe(architecture),
            Variant(arch=arch),
            inputs=tmp_path,
            tar=tmp_path,
            mirror=None,
            as_root=True,
        )
        assert f"--architectures={arch}" in words


def test_an_image_from_before_there_were_others_is_of_a_pc():
    fields = {
        "suite": "trixie", "profile": "lab", "inputs_sha256": "", "rootfs_sha256": "", "kernel_release": "6.12",
        "kernel_arguments": (), "source_date_epoch": 0, "packages": 1, "sizes_bytes": {},
    }  # fmt: skip
    assert msgspec.convert(fields, Manifest).variant.arch == "amd64"
    assert msgspec.convert(fields | {"arch": "arm64"}, Manifest).variant.arch == "arm64"


def test_a_guest_of_another_architecture_is_emulated_and_kvm_for_it_is_refused(this_host_is, tmp_path, monkeypatch):
    this_host_is("x86_64")
    monkeypatch.setattr(accelerator, "kvm_usable", lambda: (True, ""))
    found = plan(config.parse(CONFIG % "arm64", file=tmp_path / "x.toml")).accelerators["far"]
    assert (found.name, found.reason) == ("tcg", "this host is not of the guest's architecture, arm64")
    wanted = CONFIG.replace("arch", 'accelerator = "kvm", arch') % "arm64"
    with pytest.raises(
        ConfigError, match="KVM runs guests of this host's own architecture, and far is arm64"
    ) as caught:
        plan(config.parse(wanted, file=tmp_path / "x.toml"))
    assert caught.value.key == "guest[0].vm.accelerator"


def test_a_probe_is_made_with_the_images_own_emulator(tmp_path):
    manifest = image.planned_image(Variant(arch="arm64")).manifest
    words = accelerator.probe_argv(Image(directory=tmp_path, manifest=manifest))
    assert words[0] == "qemu-system-aarch64"
    assert "virt,gic-version=max" in words
    assert any("console=ttyAMA0 earlycon " in word for word in words)


def test_an_emulator_that_is_missing_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(host, "SEARCH_PATH", "/nowhere")
    with pytest.raises(HostError, match="qemu-system-aarch64") as caught:
        host.require([ARCHITECTURES["arm64"].program])
    assert caught.value.hint == "apt install qemu-system-arm"


def test_a_host_that_cannot_run_its_programs_says_what_to_install(this_host_is, tmp_path, monkeypatch):
    this_host_is("x86_64")
    for name, code in (
        ("arch-test", 1),
        *((name, 0) for name in ("mmdebstrap", "mke2fs", "setpriv", "tar", "unshare", "newuidmap")),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(host, "SEARCH_PATH", f"{tmp_path}:/bin")
    with pytest.raises(HostError, match="running programs of arm64") as caught:
        image._check(Variant(arch="arm64"))
    assert "apt install qemu-user-static" in caught.value.hint
    assert "update-binfmts --enable qemu-aarch64" in caught.value.hint
    image._check(Variant(arch="amd64"))


def test_a_suite_in_which_nothing_can_be_counted_is_refused_where_it_was_written():
    variant = Variant.of(VmConfig(memory=2**30, arch="arm64", suite="bookworm"), Origin("x.toml", "guest[0].vm"))
    with pytest.raises(ConfigError, match="in the kernel of bookworm for arm64 nothing can be counted") as caught:
        image._check(variant)
    assert (caught.value.key, caught.value.hint) == ("guest[0].vm.suite", "take trixie")


def test_an_arm_kernel_says_its_release(tmp_path):
    head = bytearray(4096)
    head[0x38:0x3C] = b"ARM\x64"
    (tmp_path / "Image").write_bytes(bytes(head) + b"\0" * 100_000 + b"Linux version 6.12.1-own (me@host) #1 SMP\0")
    (tmp_path / "cut").write_bytes(head)
    assert kernel_release(tmp_path / "Image", "Image") == "6.12.1-own"
    assert kernel_release(tmp_path / "Image", "bzImage") == ""
    assert kernel_release(tmp_path / "cut", "Image") == ""
