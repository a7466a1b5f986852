"""From readings to trials: exact sums, and nothing made up where readings are missing."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_experiment import MadeUp

from qmpalloc.experiment.analysis.phases import phase_results
from qmpalloc.experiment.analysis.trials import guest_trials, total_hits_by_trial
from qmpalloc.experiment.run.generator.tally import bucket
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.store.records import LoadProgress, PhaseProgress, Reading

INTERVAL_S = 15.0
BOOT_S = 100.0


def phase(name, reads, seconds, *, started=0.0, done=False, buckets=None, errors=0):
    return PhaseProgress(
        name=name, reads=reads, seconds=seconds, started_s=BOOT_S + started, done=done, errors=errors,
        latency=buckets or {},
    )  # fmt: skip


def reading(trial, guest="g1", *phases, **fields):
    t = fields.pop("t", trial * INTERVAL_S)
    load = LoadProgress(sequence=trial, monotonic_s=BOOT_S + t, phases=phases) if phases else None
    values = {
        "trial": trial, "t": t, "guest": guest, "monotonic_ns": int((BOOT_S + t) * 1e9), "accesses": 1000 * trial + 7,
        "misses": 100 * trial + 3, "refaults": None, "evictions": 50 * trial, "events_lost": 0,
        "target_bytes": 2000 + trial, "actual_bytes": 1000 + trial, "disk_read_bytes": 409_600 * trial,
        "disk_reads": 100 * trial, "disk_read_ns": 200_000_000 * trial, "load": load,
    }  # fmt: skip
    return Reading(**values | fields)


def test_a_trial_is_the_difference_of_two_readings():
    found = guest_trials([reading(0), reading(1), reading(2)], "g1")
    assert (found.notes, found.whole) == ((), True)
    row = found.trials[1]
    assert (row.trial, row.covers, row.start_s, row.end_s, row.seconds) == (2, 1, 15.0, 30.0, 15.0)
    assert (row.accesses, row.misses, row.hits, row.hit_ratio) == (1000, 100, 900, 0.9)
    assert (row.target_bytes, row.actual_bytes) == (2002, 1002)
    assert (row.disk_read_bytes, row.disk_reads, row.disk_read_s) == (409_600, 100, pytest.approx(0.2))
    assert (row.refaults, row.evictions, row.events_lost) == (None, 50, 0)
    assert (row.reads, row.read_mean_s, row.read_p50_s, row.phase) == (0, None, None, "")


def test_latencies_are_those_of_the_reads_of_the_trial():
    slow, fast = bucket(2_000_000), bucket(40_000)
    before = reading(1, "g1", phase("first", 80, 8.0, buckets={slow: 10}))
    after = reading(
        2,
        "g1",
        phase("first", 100, 9.0, done=True, buckets={slow: 10, fast: 2}),
        phase("second", 20, 3.0, started=9.0, buckets={fast: 6}),
    )
    row = guest_trials([before, after], "g1").trials[0]
    assert (row.reads, row.phase) == (40, "first+second")
    assert row.read_mean_s == pytest.approx((1.0 + 3.0) / 40)
    assert row.read_p50_s == row.read_p99_s == pytest.approx(40e-6, rel=0.12)


def test_with_a_rate_the_time_per_read_is_no_latency():
    fast = bucket(40_000)
    readings = [reading(0), reading(1, "g1", phase("first", 100, 10.0, buckets={fast: 100}))]
    assert guest_trials(readings, "g1").trials[0].read_mean_s == pytest.approx(0.1)
    row = guest_trials(readings, "g1", open_loop=["first"]).trials[0]
    assert row.read_mean_s == pytest.approx(40e-6, rel=0.12)


def test_a_missing_reading_makes_a_row_of_two_trials_and_is_said():
    found = guest_trials([reading(0), reading(1), reading(3)], "g1")
    assert [(row.trial, row.covers, row.accesses) for row in found.trials] == [(1, 1, 1000), (3, 2, 2000)]
    assert found.notes == ("g1 gave no reading at the end of trial 2: its row 3 covers it as well",)
    assert found.whole


def test_what_came_before_the_first_reading_is_not_counted():
    found = guest_trials([reading(2), reading(3)], "g1")
    assert [row.trial for row in found.trials] == [3]
    assert "no reading before the end of trial 2" in found.notes[0]
    assert not found.whole


def test_counters_that_began_anew_give_no_row():
    found = guest_trials([reading(0), reading(1), reading(3, accesses=5, misses=1), reading(4, accesses=9)], "g1")
    assert [row.trial for row in found.trials] == [1, 4]
    assert found.notes == ("counters of g1 began anew in trials 2 to 3, of which nothing is counted",)
    assert not found.whole


def test_a_guest_that_falls_silent_is_missed():
    found = guest_trials([reading(0), reading(1), *(reading(trial, "g2") for trial in range(4))], "g1")
    assert found.notes == ("g1 gave no reading after trial 1; the run has 3",)
    assert guest_trials([reading(0, "g2")], "g1").notes == ("g1 gave no reading at all",)


def test_hits_of_all_guests_are_known_only_where_each_guests_are():
    readings = [reading(trial, guest) for trial in range(5) for guest in ("g1", "g2") if (trial, guest) != (2, "g2")]
    guests = [guest_trials(readings, guest) for guest in ("g1", "g2")]
    assert total_hits_by_trial(guests) == (1800, None, None, 1800)


@given(st.data())
def test_sums_over_trials_are_end_minus_begin_whatever_is_missing(data):
    steps = data.draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=2, max_size=12))
    accesses = misses = 0
    readings = []
    for trial, (more, missed) in enumerate(steps):
        accesses, misses = accesses + more, misses + missed
        readings.append(reading(trial, accesses=accesses, misses=misses))
    kept = [readings[0], *(each for each in readings[1:-1] if data.draw(st.booleans())), readings[-1]]
    found = guest_trials(kept, "g1")
    assert sum(row.accesses for row in found.trials) == readings[-1].accesses - readings[0].accesses
    assert sum(row.misses for row in found.trials) == readings[-1].misses - readings[0].misses
    assert sum(row.hits for row in found.trials) == sum(row.accesses - row.misses for row in found.trials)
    assert sum(row.covers for row in found.trials) == len(steps) - 1
    assert all(one.end_s == other.start_s for one, other in pairwise(found.trials))


# --- the ends of phases ---------------------------------------------------------------------------------------------


@pytest.fixture
def guest(tmp_path):
    return MadeUp(tmp_path / "out").directory.specification.guests[0]


def ends(guest, readings, final=None):
    found = phase_results(guest, readings, final, interval_s=INTERVAL_S)
    return [(result.name, result.trial) for result in found]


def running(trial, reads=10):
    return reading(trial, "g1", phase("first", reads, trial * INTERVAL_S))


def done(trial, seconds):
    return reading(
        trial, "g1", phase("first", 100, seconds, done=True),
        phase("second", 1, trial * INTERVAL_S - seconds, started=seconds),
    )  # fmt: skip


def test_a_phase_ended_in_the_trial_whose_reading_shows_it_first(guest):
    readings = [running(0), running(1), done(2, 20.0), done(3, 20.0)]
    assert ends(guest, readings) == [("first", 2), ("second", None)]
    first = phase_results(guest, readings, None, interval_s=INTERVAL_S)[0]
    assert (first.start_s, first.end_s, first.reads, first.mean_s) == (0.0, 20.0, 100, pytest.approx(0.2))


@pytest.mark.parametrize(("seconds", "trial"), [(20.0, 2), (31.0, 3), (44.0, 3), (50.0, 4)])
def test_where_readings_are_missing_the_guests_clock_decides(guest, seconds, trial):
    others = [reading(number, "g2") for number in range(5)]
    assert ends(guest, [running(0), running(1), done(4, seconds), *others])[0] == ("first", trial)


def test_a_phase_that_only_the_last_report_shows_ended_after_the_last_reading(guest):
    last = LoadProgress(
        sequence=9, monotonic_s=BOOT_S + 33, finished=True,
        phases=(phase("first", 100, 20.0, done=True), phase("second", 50, 12.0, started=20.0, done=True)),
    )  # fmt: skip
    assert ends(guest, [running(0), running(1), done(2, 20.0)], last) == [("first", 2), ("second", 3)]


def test_a_phase_that_never_began_or_never_ended_says_nothing(guest):
    never, unknown = phase_results(guest, [reading(0), reading(1)], None, interval_s=INTERVAL_S)
    assert (never.trial, never.seconds, never.reads) == (None, None, 0)
    assert unknown == msgspec.structs.replace(never, name="second")
    assert ends(guest, [running(0), running(1)]) == [("first", None), ("second", None)]


def test_an_end_that_nobody_can_place_is_not_placed(guest):
    last = LoadProgress(sequence=9, monotonic_s=BOOT_S, phases=(phase("first", 100, 1e300, done=True),))
    assert ends(guest, [], last)[0] == ("first", None)
    assert ends(guest, [running(0), running(1)], last)[0] == ("first", 2)


def test_the_trials_of_a_whole_run_add_up_to_its_work(tmp_path):
    made_up = MadeUp(tmp_path / "out", repeats=1).run("static", 1)
    readings = made_up.directory.run(ArmRun(1, "static")).readings()
    for guest in made_up.directory.specification.guests:
        rows = guest_trials(readings, guest.name).trials
        assert sum(row.reads for row in rows) == sum(phase.total_reads for phase in guest.phases)
        assert sum(row.accesses for row in rows) == sum(phase.total_reads for phase in guest.phases)
