"""What a user adds to an image is read from beside their file, is part of the digest, and what is wrong is named."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from qmpalloc import config
from qmpalloc.config import ImageConfig, KernelFiles, Origin
from qmpalloc.errors import ConfigError, HostError
from qmpalloc.qemu import image, recipe, rootfs
from qmpalloc.qemu.additions import Additions
from qmpalloc.qemu.architecture import native
from qmpalloc.qemu.build_errors import translated
from qmpalloc.qemu.host import NO_SPACE_HINT
from qmpalloc.qemu.inputs import write_inputs_tar
from qmpalloc.qemu.kernel_image import kernel_release
from qmpalloc.qemu.recipe import Variant
from qmpalloc.qemu.resources import resource_dir

CONFIG = """
[host]
budget = "1GiB"
[image]
packages = ["sqlite3"]
files = { "/etc/app.conf" = "app.conf", "/srv/www" = "www" }
prepare = "init.sh"
[[guest]]
name = "one"
floor = "256MiB"
cap = "1GiB"
baseline = "512MiB"
vm = { memory = "1GiB", packages = ["jq"] }
"""
RELEASE = "6.12.1-own"


def a_kernel(release=RELEASE):
    """The beginning of a bzImage that says its release."""
    head = bytearray(1024)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x100).to_bytes(2, "little")
    return bytes(head[:0x300]) + f"{release} (me@host) #1 SMP".encode() + b"\0" * 16


@pytest.fixture
def beside(tmp_path):
    """A directory with everything that a file may name."""
    (tmp_path / "app.conf").write_text("colour = blue\n")
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "index.html").write_text("hello\n")
    (tmp_path / "www" / "start").symlink_to("index.html")
    (tmp_path / "init.sh").write_text("echo hello > /root/made\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "vmlinuz").write_bytes(a_kernel())
    for part in (f"modules/{RELEASE}/kernel", "headers/include/linux", "headers/arch/x86/include"):
        (tmp_path / "own" / part).mkdir(parents=True)
    (tmp_path / "own" / "modules" / RELEASE / "kernel" / "a.ko").write_bytes(b"module")
    (tmp_path / "own" / "modules" / RELEASE / "build").symlink_to("/home/me/linux")
    (tmp_path / "own" / "headers" / "include" / "linux" / "a.h").write_text("int a;\n")
    (tmp_path / "own" / "headers" / "vmlinux.o").write_text("large, and not wanted")
    return tmp_path


OWN = KernelFiles(vmlinuz="own/vmlinuz", modules=f"own/modules/{RELEASE}", headers="own/headers")


def variant(beside, packages=(), **keys):
    wanted = ImageConfig(**keys, origin=Origin(str(beside / "x.toml"), "image"))
    return Variant(packages=packages, additions=Additions.of(wanted))


def digest(wanted):
    return recipe.inputs_digest(wanted, recipe.input_files(wanted))


def test_a_configuration_gives_its_image_to_every_guest_that_is_started(beside):
    loaded = config.parse(CONFIG, file=beside / "x.toml")
    found = Variant.of(loaded.guests[0].vm)
    assert found.packages == ("jq", "sqlite3")
    assert found.additions.prepare == str(beside / "init.sh")
    assert found.additions.origin == Origin(str(beside / "x.toml"), "image")
    own = CONFIG.replace('packages = ["jq"]', 'image = { packages = ["jq"] }')
    assert Variant.of(config.parse(own, file=beside / "x.toml").guests[0].vm).packages == ("jq",)


def test_every_part_makes_another_image_and_the_place_of_the_files_makes_none(beside):
    keys = [
        {},
        {"files": {"/etc/app.conf": "app.conf"}},
        {"files": {"/etc/other.conf": "app.conf"}},
        {"files": {"/srv/www": "www"}},
        {"prepare": "init.sh"},
        {"kernel": "linux-image-amd64"},
        {"kernel": OWN},
        {"size": 6 << 30},
    ]
    digests = [digest(variant(beside, **each)) for each in keys]
    assert len(set(digests)) == len(keys)
    assert digests[0] == digest(Variant())
    moved = beside / "elsewhere"
    moved.mkdir()
    (moved / "init.sh").write_text((beside / "init.sh").read_text())
    assert digest(variant(moved, prepare="init.sh")) == digests[4]
    (moved / "init.sh").write_text("other")
    assert digest(variant(moved, prepare="init.sh")) != digests[4]


def test_files_come_into_the_build_with_their_links(beside):
    wanted = variant(beside, files={"/srv/www": "www"}, prepare="init.sh")
    packed = io.BytesIO()
    write_inputs_tar(packed, recipe.input_files(wanted), 7)
    packed.seek(0)
    with tarfile.open(fileobj=packed) as tar:
        members = {member.name.removeprefix(f"{recipe.INPUTS_DIR}/"): member for member in tar}
        assert tar.extractfile(members["files/srv/www/index.html"]).read() == b"hello\n"
    assert members["files/srv/www/start"].linkname == "index.html"
    assert members["prepare"].mode == 0o755
    assert "additions.sh" in members


def test_of_an_own_kernel_what_a_guest_needs_is_taken(beside):
    files = {
        file.place.removeprefix(f"{recipe.INPUTS_DIR}/") for file in recipe.input_files(variant(beside, kernel=OWN))
    }
    assert {
        "kernel/vmlinuz",
        "kernel/release",
        "kernel/modules/kernel/a.ko",
        "kernel/headers/include/linux/a.h",
    } <= files
    assert not files & {"kernel/modules/build", "kernel/headers/vmlinux.o"}


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"prepare": "none.sh"}, "image.prepare", "none.sh: No such file"),
        ({"prepare": "www"}, "image.prepare", "www: Is a directory"),
        ({"files": {"/etc/a": "none"}}, "image.files", "none: No such file"),
        ({"kernel": KernelFiles(vmlinuz="none", modules="m", headers="h")}, "image.kernel.vmlinuz", "No such file"),
        ({"kernel": KernelFiles(vmlinuz="app.conf", modules="m", headers="h")}, "image.kernel.vmlinuz", "not a kernel"),
        (
            {"kernel": KernelFiles(vmlinuz="own/vmlinuz", modules="www", headers="h")},
            "image.kernel.modules",
            f"does not hold the modules of {RELEASE}",
        ),
        (
            {"kernel": KernelFiles(vmlinuz="own/vmlinuz", modules=f"none/{RELEASE}", headers="h")},
            "image.kernel.modules",
            "holds no modules",
        ),
        (
            {"kernel": KernelFiles(vmlinuz="own/vmlinuz", modules=f"own/modules/{RELEASE}", headers="www")},
            "image.kernel.headers",
            "holds no kernel headers",
        ),
    ],
)
def test_what_is_not_there_is_refused_before_a_build(beside, keys, key, message):
    with pytest.raises(ConfigError, match=message) as caught:
        image.image_dir(variant(beside, **keys))
    assert (caught.value.file, caught.value.key) == (str(beside / "x.toml"), key)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ('files = { "etc/a" = "a" }', "files"),
        ('files = { "/etc/../a" = "a" }', "files"),
        ('files = { "/tmp/a" = "a" }', "files"),
        ('files = { "/etc/a" = "" }', "files"),
        ('kernel = "vmlinuz"', "kernel"),
        ('kernel = { vmlinuz = "a", modules = "", headers = "c" }', "kernel.modules"),
        ('kernel = { vmlinuz = "a", modules = "b" }', "kernel.headers"),
        ('size = "1MiB"', "size"),
        ('packages = ["--x"]', "packages"),
        ('origin = "x"', "origin"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_what_no_image_can_have_is_refused_when_the_file_is_read(table, key, whole, tmp_path):
    text = CONFIG[: CONFIG.index("[image]")] + CONFIG[CONFIG.index("[[guest]]") :]
    if whole:
        text = text.replace("[[guest]]", f"[image]\n{table}\n[[guest]]")
    else:
        text = text.replace(', packages = ["jq"] }', "}\n[guest.vm.image]\n" + table)
        text = text.replace('vm = { memory = "1GiB"}', '[guest.vm]\nmemory = "1GiB"')
    with pytest.raises(ConfigError) as caught:
        config.parse(text, file=tmp_path / "x.toml")
    assert caught.value.key == ("image." if whole else "guest[0].vm.image.") + key


def test_a_kernel_says_its_release(beside):
    assert kernel_release(beside / "own" / "vmlinuz", "bzImage") == RELEASE
    assert kernel_release(beside / "app.conf", "bzImage") == ""


def argv(wanted, mirror="http://mirror.example/debian"):
    loaded = recipe.load_recipe(native())
    return rootfs.mmdebstrap_argv(loaded, wanted, inputs=Path("/i"), tar=Path("/t"), mirror=mirror, as_root=True)


def included(words):
    (found,) = (word.removeprefix("--include=") for word in words if word.startswith("--include="))
    return found.split(",")


def test_another_kernel_comes_with_its_headers_instead_of_the_recipes(beside):
    words = argv(variant(beside, kernel="linux-image-amd64"))
    kernels = [name for name in included(words) if name.startswith("linux-")]
    assert kernels == ["linux-image-amd64", "linux-headers-amd64"]
    assert words[-1] == "http://mirror.example/debian"


def test_a_kernel_of_backports_brings_their_archive(beside):
    wanted = variant(beside, kernel="linux-image-cloud-amd64/trixie-backports")
    words = argv(wanted)
    assert "linux-headers-cloud-amd64/trixie-backports" in included(words)
    assert words[-2:] == [
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-backports main",
    ]
    with pytest.raises(ConfigError, match="no mirror is known that has trixie-backports"):
        argv(wanted, mirror=None)


def test_an_own_kernel_needs_no_package_but_what_makes_its_initrd(beside):
    names = included(argv(variant(beside, kernel=OWN)))
    assert not any(name.startswith(("linux-image", "linux-headers")) for name in names)
    assert "initramfs-tools" in names


def test_additions_are_put_in_before_the_system_is_finished(beside):
    hooks = [word for word in argv(variant(beside, prepare="init.sh")) if word.startswith("--customize-hook")]
    assert ["additions.sh" in hooks[0], "customize.sh" in hooks[1]] == [True, True]
    assert len([word for word in argv(Variant()) if word.startswith("--customize-hook")]) == 1


FAILED = HostError("building failed", hint="")


def test_a_script_that_fails_is_shown_with_its_last_lines(beside):
    lines = ["I: x", "qmpalloc: prepare begins", "making it", "no such table", "qmpalloc: prepare failed: 3", "E: hook"]
    found = translated(FAILED, lines, variant(beside, prepare="init.sh"))
    assert isinstance(found, ConfigError)
    assert (found.file, found.key) == (str(beside / "x.toml"), "image.prepare")
    assert found.reason == f"{beside}/init.sh failed (exit code 3); its last lines:\n    making it\n    no such table"
    assert "no service is started" in found.hint
    lines[3] = "write: No space left on device"
    assert translated(FAILED, lines, variant(beside, prepare="init.sh")).hint == NO_SPACE_HINT


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("E: Unable to locate package sqlite4", "image.packages"),
        ("E: Package 'sqlite4' has no installation candidate", "image.packages"),
        ("E: Unable to locate package linux-headers-odd-amd64", "image.kernel"),
        ("E: Release 'trixie-backports' for 'linux-image-odd-amd64' was not found", "image.kernel"),
        ("E: Version '1' for 'linux-image-odd-amd64' was not found", "image.kernel"),
    ],
)
def test_a_package_that_does_not_exist_is_named_at_its_key(beside, line, key):
    wanted = variant(beside, packages=("sqlite4",), kernel="linux-image-odd-amd64/trixie-backports")
    found = translated(FAILED, ["x", line], wanted)
    assert isinstance(found, ConfigError)
    assert found.key == key
    assert "has no package" in found.reason
    assert found.hint


def test_what_is_not_the_users_fault_stays_what_it_is(beside):
    assert translated(FAILED, ["E: Unable to locate package fio"], variant(beside, packages=("jq",))) is FAILED
    assert translated(FAILED, ["E: odd"], Variant()) is FAILED


def test_a_system_that_does_not_fit_is_told_at_its_size(beside, monkeypatch, tmp_path):
    def full(*args, **keys):
        raise image.FullError("mke2fs: Could not allocate block")

    monkeypatch.setattr(image, "_check", lambda variant: None)
    monkeypatch.setattr(image, "require_space", lambda *args: None)
    monkeypatch.setattr(image, "build_tar", lambda *args, **keys: tmp_path / "app.conf")
    monkeypatch.setattr(image, "unpack_boot_files", lambda *args: rootfs.Contents("6.12", {}))
    monkeypatch.setattr(image, "_make_disk", full)
    (tmp_path / "partial").mkdir()
    with pytest.raises(ConfigError, match="the system does not fit into 1G") as caught:
        image._make(
            tmp_path / "partial",
            variant(beside, size=1 << 30),
            recipe_dir=None,
            mirror=None,
            keep_tar=False,
            report=print,
        )
    assert caught.value.key == "image.size"


def test_a_file_system_that_is_too_small_is_noticed(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "large").write_bytes(b"x" * (8 << 20))
    with pytest.raises(image.FullError):
        image.make_ext4(tmp_path / "disk", tmp_path / "tree", size_bytes=4 << 20, label="x")


def test_a_full_disk_of_the_host_is_known_before_the_build(beside, monkeypatch):
    def no_room(path, needed_bytes):
        raise HostError(f"{needed_bytes}", hint=NO_SPACE_HINT)

    monkeypatch.setattr(image, "_check", lambda variant: None)
    monkeypatch.setattr(image, "require_space", no_room)
    with (beside / "large").open("wb") as large:
        large.truncate(1 << 30)
    wanted = variant(beside, files={"/srv/large": "large"})
    with pytest.raises(HostError) as caught:
        image._make(beside, wanted, recipe_dir=None, mirror=None, keep_tar=False, report=print)
    assert int(caught.value.message) >= 8 << 30


def test_the_script_in_the_new_system_says_what_the_user_is_told(beside):
    inputs = beside / "inputs"
    inputs.mkdir()
    (inputs / "prepare").write_text("#!/bin/sh\necho $HOME, $TMPDIR\necho no such table >&2\nexit 3\n")
    (inputs / "prepare").chmod(0o755)
    argv = ["sh", str(resource_dir("vm-images") / "additions.sh"), str(inputs)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 1
    found = translated(FAILED, done.stdout.splitlines(), variant(beside, prepare="init.sh"))
    assert found.reason.endswith("failed (exit code 3); its last lines:\n    /root,\n    no such table")
