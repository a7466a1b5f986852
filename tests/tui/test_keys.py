"""Keys: what bytes mean, what a key does, and a terminal that takes no more output."""

import io
import os

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qmpalloc.tui import Dashboard
from qmpalloc.tui.keys import Decoder
from qmpalloc.tui.live import EventClock
from qmpalloc.tui.order import ORDERS
from qmpalloc.tui.terminal import Terminal, is_interactive
from qmpalloc.tui.ui import PAGE_ROWS, Ui, press


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b[A", ["up"]),
        (b"\x1bOB", ["down"]),
        (b"\x1b[5~\x1b[6~", ["page-up", "page-down"]),
        (b"\x1b[1;5C\x1b[200~", []),
        (b"\x1b", ["escape"]),
        (b"\r\n\x7f\b", ["enter", "enter", "backspace", "backspace"]),
        (b"\x1bq", ["escape", "q"]),
        (b"\xc3\xa4\x00\n", ["\ufffd", "\ufffd", "enter"]),
    ],
)
def test_what_bytes_mean(data, keys):
    assert Decoder().feed(data) == keys


def test_a_sequence_may_come_in_pieces():
    decoder = Decoder()
    assert decoder.feed(b"j\x1b[") == ["j"]
    assert decoder.feed(b"Bk") == ["down", "k"]


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_no_bytes_upset_the_decoder(pieces):
    decoder = Decoder()
    keys = [key for piece in pieces for key in decoder.feed(piece)]
    assert all(len(key) == 1 or key.isascii() for key in keys)
    assert decoder.feed(b"~" * 40)[-1] == "~"


class Calls(list):
    def quit(self):
        self.append("quit")

    def toggle_pause(self):
        self.append("pause")

    def return_to_baseline(self):
        self.append("return")


def pressed(*keys, **options):
    ui, calls = Ui(**options.pop("ui", {})), Calls()
    for key in keys:
        press(
            key,
            ui,
            calls,
            guests=[f"g{number}" for number in range(options.get("guests", 20))],
            may_control=options.get("may_control", True),
        )
    return ui, calls


def test_keys_do_what_the_footer_says():
    assert pressed("q")[1] == ["quit"]
    assert pressed("p", "p")[1] == ["pause", "pause"]
    assert pressed("b", "y")[1] == ["return"]


@pytest.mark.parametrize("second", ["n", "b", "q", "escape", "p"])
def test_only_y_confirms_and_any_other_key_does_nothing_else(second):
    ui, calls = pressed("b", second)
    assert calls == []
    assert not ui.confirming


def test_the_selection_stays_within_the_guests():
    assert pressed("up")[0].selected == "g0"
    assert pressed("j", "down", "k")[0].selected == "g1"
    assert pressed("page-down", "page-down", "page-down")[0].selected == "g19"
    assert pressed("G", "g")[0].selected == "g0"
    assert pressed("end", guests=0)[0].selected == ""
    assert pressed("down", ui={"selected": "gone"})[0].selected == "g1"


def test_a_search_takes_letters_that_are_keys_elsewhere():
    ui, calls = pressed("/", "q", "b", "x", "backspace", "up", "enter")
    assert (ui.search, ui.searching, ui.selected, calls) == ("qb", False, "", [])
    assert pressed("/", "q", "escape")[0] == Ui()
    assert len(pressed("/", *"x" * 100)[0].search) == 30


def test_the_orders_come_in_turn_and_the_page_of_help_comes_and_goes():
    assert [pressed(*"s" * times)[0].order for times in range(len(ORDERS) + 1)] == [*ORDERS, ORDERS[0]]
    assert pressed("?")[0].help
    assert not pressed("?", "?")[0].help
    assert not pressed("?", "escape")[0].help
    assert pressed("?", "down", "page-down", "up")[0].help_top == PAGE_ROWS
    assert pressed("?", "end", "page-down", guests=0)[0].selected == ""


def test_a_run_that_changes_nothing_and_a_replay_do_not_return_guests():
    assert pressed("p", "b", "y", may_control=False)[1] == []
    assert pressed("p", "b", "y", ui={"replay": "REPLAY x1"}, may_control=False)[1] == ["pause"]


async def test_the_clock_is_learnt_from_the_events(autojump_clock):
    dashboard = Dashboard()
    dashboard.t = 100.0
    clock = EventClock(dashboard)
    assert clock() == 100.0
    await trio.sleep(2)
    assert clock() == pytest.approx(102.0)
    dashboard.t = 103.0
    assert clock() == pytest.approx(103.0)
    await trio.sleep(5)
    dashboard.t = 107.0
    assert clock() == pytest.approx(108.0)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("whose", ["ours", "another user's"])
async def test_a_terminal_that_takes_no_output_holds_up_nobody(autojump_clock, monkeypatch, whose):
    controller, terminal_fd = os.openpty()
    if whose != "ours":  # as after su: it may not be opened by its name
        monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError))
    try:
        terminal = Terminal(terminal_fd)
        async with trio.open_nursery() as nursery:
            terminal.write("x" * 1_000_000)
            nursery.start_soon(terminal.send)
            await trio.testing.wait_all_tasks_blocked()
            # We are here although the frame is not out; and cancelling does not wait for it.
            nursery.cancel_scope.cancel()
        terminal.write("end of the picture")
        await terminal.restore()
        # The descriptor that we were given still blocks, as its other users expect.
        assert os.get_blocking(terminal_fd)
    finally:
        os.close(controller)
        os.close(terminal_fd)


def test_a_terminal_that_does_not_tell_its_size_has_the_usual_one(monkeypatch):
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    controller, terminal_fd = os.openpty()
    assert tuple(os.get_terminal_size(terminal_fd)) == (0, 0)  # as a serial line
    assert Terminal(terminal_fd).size() == (80, 24)
    os.close(controller)
    os.close(terminal_fd)


async def test_a_terminal_that_is_gone_is_noticed():
    controller, terminal_fd = os.openpty()
    terminal = Terminal(terminal_fd)
    os.close(controller)
    terminal.write("x")
    await terminal.send()
    assert terminal.lost
    await terminal.restore()
    os.close(terminal_fd)


def test_a_dashboard_needs_a_terminal_that_can_draw():
    controller, terminal_fd = os.openpty()
    with os.fdopen(controller, "wb"), os.fdopen(terminal_fd, "w") as file:
        console = Console(file=file)
        assert is_interactive(console, environ={"TERM": "xterm"})
        assert not is_interactive(console, environ={"TERM": "dumb"})
        assert not is_interactive(console, environ={})


def test_a_pipe_is_no_terminal_whatever_rich_is_told(tmp_path):
    with (tmp_path / "out").open("w") as file:
        assert not is_interactive(Console(file=file, force_terminal=True), environ={"TERM": "xterm"})
    assert not is_interactive(Console(file=io.StringIO(), force_terminal=True), environ={"TERM": "xterm"})
