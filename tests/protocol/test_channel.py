"""The two ways into a guest, against a fake agent and against commands of this host, and what goes wrong with each."""

import math
import os
import shlex
import stat
import sys
from pathlib import Path

import pytest
import trio

from qmpalloc.channel import CommandChannel, open_channel, open_command, opening, pass_through
from qmpalloc.channel import command as command_module
from qmpalloc.errors import BusyError, DeadlineError, HostError, NonsenseError, RefusedError, UnreachableError
from qmpalloc.qmp import ExecResult, deadline
from qmpalloc.testing import FakeAgent
from tests.protocol.clients import agent_of, result

SHELL = ("sh", "-c")
"""A command as ssh is one: it takes a line for a shell."""


def script(tmp_path, text):
    """Make a program that stands for ssh, and return the words of the channel."""
    file = tmp_path / "fake-ssh"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return (str(file),)


# ------------------------------------------------------------------------------------------------ a command of the host


async def test_a_command_keeps_words_apart_and_passes_input_and_both_outputs():
    async with open_command(SHELL, "web") as channel:
        code = "import sys; print(sys.argv[1:], sys.stdin.read()); print('oh', file=sys.stderr); sys.exit(7)"
        done = await channel.run([sys.executable, "-c", code, "a  b", "$HOME", "'"], input_data=b"in")
    assert (done.exit_code, done.signal) == (7, None)
    assert done.out.decode() == "['a  b', '$HOME', \"'\"] in\n"
    assert done.err == b"oh\n"


async def test_a_command_brings_files_in_and_out(tmp_path):
    file = tmp_path / "a file"
    async with open_command(SHELL, "web") as channel:
        await channel.write_file(str(file), b"\0one\n" * 50_000)
        assert file.read_bytes() == b"\0one\n" * 50_000
        assert len(await channel.read_file(str(file), 100)) == 101  # longer than is of use
        assert await channel.read_file(str(file), 10**6) == b"\0one\n" * 50_000


@pytest.mark.parametrize("way", ["read", "write"])
async def test_a_file_that_is_not_there_is_a_refusal_that_names_it(tmp_path, way):
    missing = str(tmp_path / "none" / "file")
    async with open_command(SHELL, "web") as channel:
        with pytest.raises(RefusedError, match=r"sh -c: .*none/file"):
            await (channel.read_file(missing, 10) if way == "read" else channel.write_file(missing, b""))


async def test_what_a_command_started_is_asked_how_it_ended():
    async with open_command(SHELL, "web") as channel:
        ends = {}
        for name, line in {"code": "exit 3", "signal": "kill -KILL $$"}.items():
            pid = await channel.start(["sh", "-c", line])
            while (ends.get(name)) is None:
                ends[name] = await channel.poll(pid)
                await trio.sleep(0.01)
        assert (ends["code"].exit_code, ends["signal"].signal) == (3, 9)
        with pytest.raises(RefusedError, match="no program with the number"):
            await channel.poll(pid)


async def test_at_the_end_of_the_block_nothing_that_was_started_runs():
    async with open_command(SHELL, "web") as channel:
        pid = await channel.start(["sleep", "1000"])
        assert await channel.poll(pid) is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_command_is_run_in_the_directory_of_the_file_that_names_it(tmp_path, capfd):
    script(tmp_path, 'exec sh -c "$1"')
    async with open_channel(("./fake-ssh",), guest="web", agent="", directory=tmp_path) as channel:
        assert (await channel.run(["pwd"])).out.decode().strip() == str(tmp_path)
        assert await pass_through(channel, ["pwd"], stdin=None, out=print, err=print) == 0
        pid = await channel.start(["touch", "started"])
        while await channel.poll(pid) is None:  # noqa: ASYNC110 - its end is told once, to who asks
            await trio.sleep(0.01)
    assert capfd.readouterr().out.strip() == str(tmp_path)
    assert (tmp_path / "started").exists()


async def test_a_cancelled_command_is_ended_with_all_it_started(tmp_path):
    note = tmp_path / "pid"
    async with open_command(SHELL, "web") as channel:
        with (
            pytest.raises(DeadlineError, match="sh -c: no answer to a sleep"),
            deadline(1, "sh -c", "a sleep"),
        ):
            await channel.run(["sh", "-c", f"sleep 1000 & echo $! > {shlex.quote(str(note))}; wait"])
    # Killed: gone as soon as it gets to run.
    with trio.fail_after(30):
        while _runs(note.read_text().strip()):  # noqa: ASYNC110 - its end is told to whoever adopted it
            await trio.sleep(0.01)


def _runs(pid):
    """Whether a process is there, and no zombie."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


async def test_a_flood_is_read_and_thrown_away(monkeypatch):
    monkeypatch.setattr(command_module, "OUTPUT_MAX_BYTES", 1000)
    async with open_command(SHELL, "web") as channel:
        done = await channel.run(["head", "-c", "5000000", "/dev/zero"])
    assert (done.exit_code, len(done.out)) == (0, 1000)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("echo 'root@guest: Permission denied (publickey).' >&2; exit 255", "Permission denied", "ssh-copy-id"),
        ("echo 'Host key verification failed.' >&2; exit 255", "Host key verification failed", "by hand once"),
        ("echo 'connect to host 127.0.0.1 port 2222: Connection refused' >&2; exit 255", "ended with 255", "hostfwd"),
        ('exec "$@"', "ended with 127|ended with 126", "sh -c"),
        ("echo welcome", "which ended with 0: welcome", "by hand"),
        ("kill -KILL $$", "was killed", "by hand"),
    ],
)
async def test_a_command_that_does_not_reach_the_guest_is_named_with_a_hint(tmp_path, text, message, hint):
    words = script(tmp_path, text)
    with pytest.raises(UnreachableError, match=message) as caught:
        async with open_channel(words, guest="web", agent=""):
            pass
    assert "guest web: " in caught.value.message
    assert words[0] in caught.value.message
    assert hint in caught.value.hint


async def test_what_a_command_leaves_in_the_background_holds_nothing_up(monkeypatch):
    monkeypatch.setattr(command_module, "KILL_GRACE_S", 0.5)
    async with open_command(SHELL, "web") as channel:
        with trio.fail_after(20):
            done = await channel.run(["sh", "-c", "echo said; sleep 30 &"])  # as ssh with ControlPersist
    assert (done.exit_code, done.out) == (0, b"said\n")


async def test_a_command_that_does_not_exist_is_an_error_of_this_host(tmp_path):
    with pytest.raises(HostError, match=r"no-such-ssh cannot be run on this host: No such file"):
        async with open_command((str(tmp_path / "no-such-ssh"),), "web"):
            pass


async def test_a_guest_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(command_module, "PROBE_TIMEOUT_S", 0.2)
    with pytest.raises(DeadlineError, match=r"fake-ssh: no answer to a first command in guest web within 0.2 s"):
        async with open_command(script(tmp_path, "sleep 1000"), "web"):
            pass


async def test_a_connection_that_breaks_later_is_no_missing_file(tmp_path):
    channel = CommandChannel(script(tmp_path, "echo 'Connection refused' >&2; exit 255"))
    with pytest.raises(UnreachableError, match="Connection refused") as caught:
        await channel.read_file("/run/qmpalloc/counters.json", 10)
    assert "sshd" in caught.value.hint


# ------------------------------------------------------------------------------------------------------------ the agent


async def test_an_agent_that_may_not_run_programs_says_what_to_allow():
    async with agent_of(FakeAgent()) as agent:
        with pytest.raises(RefusedError, match="guest-exec") as caught:
            await agent.run(["true"])
        assert "allow guest-exec and guest-exec-status" in caught.value.hint
        with pytest.raises(RefusedError) as caught:
            await agent.start(["true"])
        assert "channel = " in caught.value.hint


async def test_who_holds_the_agents_socket_is_said_and_waited_for(tmp_path, monkeypatch, autojump_clock):
    monkeypatch.setattr(opening, "holders", lambda path: [f"qmpalloc (pid 77) on {path}"])
    path, said = str(tmp_path / "lab.sock"), []
    async with trio.open_nursery() as nursery:
        await nursery.start(FakeAgent().serve_path, path)
        async with await trio.open_unix_socket(path):
            with pytest.raises(BusyError, match=rf"guest web: qmpalloc \(pid 77\) on {path} still holds .* after 5 s"):
                async with open_channel("agent", guest="web", agent=path, wait_s=5, report=said.append):
                    pass
            assert said == [f"web: qmpalloc (pid 77) on {path} holds {path}; waiting for its turn"]
        async with open_channel("agent", guest="web", agent=path, wait_s=5, report=said.append) as channel:
            assert channel.address == path
        assert len(said) == 1
        nursery.cancel_scope.cancel()


async def test_an_agent_that_nobody_holds_and_that_is_silent_hangs(tmp_path, monkeypatch, autojump_clock):
    monkeypatch.setattr(opening, "holders", lambda _: [])
    path = str(tmp_path / "lab.sock")
    async with trio.open_nursery() as nursery:
        await nursery.start(FakeAgent(running=False).serve_path, path)
        with pytest.raises(DeadlineError, match=r"guest web: its agent at .* does not answer within 5 s") as caught:
            async with open_channel("agent", guest="web", agent=path, wait_s=5):
                pass
        assert "boots" in caught.value.hint
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------------------------- a program as if it ran on this host

DIRECTORY = "/var/tmp/qmpalloc-exec.Ab12Cd"


class Guest:
    """A guest whose programs print what they are given, into the files that the shell would direct them to."""

    def __init__(self, end=None, directory=DIRECTORY):
        self.agent = FakeAgent(program=self.program)
        self.end = end or result(5)
        self.directory = directory
        self.ran = []

    def program(self, argv, _data):
        line = argv[2] if argv[:2] == ["/bin/sh", "-c"] else ""
        self.ran.append(argv)
        self.agent.program_s = 0.0
        if "mktemp" in line:
            return result(out=self.directory.encode() + b"\n")
        if '"$@"' in line:
            _, directory, source, *words = argv[3:]
            given = self.agent.files.get(source, b"")
            self.agent.files[f"{directory}/out"] = " ".join(words).encode() + given
            self.agent.files[f"{directory}/err"] = b"warning\n"
            self.agent.program_s = 3.0
            return self.end
        return result()


async def passed(guest, stdin=None, *, raises=None, within_s=math.inf):
    out, err, code = [], [], None
    async with agent_of(guest.agent) as agent:
        with raises or trio.move_on_after(within_s):
            code = await pass_through(agent, ["cat", "a  b"], stdin=stdin, out=out.append, err=err.append)
    return code, b"".join(out), b"".join(err)


async def test_an_agent_passes_exit_code_input_and_both_outputs_on(autojump_clock):
    guest = Guest()
    assert await passed(guest, b" and input") == (5, b"cat a  b and input", b"warning\n")
    assert guest.ran[-1][-1] == f"rm -rf {DIRECTORY}"
    assert guest.agent.handles == {}


async def test_a_signal_gives_the_code_that_a_shell_gives(autojump_clock):
    assert (await passed(Guest(result(signal=15))))[0] == 143


async def test_a_program_that_is_given_up_is_killed_and_its_directory_removed(autojump_clock):
    guest = Guest()
    assert (await passed(guest, within_s=1))[0] is None
    assert guest.ran[-1][-1].startswith("kill ")
    assert guest.ran[-1][-1].endswith(f"; rm -rf {DIRECTORY}")


@pytest.mark.timeout(60)
async def test_an_agent_that_ends_meanwhile_is_not_waited_for(autojump_clock):
    guest = Guest()

    async def reboot():
        await trio.sleep(1)
        guest.agent.stop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reboot)
        await passed(guest, raises=pytest.raises(DeadlineError, match="how the program goes on within 60 s"))


async def test_a_directory_that_the_guest_makes_up_reaches_no_shell(autojump_clock):
    guest = Guest(directory="/var/tmp/qmpalloc-exec.x; rm -rf /")
    await passed(guest, raises=pytest.raises(HostError, match="makes no directory"))
    assert len(guest.ran) == 1


async def test_an_end_without_code_and_signal_is_nonsense(autojump_clock):
    end = ExecResult(exit_code=None, signal=None, out=b"", err=b"")
    await passed(Guest(end), raises=pytest.raises(NonsenseError, match="does not say how"))


async def test_a_command_of_this_host_passes_its_streams_itself(capfd):
    async with open_command(SHELL, "web") as channel:
        code = await pass_through(channel, ["sh", "-c", "cat; echo no >&2; exit 9"], stdin=b"yes", out=print, err=print)
    assert (code, *capfd.readouterr()) == (9, "yes", "no\n")
