"""A guest as 'vm up' starts it: sized before it boots, observed, restricted, and gone without a trace at the end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from qmpalloc.errors import HostError, RefusedError
from qmpalloc.qemu import rundir
from qmpalloc.qemu.launcher import open_guests
from qmpalloc.qmp import deadline, open_agent, open_monitor
from qmpalloc.sample import FILE_MAX_BYTES, parse
from qmpalloc.units import MIB

QMPALLOC = [sys.executable, "-c", "import qmpalloc.cli; qmpalloc.cli.main()"]
FILE_COMMANDS = {
    "guest-sync", "guest-sync-delimited", "guest-ping", "guest-info",
    "guest-file-open", "guest-file-read", "guest-file-close",
}  # fmt: skip


async def output_of(guest, script):
    """Return what a shell script prints in the guest."""
    async with open_agent(str(guest.lab_socket)) as agent:
        with deadline(60, str(guest.lab_socket), script):
            result = await agent.run(["/bin/sh", "-c", script])
    assert result.exit_code == 0, result.err
    return result.out.decode()


async def test_the_balloon_is_at_the_baseline(running_guest):
    async with open_monitor(str(running_guest.sockets.monitor)) as monitor:
        assert await monitor.query_balloon() == running_guest.config.baseline == 512 * MIB


async def test_a_person_has_a_monitor_while_we_hold_ours(running_guest):
    sockets = running_guest.sockets
    async with open_monitor(str(sockets.monitor)), open_monitor(str(sockets.people)) as people:
        assert (await people.query_status()).running


async def test_the_counters_parse(running_guest):
    async with open_agent(str(running_guest.sockets.agent)) as agent:
        with deadline(30, "agent", "counters"):
            sample = parse(await agent.read_file(running_guest.config.counters_file, FILE_MAX_BYTES))
    assert sample.kernel == running_guest.image.manifest.kernel_release
    assert sample.counters.accesses is not None


async def test_the_standard_agent_hands_out_files_and_nothing_else(running_guest):
    async with open_agent(str(running_guest.sockets.agent)) as agent:
        with deadline(60, "agent", "info"):
            assert (await agent.info()).enabled == FILE_COMMANDS
            with pytest.raises(RefusedError):
                await agent.run(["/bin/true"])


async def test_the_lab_agent_executes(running_guest):
    assert await output_of(running_guest, "id -un") == "root\n"


async def test_a_program_that_the_lab_agent_starts_is_not_protected_from_the_oom_killer(running_guest):
    assert await output_of(running_guest, "cat /proc/self/oom_score_adj") == "0\n"


async def test_agent_and_collector_are_protected_from_the_oom_killer(running_guest):
    script = "cat /proc/$(pgrep -of qmpalloc)/oom_score_adj /proc/$(pgrep -o qemu-ga)/oom_score_adj"
    assert await output_of(running_guest, script) == "-1000\n-1000\n"


async def test_the_data_disk_is_mounted_and_its_file_is_all_there(running_guest):
    script = "findmnt -no FSTYPE /data; stat -c '%s %b' /data/load.dat"
    fstype, sizes = (await output_of(running_guest, script)).splitlines()
    size, blocks = map(int, sizes.split())
    assert fstype == "ext4"
    assert size == 128 * MIB
    assert blocks * 512 >= size  # real extents: reading them reads the disk


async def test_the_guest_has_neither_swap_nor_huge_pages_nor_network(running_guest):
    script = "grep SwapTotal /proc/meminfo; cat /sys/kernel/mm/transparent_hugepage/enabled; ls /sys/class/net"
    assert (await output_of(running_guest, script)).split() == [
        "SwapTotal:", "0", "kB", "always", "madvise", "[never]", "lo",
    ]  # fmt: skip


async def test_nothing_failed_to_start(running_guest):
    assert await output_of(running_guest, "systemctl list-units --failed --no-legend --plain") == ""


async def test_nothing_that_packages_bring_is_masked(running_guest):
    """Debian's own masks are below /usr; what the image adds is below /etc."""
    script = "cd /etc/systemd; find system system-generators -maxdepth 1 -lname /dev/null -printf '%f\\n' 2>/dev/null"
    masked = (await output_of(running_guest, f"{script}; true")).split()
    assert sorted(masked) == ["systemd-udev-load-credentials.service", "tmp.mount"]


async def test_the_balloon_driver_reports_all_that_this_qemu_knows(running_guest):
    async with open_monitor(str(running_guest.sockets.monitor)) as monitor:
        stats = await monitor.balloon_stats(await monitor.find_balloon())
        assert (None not in (stats.oom_kills, stats.alloc_stalls)) == (monitor.qemu_version >= (9, 2))
    assert stats.last_update is not None


async def test_the_data_is_read_around_the_hosts_page_cache(running_guest):
    """The base of a snapshot must be opened as directly as the snapshot's options say; QEMU could change that."""
    flags = open_flags(running_guest.pid, "data.ext4")
    assert flags & os.O_DIRECT
    assert flags & os.O_ACCMODE == os.O_RDONLY
    assert open_flags(running_guest.pid, "root.ext4") & os.O_ACCMODE == os.O_RDONLY


def open_flags(pid, name):
    for number in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
        if Path(f"/proc/{pid}/fd/{number}").resolve().name == name:
            text = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
            return int(re.search(r"flags:\s*(\d+)", text)[1], 8)
    raise AssertionError(f"{name} is not open")


def test_sockets_are_for_their_owner_only(running_guest):
    assert running_guest.sockets.directory.stat().st_mode & 0o777 == 0o700
    assert running_guest.sockets.directory.parent.stat().st_mode & 0o777 == 0o700


def test_the_image_is_never_written(running_guest):
    assert running_guest.image.disk.stat().st_mode & 0o222 == 0


async def test_a_second_start_of_the_same_guest_is_refused(running_guest, prepared_in, one_guest):
    loaded, prepared = prepared_in(one_guest, running_guest.sockets.directory.parent.parent)
    with pytest.raises(HostError, match=f"runs already .process {running_guest.pid}."):
        async with open_guests(loaded, prepared=prepared):
            pass
    assert rundir.read_record(running_guest.sockets.directory).alive


# The following start QEMUs of their own, none of which boots far enough to cost time.


async def test_a_cancelled_start_leaves_no_process(prepared_in, one_guest, tmp_path):
    loaded, prepared = prepared_in(one_guest, tmp_path)
    started = []
    with trio.move_on_after(5):
        async with open_guests(loaded, prepared=prepared, report=started.append):
            raise AssertionError("an emulated guest does not count within five seconds")
    assert any("QEMU runs" in line for line in started)
    assert rundir.list_records(tmp_path / "run") == []
    assert qemus_of(tmp_path) == []


async def test_a_qemu_that_dies_is_reported_with_its_last_words(prepared_in, one_guest, tmp_path):
    loaded, prepared = prepared_in(one_guest.replace('"768MiB"\ndata', '"768MiB"\ncpus = 100000\ndata'), tmp_path)
    with pytest.raises(HostError, match=r"guest one: its QEMU ended with exit code 1(?s:.*)last lines of the QEMU"):
        async with open_guests(loaded, prepared=prepared):
            raise AssertionError("it cannot start")
    assert qemus_of(tmp_path) == []


def test_a_killed_qmpalloc_takes_its_guests_with_it(prepared_in, one_guest, tmp_path):
    prepared_in(one_guest, tmp_path)
    process = start_up(tmp_path)
    process.kill()
    process.communicate()
    for _ in range(100):
        if qemus_of(tmp_path) == []:
            return
        time.sleep(0.1)
    raise AssertionError("a QEMU outlives its parent")


def test_ctrl_c_stops_the_guests_and_says_so_in_the_exit_code(prepared_in, one_guest, tmp_path):
    prepared_in(one_guest, tmp_path)
    process = start_up(tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    process.communicate()
    assert qemus_of(tmp_path) == []
    listed = subprocess.run([*QMPALLOC, "vm", "ls", tmp_path / "test.toml", "--json"], capture_output=True, check=True)
    assert json.loads(listed.stdout) == []


def start_up(directory):
    """Start 'qmpalloc vm up' and return when its QEMU runs."""
    command = [*QMPALLOC, "vm", "up", directory / "test.toml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if "QEMU runs" in line:
            assert len(qemus_of(directory)) == 1
            return process
    raise AssertionError("it ended")


def qemus_of(directory):
    """Return the processes whose command line names `directory`, other than this test's own."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[0].endswith(b"qemu-system-x86_64") and any(os.fsencode(directory) in word for word in words):
            found.append(int(file.parent.name))
    return found
