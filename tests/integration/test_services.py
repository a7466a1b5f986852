"""What a user adds to the recipe is in the guest that boots: packages, whose services start, files, a prepared system.

A service may come as a unit, by a generator, or as an init script alone.
"""

import shutil

import msgspec
import pytest
import trio

from qmpalloc import config
from qmpalloc.errors import UnreachableError
from qmpalloc.qemu.accelerator import choose
from qmpalloc.qemu.data_disk import obtain_data_disk
from qmpalloc.qemu.image import obtain_image
from qmpalloc.qemu.launcher import Prepared, open_guests
from qmpalloc.qemu.recipe import Variant
from qmpalloc.qemu.resources import resource_dir
from qmpalloc.qmp import deadline, open_agent
from qmpalloc.units import GIB, PAGE_BYTES

pytestmark = pytest.mark.long

PROFILE = """
[profile.services]
packages = ["redis-server", "uml-utilities"]
allow_lab = ["guest-sync", "guest-sync-delimited", "guest-ping", "guest-info", "guest-exec", "guest-exec-status"]
"""
SERVICES = {
    "postgresql@17-main": "by a generator",
    "redis-server": "as a unit, with directories of its own",
    "uml-utilities": "as an init script",
}
# What the collector and loads need takes most of a build, and is no part of the question.
LEFT_OUT = ('"linux-headers-cloud-@ARCH@",', '"python3-bpfcc",', '"fio",')

CONFIGURATION = """
[host]
budget = "1GiB"
run_dir = "run"

[image]
packages = ["postgresql", "hello"]
files = { "/etc/own/app.conf" = "app.conf" }
prepare = "prepare.sh"
size = "2GiB"

[[guest]]
name = "services"
floor = "256MiB"
cap = "768MiB"
baseline = "768MiB"
vm = { memory = "768MiB", data = { build = ["fill.sh", "rows"], files = { noise = "1MiB" } } }
"""
# A database that is there when the guest boots; and a process that the script leaves behind, which the build ends.
PREPARE = """
set -eu
pg_ctlcluster 17 main start
runuser -u postgres -- psql -c 'create table made as select generate_series(1, 1000) as n'
pg_ctlcluster 17 main stop
sleep 600 &
"""
START_LIMIT_S = 300


@pytest.fixture
def loaded(tmp_path):
    (tmp_path / "test.toml").write_text(CONFIGURATION)
    (tmp_path / "app.conf").write_text("colour = blue\n")
    (tmp_path / "fill.sh").write_text("seq 1000 > $1; chown 33:33 $1\n")
    (tmp_path / "prepare.sh").write_text(PREPARE)
    return config.load(tmp_path / "test.toml")


@pytest.fixture
def services_image(image, loaded, tmp_path):
    """The reference image with other packages. It is kept in the user's cache as all images are."""
    recipe_dir = tmp_path / "vm-images"
    shutil.copytree(resource_dir("vm-images"), recipe_dir)
    shutil.copytree(recipe_dir / "profiles" / "lab", recipe_dir / "profiles" / "services")
    recipe = (recipe_dir / "recipe.toml").read_text()
    for package in LEFT_OUT:
        assert package in recipe
        recipe = recipe.replace(package, "")
    (recipe_dir / "recipe.toml").write_text(recipe + PROFILE)
    variant = msgspec.structs.replace(Variant.of(loaded.guests[0].vm), profile="services")
    return obtain_image(variant, recipe_dir=recipe_dir, report=print)


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


QUESTIONS = {
    ("hello",): "Hello, world!",
    ("cat", "/etc/own/app.conf"): "colour = blue",
    ("runuser", "-u", "postgres", "--", "psql", "-At", "-c", "select count(*) from made"): "1000",
    (
        "sh",
        "-c",
        "ls -n /data/rows | cut -d' ' -f 3; ls /data; tail -n 1 /data/rows",
    ): "33\nlost+found\nnoise\nrows\n1000",
    ("stat", "--file-system", "--format=%b", "/"): None,  # blocks; see below
}


async def answers_of(socket):
    """Return what each of `QUESTIONS` is answered with."""
    found = {}
    async with open_agent(str(socket)) as agent:
        for argv in QUESTIONS:
            with deadline(60, str(socket), argv[0]):
                result = await agent.run(list(argv))
            found[argv] = (result.out + result.err).decode().strip()
    return found


async def test_what_is_added_to_the_recipe_is_there_and_services_start(services_image, loaded):
    prepared = Prepared(
        images={"services": services_image},
        data_disks={"services": obtain_data_disk(loaded.guests[0].vm.data)},
        accelerators={"services": choose("auto", services_image)},
    )
    async with open_guests(loaded, prepared=prepared, wait_for_samples=False) as (guest,):
        with trio.fail_after(START_LIMIT_S):
            states = await states_of(guest.lab_socket, SERVICES)
            answers = await answers_of(guest.lab_socket)
    assert dict(zip(SERVICES, states, strict=True)) == dict.fromkeys(SERVICES, "active")
    blocks = int(answers.pop(("stat", "--file-system", "--format=%b", "/")))
    assert GIB < blocks * PAGE_BYTES <= 2 * GIB
    assert answers == {argv: answer for argv, answer in QUESTIONS.items() if answer is not None}
