"""Whatever pieces bytes arrive in, the same lines come out, and never more than one line is held."""

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpalloc.errors import NonsenseError
from qmpalloc.qmp.framing import Framer, Mark, MessageFramer, decode, encode
from qmpalloc.testing.requests import RequestSplitter

OVERLONG, SENTINEL = Mark.OVERLONG, Mark.SENTINEL


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


messages = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8) | st.none(), max_size=4)


@settings(deadline=None)  # the machine may be busy
@given(sent=st.lists(messages, max_size=6), places=st.lists(st.integers(min_value=0), max_size=20))
def test_any_split_gives_the_same_messages(sent, places):
    framer = Framer()
    data = b"".join(encode(message) for message in sent)

    frames = [frame for piece in cut(data, places) for frame in framer.feed(piece)]

    assert [dict(decode(frame)) for frame in frames] == sent
    assert framer.pending_bytes == 0


# Drawn from the bytes that matter: line ends, the sentinel, blanks and ordinary ones.
noise = st.lists(st.sampled_from([b"\n", b"\xff", b"\r", b" ", b"a", b"bc", b"{}", b"x" * 9])).map(b"".join)


@settings(deadline=None)  # the machine may be busy
@given(data=noise, places=st.lists(st.integers(min_value=0), max_size=20))
def test_any_split_of_noise_gives_the_same_lines_and_a_bounded_buffer(data, places):
    whole, framer = Framer(8), Framer(8)

    frames = []
    for piece in cut(data, places):
        frames += framer.feed(piece)
        assert framer.pending_bytes <= 8

    assert frames == whole.feed(data)


texts = st.text(st.sampled_from(list('"\\\\{}[]\n a')), max_size=8)
nested = st.recursive(
    texts | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)  # the machine may be busy
@given(
    sent=st.lists(st.tuples(st.dictionaries(texts, nested, max_size=4), st.sampled_from([None, 1, 4])), max_size=6),
    places=st.lists(st.integers(min_value=0), max_size=20),
)
def test_messages_on_one_line_and_on_many_come_out_whole(sent, places):
    framer = MessageFramer()
    lines = [json.dumps(message, indent=indent).replace("\n", "\r\n") for message, indent in sent]
    data = "".join(line + "\r\n" for line in lines).encode()

    frames = [frame for piece in cut(data, places) for frame in framer.feed(piece)]

    assert [dict(decode(frame)) for frame in frames] == [message for message, _ in sent]
    assert framer.pending_bytes == 0


broken = st.lists(st.sampled_from([b"{", b"}", b"\r\n", b"\n", b" ", b'"a"', b"{\n", b"}\n", b"\xff"])).map(b"".join)


@settings(deadline=None)  # the machine may be busy
@given(data=noise | broken, places=st.lists(st.integers(min_value=0), max_size=20))
def test_noise_in_pieces_gives_the_same_messages_and_a_bounded_buffer(data, places):
    whole, framer = MessageFramer(8), MessageFramer(8)

    frames = []
    for piece in cut(data, places):
        frames += framer.feed(piece)
        assert framer.pending_bytes <= 8

    assert frames == whole.feed(data)


def test_what_is_no_message_is_not_waited_for():
    assert MessageFramer().feed(b"login [tty1]: {\nSSH [2]{\n") == [b"login [tty1]: {", b"SSH [2]{"]


def test_half_a_message_is_ended_by_the_next():
    assert MessageFramer().feed(b'{\n    "a": {\n{"b": 1}\n') == [b'{\n    "a": {', b'{"b": 1}']


def test_a_message_that_is_too_long_spoils_none_but_itself():
    framer = MessageFramer(30)

    assert framer.feed(b'{\n    "a": [\n        1,\n        2\n    ]\n}\n{"b": 1}\n') == [OVERLONG, b'{"b": 1}']
    assert framer.feed(b'{"a": "' + b"x" * 30) == [OVERLONG]
    assert framer.feed(b'"}\n{\n}\n') == [b"{\n}"]


def test_a_message_over_many_lines_is_searched_once():
    framer, data = MessageFramer(), b"{\r\n" + b'    "a": {\r\n    }' * 20_000 + b"\r\n}\r\n"
    started = time.process_time()
    frames = [frame for start in range(0, len(data), 100) for frame in framer.feed(data[start : start + 100])]
    assert frames == [data.strip()]
    assert time.process_time() - started < 1


def test_line_ends_are_removed_and_empty_lines_left_out():
    assert Framer().feed(b"{}\r\n\n\r\n[]\n") == [b"{}", b"[]"]


def test_half_a_line_before_the_sentinel_is_thrown_away():
    assert Framer().feed(b'{"retu\xff{"return": 1}\n') == [SENTINEL, b'{"return": 1}']


def test_overlong_line_is_reported_once_and_the_next_is_sound():
    framer = Framer(4)

    assert framer.feed(b"12345") == [OVERLONG]
    assert framer.feed(b"6" * 1000) == []
    assert framer.pending_bytes == 0
    assert framer.feed(b"\nok\n") == [b"ok"]


def test_line_of_exactly_the_limit_passes():
    assert Framer(4).feed(b"1234\n12345\n") == [b"1234", OVERLONG]


def test_sentinel_ends_the_skipping_of_an_overlong_line():
    assert Framer(4).feed(b"123456\xffok\n") == [OVERLONG, SENTINEL, b"ok"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'"text"',
        b"nonsense",
        b'{"a": "\xe9"}',
        b"\x00\x00\x00{",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
    ids=[
        "empty",
        "cut",
        "array",
        "number",
        "string",
        "text",
        "latin-1",
        "zeros",
        "deep array",
        "deep object",
        "digits",
    ],
)
def test_what_is_no_object_is_nonsense_and_not_quoted(line):
    with pytest.raises(NonsenseError) as caught:
        decode(line)

    assert len(str(caught.value)) < 100


def test_bytearray_from_a_memory_stream_is_taken():
    assert Framer().feed(bytearray(b"{}\n")) == [b"{}"]


def test_encode_is_one_line_whatever_the_text():
    line = encode({"a": "two\nlines"})

    assert line.count(b"\n") == 1
    assert json.loads(line) == {"a": "two\nlines"}


@settings(deadline=None)  # the machine may be busy
@given(sent=st.lists(messages, max_size=6), places=st.lists(st.integers(min_value=0), max_size=20), lines=st.booleans())
def test_fake_finds_requests_with_and_without_line_ends(sent, places, lines):
    splitter = RequestSplitter()
    data = b"".join(encode(message).rstrip() + (b"\n" if lines else b"") for message in sent)

    requests = [request for piece in cut(data, places) for request in splitter.feed(piece)]

    assert [dict(decode(request)) for request in requests] == sent
