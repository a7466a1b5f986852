"""Log lines: what a person reads where there is no terminal."""

from msgspec import structs
from synthetic import run

from qmpalloc.errors import SampleFault
from qmpalloc.events import Decided, Sampled, SampleRejected
from qmpalloc.tui import PlainLog, plain_line

WALL = 1_800_000_000.0


def lines_of(events):
    log = PlainLog()
    return [line for event in events if (line := log.line(event)) is not None]


def test_a_run_as_lines(same_as_snapshot):
    same_as_snapshot("plain", "\n".join(lines_of(run(2, 60, troubles=True, end=True))))


def test_a_run_without_decisions_reports_samples_once_per_interval():
    events = [event for event in run(2, 61, mode="watch") if event.__class__.__name__ != "Decided"]
    samples = [line for line in lines_of(events) if "samples:" in line]
    assert 6 <= len(samples) <= 12
    assert "web misses 70/s faults 3/s disk 73/s ratio 99.5%" in samples[0]
    assert "db misses 3.31k/s faults 3/s" in samples[0]


def test_rates_of_a_guest_that_is_gone_are_not_told_again():
    events = [event for event in run(2, 61, mode="watch") if event.__class__.__name__ != "Decided"]
    events = [event for event in events if not (isinstance(event, Sampled) and event.guest == "db" and event.t > 20)]
    samples = [line for line in lines_of(events) if "samples:" in line]
    assert "db" in samples[0]
    assert all("web" in line and "db" not in line for line in samples[4:])


def test_with_decisions_samples_are_silent():
    assert not any("samples:" in line for line in lines_of(run(2, 60)))


def test_a_decision_line_tells_e_moves_and_budget():
    line = next(line for line in lines_of(run(2, 10)) if "decision 1" in line)
    assert line == (
        "2027-01-15T08:00:05Z decision 1: db → web 95.4M; web e 61.3 1.09G misses 63/s (+95.4M: lowest e, takes "
        "95.4M from db), db e 122 929M misses 3.1k/s (-95.4M: highest e, gives 95.4M to web); committed 2G of 2G"
    )


def test_a_decision_line_tells_which_guest_is_held_because_nothing_counts_its_hits():
    event = next(event for event in run(2, 10) if isinstance(event, Decided))
    web, db = event.snapshot.guests
    held = structs.replace(event.decision.guests[0], target_bytes=web.target_bytes, terms={})
    snapshot = structs.replace(event.snapshot, guests=(structs.replace(web, hits=None), db))
    decision = structs.replace(event.decision, guests=(held, event.decision.guests[1]))
    line = plain_line(structs.replace(event, snapshot=snapshot, decision=decision))
    assert "web 1G misses 63/s (its hits are not counted: see qmpalloc doctor), db e 122 929M" in line


def test_refusals_that_repeat_are_reported_once_a_minute_with_their_number():
    refusal = {"wall": WALL, "guest": "web", "fault": SampleFault.TORN, "message": "not JSON"}
    lines = lines_of(SampleRejected(t=float(second), **refusal) for second in range(130))
    assert len(lines) == 3
    assert lines[0].endswith("web: sample not used, torn: not JSON")
    assert lines[1].endswith("(and 59 more since)")


def test_single_lines_need_no_state():
    assert plain_line(next(event for event in run(1, 5) if isinstance(event, Sampled))) is None
    assert plain_line(next(iter(run(1, 5)))).startswith("2027-01-15T08:00:00Z run: policy paper gate=dead-band")
