"""Guests of the user's in an experiment, against fakes: what is done to them, what is undone, and what is refused."""

import os
import stat
import sys
import textwrap
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from qmpalloc.channel import opening
from qmpalloc.errors import ConfigError, DisconnectedError, HostError, QmpallocError
from qmpalloc.experiment.run import attached
from qmpalloc.experiment.run.attached import open_attached
from qmpalloc.experiment.run.configuration import arm_configuration
from qmpalloc.experiment.run.failures import bare_errors
from qmpalloc.experiment.run.load import PROGRAM_FILE, PROGRESS_FILE
from qmpalloc.experiment.run.preflight import check_attached
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec import parsing
from qmpalloc.experiment.store.records import LoadProgress
from qmpalloc.host.qemus import Qemu
from qmpalloc.qmp import deadline, open_agent, open_agent_on, open_monitor, relay_agent
from qmpalloc.qmp import monitor as monitor_module
from qmpalloc.qmp.agent_channel import NOISE_MAX_BYTES
from qmpalloc.testing import FakeAgent, FakeQemu, FakeVirtioMem
from qmpalloc.units import MIB
from tests.protocol.clients import result

COUNTERS = "/run/qmpalloc/counters.json"
TEXT = """
[experiment]
name = "try"
budget = "256MiB"
[[guest]]
name = "cloud"
memory = "256MiB"
floor = "128MiB"
cap = "256MiB"
baseline = "192MiB"
[guest.attach]
monitor = "qmp"
second_monitor = "qmp2"
agent = "qga"
disks = ["vda"]
[[guest.phase]]
file = "1MiB"
access = { distribution = "uniform" }
reads = 1000
rounds = 10
[[arm]]
name = "static"
policy = "static"
"""
SAMPLE = (
    b'{"format":"qmpalloc-counters","version":1,"boot_id":"00000000-0000-0000-0000-000000000000","start_id":'
    b'"0000000000000000","sequence":1,"monotonic_ns":1,"interval_ms":1000,"kernel":"6.12","page_size":4096,'
    b'"lru":"lru_gen","counters":{"accesses":1,"inserts_read":1}}'
)


class Cloud:
    """A guest of the user's: two monitors of one QEMU, and an agent that may run programs."""

    def __init__(self, directory):
        self.directory = directory
        self.agent = FakeAgent(files={COUNTERS: SAMPLE}, program=self.program)
        self.monitor = FakeQemu(memory_bytes=256 * MIB)
        self.second = FakeQemu(memory_bytes=256 * MIB, balloon=self.monitor.balloon)
        self.second.blocks = [
            {"device": name, "stats": {"rd_bytes": 0, "rd_operations": 0, "rd_total_time_ns": 0}}
            for name in ("vda", "cd")
        ]
        self.ran, self.said = [], []
        self.fails = {}

    def program(self, argv, _data):
        line = " ".join(argv)
        self.ran.append(line)
        self.agent.program_s = 0.0
        if f"{PROGRAM_FILE} run" in line:
            self.agent.program_s = 1e9
            self.agent.files[PROGRESS_FILE] = msgspec.json.encode(LoadProgress(sequence=0, monotonic_s=100.0))
        return next((answer for words, answer in self.fails.items() if words in line), result())

    def specification(self, **replaced):
        text = TEXT
        for old, new in replaced.values():
            assert old in text
            text = text.replace(old, new)
        return parsing.parse(text, file=self.directory / "try.toml")

    @asynccontextmanager
    async def opened(self, *, serve=("qmp", "qmp2", "qga"), **replaced):
        """Serve the sockets and open the guest as an arm does; its errors come bare."""
        specification = self.specification(**replaced)
        run_dir = self.directory / "run"
        run_dir.mkdir(exist_ok=True)
        config = arm_configuration(specification, specification.arms[0], run_dir=run_dir)
        servers = {"qmp": self.monitor, "qmp2": self.second, "qga": self.agent}
        with bare_errors():
            async with trio.open_nursery() as nursery:
                for name in serve:
                    await nursery.start(servers[name].serve_path, str(self.directory / name))
                opening = open_attached(specification.guests[0], config, Traces(specification), self.said.append)
                async with opening as link:
                    yield link, config.guests[0]
                nursery.cancel_scope.cancel()

    async def refused(self, kind=HostError, **arguments):
        with pytest.raises(kind) as caught:
            async with self.opened(**arguments):
                pass
        return caught.value


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


async def test_it_is_brought_to_its_baseline_and_back(cloud, autojump_clock):
    cloud.monitor.balloon.target_bytes = 256 * MIB
    async with cloud.opened() as (link, config):
        assert await link.monitor.query_balloon() == 192 * MIB
        assert (link.name, link.disks, config.vm) == ("cloud", ("vda",), None)
        await link.monitor.set_io_throttle("vda", 100)
        # The controller has a monitor and an agent as if it were alone with them.
        async with open_monitor(config.monitor) as monitor, open_agent(config.agent) as agent:
            assert await monitor.query_balloon() == 192 * MIB
            assert await agent.read_file(config.counters_file, 4096) == SAMPLE
            assert (await link.channel.run(["true"])).exit_code == 0
        assert config.agent != str(cloud.directory / "qga")
    assert cloud.monitor.balloon.target_bytes == 256 * MIB
    assert cloud.second.throttles == {}
    files = [line for line in cloud.ran if "/dev/urandom" in line]
    assert [line.split()[-2:] for line in files] == [["/var/tmp/qmpalloc-data/file-1M.dat", str(MIB)]]
    assert cloud.ran[-1] == "rm -rf /run/qmpalloc-load /var/tmp/qmpalloc"
    assert not await trio.Path(config.agent).exists()


async def test_its_qemus_end_ends_the_run(cloud, autojump_clock):
    async def until_it_ends():
        async with cloud.opened():
            cloud.second._end({"guest": True, "reason": "guest-shutdown"})
            await trio.sleep(10)

    with pytest.raises(HostError, match="guest cloud: its QEMU has ended"):
        await until_it_ends()


async def test_a_balloon_that_somebody_else_moves_is_seen_by_who_holds_the_monitor(cloud, monkeypatch, autojump_clock):
    found = [f"me (pid {os.getpid()})", "mom (pid 77)"]
    monkeypatch.setattr(opening, "holders", lambda _: found)
    async with trio.open_nursery() as nursery:
        await nursery.start(cloud.monitor.serve_path, str(cloud.directory / "qmp"))
        async with open_monitor(str(cloud.directory / "qmp")):
            error = await cloud.refused(serve=("qmp2", "qga"))
        nursery.cancel_scope.cancel()
    assert "try.toml: guest[0].attach.monitor: guest cloud: mom (pid 77) holds " in error.message
    assert "another controller of this guest would move its balloon" in error.hint


async def test_monitors_of_two_guests_are_told_apart(cloud, monkeypatch, autojump_clock):
    pids = iter([7, 8])
    monkeypatch.setattr(monitor_module, "listening_process", lambda _: next(pids))
    monkeypatch.setattr(attached, "find_qemus", lambda: [Qemu(pid=pid, uid=0, argv=()) for pid in (7, 8)])
    error = await cloud.refused()
    assert "guest[0].attach.second_monitor: guest cloud: " in error.message
    assert "qmp2 is of another QEMU (process 8) than monitor (process 7)" in error.message
    assert cloud.second.balloon.target_bytes == 256 * MIB


@pytest.mark.parametrize(("socket", "key"), [("qmp", "monitor"), ("qmp2", "second_monitor"), ("qga", "channel")])
async def test_a_socket_that_is_not_there_is_named(cloud, autojump_clock, socket, key):
    error = await cloud.refused(serve={"qmp", "qmp2", "qga"} - {socket})
    assert f"guest[0].attach.{key}: guest cloud: {cloud.directory / socket}: no such socket" in error.message
    assert error.hint


async def test_without_a_collector_it_says_how_to_get_one(cloud, autojump_clock):
    cloud.agent.files.clear()
    error = await cloud.refused()
    assert f"guest[0].attach.counters_file: guest cloud: no sample in {COUNTERS}" in error.message
    assert "qmpalloc guest install" in error.hint


async def test_an_agent_that_runs_no_programs_is_told_what_to_allow(cloud, autojump_clock):
    cloud.agent = FakeAgent(files={COUNTERS: SAMPLE})
    error = await cloud.refused()
    assert "guest[0].attach.channel: guest cloud: " in error.message
    assert "guest-exec" in error.message
    assert "allow guest-exec" in error.hint
    assert "channel = " in error.hint


async def test_a_key_that_ssh_refuses_is_named_with_file_and_key(cloud):
    ssh = cloud.directory / "ssh"
    ssh.write_text("#!/bin/sh\necho 'root@cloud: Permission denied (publickey).' >&2; exit 255\n")
    ssh.chmod(ssh.stat().st_mode | stat.S_IXUSR)
    error = await cloud.refused(channel=('agent = "qga"', f'agent = "qga"\nchannel = ["{ssh}", "root@cloud"]'))
    assert "guest[0].attach.channel: guest cloud: " in error.message
    assert "Permission denied (publickey)" in error.message
    assert "ssh-copy-id" in error.hint


async def test_a_guest_that_hangs_is_given_up(cloud, autojump_clock):
    cloud.agent.stop()
    error = await cloud.refused()
    assert "guest[0].attach.channel: guest cloud: its agent at " in error.message
    assert cloud.monitor.balloon.target_bytes == 256 * MIB  # what was set before is undone


async def test_a_drive_that_is_not_there_is_named_beside_those_that_are(cloud, autojump_clock):
    error = await cloud.refused(disks=('["vda"]', '["vdb"]'))
    assert "guest[0].attach.disks: guest cloud: its QEMU has no drive called 'vdb'" in error.message
    assert error.hint == "it has vda, cd"


async def test_a_limit_of_the_users_own_is_not_lost(cloud, autojump_clock):
    cloud.second.commands["query-block"] = lambda _: [{"device": "vda", "inserted": {"iops": 500}}]
    error = await cloud.refused()
    assert "guest[0].attach.disks: guest cloud: vda has a limit of its own" in error.message
    assert cloud.second.throttles == {}


async def test_less_memory_than_the_cap_is_refused(cloud, autojump_clock):
    cloud.second = FakeQemu(memory_bytes=128 * MIB)
    error = await cloud.refused()
    assert "guest[0].cap: guest cloud: its QEMU has 128M, less than its cap of 256M" in error.message


async def test_a_qemu_without_anything_that_moves_memory_is_refused(cloud, autojump_clock):
    cloud.second.balloon_id = None
    error = await cloud.refused()
    assert "guest[0].attach: guest cloud: " in error.message
    assert "this QEMU has no balloon device, and no virtio-mem device" in error.message
    assert "virtio-balloon-pci" in error.hint


async def test_a_balloon_that_gives_nothing_to_the_host_is_refused(cloud, autojump_clock):
    cloud.second.machine["confidential-guest-support"] = "/objects/sev0"
    error = await cloud.refused()
    assert "guest[0].attach: guest cloud: " in error.message
    assert "memory is kept from the host (/objects/sev0)" in error.message


async def test_one_with_virtio_mem_is_brought_to_its_baseline_and_back(cloud, autojump_clock):
    device = FakeVirtioMem(128 * MIB, 128 * MIB)
    device.request(160 * MIB)
    blocks = cloud.second.blocks
    cloud.monitor, cloud.second = FakeQemu(virtio_mem=device), FakeQemu(virtio_mem=device)
    cloud.second.blocks = blocks
    async with cloud.opened() as (link, _):
        assert (link.actuator.kind, device.requested_bytes) == ("virtio-mem", 64 * MIB)
    assert device.requested_bytes == 32 * MIB


async def test_a_full_disk_in_the_guest_is_said(cloud, autojump_clock):
    cloud.fails["/dev/urandom"] = result(1, err=b"head: write error: No space left on device\n")
    error = await cloud.refused()
    assert "guest[0].attach.data: guest cloud: /var/tmp/qmpalloc-data/file-1M.dat cannot be made: " in error.message
    assert "No space left" in error.message
    assert error.hint.startswith("1M are needed")


# ----------------------------------------------------------------------------------------------- the user's own command

START = ('disks = ["vda"]', 'disks = ["vda"]\n[guest.start]\ncommand = ["./start", "cloud"]\n{}timeout = "20s"')
SERVER = """\
#!{python}
import sys, trio
sys.path[:0] = {path!r}
from pathlib import Path
from qmpalloc.testing import FakeAgent, FakeQemu, FakeVirtioMem
from tests.protocol.test_experiment_attached import Cloud

async def main():
    cloud = Cloud(Path.cwd())
    Path("started").write_text(sys.argv[1])
    async with trio.open_nursery() as nursery:
        for name, server in (("qga", cloud.agent), ("qmp", cloud.monitor), ("qmp2", cloud.second)):
            nursery.start_soon(server.serve_path, name)
        await cloud.second._quit.wait()
        nursery.cancel_scope.cancel()
    Path("ended").touch()

trio.run(main)
"""


def executable(file, text):
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def starter(cloud):
    """A command that starts a guest and stays, beside the experiment's file."""
    path = [str(Path(__file__).parents[2])]
    executable(cloud.directory / "start", SERVER.format(python=sys.executable, path=path))
    return cloud


@pytest.mark.parametrize("stop", [False, True])
async def test_a_command_starts_the_guest_and_it_is_ended_at_the_end(starter, stop):
    directory = starter.directory
    line = ""
    if stop:  # by a command that asks the very QEMU to quit
        executable(
            directory / "stop",
            textwrap.dedent(f"""\
                #!{sys.executable}
                import socket
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect("qmp2")
                    client.recv(4096)
                    client.sendall(b'{{"execute":"qmp_capabilities"}}\\n')
                    client.recv(4096)
                    client.sendall(b'{{"execute":"quit"}}\\n')
                    client.recv(4096)
                open("stopped", "w")
                """),
        )
        line = 'stop = ["./stop"]\n'
    async with starter.opened(serve=(), start=(START[0], START[1].format(line))) as (link, _):
        assert (directory / "started").read_text() == "cloud"
        assert await link.monitor.query_balloon() == 192 * MIB
        assert not (directory / "ended").exists()
    assert (directory / "ended").exists()
    assert (directory / "stopped").exists() == stop
    assert starter.said == ["cloud: started by your command"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo no such image >&2; exit 3", "./start ended with 3: no such image"),
        ("kill -KILL $$", "./start was killed by signal 9: it said nothing"),
    ],
)
async def test_a_command_that_fails_is_quoted(cloud, text, message):
    executable(cloud.directory / "start", f"#!/bin/sh\n{text}\n")
    error = await cloud.refused(serve=(), start=(START[0], START[1].format("")))
    assert f"guest[0].start.command: guest cloud: {message}" in error.message


async def test_a_command_that_makes_no_monitor_is_ended(cloud, autojump_clock):
    executable(cloud.directory / "start", "#!/bin/sh\nsleep 1000\n")
    error = await cloud.refused(serve=(), start=(START[0], START[1].format("")))
    assert "qmp2 does not answer 20 s after ./start: it said nothing" in error.message
    assert "-qmp unix:PATH" in error.hint


async def test_a_command_that_is_not_there_is_named(cloud, autojump_clock):
    error = await cloud.refused(serve=(), start=(START[0], START[1].format("")))
    assert "guest[0].start.command: guest cloud: ./start: No such file or directory" in error.message


async def test_a_guest_that_runs_already_is_not_started_twice(cloud, autojump_clock):
    error = await cloud.refused(start=(START[0], START[1].format("")))
    assert "guest[0].start: guest cloud: it runs already" in error.message


# --------------------------------------------------------------------------------------------- before anything is begun


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        (("", ""), "attach.monitor", "no such socket"),
        (
            ('disks = ["vda"]', 'channel = ["no-such-ssh"]\n[guest.start]\ncommand = ["true"]'),
            "attach.channel",
            "no-such-ssh: no such program",
        ),
        ((START[0], START[1].format("")), "start.command", "./start: no such program"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_begun(cloud, change, key, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_attached(cloud.specification(change=change))
    assert caught.value.key == f"guest[0].{key}"
    assert caught.value.hint


# ------------------------------------------------------------------------------------------------------ one for several


async def test_several_clients_share_an_agent_and_each_hears_its_own_answers(tmp_path, autojump_clock):
    fake = FakeAgent(files={"/a": b"a" * 100_000, "/b": b"b"})
    path, shared = str(tmp_path / "qga"), str(tmp_path / "shared")
    async with trio.open_nursery() as nursery:
        await nursery.start(fake.serve_path, path)
        async with open_agent(path) as agent, trio.open_nursery() as relays:
            await relays.start(relay_agent, agent, shared)
            async with open_agent(shared) as one, open_agent(shared) as two:
                with deadline(60, shared, "reading"):
                    for _ in range(3 * NOISE_MAX_BYTES // 100_000):  # more than may come of no use
                        assert await one.read_file("/a", 200_000) == b"a" * 100_000
                        assert await two.read_file("/b", 10) == b"b"
                    with pytest.raises(QmpallocError, match="No such file"):
                        await two.read_file("/c", 10)
                    await two.write_file("/c", b"c")
                    assert await agent.read_file("/c", 10) == b"c"
            assert fake.handles == {}
            relays.cancel_scope.cancel()
        assert not await trio.Path(shared).exists()
        nursery.cancel_scope.cancel()


async def test_clients_are_let_go_when_the_agent_is_gone(tmp_path, autojump_clock):
    client, server = trio.testing.memory_stream_pair()
    shared = str(tmp_path / "shared")
    async with open_agent_on(client, address="qga") as agent, trio.open_nursery() as nursery:
        nursery.start_soon(FakeAgent().serve, server)
        await nursery.start(relay_agent, agent, shared)
        async with open_agent(shared) as one:
            await one.info()
            await server.aclose()
            with trio.fail_after(10):
                await one.closed.wait()
        nursery.cancel_scope.cancel()


async def test_an_answer_that_never_comes_costs_one_client_its_connection(tmp_path, autojump_clock):
    fake = FakeAgent(files={"/a": b"a"})
    path, shared = str(tmp_path / "qga"), str(tmp_path / "shared")
    async with trio.open_nursery() as nursery:
        await nursery.start(fake.serve_path, path)
        async with open_agent(path) as agent, trio.open_nursery() as relays:
            await relays.start(relay_agent, agent, shared)
            async with open_agent(shared) as one:
                assert await one.read_file("/a", 10) == b"a"
                fake.faults.hang = True
                with trio.fail_after(60), pytest.raises(DisconnectedError):
                    await one.read_file("/a", 10)
            fake.faults.hang = False
            async with open_agent(shared) as two:
                with trio.fail_after(60):
                    assert await two.read_file("/a", 10) == b"a"
            relays.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
