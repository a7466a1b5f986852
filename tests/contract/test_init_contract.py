"""``qmpalloc init`` on real QEMUs, each started in another way. Nothing boots: ``-S``, or no machine at all."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from qmpalloc import config
from qmpalloc.doctor import Verdict, check_guest
from qmpalloc.host.qemus import find_qemus
from qmpalloc.proposal import survey
from qmpalloc.qmp import open_monitor
from qmpalloc.units import MIB

QEMU = shutil.which("qemu-system-x86_64")

pytestmark = [pytest.mark.qemu, pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")]

STOPPED = [QEMU, "-accel", "tcg", "-display", "none", "-nodefaults", "-S"]
BALLOON = "virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=on,guest-stats-polling-interval=1"


def agent(path):
    chardev = f"socket,id=ga,path={path},server=on,wait=off"
    port = "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"
    return ["-device", "virtio-serial-pci", "-chardev", chardev, "-device", port]


@pytest.fixture
async def start(tmp_path):
    """Returns a function that starts a QEMU in a directory of its own and returns its process id."""
    processes, daemons = [], []

    async def run(argv, socket_name, *, daemon=False):
        pid_file = tmp_path / f"{socket_name}.pid"
        with (tmp_path / f"{socket_name}.log").open("wb") as log:
            command = [*argv, *(["-daemonize", "-pidfile", str(pid_file)] if daemon else [])]
            environment = {**os.environ, "PWD": str(tmp_path)}  # as a shell's cd would leave it
            process = await trio.lowlevel.open_process(command, cwd=tmp_path, env=environment, stderr=log, stdout=log)
        if daemon:
            assert await process.wait() == 0
            daemons.append(int(pid_file.read_text()))
            return daemons[-1]
        processes.append(process)
        with trio.fail_after(30):
            while not listens(tmp_path / socket_name):
                assert process.poll() is None, (tmp_path / f"{socket_name}.log").read_text()
                await trio.sleep(0.02)
        return process.pid

    yield run
    for process in processes:
        process.kill()
        await process.wait()
    for pid in daemons:
        os.kill(pid, signal.SIGKILL)


def listens(path):
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def init(directory, *arguments):
    command = [sys.executable, "-m", "qmpalloc", "init", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


async def test_five_differently_started_qemus(start, tmp_path):
    (tmp_path / "b,c").mkdir()
    plain = await start([*STOPPED, "-m", "64", "-qmp", "unix:web.qmp,server=on,wait=off", "-device", BALLOON,
                         *agent("web.agent")], "web.qmp")  # fmt: skip
    # In the background, with relative paths, a monitor by -chardev and -mon, and one for people before it.
    daemon = await start([*STOPPED, "-m", "size=512,slots=2,maxmem=2G", "-name", "guest=db,debug-threads=on",
                          "-chardev", "socket,id=m,path=db.qmp,server=on,wait=off", "-mon", "m,mode=control",
                          "-device", BALLOON, *agent("db.agent")], "db.qmp", daemon=True)  # fmt: skip
    # virtio-mem instead of a balloon, a comma in the paths, and somebody on its first QMP socket.
    plugged = await start([*STOPPED, "-m", "256,maxmem=4G", "-object", "memory-backend-ram,id=v0,size=1G,reserve=off",
                           "-device", "virtio-mem-pci,id=vm0,memdev=v0,requested-size=128M",
                           "-qmp", "unix:b,,c/held.qmp,server=on,wait=off",
                           "--qmp", "unix:b,,c/monitor.sock,server,nowait", *agent("b,,c/agent")],
                          "b,c/monitor.sock")  # fmt: skip
    # The name of another, devices as JSON, huge pages' kind of backend without huge pages.
    twin = await start([*STOPPED, "-m", "128", "-name", "db", "-qmp", "unix:twin.qmp,server=on,wait=off",
                        "-object", "memory-backend-memfd,id=mem,size=128M", "-machine", "memory-backend=mem",
                        "-device", '{"driver": "virtio-balloon-pci", "id": "balloon0"}', *agent("twin.agent")],
                       "twin.qmp")  # fmt: skip
    # Nothing to control at all.
    bare = await start([QEMU, "-M", "none", "-display", "none", "-qmp", "unix:bare.qmp,server=on,wait=off"], "bare.qmp")
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(tmp_path / "b,c/held.qmp"))
        other.recv(1000)
        result = init(tmp_path, "-o", "lab.toml", plain, daemon, plugged, twin, bare)
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "lab.toml").read_text()
    print(text)
    assert "Left out: bare" in text
    assert "-M none" in text
    assert "deflate-on-oom=on: a squeezed guest" in text
    loaded = config.load(tmp_path / "lab.toml")
    found = {guest.name: (Path(guest.monitor).name, guest.cap // MIB, guest.baseline // MIB) for guest in loaded.guests}
    assert found == {
        "web": ("web.qmp", 64, 64),
        "db": ("db.qmp", 512, 512),
        "b-c": ("monitor.sock", 1280, 256),
        "db-2": ("twin.qmp", 128, 128),
    }
    assert loaded.guest("b-c").floor == 256 * MIB
    assert loaded.host.budget == sum(guest.baseline for guest in loaded.guests)
    # All that doctor misses is what only a guest that has booted can do.
    failed = []
    for guest in loaded.guests:
        failed += [check async for check in check_guest(guest, loaded.control) if check.verdict is Verdict.FAIL]
    assert {check.name for check in failed} == {"agent"}, failed
    async with open_monitor(str(tmp_path / "web.qmp")) as monitor:
        assert await monitor.query_balloon() == 64 * MIB


async def seen(pid):
    (found,) = await survey([qemu for qemu in find_qemus() if qemu.pid == pid], timeout_s=2)
    return found


async def test_what_lacks_is_named_with_its_options(start, tmp_path):
    pid = await start([*STOPPED, "-m", "64", "-qmp", "unix:web.qmp,server=on,wait=off"], "web.qmp")
    result = init(tmp_path, "-o", "lab.toml", pid)
    assert result.returncode == 1
    assert not (tmp_path / "lab.toml").exists()
    assert "-device virtio-balloon-pci" in result.stderr
    assert f"path={tmp_path}/web.agent,server=on" in result.stderr
    assert "no QEMU was found that can be controlled as it is" in result.stderr


async def test_a_socket_that_is_held_has_its_holder_named(start, tmp_path):
    pid = await start([*STOPPED, "-qmp", "unix:web.qmp,server=on,wait=off", "-device", BALLOON], "web.qmp")
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(tmp_path / "web.qmp"))
        other.recv(1000)
        (lack,) = (await seen(pid)).lacks
    assert f"pid {os.getpid()}" in lack.what or "no greeting" in lack.what  # without ss nobody knows who
    assert "-qmp unix:" in lack.todo


async def test_a_socket_that_somebody_removed_or_replaced(start, tmp_path):
    pid = await start([*STOPPED, "-qmp", "unix:web.qmp,server=on,wait=off", "-device", BALLOON], "web.qmp")
    (tmp_path / "web.qmp").unlink()
    (lack,) = (await seen(pid)).lacks
    assert "is not there" in lack.what
    newer = await start([*STOPPED, "-qmp", "unix:web.qmp,server=on,wait=off"], "web.qmp")
    (lack,) = (await seen(pid)).lacks
    assert f"process {newer} answers" in lack.what


@pytest.mark.parametrize("options", [[], ["-qmp", "tcp:127.0.0.1:0,server=on,wait=off"]])
async def test_without_a_qmp_socket_of_its_own(start, tmp_path, options):
    people = ["-monitor", "unix:people,server=on,wait=off"]
    (lack,) = (await seen(await start([*STOPPED, *people, *options], "people"))).lacks
    assert "QMP" in lack.what
    assert "-qmp unix:" in lack.todo
