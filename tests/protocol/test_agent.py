"""The guest-agent client against the fake agent, on memory streams and a virtual clock."""

from functools import partial

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from qmpalloc.errors import DeadlineError, DisconnectedError, NonsenseError, RefusedError
from qmpalloc.qmp import ExecResult, deadline, open_agent_on
from qmpalloc.qmp.framing import Framer, decode, encode
from qmpalloc.testing import FakeAgent
from qmpalloc.testing.fake_qemu import Refusal
from tests.protocol.clients import agent_of, connected

PATH = "/run/qmpalloc/counters.json"


def commands(fake):
    return [command.removeprefix("guest-") for command, _ in fake.requests]


async def test_first_command_synchronises_and_the_next_does_not(autojump_clock):
    fake = FakeAgent()
    async with agent_of(fake) as agent:
        assert "not synced" in repr(agent)
        info = await agent.info()
        await agent.execute("guest-ping")
        assert " synced" in repr(agent)
    assert commands(fake) == ["sync-delimited", "info", "ping"]
    assert info.version == "7.2.22"
    assert "guest-file-read" in info.enabled
    assert "guest-shutdown" not in info.enabled
    assert "closed" in repr(agent)


async def test_file_is_read_and_closed(autojump_clock):
    fake = FakeAgent(files={PATH: b"content"})
    async with agent_of(fake) as agent:
        assert await agent.read_file(PATH, 100) == b"content"
    assert commands(fake) == ["sync-delimited", "file-open", "file-read", "file-close"]
    assert not fake.handles


@pytest.mark.parametrize(("size", "read"), [(0, 0), (99, 99), (100, 100), (101, 101), (102, 101), (5000, 101)])
async def test_at_most_one_byte_more_than_wanted_is_read(autojump_clock, size, read):
    fake = FakeAgent(files={PATH: bytes(size)})
    async with agent_of(fake) as agent:
        assert len(await agent.read_file(PATH, 100)) == read
    assert not fake.handles


async def test_large_file_is_read_in_pieces(autojump_clock):
    content = bytes(range(256)) * 8000
    fake = FakeAgent(files={PATH: content})
    async with agent_of(fake) as agent:
        assert await agent.read_file(PATH, 4_000_000) == content


async def test_missing_file_is_refused_printably(autojump_clock):
    fake = FakeAgent()
    async with agent_of(fake) as agent:
        with pytest.raises(RefusedError) as caught:
            await agent.read_file("/no\x1b[31m" + "x" * 500, 100)
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 300
        assert caught.value.command == "guest-file-open"
        # A refusal is an answer: no need to synchronise again.
        await agent.execute("guest-ping")
    assert commands(fake) == ["sync-delimited", "file-open", "ping"]


@pytest.mark.parametrize("lie", ["count", "more", "base64", "endless"])
async def test_lying_about_a_file_is_nonsense_and_leaves_no_handle(autojump_clock, lie):
    fake = FakeAgent(files={PATH: b"content"})
    async with agent_of(fake) as agent:
        fake.lie = lie
        with pytest.raises(NonsenseError):
            await agent.read_file(PATH, 100)
        assert not fake.handles
        fake.lie = None
        assert await agent.read_file(PATH, 100) == b"content"


@pytest.mark.parametrize("hang_on", ["guest-file-open", "guest-file-read", "guest-file-close"])
async def test_cancelling_a_read_leaks_no_handle(autojump_clock, hang_on):
    fake = FakeAgent(files={PATH: b"content"})
    async with agent_of(fake) as agent:
        await agent.sync()
        fake.faults.drop.add(hang_on)
        with trio.move_on_after(3):
            await agent.read_file(PATH, 100)
        assert trio.current_time() <= 4
        fake.faults.drop.clear()
        # The answer to the opening may be lost for good here; what the guest did answer must be closed.
        if hang_on != "guest-file-open":
            assert await agent.read_file(PATH, 100) == b"content"
            assert not fake.handles


async def test_handle_of_an_opening_answered_late_is_closed_before_the_next_command(autojump_clock):
    fake = FakeAgent(files={PATH: b"content"})
    async with agent_of(fake) as agent:
        await agent.sync()
        fake.faults.hang = True
        with trio.move_on_after(3):
            await agent.read_file(PATH, 100)
        fake.faults.hang = False
        await agent.execute("guest-ping")
        assert not fake.handles
    assert commands(fake) == ["sync-delimited", "file-open", "sync-delimited", "file-close", "ping"]


async def test_handle_of_an_opening_answered_late_is_closed_when_the_connection_is(autojump_clock):
    fake = FakeAgent(files={PATH: b"content"})
    async with agent_of(fake) as agent:
        await agent.sync()
        fake.faults.delay_s = 0.4
        with trio.move_on_after(0.1):
            await agent.read_file(PATH, 100)
        fake.faults.delay_s = 0.0
    assert commands(fake)[-1] == "file-close"
    assert not fake.handles


async def test_closing_with_a_hung_agent_takes_a_second_at_most(autojump_clock):
    fake = FakeAgent(files={PATH: b"content"})
    async with trio.open_nursery() as nursery:
        client, server = memory_stream_pair()
        nursery.start_soon(fake.serve, server)
        with trio.move_on_after(3):
            async with open_agent_on(client, address="fake") as agent:
                await agent.sync()
                fake.faults.hang = True
                await agent.read_file(PATH, 100)
        assert trio.current_time() == 4
        nursery.cancel_scope.cancel()


async def test_commands_sent_before_the_agent_runs_do_no_harm(autojump_clock):
    fake = FakeAgent(files={PATH: b"content"}, running=False)
    async with agent_of(fake) as agent:
        for _ in range(5):
            with pytest.raises(DeadlineError), deadline(2, "fake", "guest-file-open"):
                await agent.read_file(PATH, 100)
        fake.start()
        assert await agent.read_file(PATH, 100) == b"content"
        # Five synchronisations and the complaint about the sentinel of all six.
        assert agent.skipped == 5 + 6
    assert commands(fake) == ["sync-delimited"] * 6 + ["file-open", "file-read", "file-close"]


async def test_late_answers_of_a_hung_agent_are_skipped(autojump_clock):
    fake = FakeAgent()
    async with agent_of(fake) as agent:
        await agent.sync()
        for _ in range(3):
            fake.faults.hang = True
            with pytest.raises(DeadlineError), deadline(2, "fake", "guest-info"):
                await agent.info()
            fake.faults.hang = False
            assert (await agent.info()).version == "7.2.22"


async def test_agent_that_restarts_in_the_middle_of_an_answer(autojump_clock):
    """Half a line stays in the buffer; the sentinel of the next synchronisation clears it."""
    fake = FakeAgent()
    async with agent_of(fake) as agent:
        await agent.sync()
        fake.faults.garbage = b'{"return": {"half'
        fake.faults.drop.add("guest-ping")
        with trio.move_on_after(2):
            await agent.execute("guest-ping")
        fake.faults.drop.clear()
        fake.faults.garbage = b""
        assert (await agent.info()).version == "7.2.22"


@pytest.mark.parametrize("fault", [{"split": True}, {"strangers": True}, {"twice": True}, {"delay_s": 1.0}])
async def test_answers_arrive_in_spite_of(autojump_clock, fault):
    fake = FakeAgent(files={PATH: b"content"})
    for name, value in fault.items():
        setattr(fake.faults, name, value)
    async with agent_of(fake) as agent:
        for _ in range(3):
            assert await agent.read_file(PATH, 100) == b"content"


async def test_errors_without_id_before_the_answer_are_skipped(autojump_clock):
    fake = FakeAgent(files={PATH: b"content"})
    fake.faults.garbage = b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n'
    async with agent_of(fake) as agent:
        assert await agent.read_file(PATH, 100) == b"content"


@pytest.mark.parametrize(
    "garbage", [b"junk\n", b"\xfe\xfe\n", b"[]\n", b"[" * 50_000 + b"\n", b"x" * 1_100_000 + b"\n"]
)
async def test_garbage_is_skipped_while_synchronising_and_nonsense_in_place_of_an_answer(autojump_clock, garbage):
    fake = FakeAgent()
    async with agent_of(fake) as agent:
        fake.faults.garbage = garbage
        await agent.sync()
        await trio.sleep(60.0)  # two of the longest lines at once would be a flood
        with pytest.raises(NonsenseError):
            await agent.execute("guest-ping")
        fake.faults.garbage = b""
        assert not agent.closed.is_set()
        await agent.execute("guest-ping")


async def test_endless_line_is_held_in_bounded_memory(autojump_clock):
    client, server = memory_stream_pair()

    async def talk_for_ever():
        while True:
            await server.send_all(b"x" * 65536)
            await trio.lowlevel.checkpoint()

    async with open_agent_on(client, address="fake") as agent, trio.open_nursery() as nursery:
        nursery.start_soon(talk_for_ever)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert agent._connection.pending_bytes <= 1024 * 1024
        assert agent.skipped == 1
        nursery.cancel_scope.cancel()


async def test_one_command_in_flight(autojump_clock):
    fake = FakeAgent(files={PATH: b"content"})
    fake.faults.delay_s = 0.1
    async with agent_of(fake) as agent, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(agent.read_file, PATH, 100)
    assert commands(fake).count("sync-delimited") == 1
    assert commands(fake).count("file-close") == 5
    assert not fake.handles


async def test_cancelled_waiter_for_its_turn_sends_nothing(autojump_clock):
    fake = FakeAgent()
    async with agent_of(fake) as agent, trio.open_nursery() as nursery:
        await agent.sync()
        fake.faults.delay_s = 5
        nursery.start_soon(agent.info)
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await agent.execute("guest-ping")
    assert commands(fake) == ["sync-delimited", "info"]


async def test_end_of_connection_reaches_the_waiter_and_all_later_calls(autojump_clock):
    fake = FakeAgent()
    fake.faults.die_after = 4  # the complaint about the sentinel, the synchronisation, two answers
    async with agent_of(fake) as agent:
        await agent.execute("guest-ping")
        await agent.execute("guest-ping")
        for _ in range(2):
            with pytest.raises(DisconnectedError) as caught:
                await agent.execute("guest-ping")
            assert caught.value.__cause__ is agent.cause
        assert agent.closed.is_set()


async def test_end_of_connection_while_a_file_is_open(autojump_clock):
    fake = FakeAgent(files={PATH: b"content"})
    fake.faults.die_after = 3
    async with agent_of(fake) as agent:
        with pytest.raises(DisconnectedError):
            await agent.read_file(PATH, 100)


@pytest.mark.parametrize("reply", [None, True, -1, "1000", 2**63, {}])
async def test_handle_of_the_wrong_shape_is_nonsense(autojump_clock, reply):
    async with connected(partial(answer_with, value=reply), open_agent_on) as agent:
        with pytest.raises(NonsenseError):
            await agent.read_file(PATH, 100)


async def answer_with(stream, value):
    """An agent that synchronises and returns `value` to anything else."""
    framer = Framer()
    while data := await stream.receive_some():
        for frame in framer.feed(data):
            if isinstance(frame, bytes):
                request = decode(frame)
                sync = request["execute"] == "guest-sync-delimited"
                result = request["arguments"]["id"] if sync else value
                await stream.send_all(encode({"return": result, "id": request["id"]}))


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"version": 7, "supported_commands": []},
        {"version": "7", "supported_commands": [{"name": "x", "enabled": 1}]},
        [],
        "text",
    ],
)
async def test_info_of_the_wrong_shape_is_nonsense(autojump_clock, reply):
    async with connected(partial(answer_with, value=reply), open_agent_on) as agent:
        with pytest.raises(NonsenseError):
            await agent.info()


async def test_version_is_made_printable(autojump_clock):
    async with agent_of(FakeAgent(version="7\x1b]0;x\x07")) as agent:
        assert (await agent.info()).version == "7?]0;x?"


async def test_program_runs_to_its_end(autojump_clock):
    def program(argv, data):
        assert argv == ["fio", "--version"]
        return ExecResult(exit_code=3, signal=None, out=data.upper(), err=b"warning")

    fake = FakeAgent(program=program)
    fake.program_s = 2.0
    async with agent_of(fake) as agent:
        result = await agent.run(["fio", "--version"], input_data=b"abc")
    assert result == ExecResult(exit_code=3, signal=None, out=b"ABC", err=b"warning")
    assert 2.0 <= trio.current_time() <= 2.5
    assert len(fake.requests) < 12


async def test_program_ended_by_a_signal(autojump_clock):
    fake = FakeAgent(program=lambda argv, data: ExecResult(exit_code=None, signal=9, out=b"", err=b""))
    async with agent_of(fake) as agent:
        assert (await agent.run(["sleep", "9"])).signal == 9


async def test_program_is_started_and_not_waited_for(autojump_clock):
    fake = FakeAgent(program=lambda argv, data: ExecResult(exit_code=0, signal=None, out=b"", err=b""))
    async with agent_of(fake) as agent:
        assert await agent.start(["fio", "job"]) > 0
    assert commands(fake) == ["sync-delimited", "exec"]


async def test_agent_that_may_not_execute_refuses(autojump_clock):
    async with agent_of(FakeAgent()) as agent:
        with pytest.raises(RefusedError) as caught:
            await agent.run(["true"])
    assert caught.value.error_class == "CommandNotFound"


@pytest.mark.parametrize("cancelled_after_s", [0, 0.05, 0.15, 0.25, 0.35, 0.45])
async def test_cancelling_at_any_moment_leaves_a_usable_channel(autojump_clock, cancelled_after_s):
    fake = FakeAgent(files={PATH: b"content"})
    fake.faults.delay_s = 0.1
    async with agent_of(fake) as agent:
        with trio.move_on_after(cancelled_after_s):
            await agent.read_file(PATH, 100)
        assert await agent.read_file(PATH, 100) == b"content"
        assert not fake.handles


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 600_000])
async def test_file_is_written_in_pieces_and_closed(autojump_clock, size):
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    fake = FakeAgent(files={PATH: b"of before, and longer" * 100})
    async with agent_of(fake) as agent:
        await agent.write_file(PATH, content)
        assert fake.files[PATH] == content
        assert not fake.handles
        assert await agent.read_file(PATH, 1_000_000) == content
    pieces = [len(arguments["buf-b64"]) for command, arguments in fake.requests if command == "guest-file-write"]
    assert all(piece <= 512 * 1024 for piece in pieces)


async def test_what_the_guest_did_not_take_is_written_again(autojump_clock):
    fake = FakeAgent()
    fake.write_max_bytes = 7
    async with agent_of(fake) as agent:
        await agent.write_file(PATH, bytes(range(100)))
    assert fake.files[PATH] == bytes(range(100))


@pytest.mark.parametrize("lie", ["count", "nothing"])
async def test_lying_about_what_was_written_is_nonsense_and_leaves_no_handle(autojump_clock, lie):
    fake = FakeAgent()
    fake.lie = lie
    async with agent_of(fake) as agent:
        with pytest.raises(NonsenseError, match="wrote"):
            await agent.write_file(PATH, b"content")
        assert not fake.handles


async def test_a_file_that_may_not_be_written_is_refused(autojump_clock):
    fake = FakeAgent(files={PATH: lambda: b""})
    async with agent_of(fake) as agent:
        with pytest.raises(RefusedError, match="Permission denied"):
            await agent.write_file(PATH, b"content")


@pytest.mark.parametrize("refused", ["guest-file-write", "guest-file-close"])
async def test_no_room_is_the_callers_error_and_nothing_is_closed_twice(autojump_clock, refused):
    class FullAgent(FakeAgent):
        def _execute(self, command, arguments):
            result = super()._execute(command, arguments)
            if command == refused and self.refusing:
                raise Refusal("No space left on device")
            return result

    fake = FullAgent()
    fake.refusing = True
    async with agent_of(fake) as agent:
        with pytest.raises(RefusedError, match="No space"):
            await agent.write_file(PATH, b"content")
        fake.refusing = False
        await agent.execute("guest-ping")
    assert not fake.handles
    assert commands(fake).count("file-close") == 1


@pytest.mark.parametrize("hang_on", ["guest-file-open", "guest-file-write", "guest-file-close"])
async def test_cancelling_a_write_leaks_no_handle(autojump_clock, hang_on):
    fake = FakeAgent()
    async with agent_of(fake) as agent:
        await agent.sync()
        fake.faults.drop.add(hang_on)
        with trio.move_on_after(3):
            await agent.write_file(PATH, b"content")
        assert trio.current_time() <= 4
        fake.faults.drop.clear()
        await agent.write_file(PATH, b"other")
        if hang_on != "guest-file-open":
            assert not fake.handles
    assert fake.files[PATH] == b"other"
