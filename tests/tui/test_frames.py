"""What is on the screen, as it is: string snapshots. UPDATE_SNAPSHOTS=1 rewrites them; read the difference."""

import re

import pytest
from drawing import Ascii, draw, reduce
from msgspec import structs
from rich.cells import cell_len
from synthetic import Run, run

from qmpalloc.events import ControlChanged, Ended, Faulted, SizeChanged, StateChanged
from qmpalloc.model import GuestState
from qmpalloc.tui import Dashboard, Ui, inside, row
from qmpalloc.tui.help import INSIDE
from qmpalloc.tui.order import ORDERS
from qmpalloc.tui.palette import STATES

WALL = 1_800_000_000.0


@pytest.mark.parametrize("size", [(80, 24), (160, 50)], ids=["80x24", "160x50"])
@pytest.mark.parametrize("guests", [1, 2, 12])
def test_a_run_in_full_swing(guests, size, same_as_snapshot):
    frame = draw(reduce(run(guests, 26)), *size)
    same_as_snapshot(f"running-{guests}-{size[0]}x{size[1]}", frame)


@pytest.mark.parametrize("size", [(80, 24), (160, 50)], ids=["80x24", "160x50"])
@pytest.mark.parametrize("guests", [2, 12])
def test_troubles(guests, size, same_as_snapshot):
    frame = draw(reduce(run(guests, 60, troubles=True)), *size)
    same_as_snapshot(f"troubles-{guests}-{size[0]}x{size[1]}", frame)


def test_before_the_first_event(same_as_snapshot):
    same_as_snapshot("before-the-first-event", draw(Dashboard(), now_t=0.0))


def test_after_the_header(same_as_snapshot):
    same_as_snapshot("after-the-header", draw(reduce([Run(2).header()])))


def test_after_the_end(same_as_snapshot):
    dashboard = reduce(run(2, 30, end=True))
    frame = draw(dashboard)
    same_as_snapshot("after-the-end", frame)
    # Nothing happens any more, so nothing grows old.
    assert draw(dashboard, now_t=dashboard.t + 500) == frame


def test_an_end_that_is_not_clean_is_an_alarm():
    events = [*run(2, 20), Ended(t=21.0, wall=WALL, reason="crashed", clean=False)]
    assert "ENDED, NOT CLEAN: crashed. Guests may not be at their baseline." in draw(reduce(events))


@pytest.mark.parametrize("size", [(80, 24), (160, 50)], ids=["80x24", "160x50"])
def test_paused(size, same_as_snapshot):
    events = [*run(2, 20), ControlChanged(t=20.9, wall=WALL, control="paused", detail="by request")]
    frame = draw(reduce(events), *size)
    assert "PAUSED: no decision is carried out (by request)" in frame
    assert " p  resume " in frame
    same_as_snapshot(f"paused-{size[0]}x{size[1]}", frame)


def test_lost_control_is_said():
    dashboard = reduce(run(2, 20))
    assert "NO DECISION" not in draw(dashboard, now_t=22.0)
    assert "NO DECISION for 25s: control may be lost" in draw(dashboard, now_t=45.2)
    stopped = reduce([*run(2, 20), ControlChanged(t=21.0, wall=WALL, control="stopped", detail="failed")])
    assert "CONTROL STOPPED: failed" in draw(stopped)


def test_a_fault_of_the_run_shows_its_hint_at_the_top():
    fault = Faulted(t=20.5, wall=WALL, guest=None, kind="budget", message="too much in use", hint="nothing is granted")
    dashboard = reduce([*run(2, 20), fault])
    assert "FAULT budget: too much in use  hint: nothing is granted" in draw(dashboard, now_t=21.0)
    later = draw(dashboard, now_t=500.0)
    assert "FAULT budget" not in later
    assert "budget: too much in use" in later


@pytest.mark.parametrize("state", GuestState)
@pytest.mark.parametrize("size", [(80, 24), (160, 50), (60, 12)], ids=["80x24", "160x50", "60x12"])
def test_every_state_is_a_word_and_a_colour(state, size):
    change = StateChanged(t=20.5, wall=WALL, guest="db", state=state, previous=GuestState.FRESH, detail="because of it")
    dashboard = reduce([*run(2, 20), change])
    (line,) = [line for line in draw(dashboard, *size).splitlines() if line.startswith(" db ") and ":" not in line[:8]]
    assert state.upper()[:7] in line
    coloured = draw(dashboard, *size, color="truecolor")
    assert "\x1b[" in coloured
    assert len(set(STATES.values())) > 4
    if state is not GuestState.FRESH and size[0] >= 80:
        assert "because of it" in draw(dashboard, *size)


def test_no_color_has_the_same_text_and_no_colour():
    dashboard = reduce(run(12, 60, troubles=True))
    frame = draw(dashboard, color="truecolor", environ={"NO_COLOR": "1"})
    codes = {part.split("m")[0] for part in frame.split("\x1b[")[1:]}
    # Bold, reverse and reset only: no code of a colour.
    assert codes <= {"0", "1", "7", "1;7"}
    plain = "".join(part.split("m", 1)[1] if index else part for index, part in enumerate(frame.split("\x1b[")))
    assert plain == draw(dashboard)


def test_a_terminal_that_is_not_utf8_gets_ascii(same_as_snapshot):
    frame = draw(reduce(run(2, 26)), file=Ascii())
    assert frame.isascii()
    assert [len(line) for line in frame.splitlines()] == [80] * 24
    same_as_snapshot("ascii", frame)


def test_rows_beyond_the_screen_are_counted_and_can_be_reached():
    dashboard = reduce(run(12, 26))
    first = draw(dashboard, 80, 16)
    assert "guests 1..5 of 12" in first
    assert " spare " not in first.split("guests 1")[1]
    last = draw(dashboard, 80, 16, ui=Ui(selected="spare"))
    assert "guests 8..12 of 12" in last
    assert "▌spare" in last


def test_a_fault_does_not_push_the_last_decision_out_of_a_short_log():
    log = draw(reduce(run(12, 58, troubles=True))).split("last decisions")[1]
    assert "→ cache" in log
    assert "! record" in log


def test_guests_are_sorted_and_found_by_name_or_state():
    dashboard = reduce(run(12, 60, troubles=True))

    def names(**ui):
        lines = draw(dashboard, 160, 30, ui=Ui(**ui)).split(" why")[1].splitlines()[1:13]
        return [line.split()[0].strip("▌") for line in lines if re.match("[ ▌][a-z]", line)]

    in_trouble = ["files", "queue", "logs", "proxy", "batch", "spare"]
    assert sorted(names(order="trouble")[:6]) == sorted(in_trouble)
    sizes = [dashboard.guests[name].actual_bytes or 0 for name in names(order="size")]
    assert sizes == sorted(sizes, reverse=True)
    heard_of = [guest for guest in dashboard.guests.values() if guest.rate_known]
    ratios = [dashboard.guests[name].ratio[-1] or 2 for name in names(order="ratio")[: len(heard_of)]]
    assert ratios == sorted(ratios)
    page_ins = [dashboard.guests[name].page_ins_s for name in names(order="page-ins")[: len(heard_of)]]
    assert page_ins == sorted(page_ins, reverse=True)
    one = draw(dashboard, 160, 50, ui=Ui(search="HUNG"))
    assert "guests with “HUNG”" in one
    assert [name for name in dashboard.guests if f"▌{name} " in one or f" {name}  HUNG" in one] == ["proxy"]
    none = draw(dashboard, ui=Ui(search="zz", searching=True))
    assert "none is like that" in none
    assert "show: zz▏  Enter keeps it, Escape shows all" in none


def test_the_selected_guest_stays_so_wherever_its_row_goes():
    dashboard = reduce(run(12, 26))
    for order in ORDERS:
        assert "▌mail " in draw(dashboard, ui=Ui(selected="mail", order=order))
    assert "▌web " in draw(dashboard, ui=Ui(selected="gone"))


@pytest.mark.parametrize("guests", [2, 40])
def test_every_column_and_key_is_explained(guests, same_as_snapshot):
    dashboard = reduce(run(guests, 60, troubles=True, curves=("",) * guests))
    for size in ((80, 24), (160, 50)):
        frame = draw(dashboard, *size, ui=Ui(help=True, reloads=True))
        assert all(f"  {column.title} " in frame for column in row._COLUMNS)
        lower = "".join(draw(dashboard, *size, ui=Ui(help=True, help_top=top)) for top in (8, 16, 30))
        assert all(f"  {word} " in lower for word in INSIDE)
        explained = frame.split("─ keys ")[1]
        for key in ("q", "?", "p", "b", "↑↓", "s", "/", "c", "r"):
            assert re.search(rf"(?m)(^| )  {re.escape(key)}     ", explained)
        same_as_snapshot(f"help-{guests}-{size[0]}x{size[1]}", frame)


def test_all_that_is_told_of_a_guests_inside_is_explained():
    for options in ({"troubles": True}, {"curves": ("",) * 6}):
        for guest in reduce(run(6, 60, **options)).guests.values():
            told = " ".join(line.plain for line in inside.lines(guest) if "  " in line.plain)
            for fact in told.split("  "):
                assert fact.startswith(("! ", "hint", "no sample", *INSIDE)), fact


def test_page_ins_have_a_column_for_each_kind_that_there_is():
    dashboard = reduce(run(12, 26))
    assert " miss/s  flt/s pgin/s " in draw(dashboard, 160, 30)
    for guest in dashboard.guests.values():
        guest.delta = structs.replace(guest.delta, inserts_fault=0, swap_ins=7)
    frame = draw(dashboard, 160, 30)
    assert " miss/s swap/s pgin/s " in frame
    assert " flt/s" not in frame


def test_hidden_guests_in_trouble_are_counted_at_the_top():
    frame = draw(reduce(run(12, 60, troubles=True)), 80, 16)
    assert "1 late 1 lost 1 paused 1 held 1 hung 1 gone" in frame


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_figures_of_the_run_are_whole_or_not_there(width):
    line = draw(reduce(run(40, 60, troubles=True)), width, 24).splitlines()[2]
    assert "…" not in line
    figures = r"( committed 38\.3G = 95\.9%(  most 40G(  moves 141(  decision 12, [\d.]+s ago)?)?)?)?"
    assert re.fullmatch(rf"{figures} +34 fresh 1 late 1 lost 1 paused 1 held 1 hung 1 gone ", line)


def test_the_question_before_the_return_to_baseline():
    frame = draw(reduce(run(2, 20)), ui=Ui(confirming=True))
    question = " Return every guest to its baseline? This undoes the tuning.  y yes, else no "
    assert frame.splitlines()[-1] == question.ljust(80)


def test_who_has_quit_is_told_how_not_to_wait():
    footer = draw(reduce(run(2, 20)), ui=Ui(quitting=True, reloads=True)).splitlines()[-1]
    assert footer.startswith("  q  quitting   ?  help   Ctrl-C  do not wait for the guests   ")
    assert not {"pause", "baseline", "reload"} & set(footer.split())


@pytest.mark.parametrize(("mode", "words"), [("watch", "watch (changes nothing)"), ("dry-run", "dry run (changes")])
def test_a_mode_that_changes_nothing_says_so_and_offers_no_keys_for_it(mode, words):
    frame = draw(reduce(run(2, 20, mode=mode)))
    assert words in frame
    assert " b  baseline" not in frame


def test_memory_above_the_budget_is_said():
    size = SizeChanged(t=20.5, wall=WALL, guest="db", target_bytes=2**30, actual_bytes=2**31, committed_bytes=2**32)
    assert "budget 2G, OVER BY 1.28G ▏" in draw(reduce([*run(2, 20), size]))


def test_memory_in_doubt_is_part_of_the_budget_bar():
    hung = StateChanged(t=20.5, wall=WALL, guest="db", state=GuestState.HUNG, previous=None, detail="")
    size = SizeChanged(t=20.6, wall=WALL, guest="db", target_bytes=2**29, actual_bytes=2**29, committed_bytes=2**31)
    assert "▏in-doubt" in draw(reduce([*run(2, 20), hung, size]), 160, 50)


def test_memory_outside_of_a_balloon_is_part_of_the_budget_bar_and_told():
    sizes = {"target_bytes": 2**29, "actual_bytes": 2**29, "outside_bytes": 2**29, "committed_bytes": 2**31}
    size = SizeChanged(t=20.6, wall=WALL, guest="db", **sizes)
    frame = draw(reduce([*run(2, 20), size]), 160, 50)
    assert "db 1G" in frame
    assert "committed 2G = 100" in frame
    assert "virtio-mem 512M" in frame


def test_without_a_keyboard_the_footer_says_how_to_quit():
    assert "no keyboard: Ctrl-C quits" in draw(reduce(run(2, 20)), ui=Ui(keyboard=False))


def test_a_run_that_can_only_be_ended_offers_nothing_else():
    frame = draw(reduce(run(2, 20)), ui=Ui(only_quit=True))
    assert frame.splitlines()[-1].split() == ["q", "quit", "?", "help", "↑↓", "select"]


def test_the_target_that_is_not_reached_yet_is_seen():
    frame = draw(reduce(run(2, 26)))
    assert "1.41G → 1.41G" not in frame
    assert "→" in frame
    assert "▶" in frame.split("guests")[1].split("last decisions")[0]


def test_every_line_of_a_frame_is_as_wide_as_the_screen():
    for size in ((80, 24), (160, 50)):
        lines = draw(reduce(run(12, 60, troubles=True)), *size).splitlines()
        assert [cell_len(line) for line in lines] == [size[0]] * size[1]
