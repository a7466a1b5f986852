"""The fuzz target for a short time; `python -m tests.chaos.fuzz` runs it for long."""

import random

import pytest

from qmpalloc.errors import NonsenseError
from qmpalloc.qmp.replies import convert
from tests.chaos import fuzz


async def test_random_bytes_are_a_value_or_an_error_of_ours():
    seen = fuzz.run_cases(random.Random(1), lambda number: number >= 20_000)
    names = {target.name for target in fuzz.targets()}
    assert {key.rpartition(": ")[0] for key in seen if key.endswith(": valid")} == names


async def test_what_is_no_error_of_ours_is_a_finding(monkeypatch):
    def careless(data):
        raise UnicodeDecodeError("utf-8", data, 0, 1, "careless")

    monkeypatch.setattr(fuzz, "parse", careless)
    with pytest.raises(fuzz.FindingError, match="counters file: UnicodeDecodeError"):
        fuzz.run_cases(random.Random(1), lambda number: number >= 1000)


async def test_unprintable_messages_are_a_finding(monkeypatch):
    def careless(data):
        raise NonsenseError("\x1b[2J")

    monkeypatch.setattr(fuzz, "parse", careless)
    with pytest.raises(fuzz.FindingError, match="unprintable"):
        fuzz.run_cases(random.Random(1), lambda number: number >= 1000)


@pytest.mark.parametrize("kind", [int, float, bytes, list[int]])
def test_half_a_surrogate_pair_is_nonsense(kind):
    with pytest.raises(NonsenseError):
        convert("\ud800", kind, "a reply")
