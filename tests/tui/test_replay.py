"""``qmpalloc replay``: what a run showed, its record shows again."""

import pytest
from click.testing import CliRunner
from drawing import draw, reduce
from synthetic import run

from qmpalloc import events
from qmpalloc.cli.replay import replay


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


@pytest.mark.parametrize("size", ["wide", "80", "80x", "80x24x3"])
def test_a_size_that_is_none_is_refused(record, tmp_path, size):
    result = invoke(record, "--svg", tmp_path / "x.svg", "--size", size)
    assert result.exit_code == 2
    assert "160x50" in result.output


def test_a_picture_that_cannot_be_written_is_an_error_with_its_path(record, tmp_path):
    error = invoke(record, "--svg", tmp_path / "missing" / "x.svg").exception
    assert "x.svg cannot be written" in str(error)
