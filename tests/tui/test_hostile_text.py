"""Whatever text an event carries, none of it can drive the terminal, be taken for markup, or break the layout."""

import msgspec
import pytest
from drawing import draw, reduce
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from synthetic import run

from qmpalloc.events import (
    Commanded,
    ControlChanged,
    Decided,
    Ended,
    Faulted,
    Header,
    Sampled,
    SampleRejected,
    StateChanged,
)
from qmpalloc.model import GuestState
from qmpalloc.text import is_visible
from qmpalloc.tui import Dashboard, PlainLog, closing_table, plain_line
from qmpalloc.tui.text import clean, fit, to_ascii

HOSTILE = [
    "\x1b[2J\x1b[31mowned",
    "\x9b31m",
    "\x1b]0;title\x07",
    "[bold red]markup[/bold red] [link=file:///etc/passwd]x[/link] [/]",
    "line\nbreak\r\x0b\x0c\u2028\u2029\x85",
    "\u202egnirts\u202c \u200b\u2066",
    "a" + "\u0301" * 50,
    "wide 広い幅の文字 " * 20,
    "nul\x00\x08\x7f\t",
    "\ud800 lone surrogate",
    "blank \u3164\u2800\u115f\ufe0f",
    "x" * 5000,
]


def poisoned(poison):
    """A run in which every text field that a guest, a policy or an agent could fill says `poison`."""
    for event in run(2, 60, troubles=True):
        match event:
            case Header():
                yield msgspec.structs.replace(event, policy=poison, policy_settings={poison: poison})
            case StateChanged() | ControlChanged():
                yield msgspec.structs.replace(event, detail=poison)
            case SampleRejected():
                yield msgspec.structs.replace(event, message=poison)
            case Faulted():
                yield msgspec.structs.replace(event, kind=poison, message=poison, hint=poison)
            case Commanded():
                yield msgspec.structs.replace(event, error=poison)
            case Sampled():
                yield msgspec.structs.replace(event, sample=msgspec.structs.replace(event.sample, kernel=poison))
            case Decided():
                verdicts = tuple(
                    msgspec.structs.replace(verdict, reason=poison, terms={poison: 1.0})
                    for verdict in event.decision.guests
                )
                decision = msgspec.structs.replace(event.decision, summary=poison, guests=verdicts)
                yield msgspec.structs.replace(event, decision=decision)
            case _:
                yield event
    yield Ended(t=61.0, wall=1.0, reason=poison, clean=False)


@pytest.mark.parametrize("poison", HOSTILE)
@pytest.mark.parametrize("size", [(80, 24), (160, 50), (60, 12)], ids=["80x24", "160x50", "60x12"])
def test_a_frame_holds_only_printable_text_and_keeps_its_shape(poison, size):
    dashboard = Dashboard()
    for event in poisoned(poison):
        dashboard.apply(event)
        if event.t in (30.0, 61.0):
            lines = draw(dashboard, *size).split("\n")
            assert all(is_visible(line) for line in lines)
            assert [cell_len(line) for line in lines] == [size[0]] * size[1]


@pytest.mark.parametrize("poison", HOSTILE)
def test_plain_lines_are_single_and_printable(poison):
    log = PlainLog()
    for event in poisoned(poison):
        for line in (log.line(event), plain_line(event)):
            assert line is None or is_visible(line)


def test_a_poisoned_name_is_printable_everywhere():
    poison = "\x1b[31mname"
    events = []
    for event in run(1, 20, end=True):
        if isinstance(event, Header):
            guests = tuple(msgspec.structs.replace(guest, name=poison) for guest in event.guests)
            event = msgspec.structs.replace(event, guests=guests)
        elif isinstance(event, Decided):
            seen = tuple(msgspec.structs.replace(guest, name=poison) for guest in event.snapshot.guests)
            verdicts = tuple(msgspec.structs.replace(guest, name=poison) for guest in event.decision.guests)
            event = msgspec.structs.replace(
                event,
                snapshot=msgspec.structs.replace(event.snapshot, guests=seen),
                decision=msgspec.structs.replace(event.decision, guests=verdicts),
            )
        elif hasattr(event, "guest"):
            event = msgspec.structs.replace(event, guest=poison)
        events.append(event)
    assert "\x1b" not in draw(reduce(events))
    assert all("\x1b" not in (plain_line(event) or "") for event in events)
    table = closing_table(reduce(events))
    assert all("\x1b" not in str(cell) for column in table.columns for cell in column.cells)


def test_markup_is_shown_as_it_is():
    fault = Faulted(t=20.5, wall=1.0, guest=None, kind="x", message="[bold]text[/bold]", hint="")
    assert "[bold]text[/bold]" in draw(reduce([*run(1, 20), fault]))


def test_a_guest_that_no_header_announced_is_shown():
    change = StateChanged(t=20.5, wall=1.0, guest="unannounced", state=GuestState.LOST, previous=None, detail="")
    assert "unannounced" in draw(reduce([*run(1, 20), change]))


@given(st.text(max_size=600))
def test_clean_text_is_printable_and_bounded(text):
    result = clean(text)
    assert is_visible(result)
    assert len(result) <= 400
    assert clean(result) == result


@given(st.text(max_size=50), st.integers(0, 60))
def test_fitted_text_has_exactly_the_width(text, width):
    assert cell_len(fit(clean(text), width)) == width


@given(st.text(max_size=50))
def test_ascii_text_takes_as_many_cells(text):
    result = to_ascii(clean(text))
    assert result.isascii()
    assert len(result) == cell_len(clean(text))
