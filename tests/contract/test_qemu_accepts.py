"""A real QEMU accepts the command line that we write, and makes of it what we mean."""

import shutil
import socket
import subprocess
from pathlib import Path

import msgspec
import pytest

from qmpalloc.config import DataDiskConfig, GuestConfig, Size, VmConfig
from qmpalloc.qemu import argv
from qmpalloc.qemu.accelerator import Accelerator
from qmpalloc.qemu.data_disk import DataDisk
from qmpalloc.qemu.image import Image, Manifest
from qmpalloc.qmp import open_monitor
from qmpalloc.units import MIB

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"),
]


@pytest.fixture
def command(tmp_path):
    """The command line of a guest with everything, whose image is empty files; a comma in the path as a trap."""
    directory = tmp_path / "a,b"
    directory.mkdir()
    (directory / "root.ext4").write_bytes(bytes(MIB))
    (directory / "data.ext4").write_bytes(bytes(MIB))
    manifest = Manifest(
        suite="trixie", profile="lab", inputs_sha256="", rootfs_sha256="", kernel_release="6.12",
        kernel_arguments=(), source_date_epoch=0, packages=1, sizes_bytes={},
    )  # fmt: skip
    guest = GuestConfig(
        name="web", monitor=str(directory / "monitor.sock"), agent=str(directory / "agent.sock"),
        floor=Size(64 * MIB), cap=Size(128 * MIB), baseline=Size(96 * MIB),
        vm=VmConfig(memory=Size(128 * MIB), data=DataDiskConfig(size=Size(MIB), iops=100)),
    )  # fmt: skip
    built = argv.build(
        guest,
        image=Image(directory=directory, manifest=manifest),
        data_disk=DataDisk(file=directory / "data.ext4", direct=True),
        accelerator=Accelerator(name="tcg", reason="test"),
        sockets=argv.Sockets(directory, Path(guest.monitor), Path(guest.agent)),
        die_with_parent=True,
    )
    # Nothing is booted: no kernel, and the virtual CPUs do not start.
    groups = tuple(group for group in built.groups if not group.title.startswith("Kernel"))
    return msgspec.structs.replace(built, groups=groups)


def listens(path):
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@pytest.fixture
def qmp_socket(command, tmp_path):
    """Path of the first QMP socket of a running QEMU."""
    with subprocess.Popen([*command.argv(), "-S"], stderr=subprocess.PIPE) as process:
        path = tmp_path / "a,b" / "monitor.sock"
        # The file is there before QEMU listens on it.
        while not listens(path):
            assert process.poll() is None, process.stderr.read()
        yield str(path)
        process.kill()


@pytest.fixture
async def monitor(qmp_socket):
    async with open_monitor(qmp_socket) as opened:
        yield opened


async def test_the_balloon_has_the_properties_that_matter(monitor):
    path = "/machine/peripheral/balloon0"
    expected = {"deflate-on-oom": True, "free-page-reporting": True, "guest-stats-polling-interval": 1}
    for name, value in expected.items():
        assert await monitor.execute("qom-get", {"path": path, "property": name}) == value
    assert await monitor.query_balloon() == 128 * MIB


async def test_people_have_a_socket_of_their_own(monitor):
    async with open_monitor(monitor.address.replace("monitor.sock", "people.sock")) as people:
        assert not (await people.query_status()).running


async def test_the_data_disk_is_throttled_and_goes_around_the_hosts_cache(monitor):
    blocks = {block["device"]: block["inserted"] for block in await monitor.execute("query-block")}
    assert blocks["data"]["iops"] == 100
    # What is shown is the throw-away overlay; its base is the disk.
    assert blocks["data"]["image"]["backing-image"]["filename"].endswith("a,b/data.ext4")


async def test_the_throttle_of_the_data_disk_can_be_changed_and_removed(monitor):
    for iops in (7, 20_000, 0):
        await monitor.set_io_throttle("data", iops)
        inserted = {block["device"]: block["inserted"] for block in await monitor.execute("query-block")}["data"]
        assert (inserted["iops"], inserted["iops_rd"], inserted["bps"]) == (iops, 0, 0)
        assert "iops_max" not in inserted  # no burst length of our own


async def test_both_agent_ports_are_there(monitor):
    names = {chardev["label"] for chardev in await monitor.execute("query-chardev")}
    assert {"agent", "lab", "console"} <= names
