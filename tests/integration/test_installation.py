"""The collector taken out of a guest and put into it again, over its agent; and programs run in it from the shell."""

import subprocess
import sys
from contextlib import contextmanager

import pytest
import trio

from qmpalloc import installation
from qmpalloc.channel import open_channel, pass_through
from qmpalloc.errors import HostError, RefusedError
from qmpalloc.qmp import deadline
from qmpalloc.sample import FILE_MAX_BYTES, parse

pytestmark = pytest.mark.long

LEFT = (
    "ls -d /usr/local/lib/qmpalloc /run/qmpalloc /tmp/qmpalloc-* /var/tmp/qmpalloc-* /etc/init.d/qmpalloc* "
    "/etc/rc?.d/*qmpalloc* /etc/systemd/system/qmpalloc-collector* /etc/systemd/system/*/qmpalloc-collector* "
    "2>/dev/null; pgrep -f '[g]uest_agent'; true"
)
WITHOUT_SYSTEMD = "mount -t tmpfs none /run/systemd && exec sh"


def way_into(guest):
    return open_channel("agent", guest=guest.name, agent=guest.lab_socket)


@contextmanager
def holding(socket):
    """Have another process hold a socket for some seconds."""
    program = "import socket, sys, time; s = socket.socket(1); s.connect(sys.argv[1]); print(); time.sleep(8)"
    command = [sys.executable, "-uc", program, str(socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process


async def output_of(channel, *argv):
    with deadline(600, channel.address, argv[-1]):
        result = await channel.run(argv)
    assert result.exit_code == 0, result.err
    return result.out.decode()


async def read(channel, guest):
    with deadline(30, channel.address, "counters"):
        return parse(await channel.read_file(guest.config.counters_file, FILE_MAX_BYTES))


async def test_a_guest_without_the_collector_gets_it_counts_and_loses_it_again(running_guest):
    counters_file = running_guest.config.counters_file
    async with way_into(running_guest) as channel:
        assert await installation.remove(channel, "one") == "removed"
        assert await output_of(channel, "sh", "-c", LEFT) == ""
        with pytest.raises(RefusedError, match="No such file"):
            await read(channel, running_guest)
        assert await installation.remove(channel, "one") == "it was not installed"

        seconds, notes = await installation.install(channel, "one", counters_file)
        first = await read(channel, running_guest)
        assert first.counters.accesses is not None
        assert seconds > 0
        assert notes[0].startswith("starting (systemd)")
        assert await output_of(channel, "systemctl", "is-enabled", "qmpalloc-collector") == "enabled\n"

        await installation.install(channel, "one", counters_file)  # an update: another collector counts
        assert (await read(channel, running_guest)).start_id != first.start_id
        assert await installation.remove(channel, "one") == "removed"
        assert await output_of(channel, "sh", "-c", LEFT) == ""


async def test_what_cannot_count_leaves_nothing_behind(running_guest):
    bcc = "/usr/lib/python3/dist-packages/bcc"
    async with way_into(running_guest) as channel:
        await output_of(channel, "mv", bcc, "/root/bcc")
        with pytest.raises(HostError, match=r"missing: bcc for /usr/bin/python3 \(apt-get install python3-bpfcc\)"):
            await installation.install(channel, "one", running_guest.config.counters_file)
        # There, and of no use: it is found out only when it starts.
        await output_of(channel, "sh", "-c", f"mkdir {bcc} && echo 'raise ImportError(1)' > {bcc}/__init__.py")
        with pytest.raises(HostError, match="bcc is not installed") as caught:
            await installation.install(channel, "one", running_guest.config.counters_file)
        assert "nothing of it is left" in caught.value.message
        assert await output_of(channel, "sh", "-c", LEFT) == ""
        await output_of(channel, "sh", "-c", f"rm -r {bcc} && mv /root/bcc {bcc}")


async def test_without_systemd_a_script_in_init_d_starts_it(running_guest):
    async with way_into(running_guest) as channel:
        await channel.write_file("/root/collector.tar", installation.packed_collector())
        await output_of(channel, "tar", "-C", "/root", "-xf", "/root/collector.tar")
        script = "/root/guest_agent/install.sh"
        said = await output_of(channel, "unshare", "-m", "sh", "-c", f"{WITHOUT_SYSTEMD} {script}")
        assert said.startswith("starting (plain)")
        assert (await read(channel, running_guest)).counters.accesses is not None
        process = "/proc/$(cat /run/qmpalloc-collector.pid)/oom_score_adj"
        status = f"/etc/init.d/qmpalloc-collector status && cat {process}"
        assert await output_of(channel, "sh", "-c", status) == "-1000\n"
        said = await output_of(channel, "unshare", "-m", "sh", "-c", f"{WITHOUT_SYSTEMD} {script} --uninstall")
        assert said == "removed\n"
        assert (await output_of(channel, "sh", "-c", LEFT)) == ""


async def test_what_a_program_writes_is_passed_on_while_it_runs(running_guest):
    """It ends only when we say that we have read its first word."""
    script = "echo begun; until [ -e /tmp/seen ]; do sleep 0.1; done; echo done >&2; head -c 3000000 /dev/zero; exit 7"
    came, errors, begun = [], [], trio.Event()

    def take(data):
        came.append(data)
        begun.set()

    async def answer(channel):
        await begun.wait()
        await channel.write_file("/tmp/seen", b"")

    async with way_into(running_guest) as channel, trio.open_nursery() as nursery:
        nursery.start_soon(answer, channel)
        code = await pass_through(channel, ["sh", "-c", script], stdin=None, out=take, err=errors.append)
        assert await output_of(channel, "sh", "-c", "ls -d /var/tmp/qmpalloc-exec.* 2>/dev/null; true") == ""
    assert code == 7
    assert b"".join(came) == b"begun\n" + bytes(3_000_000)
    assert b"".join(errors) == b"done\n"


async def test_who_holds_the_agent_is_named_and_waited_for(running_guest):
    with holding(running_guest.lab_socket) as process:
        said = []
        opened = open_channel("agent", guest="one", agent=running_guest.lab_socket, wait_s=300, report=said.append)
        async with opened as channel:
            assert await output_of(channel, "echo", "hello") == "hello\n"
    assert f"(pid {process.pid}) holds {running_guest.lab_socket}" in said[0]
