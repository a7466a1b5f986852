"""Text from a guest cannot do anything to a terminal."""

from hypothesis import given, settings
from hypothesis import strategies as st

from qmpalloc.text import printable


@settings(deadline=None)  # the machine may be busy
@given(st.text(), st.integers(min_value=1, max_value=50))
def test_result_is_printable_and_bounded(text, limit):
    result = printable(text, limit)

    assert result.isprintable()
    assert len(result) <= limit


def test_escapes_line_breaks_direction_marks_and_surrogates_are_replaced():
    assert printable("a\x1b[2Jb\nc\u202ed\ud800e\x9bf") == "a?[2Jb?c?d?e?f"


def test_letters_of_any_language_stay():
    assert printable("Käse 猫") == "Käse 猫"


def test_cut_text_says_so():
    assert printable("abcdef", 4) == "abc…"
