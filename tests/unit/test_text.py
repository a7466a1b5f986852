"""Text from a guest cannot do anything to a terminal."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpalloc.text import is_visible, one_line, printable


@settings(deadline=None)  # the machine may be busy
@given(st.text(), st.integers(min_value=1, max_value=50))
def test_result_is_printable_and_bounded(text, limit):
    result = printable(text, limit)

    assert is_visible(result)
    assert len(result) <= limit


def test_escapes_line_breaks_direction_marks_and_surrogates_are_replaced():
    assert printable("a\x1b[2Jb\nc\u202ed\ud800e\x9bf") == "a?[2Jb?c?d?e?f"


def test_letters_of_any_language_stay():
    assert printable("Käse 猫") == "Käse 猫"


@pytest.mark.parametrize("char", "\u3164\u2800\u115f\u1160\uffa0\u034f\ufe0f\U000e0100\U0001d159\u200b\u00ad\u00a0")
def test_letters_and_marks_that_show_nothing_are_replaced(char):
    assert printable(f"a{char}b") == "a?b"


@settings(deadline=None)
@given(st.text(), st.integers(min_value=1, max_value=50))
def test_a_line_is_one_line_printable_and_bounded(text, limit):
    line = one_line(text, limit)

    assert is_visible(line)
    assert len(line) <= limit
    assert one_line(line, limit) == line


def test_lines_are_joined_and_bytes_that_are_no_text_spelt_out():
    assert one_line("first\n  hint: why\r\n\nlast\udce9\x1b[2J") == "first; hint: why; last\\udce9?[2J"


def test_cut_text_says_so():
    assert printable("abcdef", 4) == "abc…"
