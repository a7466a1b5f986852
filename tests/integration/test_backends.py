"""What a guest hands over comes back to the host, whatever its memory is made of, as docs/safety.md says."""

import re
import subprocess
from pathlib import Path

import pytest
import trio

from qmpalloc.control.inspection import ask_facts, choose_actuator
from qmpalloc.errors import UnreachableError
from qmpalloc.qmp import open_monitor
from qmpalloc.units import MIB

pytestmark = pytest.mark.long

RAM_MIB = 640
BALLOONED_MIB = 320

# All of it is there from the beginning, so that what is not resident afterwards has come back.
BACKENDS = [
    "memory-backend-ram,prealloc=on",
    "memory-backend-ram,prealloc=on,share=on",
    "memory-backend-memfd,prealloc=on,share=on",
    "memory-backend-memfd,prealloc=on,share=off",
    "memory-backend-file,prealloc=on,share=off,mem-path={file}",
    "memory-backend-file,prealloc=on,share=on,mem-path={file}",
]


@pytest.fixture(params=BACKENDS)
def qemu(request, image, tmp_path):
    """A guest whose memory is made of that, on its way up: the process, and the path of its monitor."""
    file = tmp_path / "ram"
    file.touch()
    backend = request.param.format(file=file)
    command = [
        *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-display", "none", "-nodefaults"),
        *("-kernel", image.kernel, "-initrd", image.initrd, "-append", "root=LABEL=qmpalloc-root rw"),
        *("-drive", f"file={image.disk},format=raw,if=virtio,snapshot=on"),
        *("-m", str(RAM_MIB), "-object", f"{backend},id=mem,size={RAM_MIB}M", "-machine", "memory-backend=mem"),
        *("-device", "virtio-balloon-pci,id=balloon0,deflate-on-oom=on"),
        *("-qmp", f"unix:{tmp_path}/qmp,server=on,wait=off"),
    ]
    with subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL) as process:
        yield process, str(tmp_path / "qmp")
        process.kill()


async def test_what_the_guest_hands_over_comes_back_to_the_host(qemu):
    process, path = qemu
    with trio.fail_after(300):
        while True:
            try:
                async with open_monitor(path, timeout_s=10) as monitor:
                    assert (await ask_facts(await choose_actuator(monitor))).ram_bytes == RAM_MIB * MIB
                    assert resident_mib(process.pid) == RAM_MIB
                    await monitor.balloon(BALLOONED_MIB * MIB)
                    while await monitor.query_balloon() > BALLOONED_MIB * MIB:  # noqa: ASYNC110 - not every step is told
                        await trio.sleep(0.5)
                    break
            except UnreachableError:
                assert process.poll() is None
                await trio.sleep(0.2)
    assert resident_mib(process.pid) <= BALLOONED_MIB


def resident_mib(process_id):
    """Return how much of the mapping of the guest's RAM the host has in memory."""
    text = Path(f"/proc/{process_id}/smaps").read_text()
    mappings = re.findall(r"^Size: +(\d+) kB$.*?^Rss: +(\d+) kB$", text, re.DOTALL | re.MULTILINE)
    return sum(int(rss) for size, rss in mappings if int(size) == RAM_MIB * 1024) // 1024
