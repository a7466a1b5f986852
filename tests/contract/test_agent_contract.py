"""One table of behaviours, held by our agent client against the fake agent and a real ``qemu-ga`` process."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from qmpalloc.errors import NonsenseError, RefusedError
from qmpalloc.qmp import ExecResult, FileTrouble, file_trouble, open_agent, open_monitor
from qmpalloc.testing import FakeAgent

QEMU_GA = shutil.which("qemu-ga", path=os.environ.get("PATH", "") + ":/usr/sbin")
CONTENT = bytes(range(256)) * 40


def cat(argv, data):
    return ExecResult(exit_code=0, signal=None, out=data, err=b"")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    (tmp_path / "empty").write_bytes(b"")
    return str(path)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.qemu)])
async def socket_path(request, tmp_path, nursery, start_listening, file):
    path = str(tmp_path / "agent")
    if request.param == "fake":
        files = {file: CONTENT, str(tmp_path / "empty"): b""}
        await nursery.start(FakeAgent(files=files, program=cat).serve_path, path)
        yield path
        return
    if QEMU_GA is None:
        pytest.skip("qemu-ga is not installed")
    argv = [QEMU_GA, "-m", "unix-listen", "-p", path, "-t", str(tmp_path), "-f", str(tmp_path / "pid")]
    await start_listening(argv, path)
    yield path


async def test_info(socket_path):
    async with open_agent(socket_path) as agent:
        info = await agent.info()
    assert info.version.count(".") == 2
    assert {"guest-file-open", "guest-file-read", "guest-file-close", "guest-exec"} <= info.enabled


@pytest.mark.parametrize("max_bytes", [1, 4096, len(CONTENT) - 1, len(CONTENT), len(CONTENT) + 1, 1_000_000])
async def test_reading_a_file(socket_path, file, max_bytes):
    async with open_agent(socket_path) as agent:
        assert await agent.read_file(file, max_bytes) == CONTENT[: max_bytes + 1]


async def test_reading_an_empty_file(socket_path, tmp_path):
    async with open_agent(socket_path) as agent:
        assert await agent.read_file(str(tmp_path / "empty"), 100) == b""


@pytest.mark.parametrize("size", [0, 5, 300_000])
async def test_writing_a_file(socket_path, tmp_path, size):
    content = (CONTENT * 30)[:size]
    path = str(tmp_path / "written")
    async with open_agent(socket_path) as agent:
        await agent.write_file(path, b"of before" * 40_000)
        await agent.write_file(path, content)
        assert await agent.read_file(path, 1_000_000) == content


async def test_it_is_told_from_a_monitor(socket_path):
    with pytest.raises(NonsenseError, match="a guest agent answers on this socket") as caught:
        async with open_monitor(socket_path, timeout_s=2):
            pytest.fail("opened")
    assert "swapped" in caught.value.hint
    async with open_agent(socket_path) as agent:
        assert await agent.execute("guest-ping") == {}


async def test_refusals(socket_path):
    async with open_agent(socket_path) as agent:
        for command, arguments, error_class in [
            ("guest-file-open", {"path": "/nowhere/at/all", "mode": "r"}, "GenericError"),
            ("guest-file-read", {"handle": 7}, "GenericError"),
            ("guest-file-write", {"handle": 7, "buf-b64": ""}, "GenericError"),
            ("guest-file-open", {"path": "/nowhere", "mode": "nonsense"}, "GenericError"),
            ("guest-file-close", {"handle": 7}, "GenericError"),
            ("guest-exec-status", {"pid": 99_999_999}, "GenericError"),
            ("guest-no-such-command", None, "CommandNotFound"),
        ]:
            with pytest.raises(RefusedError) as caught:
                await agent.execute(command, arguments)
            assert (caught.value.command, caught.value.error_class) == (command, error_class)


async def serve_in_trouble(trouble, kind, path, file, tmp_path, nursery, start_listening):
    """Serve an agent that cannot open the file."""
    if kind == "fake":
        agent = FakeAgent(files={} if trouble is FileTrouble.ABSENT else {str(file): CONTENT})
        agent.frozen = trouble is FileTrouble.FROZEN
        words = {FileTrouble.FORBIDDEN: "Permission denied", FileTrouble.EXHAUSTED: "Too many open files"}
        agent.refusal = words.get(trouble, "")
        await nursery.start(agent.serve_path, path)
        return
    if QEMU_GA is None:
        pytest.skip("qemu-ga is not installed")
    argv = [QEMU_GA, "-m", "unix-listen", "-p", path, "-t", str(tmp_path), "-f", str(tmp_path / "pid")]
    match trouble:
        case FileTrouble.ABSENT:
            file.unlink()
        case FileTrouble.FORBIDDEN:
            file.chmod(0)
            if os.geteuid() == 0:  # who may read everything, unless that is taken away
                argv = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *argv]
        case FileTrouble.EXHAUSTED:
            argv = ["prlimit", "--nofile=24", *argv]
        case FileTrouble.FROZEN:
            (tmp_path / "qga.state.isfrozen").touch()  # as one that was restarted during a backup finds it
    await start_listening(argv, path)


@pytest.mark.parametrize("kind", ["fake", pytest.param("real", marks=pytest.mark.qemu)])
@pytest.mark.parametrize(
    ("trouble", "hint"),
    [
        (FileTrouble.ABSENT, ""),
        (FileTrouble.FORBIDDEN, "SELinux"),
        (FileTrouble.EXHAUSTED, "descriptors"),
        (FileTrouble.FROZEN, "backup"),
    ],
)
async def test_why_a_file_is_not_opened(kind, trouble, hint, file, tmp_path, nursery, start_listening):
    path = str(tmp_path / "agent")
    await serve_in_trouble(trouble, kind, path, Path(file), tmp_path, nursery, start_listening)
    async with open_agent(path) as agent:
        if trouble is FileTrouble.EXHAUSTED and kind == "real":
            for _ in range(24):
                with suppress(RefusedError):
                    await agent.execute("guest-file-open", {"path": file})
        with pytest.raises(RefusedError) as caught:
            await agent.read_file(file, 100)
        # An agent of QEMU 10 that was restarted during a backup calls its commands disabled: the hint names both.
        told = {trouble, FileTrouble.DISABLED} if (kind, trouble) == ("real", FileTrouble.FROZEN) else {trouble}
        assert file_trouble(caught.value) in told
        assert hint in caught.value.hint
        assert await agent.is_frozen() is (trouble is FileTrouble.FROZEN)
        assert ("guest-file-open" in (await agent.info()).enabled) is (trouble is not FileTrouble.FROZEN)


async def test_handles_outlive_a_client_that_left_without_closing(socket_path, file):
    async with open_agent(socket_path) as agent:
        handle = await agent.execute("guest-file-open", {"path": file})
    async with open_agent(socket_path) as agent:
        reply = await agent.execute("guest-file-read", {"handle": handle, "count": 4})
        assert reply == {"count": 4, "buf-b64": "AAECAw==", "eof": False}
        assert await agent.execute("guest-file-close", {"handle": handle}) == {}


async def test_half_a_command_of_an_earlier_client_does_no_harm(socket_path):
    async with await trio.open_unix_socket(socket_path) as stream:
        await stream.send_all(b'{"execute":"guest-pi')
    async with open_agent(socket_path) as agent:
        assert await agent.execute("guest-ping") == {}


async def test_commands_of_an_earlier_client_do_no_harm(socket_path, file):
    async with open_agent(socket_path) as agent:
        for _ in range(5):
            with trio.CancelScope() as scope:
                scope.cancel()
                await agent.read_file(file, 100)
            with trio.move_on_after(0.0005):
                await agent.read_file(file, 100)
        assert await agent.read_file(file, 3) == CONTENT[:4]


async def test_running_a_program(socket_path):
    async with open_agent(socket_path) as agent:
        result = await agent.run(["cat"], input_data=b"abc\x00\xff")
        assert result == ExecResult(exit_code=0, signal=None, out=b"abc\x00\xff", err=b"")
        assert await agent.start(["true"]) > 0


@pytest.mark.qemu
async def test_a_program_ended_by_a_signal(tmp_path, start_listening):
    if QEMU_GA is None:
        pytest.skip("qemu-ga is not installed")
    path = str(tmp_path / "agent")
    argv = [QEMU_GA, "-m", "unix-listen", "-p", path, "-t", str(tmp_path), "-f", str(tmp_path / "pid")]
    await start_listening(argv, path)
    async with open_agent(path) as agent:
        result = await agent.run(["sh", "-c", "echo out; echo err >&2; kill -9 $$"])
    assert result == ExecResult(exit_code=None, signal=9, out=b"out\n", err=b"err\n")
