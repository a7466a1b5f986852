"""What a Debian package installs as a service starts, however it brings it: unit, generator, or init script alone."""

import shutil

import pytest
import trio

from qmpalloc import config
from qmpalloc.errors import UnreachableError
from qmpalloc.qemu.accelerator import choose
from qmpalloc.qemu.image import obtain_image
from qmpalloc.qemu.launcher import Prepared, open_guests
from qmpalloc.qemu.recipe import Variant
from qmpalloc.qemu.resources import resource_dir
from qmpalloc.qmp import deadline, open_agent

PROFILE = """
[profile.services]
packages = ["postgresql", "redis-server", "uml-utilities"]
allow_lab = ["guest-sync", "guest-sync-delimited", "guest-ping", "guest-info", "guest-exec", "guest-exec-status"]
"""
SERVICES = {
    "postgresql@17-main": "by a generator",
    "redis-server": "as a unit, with directories of its own",
    "uml-utilities": "as an init script",
}
# What the collector and loads need takes most of a build, and is no part of the question.
LEFT_OUT = ('"linux-headers-cloud-amd64",', '"python3-bpfcc",', '"fio",')

CONFIGURATION = """
[host]
budget = "1GiB"
run_dir = "run"

[[guest]]
name = "services"
floor = "256MiB"
cap = "768MiB"
baseline = "768MiB"
vm = { memory = "768MiB" }
"""
START_LIMIT_S = 300


@pytest.fixture
def services_image(image, tmp_path):
    """The reference image with other packages. It is kept in the user's cache as all images are."""
    recipe_dir = tmp_path / "vm-images"
    shutil.copytree(resource_dir("vm-images"), recipe_dir)
    shutil.copytree(recipe_dir / "profiles" / "lab", recipe_dir / "profiles" / "services")
    recipe = (recipe_dir / "recipe.toml").read_text()
    for package in LEFT_OUT:
        assert package in recipe
        recipe = recipe.replace(package, "")
    (recipe_dir / "recipe.toml").write_text(recipe + PROFILE)
    return obtain_image(Variant(profile="services"), recipe_dir=recipe_dir, report=print)


async def states_of(socket, units):
    """Return the state of each unit when nothing is left that the guest has to start."""
    while True:
        try:
            async with open_agent(str(socket)) as agent:
                with deadline(30, str(socket), "systemctl"):
                    system = await agent.run(["systemctl", "is-system-running"])
                    result = await agent.run(["systemctl", "is-active", *units])
        except UnreachableError:
            pass  # the guest boots
        else:
            # Degraded it always is: the collector has no Python here.
            if system.out.decode().strip() in {"running", "degraded"}:
                return result.out.decode().split()
        await trio.sleep(0.5)


async def test_services_of_packages_start(services_image, tmp_path):
    (tmp_path / "test.toml").write_text(CONFIGURATION)
    loaded = config.load(tmp_path / "test.toml")
    prepared = Prepared(
        images={"services": services_image}, data_disks={}, accelerators={"services": choose("auto", services_image)}
    )
    async with open_guests(loaded, prepared=prepared, wait_for_samples=False) as (guest,):
        with trio.fail_after(START_LIMIT_S):
            states = await states_of(guest.lab_socket, SERVICES)
    assert dict(zip(SERVICES, states, strict=True)) == dict.fromkeys(SERVICES, "active")
