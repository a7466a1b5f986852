"""What mmdebstrap and apt say when a build fails for what a user adds is understood; nothing of the build is left."""

import re
import shutil

import pytest

from qmpalloc.config import ImageConfig, Origin
from qmpalloc.errors import ConfigError
from qmpalloc.qemu import image
from qmpalloc.qemu.additions import Additions
from qmpalloc.qemu.recipe import Variant
from qmpalloc.qemu.resources import resource_dir

pytestmark = pytest.mark.long


@pytest.fixture
def recipe_dir(tmp_path, monkeypatch):
    """The recipe with hardly a package: both builds fail before one would be missed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe_dir = tmp_path / "vm-images"
    shutil.copytree(resource_dir("vm-images"), recipe_dir)
    recipe = recipe_dir / "recipe.toml"
    recipe.write_text(
        re.sub(r"^packages = \[.*?^\]", 'packages = ["procps"]', recipe.read_text(), count=1, flags=re.M | re.S)
    )
    return recipe_dir


@pytest.mark.parametrize(
    ("packages", "script", "key", "reason"),
    [
        (("no-such-package",), "", "packages", r"Debian trixie has no package 'no-such-package'"),
        (
            (),
            "echo making it\nls /nowhere",
            "prepare",
            r"failed \(exit code 2\); its last lines:\n    making it\n.*/nowhere",
        ),
    ],
)
def test_a_build_fails_with_the_key_that_is_to_blame(recipe_dir, tmp_path, packages, script, key, reason):
    (tmp_path / "init.sh").write_text(script)
    wanted = ImageConfig(prepare="init.sh" if script else "", origin=Origin(str(tmp_path / "x.toml"), "image"))
    variant = Variant(packages=packages, additions=Additions.of(wanted))
    with pytest.raises(ConfigError, match=reason) as caught:
        image.obtain_image(variant, recipe_dir=recipe_dir, report=print)
    assert (caught.value.file, caught.value.key) == (str(tmp_path / "x.toml"), f"image.{key}")
    assert caught.value.hint
    assert not [path for path in image.images_dir().iterdir() if path.is_dir()]
