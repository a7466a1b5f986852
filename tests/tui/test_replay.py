"""``qmpalloc replay``: what a run showed, its record shows again."""

import itertools
import json
import os
import signal

import pytest
import trio
import trio.testing
from click.testing import CliRunner
from drawing import draw, reduce
from msgspec import structs
from synthetic import run

from qmpalloc import events
from qmpalloc.cli.onlooker import look_on
from qmpalloc.cli.replay import Player, replay
from qmpalloc.tui import Dashboard


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "record.jsonl"
    lines = [events.encoder.encode(event) + b"\n" for event in run(2, 60, troubles=True, end=True)]
    # The last line was cut off when the run died.
    path.write_bytes(b"".join(lines) + lines[-1][:20])
    return path


def invoke(*arguments):
    return CliRunner().invoke(replay, list(map(str, arguments)))


def test_plain_lines_of_a_record(record):
    result = invoke(record, "--plain")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert "decision 1" in result.output
    assert lines[-1].endswith("ended clean: quit by the user")


def test_without_a_terminal_lines_are_printed(record):
    assert invoke(record).output == invoke(record, "--plain").output


def test_plain_lines_up_to_a_time(record):
    output = invoke(record, "--plain", "--at", 12).output
    assert "decision 2" in output
    assert "decision 3" not in output


def test_the_state_at_a_time_as_json(record):
    state = json.loads(invoke(record, "--json", "--at", 12).output)
    assert (state["decision"], [guest["name"] for guest in state["guests"]]) == (2, ["web", "db"])
    assert json.loads(invoke(record, "--json").output)["ended"] == "quit by the user"


def test_a_picture_at_a_time(record, tmp_path):
    picture = tmp_path / "frame.svg"
    result = invoke(record, "--svg", picture, "--at", 12, "--size", "100x30")
    assert result.exit_code == 0, result.output
    text = picture.read_text().replace("&#160;", " ")
    shown = draw(reduce(event for event in run(2, 60, troubles=True) if event.t <= 12), 100, 30, now_t=12.0)
    for words in ("REPLAY", "ENDED"):
        assert words not in text
    for words in ("lowest e, takes 95.4M from db", "highest e, gives 95.4M to web", "FRESH"):
        assert words in text
        assert words in shown


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--speed", "nan", "must be a number"),
        ("--speed", "inf", "must be a number"),
        ("--at", "nan", "must be a number of seconds"),
        ("--size", "0x0", "must be at least 30x8"),
        ("--size", "160x1", "must be at least 30x8"),
    ],
)
def test_numbers_that_are_none_are_refused(record, option, value, says):
    result = invoke(record, option, value)
    assert result.exit_code == 2
    assert says in result.output


async def test_a_player_keeps_the_time_of_the_record(autojump_clock):
    dashboard = Dashboard()
    player = Player(dashboard, iter(run(2, 60, end=True)), speed=4.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(player.run, 10.0)
        await trio.testing.wait_all_tasks_blocked()
        assert 9 <= dashboard.t <= 10
        assert player.title() == "REPLAY x4"
        await trio.sleep(5)
        assert 29 <= dashboard.t <= 30
        assert 29 <= player.now_s() <= 30
        player.toggle_pause()
        before = player.now_s()
        await trio.sleep(100)
        assert (player.now_s(), player.title()) == (before, "REPLAY paused")
        player.toggle_pause()
        await trio.sleep(100)
        assert player.title() == "REPLAY over"
        assert dashboard.ended is not None
        assert player.now_s() == dashboard.t
    player.return_to_baseline()
    player.quit()
    assert player.done.is_set()


@pytest.mark.parametrize("size", ["wide", "80", "80x", "80x24x3"])
def test_a_size_that_is_none_is_refused(record, tmp_path, size):
    result = invoke(record, "--svg", tmp_path / "x.svg", "--size", size)
    assert result.exit_code == 2
    assert "160x50" in result.output


def test_a_picture_that_cannot_be_written_is_an_error_with_its_path(record, tmp_path):
    error = invoke(record, "--svg", tmp_path / "missing" / "x.svg").exception
    assert "x.svg cannot be written" in str(error)


@pytest.mark.timeout(60)
async def test_however_fast_it_is_and_however_long_the_record_keys_and_signals_are_heeded(autojump_clock):
    header, *_ = run(2, 1)
    for start_s, speed in ((0.0, 1e9), (1e9, 1.0)):
        endless = (structs.replace(header, t=float(number)) for number in itertools.count())
        with trio.move_on_after(0):
            await Player(Dashboard(), endless, speed).run(start_s)
        assert next(endless).t > 0.0


@pytest.mark.timeout(60)
async def test_a_signal_ends_the_following_of_a_record_that_is_long():
    header, *_ = run(2, 1)

    async def events():
        for number in itertools.count():
            if number == 100:
                os.kill(os.getpid(), signal.SIGTERM)
            yield header

    assert await look_on(events, lambda event: None)
