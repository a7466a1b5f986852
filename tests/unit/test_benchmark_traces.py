"""Traces that people bring: their formats, and what is said of those that cannot be read."""

import gzip
import struct
import sys
from pathlib import Path

import click
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import traces

ORACLE = b"".join(struct.pack("<IQIq", second, page, 1, -1) for second, page in enumerate((7, 8, 7)))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.oracleGeneral", ORACLE, [7, 8, 7]),
        ("a.csv", b"time,obj_id,size\n1,5,1\n2,6,1\n", [5, 6]),
        ("a.lis", b"123 3 0 0\n9 1 0 1\n", [123, 124, 125, 9]),
        ("a.spc", b"0,16,8192,W,0.5\n0,8,512,r,0.6\n", [2, 3, 1]),
        ("a.trc", b"4\n5\n*\n4\n", [4, 5, 4]),
        ("a.lirs.gz", gzip.compress(b"4\n5\n", mtime=0), [4, 5]),
    ],
)
def test_every_format_is_read(tmp_path, name, content, expected):
    file = tmp_path / name
    file.write_bytes(content)
    found, more = traces.accesses(file, "auto", 2, 100)
    assert (found.tolist(), more) == (expected, False)


def test_of_a_huge_trace_only_the_beginning_is_read(tmp_path):
    file = tmp_path / "a.trc"
    file.write_text("".join(f"{number}\n" for number in range(1_000)) + "never read\n")
    found, more = traces.accesses(file, "auto", 2, 10)
    assert (len(found), more) == (10, True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.oracleGeneral", ORACLE + b"cut", "byte 75: ends within a record"),
        ("a.csv", b"1,5,1\n2,", "line 2: is '2,'"),
        ("a.spc", b"0,16,8192,W,0.5\n0,1", "line 2: is '0,1'"),
        ("a.lirs.gz", gzip.compress(b"4\n5\n" * 1_000, mtime=0)[:-20], "truncated: fetch it again"),
        ("a.lis", b"", "has no accesses"),
        ("a.what", b"1\n", "say --format"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_and_place(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(click.ClickException) as caught:
        traces.accesses(file, "auto", 2, 100)
    assert str(file) in caught.value.message
    assert message in caught.value.message


def test_blocks_keep_together_and_objects_lie_in_the_order_of_their_coming():
    blocks = np.arange(128) + (np.arange(128) >= 64) * 10**9
    assert traces.placed(blocks).tolist() == list(range(128 - 64)) + [64 + int(page % 64) for page in blocks[64:]]
    objects = np.array([5, 10**12, 5, 10**6])
    assert traces.placed(objects).tolist() == [0, 1, 0, 2]


def test_a_load_is_measured_from_end_to_end():
    random = np.random.default_rng(1)
    found = traces.study("uniform", random.integers(0, 6_400, 200_000), 1)
    assert found.good > 0
    assert found.error < 0.1
    assert found.row()[:3] == ["uniform", "200,000", "6,400"]
