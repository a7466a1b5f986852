"""The dashboard as a reduction: bounded, the same from a record, and honest about what is not known."""

import msgspec
import pytest
from drawing import draw, reduce
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from synthetic import Run, run

from qmpalloc import events
from qmpalloc.errors import SampleFault
from qmpalloc.events import Commanded, Faulted, Reloaded, Sampled, SampleRejected, StateChanged
from qmpalloc.model import GuestState
from qmpalloc.sample import Duty
from qmpalloc.tui import Dashboard, Ui, closing_table
from qmpalloc.tui.dashboard import LOG
from qmpalloc.tui.facts import HISTORY, hit_ratio, page_in_text
from qmpalloc.tui.scale import Scale

WALL = 1_800_000_000.0


@pytest.fixture(scope="module")
def dashboards():
    return {guests: reduce(run(guests, 60, troubles=guests > 0)) for guests in (0, 1, 2, 3, 5, 12, 40)}


@given(width=st.integers(40, 220), height=st.integers(10, 70), data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_frame_fits_any_screen(dashboards, width, height, data):
    guests = data.draw(st.sampled_from(sorted(dashboards)))
    ui = Ui(
        selected=data.draw(st.text()),
        search=data.draw(st.text("abnw~?", max_size=2)),
        help=data.draw(st.booleans()),
        confirming=data.draw(st.booleans()),
    )
    lines = draw(dashboards[guests], width, height, ui=ui).split("\n")
    assert len(lines) <= height
    assert all(cell_len(line) == width for line in lines)


def test_even_a_silly_screen_raises_nothing(dashboards):
    for width in (1, 2, 5, 20):
        for height in (1, 2, 3, 5):
            lines = draw(dashboards[12], width, height).split("\n")
            assert len(lines) <= height
            assert all(cell_len(line) <= width for line in lines)


def test_a_replayed_record_gives_the_same_dashboard():
    live = reduce(run(3, 60, troubles=True, end=True))
    lines = [events.encoder.encode(event) for event in run(3, 60, troubles=True, end=True)]
    replayed = reduce(map(events.decoder.decode, lines))
    assert replayed == live
    assert draw(replayed, 160, 50) == draw(live, 160, 50)


def test_two_different_runs_differ():
    assert reduce(run(2, 30)) != reduce(run(2, 31))


def test_histories_and_logs_are_bounded():
    dashboard = reduce(run(2, 3 * HISTORY))
    for number in range(3 * LOG):
        dashboard.apply(Faulted(t=1000.0 + number, wall=WALL, guest="db", kind="x", message=str(number)))
    for guest in dashboard.guests.values():
        assert len(guest.hits_s) == len(guest.misses_s) == len(guest.ratio) == len(guest.actual) == HISTORY
    assert len(dashboard.log) == LOG
    assert len(dashboard.decisions) <= LOG


def test_the_same_trouble_is_one_entry_with_a_count():
    dashboard = reduce(run(2, 5))
    for second in range(30):
        for guest in ("web", "db"):
            fault = SampleFault.TORN
            dashboard.apply(SampleRejected(t=10.0 + second, wall=WALL, guest=guest, fault=fault, message="torn"))
    rejected = [entry for entry in dashboard.log if entry.kind == "rejected"]
    assert [(entry.guest, entry.count) for entry in rejected] == [("web", 30), ("db", 30)]
    assert dashboard.guests["web"].rejected == {SampleFault.TORN: 30}


def test_unknown_counts_stay_unknown():
    generator = Run(1)
    list(generator.events(3))
    sampled = next(event for event in generator.second(4, troubles=False) if isinstance(event, Sampled))
    blind = events.decoder.decode(events.encoder.encode(sampled).replace(b'"misses":', b'"not_misses":'))
    dashboard = reduce([*run(1, 3), blind])
    assert dashboard.guests["web"].misses_s[-1] is None
    assert dashboard.guests["web"].ratio[-1] is None
    assert "hits     -/s  misses     -/s  page-ins     3/s  ratio     -" in draw(dashboard)


def test_a_guest_that_is_not_heard_of_has_no_rates():
    lost = StateChanged(t=20.5, wall=WALL, guest="db", state=GuestState.LOST, previous=GuestState.FRESH, detail="")
    before, after = (draw(reduce([*run(2, 20), *more])) for more in ([], [lost]))
    assert "hits     -/s" not in before
    assert after.count("hits     -/s") == 1


def test_a_guest_whose_qemu_has_ended_has_no_size():
    gone = StateChanged(t=20.5, wall=WALL, guest="db", state=GuestState.GONE, previous=GuestState.FRESH, detail="")
    generator = Run(2)
    before = reduce(generator.events(20))
    before.apply(gone)
    generator.state["db"] = GuestState.GONE
    for event in generator.decided():
        before.apply(event)
    guest = before.guests["db"]
    assert (guest.target_bytes, guest.actual_bytes, guest.charged_bytes) == (None, None, 0)
    assert before.guests["web"].charged_bytes > 0


@pytest.mark.parametrize(
    ("hits", "misses", "ratio"),
    [(90, 10, 0.9), (0, 10, 0.0), (-2, 10, 0.0), (0, 0, None), (-10, 2, None), (None, 1, None), (1, None, None)],
)
def test_hit_ratio(hits, misses, ratio):
    assert hit_ratio(hits, misses) == ratio


def test_a_fault_of_a_guest_shows_until_it_is_fresh_again():
    fault = Faulted(t=20.5, wall=WALL, guest="db", kind="agent", message="silent", hint="start it")
    fresh = StateChanged(t=22.0, wall=WALL, guest="db", state=GuestState.FRESH, previous=GuestState.LOST)
    broken = reduce([*run(2, 20), fault])
    assert "  ! agent: silent  hint: start it" in draw(broken)
    broken.apply(fresh)
    assert "  ! agent: silent  hint: start it" not in draw(broken).split("last decisions")[0]


def test_a_command_that_failed_is_a_fault_in_the_log():
    failed = Commanded(
        t=20.5, wall=WALL, guest="db", target_bytes=2**30, previous_bytes=2**29, purpose="grant", error="no device"
    )  # fmt: skip
    assert "! db: grant 512M → 1G failed: no device" in draw(reduce([*run(2, 20), failed]))


def test_e_is_shown_where_the_papers_rule_runs():
    assert " e why" in draw(reduce(run(12, 20)))
    curves = reduce(run(12, 20, curves=("",) * 12))
    assert " e why" not in draw(curves)
    assert " why" in draw(curves)
    assert not any("e" in guest.terms for guest in curves.guests.values())


def test_what_only_the_start_had_does_not_set_the_scale():
    dashboard = reduce(run(2, 20))
    usual = Scale.of(list(dashboard.guests.values()), 20.0)
    guest = dashboard.guests["web"]
    guest.misses_s.extendleft([1e6] * 4)
    assert Scale.of(list(dashboard.guests.values()), 20.0).misses_s < 1.1 * usual.misses_s
    guest.misses_s.extend([1e6] * 20)
    assert Scale.of(list(dashboard.guests.values()), 20.0).misses_s == 1e6


def test_sizes_of_a_guest_that_never_answered_are_unknown_not_zero():
    generator = Run(1)
    generator.actual = generator.target = generator.desired = {"web": 0}
    frame = draw(reduce([generator.header(), *generator.decided()]))
    assert "sizes not known yet" in frame
    assert "committed -" in frame
    assert "0B" not in frame


def test_a_new_dashboard_knows_nothing():
    dashboard = Dashboard()
    assert dashboard.committed_bytes is None
    assert "committed -" in draw(dashboard)


def test_the_closing_table_adds_up(same_as_snapshot):
    from drawing import Utf8
    from rich.console import Console

    dashboard = reduce(run(3, 60, end=True))
    file = Utf8()
    Console(file=file, width=80, _environ={}).print(closing_table(dashboard))
    same_as_snapshot("closing-table", file.getvalue())
    summary = dashboard.summarizer.summary
    assert sum(guest.received_bytes for guest in dashboard.guests.values()) == dashboard.moved_bytes
    assert sum(guest.moves_in for guest in dashboard.guests.values()) == summary.moves
    assert summary.max_committed_bytes <= summary.budget_bytes


def test_estimated_hits_are_marked_in_every_view():
    last = next(event for event in reversed(list(run(2, 20))) if isinstance(event, Sampled))
    duty = Duty(share=0.1, attached_ms=900, sampled=0, accesses_variance=10**6)
    delta = msgspec.structs.replace(last.delta, accesses_error=1000.0)
    estimated = msgspec.structs.replace(
        last, t=20.9, sample=msgspec.structs.replace(last.sample, duty=duty), delta=delta
    )
    for width, height in ((80, 24), (160, 50)):
        assert "~" not in draw(reduce(run(2, 20)), width, height)
        frame = draw(reduce([*run(2, 20), estimated]), width, height)
        assert "hits estimated counted 10.0% of the time, ±" in frame
        assert "~" in frame


def test_what_was_not_counted_is_shown_in_every_view():
    last = next(event for event in reversed(list(run(2, 20))) if isinstance(event, Sampled))
    counters = msgspec.structs.replace(last.sample.counters, events_lost=1234)
    use = msgspec.structs.replace(last.sample.collector, intervals_missed=7)
    sample = msgspec.structs.replace(last.sample, counters=counters, collector=use)
    lossy = msgspec.structs.replace(last, t=20.9, sample=sample, delta=None)
    for width, height in ((80, 24), (160, 50)):
        assert "events lost" not in draw(reduce(run(2, 20)), width, height)
        frame = draw(reduce([*run(2, 20), lossy]), width, height)
        assert "events lost 1.23k" in frame
        assert "intervals missed 7" in frame
    absent = msgspec.structs.replace(sample, counters=msgspec.structs.replace(counters, accesses=None))
    frame = draw(reduce([*run(2, 20), msgspec.structs.replace(lossy, sample=absent)]), 160, 50)
    assert "not counted reads" in frame


def test_a_renamed_guest_keeps_its_history():
    dashboard = reduce(run(2, 30))
    guests = tuple(msgspec.structs.replace(guest, name=f"new-{guest.name}") for guest in dashboard.header.guests)
    before = list(dashboard.guests.values())
    renamed = {guest.name: f"new-{guest.name}" for guest in dashboard.header.guests}
    dashboard.apply(Reloaded(t=31.0, wall=WALL, budget_bytes=1, guests=guests, renamed=renamed))
    assert list(dashboard.guests) == [facts.name for facts in dashboard.guests.values()] == list(renamed.values())
    assert all(one is other for one, other in zip(dashboard.guests.values(), before, strict=True))
    assert "new-" in draw(dashboard)


def swapping():
    """A run whose guest swaps in from zram and disk, its swap full; the last sample by hand."""
    generator = Run(1)
    list(generator.events(3))
    sampled = next(event for event in generator.second(4, troubles=False) if isinstance(event, Sampled))
    counts = {"interval_s": 1.0, "misses": 100, "inserts_fault": 20, "swap_ins": 50, "swap_ins_zram": 30}
    delta = msgspec.structs.replace(sampled.delta, **counts)
    memory = msgspec.structs.replace(sampled.sample.memory_bytes, swap_total=64 << 20, swap_free=0)
    sample = msgspec.structs.replace(sampled.sample, memory_bytes=memory)
    return msgspec.structs.replace(sampled, sample=sample, delta=delta, disk_read_pages=140)


def test_page_ins_are_one_figure_and_told_by_cause():
    frame = draw(reduce([*run(1, 3), swapping()]), 160, 50)
    assert "misses   100/s  page-ins   170/s" in frame
    assert "faults 20/s  swap-ins 50/s  zram 30/s  disk 140/s" in frame
    page_ins = swapping().delta.page_ins
    assert page_in_text(page_ins, 140, 1.0) == "misses 100/s faults 20/s swap-ins 50/s zram 30/s disk 140/s"


def test_how_full_its_swap_is_is_shown():
    assert "swap 64M of 64M" in draw(reduce([*run(1, 3), swapping()]), 200, 50)
