"""The record is append-only, survives a crash but for its last line, and loses nothing on the way."""

import errno

import pytest
from msgspec import structs

from qmpalloc.config import Duration, Size
from qmpalloc.errors import ConfigError, NonsenseError
from qmpalloc.events import (
    ControlChanged,
    Decided,
    Ended,
    Faulted,
    GuestHeader,
    Header,
    Reloaded,
    Sampled,
    SizeChanged,
    encoder,
)
from qmpalloc.model import Decision, GuestDecision, GuestSnapshot, GuestState, Move, Snapshot
from qmpalloc.record import RecordWriter, ended, read_record
from qmpalloc.sample import Counters, Delta, Sample
from qmpalloc.summary import Summarizer

SAMPLE = Sample(
    format="qmpalloc-counters", version=1, boot_id="0" * 36, start_id="0" * 16, sequence=2, monotonic_ns=2,
    interval_ms=1000, kernel="6.12", page_size=4096, counters=Counters(accesses=10),
)  # fmt: skip


def at(t):
    return {"t": t, "wall": 1e9 + t}


def header(mode="run"):
    return Header(
        **at(0.0), mode=mode, policy="paper", policy_settings={"step": 1}, budget_bytes=2000, interval_s=1.0,
        guests=tuple(GuestHeader(name=n, floor_bytes=1, cap_bytes=9, baseline_bytes=5) for n in "ab"),
        config={}, versions={}, host={},
    )  # fmt: skip


def size(t, guest, actual, committed):
    return SizeChanged(**at(t), guest=guest, target_bytes=actual, actual_bytes=actual, committed_bytes=committed)


def sampled(t, guest, accesses, misses):
    delta = Delta(interval_s=1.0, accesses=accesses, misses=misses)
    return Sampled(**at(t), guest=guest, sample=SAMPLE, delta=delta)


def decided(t):
    guest = GuestSnapshot(
        name="a", state=GuestState.FRESH, target_bytes=1, actual_bytes=1, charge_bytes=1, floor_bytes=1, cap_bytes=1,
        baseline_bytes=1, hits=1, misses=None, interval_s=1.0,
    )  # fmt: skip
    snapshot = Snapshot(cycle=1, time_s=t, budget_bytes=9, interval_s=1.0, guests=(guest,), carry={"a": 1.5})
    verdict = GuestDecision(name="a", target_bytes=1, reason="[red]because\x1b", terms={"e": 0.5})
    decision = Decision(guests=(verdict,), moves=(Move(donor="a", receiver="b", size_bytes=1),), carry=[1, "x"])
    return Decided(**at(t), snapshot=snapshot, decision=decision, committed_bytes=1, duration_s=0.0)


RUN = [
    header(),
    ControlChanged(**at(0.0), control="settling"),
    size(0.1, "a", 1500, 1500),
    size(0.1, "b", 1500, 3000),
    sampled(0.5, "a", 77, 7),
    size(0.9, "a", 1000, 2500),
    size(0.9, "b", 1000, 2000),
    ControlChanged(**at(1.0), control="running"),
    sampled(2.0, "a", 100, 10),
    sampled(2.0, "b", 50, 60),
    decided(2.0),
    size(2.5, "a", 900, 1900),
    size(2.6, "b", 1100, 2000),
    ControlChanged(**at(3.0), control="returning"),
    size(3.5, "a", 1000, 2000),
    sampled(3.6, "a", 1000, 0),
    ControlChanged(**at(4.0), control="stopped"),
    Ended(**at(4.0), reason="duration reached", clean=True),
]


def write(path, events):
    with RecordWriter(path) as writer:
        for event in events:
            writer(event)


def test_what_is_written_is_read_back(tmp_path):
    write(tmp_path / "deep" / "record.jsonl", RUN)
    assert list(read_record(tmp_path / "deep" / "record.jsonl")) == RUN
    assert ended(tmp_path / "deep" / "record.jsonl").clean


def test_every_line_is_one_event_whatever_text_it_carries(tmp_path):
    write(tmp_path / "record.jsonl", RUN)
    assert len((tmp_path / "record.jsonl").read_bytes().splitlines()) == len(RUN)


def test_an_event_is_on_disk_before_the_next(tmp_path):
    writer = RecordWriter(tmp_path / "record.jsonl")
    writer(RUN[0])
    assert list(read_record(writer.path)) == RUN[:1]
    writer.close()


def test_a_cut_off_last_line_is_left_out(tmp_path):
    path = tmp_path / "record.jsonl"
    write(path, RUN)
    path.write_bytes(path.read_bytes()[:-10])
    assert list(read_record(path)) == RUN[:-1]
    assert ended(path) is None


def test_a_record_is_never_rewritten(tmp_path):
    write(tmp_path / "record.jsonl", RUN)
    with pytest.raises(ConfigError, match="exists already"):
        RecordWriter(tmp_path / "record.jsonl")


def test_what_is_no_record_is_refused(tmp_path):
    path = tmp_path / "record.jsonl"
    path.write_bytes(encoder.encode(RUN[1]) + b"\n")
    with pytest.raises(NonsenseError, match="not a header"):
        list(read_record(path))
    path.write_bytes(encoder.encode(RUN[0]) + b"\nnonsense\n" + encoder.encode(RUN[1]) + b"\n")
    with pytest.raises(NonsenseError, match="line 2"):
        list(read_record(path))
    for content in (b"", b"hello", b'{"a": 1}\n', encoder.encode(RUN[0])[:20]):
        path.write_bytes(content)
        with pytest.raises(NonsenseError) as caught:
            list(read_record(path))
        assert "is this a qmpalloc record?" in caught.value.hint
    with pytest.raises(ConfigError, match="cannot be read") as absent:
        list(read_record(tmp_path / "absent"))
    assert "record.jsonl" in absent.value.hint


def test_a_line_without_end_is_not_read_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("qmpalloc.record.LINE_MAX_BYTES", 1000)
    with pytest.raises(NonsenseError, match="line 1 is longer than 1000 bytes"):
        next(read_record("/dev/zero"))


def test_a_full_disk_is_told_once_and_stops_nothing(tmp_path):
    told = []
    writer = RecordWriter(tmp_path / "record.jsonl", on_failure=told.append)

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

        def close(self):
            pass

    writer._file.close()
    writer._file = Full()
    for event in RUN:
        writer(event)
    writer.close()
    assert [error.errno for error in told] == [errno.ENOSPC]


def test_sizes_of_a_configuration_made_by_a_program_are_recorded_as_numbers(tmp_path):
    guest = GuestHeader(name="g", floor_bytes=Size(1), cap_bytes=Size(2), baseline_bytes=Size(2))
    event = structs.replace(header("run"), guests=(guest,), interval_s=Duration(2.0))
    with RecordWriter(tmp_path / "r.jsonl") as writer:
        writer(event)
    assert list(read_record(tmp_path / "r.jsonl")) == [event]


def test_the_summary_of_a_run():
    summarizer = Summarizer()
    for event in RUN:
        summarizer(event)
    summary = summarizer.summary
    assert (summary.budget_bytes, summary.found_bytes, summary.max_committed_bytes) == (2000, 3000, 2000)
    assert (summary.moves, summary.decisions, summary.samples, summary.rejected_samples) == (1, 1, 4, 0)
    assert [(g.name, g.start_bytes, g.end_bytes, g.hits, g.misses) for g in summary.guests] == [
        ("a", 1000, 900, 90, 10),
        ("b", 1000, 1100, -10, 60),
    ]
    assert summary.clean
    assert summary.reason == "duration reached"


def test_the_summary_adds_up_page_ins_of_all_causes():
    summarizer = Summarizer()
    summarizer(header("watch"))
    for number in (1, 2):
        delta = Delta(interval_s=1.0, misses=10 * number, inserts_fault=4, swap_ins=3, swap_ins_zram=2)
        summarizer(Sampled(**at(number), guest="a", sample=SAMPLE, delta=delta))
    found, other = summarizer.summary.guests
    assert (found.misses, found.faults, found.swap_ins, found.swap_ins_zram, found.page_ins) == (30, 8, 6, 4, 44)
    assert other.page_ins is None


def test_what_was_never_counted_is_unknown_in_the_summary():
    summarizer = Summarizer()
    summarizer(RUN[0])
    assert [(guest.hits, guest.misses) for guest in summarizer.summary.guests] == [(None, None), (None, None)]


def test_guests_that_swap_names_keep_their_figures():
    summarizer = Summarizer()
    renamed = {"a": "b", "b": "a"}
    reloaded = Reloaded(**at(9.0), budget_bytes=2000, guests=header().guests[::-1], renamed=renamed)
    for event in (*RUN[:-2], reloaded):
        summarizer(event)
    assert [(guest.name, guest.hits, guest.misses) for guest in summarizer.summary.guests] == [
        ("b", 90, 10),
        ("a", -10, 60),
    ]


def test_faults_do_not_disturb_the_summary():
    summarizer = Summarizer()
    for event in [header("watch"), Faulted(**at(1.0), guest=None, kind="policy", message="x")]:
        summarizer(event)
    assert summarizer.summary.reason is None
