"""Images and data disks of an experiment's guests: read, checked, handed to the launcher, kept with the experiment."""

from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner

from qmpalloc.cli import main
from qmpalloc.errors import ConfigError
from qmpalloc.experiment.run.configuration import arm_configuration
from qmpalloc.experiment.run.preflight import check_room
from qmpalloc.experiment.spec import parsing, scaling
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.experiment.store.records import Manifest
from qmpalloc.qemu.data_disk import data_disk_dir
from qmpalloc.qemu.image import image_dir
from qmpalloc.qemu.recipe import Variant

TEXT = """
[experiment]
name = "try"
budget = "2GiB"
seed = 7
[image]
packages = ["jq"]
prepare = "init.sh"
files = { "/srv/www" = "www" }
[[guest]]
name = "g1"
memory = "1GiB"
floor = "512MiB"
cap = "1GiB"
baseline = "512MiB"
data = { build = ["fill.sh", "{guest}", "{scale}", "words.txt"] }
[[guest.phase]]
command = ["work", "/data/rows", "/var/lib/x"]
files = { noise = "16MiB" }
duration = "60s"
[[guest]]
name = "g2"
memory = "1GiB"
floor = "512MiB"
cap = "1GiB"
baseline = "512MiB"
image = { kernel = "linux-image-amd64" }
[[guest.phase]]
command = ["work"]
duration = "60s"
[[arm]]
name = "static"
policy = "static"
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("init.sh", "fill.sh", "words.txt"):
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "index.html").write_text("hello\n")
    (tmp_path / "try.toml").write_text(TEXT)
    return tmp_path / "try.toml"


def machines(spec):
    config = arm_configuration(spec, spec.arms[0], run_dir=Path("/run/x"))
    return [guest.vm for guest in config.guests]


def test_guests_get_the_image_of_the_experiment_or_their_own(file):
    one, two = (Variant.of(vm) for vm in machines(parsing.load(file)))
    assert (one.packages, one.additions.prepare) == (("jq",), str(file.parent / "init.sh"))
    assert (two.packages, two.additions.kernel) == ((), "linux-image-amd64")


def test_a_data_disk_is_the_same_in_every_arm_and_another_at_another_scale(file):
    spec = parsing.load(file)
    one, two = machines(spec)
    assert one.data.build == ("fill.sh", "g1", "1", "words.txt")
    assert one.data.size == 0  # what the script makes
    assert two.data.size > 0
    half = machines(scaling.scale(spec, Fraction(1, 2)))[0]
    assert half.data.build == ("fill.sh", "g1", "1/2", "words.txt")
    assert data_disk_dir(one.data) != data_disk_dir(half.data)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('"init.sh"', '"../init.sh"', "image.prepare"),
        ('= "www"', '= "../www"', "image.files"),
        ('["fill.sh"', '["../fill.sh"', "guest[0].data.build"),
        ('["fill.sh"', '[""', "guest[0].data.build"),
        ("data = { ", 'data = { image = "x.img", ', "guest[0].data.image"),
        ('kernel = "linux-image-amd64"', 'kernel = "bzImage"', "guest[1].image.kernel"),
        ("data = { ", 'data = { files = "x", ', "guest[0].data.files"),
    ],
)
def test_what_cannot_be_made_is_refused_when_the_file_is_read(file, old, new, key):
    file.write_text(TEXT.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        parsing.load(file)
    assert (caught.value.file, caught.value.key) == (str(file), key)
    assert caught.value.hint


@pytest.mark.parametrize(("gone", "key"), [("init.sh", "image.prepare"), ("fill.sh", "guest[0].data.build")])
def test_a_file_that_is_not_there_is_refused_before_anything_is_built(file, gone, key):
    (file.parent / gone).unlink()
    spec = parsing.load(file)
    with pytest.raises(ConfigError, match=f"{gone}: No such file") as caught:
        check_room(arm_configuration(spec, spec.arms[0], run_dir=Path("/run/x")))
    assert (caught.value.file, caught.value.key) == (str(file), key)


def test_a_dry_run_says_on_which_disk_paths_lie(file):
    result = CliRunner().invoke(main, ["experiment", "run", str(file), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "/data/rows: on the data disk" in result.output
    assert "/var/lib/x: on the root disk" in result.output
    assert "warning: guest g1, phase1: /var/lib/x is on the root disk, which the host caches" in result.output


def test_what_images_and_disks_are_made_from_is_kept_with_the_experiment(file):
    spec = parsing.load(file)
    fields = {"accelerator": {}, "images": {}, "versions": {}, "host": {}, "footprints": {}}
    manifest = Manifest(
        name="try", file=str(file), scale="1", arms=("static",), repeats=3, command="", created_wall=0.0, **fields
    )
    made = ExperimentDirectory.create(file.parent / "out", spec, manifest, TEXT)
    before = [(image_dir(Variant.of(vm)), data_disk_dir(vm.data)) for vm in machines(spec)]
    assert (made.path / "www").is_symlink()  # a directory stays where it is
    for name in ("init.sh", "fill.sh", "words.txt"):
        (file.parent / name).unlink()
    found = ExperimentDirectory.open_existing(made.path).specification
    assert [(image_dir(Variant.of(vm)), data_disk_dir(vm.data)) for vm in machines(found)] == before
