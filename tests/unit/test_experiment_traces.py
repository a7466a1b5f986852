"""What is sent to a guest is what the specification says, and what it touches is counted right."""

from array import array
from pathlib import Path

import msgspec
import pytest

from qmpalloc.experiment.run.traces import Traces, footprint
from qmpalloc.experiment.spec import parsing, references
from qmpalloc.experiment.store.records import PhaseFootprint

TEXT = """
[experiment]
name = "try"
budget = "256MiB"
[[guest]]
name = "g1"
memory = "256MiB"
floor = "128MiB"
cap = "256MiB"
baseline = "128MiB"
[[guest.phase]]
file = "16MiB"
access = { distribution = "normal", deviation = 0.3 }
reads = 1000
rounds = 50
[[guest.phase]]
file = "4MiB"
access = { distribution = "sequential" }
reads = 256
rounds = 5
[[guest]]
name = "g2"
memory = "128MiB"
floor = "128MiB"
cap = "128MiB"
baseline = "128MiB"
[[guest.phase]]
file = "16MiB"
access = { distribution = "uniform" }
reads = 10
rounds = 1
[[arm]]
name = "static"
policy = "static"
"""


@pytest.fixture(scope="module")
def specification():
    return parsing.parse(TEXT, file=Path("/try.toml"))


@pytest.fixture(scope="module")
def traces(specification):
    return Traces(specification)


def test_the_trace_is_the_references_and_is_made_once(specification, traces):
    guest = specification.guests[0]
    for phase in guest.phases:
        made = traces.trace(guest, phase)
        expected = list(references.phase_pages(specification, guest, phase))
        assert [int.from_bytes(made[at : at + 4], "little") for at in range(0, len(made), 4)] == expected
        assert traces.trace(guest, phase) is made
    assert Traces(specification).trace(guest, guest.phases[0]) == traces.trace(guest, guest.phases[0])
    other = msgspec.structs.replace(specification, seed=2)
    assert Traces(other).trace(guest, guest.phases[0]) != traces.trace(guest, guest.phases[0])


def test_footprints_of_all_phases(traces):
    found = traces.footprints()
    assert {guest: list(phases) for guest, phases in found.items()} == {"g1": ["phase1", "phase2"], "g2": ["phase1"]}
    normal, scan = found["g1"]["phase1"], found["g1"]["phase2"]
    assert (normal.reads, normal.file_pages) == (50_000, 4096)
    assert 4000 < normal.distinct_pages <= 4096  # the whole file can be reached
    assert 0.1 < normal.busiest_tenth < 0.25
    assert scan == PhaseFootprint(reads=1280, file_pages=1024, distinct_pages=1024, busiest_tenth=204 / 1280)


def test_footprint_by_hand():
    assert footprint(array("I", [3, 3, 3, 7]), 20) == PhaseFootprint(
        reads=4, file_pages=20, distinct_pages=2, busiest_tenth=1.0
    )
    assert footprint(array("I"), 5) == PhaseFootprint(reads=0, file_pages=5, distinct_pages=0, busiest_tenth=0.0)
