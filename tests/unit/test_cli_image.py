"""``qmpalloc image`` with what a user adds, without building anything."""

import json

import pytest
from click.testing import CliRunner

from qmpalloc.cli import main
from qmpalloc.qemu import image

CONFIG = """
[host]
budget = "2GiB"
[image]
packages = ["jq"]
prepare = "init.sh"
[[guest]]
name = "web"
floor = "256MiB"
cap = "1GiB"
baseline = "512MiB"
vm = { memory = "1GiB" }
"""
EXPERIMENT = """
[experiment]
name = "try"
budget = "1GiB"
[image]
packages = ["jq"]
prepare = "init.sh"
[[guest]]
name = "g1"
memory = "1GiB"
floor = "256MiB"
cap = "1GiB"
baseline = "512MiB"
[[guest.phase]]
command = ["true"]
duration = "60s"
[[arm]]
name = "static"
policy = "static"
"""


def invoke(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A directory with a configuration and an experiment that name the same image; builds only write a manifest."""

    def make(partial, variant, **options):
        manifest = image.planned_image(variant).manifest
        (partial / "manifest.json").write_bytes(image.msgspec.json.encode(manifest))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image, "_make", make)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "init.sh").write_text("true\n")
    (tmp_path / "lab.toml").write_text(CONFIG)
    (tmp_path / "try.toml").write_text(EXPERIMENT)
    return tmp_path


def built(*args):
    result = invoke("image", "build", *args)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_a_file_and_flags_that_say_the_same_name_the_same_image(beside):
    directory = built("lab.toml")
    assert built("try.toml") == directory
    assert built("--package", "jq", "--prepare", "init.sh") == directory
    assert built("--package", "jq", "--file", "init.sh:/root/init.sh", "--size", "6GiB") != directory
    assert built("--kernel", "linux-image-amd64") != built()


def test_the_list_says_what_an_image_is_of(beside):
    directory = built("lab.toml")
    built("--kernel", "linux-image-amd64", "--size", "6GiB", "--file", "init.sh:/root/x")
    built("try.toml")
    lines = invoke("image", "ls").stdout
    assert "  with jq, prepared by init.sh\n" in lines
    assert f"  of {beside}/lab.toml\n  of {beside}/try.toml\n" in lines
    assert "  with /root/x, kernel linux-image-amd64, size 6G\n" in lines
    (row,) = (row for row in json.loads(invoke("image", "ls", "--json").stdout) if row["directory"] == directory)
    assert row["recipe_files"] == [f"{beside}/lab.toml", f"{beside}/try.toml"]
    assert row["additions"]["prepare"] == f"{beside}/init.sh"


def test_pruning_spares_what_a_file_names_and_removes_the_rest(beside):
    directory = built("lab.toml")
    built("try.toml")
    assert invoke("image", "prune").stdout == f"kept {directory}: named by {beside}/lab.toml, {beside}/try.toml\n"
    (beside / "lab.toml").unlink()
    assert invoke("image", "prune").stdout == f"kept {directory}: named by {beside}/try.toml\n"
    (beside / "try.toml").write_text(EXPERIMENT.replace('"jq"', '"sqlite3"'))
    assert invoke("image", "prune").stdout == f"removed {directory}\n"
    assert not list((beside / "cache/qmpalloc/images").glob("trixie*"))


def test_a_file_that_cannot_be_used_now_might_still_name_it(beside):
    directory = built("lab.toml")
    (beside / "lab.toml").write_text(CONFIG.replace("budget", "budgte"))
    kept = invoke("image", "prune").stdout
    assert kept == f"kept {directory}: named by {beside}/lab.toml, which cannot be used now\n"


def test_what_was_built_by_flags_stays_until_its_sources_change(beside):
    directory = built("--prepare", "init.sh")
    assert invoke("image", "prune").stdout == f"kept {directory}: as its flags say\n"
    (beside / "init.sh").unlink()
    assert "former" in invoke("image", "ls").stdout
    assert invoke("image", "prune").stdout == f"removed {directory}\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--package", "--x"], "--package: '--x' is not the name of a Debian package"),
        (["--file", "init.sh"], "--file: 'init.sh' names no place in the guest"),
        (["--file", "none:/etc/x"], "none: No such file"),
        (["--file", "none:/etc/x"], "relative paths are relative to the current directory"),
        (["--file", "init.sh:/x", "--file", "lab.toml:/x"], "--file: /x is named twice"),
        (["--prepare", "none.sh"], "--prepare: "),
        (["--kernel", "a,b"], "--kernel: 'a,b' is no kernel"),
        (["--kernel", "init.sh,b,c"], "init.sh is not a kernel that can be booted"),
        (["--size", "6"], "--size: "),
        (["lab.toml", "--size", "6GiB"], "lab.toml says what its images are; leave out --size"),
        (["lab.toml", "--suite", "bookworm"], "leave out --suite"),
        (["none.toml"], "none.toml"),
    ],
)
def test_what_is_wrong_is_named_by_its_flag(beside, flags, message):
    result = invoke("image", "build", *flags)
    assert result.exit_code == 2
    assert message in result.stderr
