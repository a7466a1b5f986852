"""How memory moved, and the curves learnt on the way."""

import pytest
from made_up_experiment import MadeUp
from msgspec import structs

from qmpalloc.experiment.analysis.learnt import curve_error, learnt_curves, measured_points
from qmpalloc.experiment.analysis.movement import movement
from qmpalloc.experiment.analysis.phases import PhaseResult
from qmpalloc.experiment.analysis.results import GuestRun, RunResult, load_results
from qmpalloc.experiment.analysis.trials import Counts, GuestTrials, Trial
from qmpalloc.experiment.report import write_report
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.store.records import PhaseFootprint
from qmpalloc.model import Band, Curve
from qmpalloc.units import MIB

BASELINES = {"a": 500 * MIB, "b": 500 * MIB}
FOOTPRINTS = {
    name: {"p": PhaseFootprint(reads=9000, file_pages=3000, distinct_pages=pages, busiest_tenth=0.1)}
    for name, pages in (("a", 2000), ("b", 500))
}


def row(guest, trial, actual_mib, target_mib=None):
    return Trial(
        trial=trial, guest=guest, start_s=10.0 * (trial - 1), end_s=10.0 * trial, accesses=1000, misses=100,
        target_bytes=(actual_mib if target_mib is None else target_mib) * MIB, actual_bytes=actual_mib * MIB,
        refaults=None, evictions=None, events_lost=0, disk_read_bytes=0, disk_reads=0, disk_read_ns=0, reads=1000,
        read_mean_s=None, read_p50_s=None, read_p99_s=None, phase="p",
    )  # fmt: skip


def run(a, *, ends=(), targets=None):
    """A run in which guest a has these sizes in MiB at the ends of trials, and b the rest of 1000 MiB."""
    targets = targets or a
    guests = {
        name: GuestRun(
            trials=GuestTrials(guest=name, trials=tuple(rows)),
            phases=tuple(PhaseResult(name=f"p{number}", end_s=end_s) for number, end_s in enumerate(ends)),
            counts=Counts(),
        )
        for name, rows in {
            "a": [row("a", *each) for each in zip(range(1, 1 + len(a)), a, targets, strict=True)],
            "b": [row("b", number, 1000 - size) for number, size in enumerate(a, start=1)],
        }.items()
    }
    return RunResult(arm="x", repeat=1, hits=(), finished={}, seconds=None, outcome=None, guests=guests)


def only(found):
    (settling,) = found.settlings
    return settling


def test_a_split_that_never_moves_is_at_rest_from_the_start():
    found = movement(run([500] * 6), BASELINES, FOOTPRINTS)
    assert found.moved_bytes == 0
    assert (only(found).trials, only(found).seconds) == (0, 0.0)
    assert only(found).working_sets == {"a": 0.0, "b": 0.0}
    assert (only(found).rested_s, only(found).moves) == (60.0, 0)


def test_the_time_to_come_to_rest_is_told_in_trials_and_seconds():
    found = movement(run([550, 600, 650, 700, 700, 705, 700, 700]), BASELINES, FOOTPRINTS)
    assert (only(found).trials, only(found).seconds) == (4, 40.0)
    assert only(found).working_sets == {"a": 2.0, "b": 8.0}  # 1,000 accesses in each trial
    assert only(found).rested_s == 40.0
    assert found.moved_bytes == 210 * MIB  # 5 MiB forth and back


def test_moves_at_rest_are_counted_by_what_was_asked():
    sizes = [700, 700, 700, 700, 700, 700]
    found = movement(run(sizes, targets=[700, 700, 704, 700, 700, 700]), BASELINES, FOOTPRINTS)
    assert only(found).trials == 1
    assert only(found).moves == 2


def test_sizes_that_go_on_changing_have_not_come_to_rest():
    settling = only(movement(run([520, 560, 600, 640, 680, 720]), BASELINES, FOOTPRINTS))
    assert (settling.trials, settling.seconds, settling.rested_s) == (None, None, 0.0)
    assert settling.working_sets == {}


def test_every_change_of_the_loads_begins_anew():
    sizes = [600, 700, 700, 700, 700, 600, 500, 500, 500, 500]
    found = movement(run(sizes, ends=(50.0, 100.0)), BASELINES, FOOTPRINTS)
    assert [settling.trials for settling in found.settlings] == [2, 2]
    assert [settling.start_s for settling in found.settlings] == [0.0, 50.0]


def test_what_is_read_in_no_phase_that_is_known_is_no_working_set():
    moving = run([600, 700, 700, 700, 700])
    trials = moving.guests["a"].trials
    others = tuple(structs.replace(row, phase=phase) for row, phase in zip(trials.trials, ("", "p+q"), strict=False))
    guest = structs.replace(moving.guests["a"], trials=structs.replace(trials, trials=others + trials.trials[2:]))
    changed = structs.replace(moving, guests={**moving.guests, "a": guest})
    assert only(movement(moving, BASELINES, FOOTPRINTS)).working_sets == {"a": 1.0, "b": 4.0}
    assert only(movement(changed, BASELINES, FOOTPRINTS)).working_sets == {"a": 0.0, "b": 4.0}


def test_changes_that_follow_at_once_are_not_judged():
    found = movement(run([600] * 8, ends=(20.0, 30.0, 80.0)), BASELINES, FOOTPRINTS)
    assert [settling.start_s for settling in found.settlings] == [30.0]


@pytest.fixture(scope="module")
def all_arms(tmp_path_factory):
    made = MadeUp(tmp_path_factory.mktemp("arms") / "out", arms=("static", "rule", "curve", "oracle"), repeats=2)
    return made.all_runs()


def straight(guest, trial):
    """A curve that falls in a line to nothing at its cap; weak in the first trials."""
    weak = ("only 12 sampled accesses",) if trial < 3 else ()
    return Curve(sizes_bytes=(guest.floor, guest.cap), miss_ratio=(0.8, 0.0), weak=weak)


TRUE = {"sizes": ["1MiB", "512MiB"], "miss_ratio": [1.0, 0.0], "sizes_of": "cache"}


@pytest.fixture
def with_records(all_arms):
    """The same with records, which are written once."""
    place = all_arms.directory.run(ArmRun(1, "curve")).record
    if not place.exists():
        all_arms.record("curve", 1, curve=straight)
        settings = {"curves": {"g1": [TRUE, TRUE], "g2": [TRUE]}}
        all_arms.record("oracle", 1, settings=settings, carry={"overhead": {"g1": 100 * MIB, "g2": 100 * MIB}})
        all_arms.directory.run(ArmRun(2, "oracle")).record.write_text("no record\n")
    return all_arms


def test_the_curves_of_each_phase_are_the_last_ones_in_it(with_records):
    curves, unreadable = learnt_curves(with_records.directory, load_results(with_records.directory))
    assert set(unreadable) >= {ArmRun(2, "oracle")}  # no record
    assert "line 1 is not an event" in unreadable[ArmRun(2, "oracle")]
    assert not {ArmRun(1, "curve"), ArmRun(1, "oracle")} & set(unreadable)
    of_curve = {(each.guest, each.phase): each for each in curves if each.arm == "curve"}
    assert set(of_curve) == {(guest, phase) for guest in ("g1", "g2") for phase in ("first", "second")}
    assert all(each.curve.weak == () for each in of_curve.values())
    assert of_curve["g1", "first"].trial < of_curve["g1", "second"].trial
    of_oracle = {(each.guest, each.phase): each for each in curves if each.arm == "oracle"}
    assert of_oracle["g1", "second"].true == ((101 * MIB, 612 * MIB), (1.0, 0.0))
    assert of_oracle["g2", "first"].true is None  # not a curve for each phase: a person's


def test_what_was_measured_beside_a_curve(with_records):
    results = load_results(with_records.directory)
    points = measured_points(results, "g1", "first")
    assert {point.arm for point in points} >= {"static", "curve"}
    assert any(point.early for point in points)
    assert any(not point.early for point in points)
    static = [point for point in points if point.arm == "static"]
    assert {point.size_bytes for point in static} == {768 * MIB}
    flat = Curve(sizes_bytes=(1, 2**40), miss_ratio=(0.25, 0.25))
    late = [point.miss_ratio for point in points if not point.early]
    assert curve_error(flat, points) == pytest.approx(sum(abs(ratio - 0.25) for ratio in late) / len(late))
    assert curve_error(flat, []) is None


def test_the_report_tells_movement_shares_and_curves(with_records):
    files = write_report(with_records.directory)
    place = with_records.directory.path
    text = (place / "report.md").read_text()
    for words in (
        "How memory moved",
        "Share of the gain of oracle in time",
        "Memory moved",
        "How right the curves were",
    ):
        assert words in text
    assert "| static | rule | curve | oracle |" in text
    assert "- oracle, repeat 2: no curves are told, for its record cannot be used: " in text
    assert place / "figures" / "curves.svg" in files
    svg = (place / "figures" / "curves.svg").read_text()
    assert "learnt by curve" in svg
    assert "true curve" in svg
    assert "measured, static" in svg
    assert "believed by" not in svg  # a record of a version that did not tell
    summary = (place / "summary.json").read_text()
    assert '"oracle_share"' in summary
    assert '"moved_bytes"' in summary


def test_what_was_believed_is_drawn_around_the_curves(tmp_path):
    made = MadeUp(tmp_path / "out", arms=("static", "curve"), repeats=1).all_runs()
    band = Band(sizes_bytes=(300 * MIB, 900 * MIB), least=(0.7, 0.0), most=(0.9, 0.1), accesses_per_s=100.0)
    made.record("curve", 1, curve=straight, band=band)
    curves, _ = learnt_curves(made.directory, load_results(made.directory))
    assert {each.band for each in curves} == {band}
    write_report(made.directory)
    svg = (made.directory.path / "figures" / "curves.svg").read_text()
    assert "believed by curve" in svg
    assert "Shaded: the bounds" in (made.directory.path / "report.md").read_text()


def test_a_report_without_curves_has_no_such_figure(tmp_path):
    made = MadeUp(tmp_path / "out", repeats=1).all_runs()
    files = write_report(made.directory)
    assert not any(file.stem == "curves" for file in files)
    text = (made.directory.path / "report.md").read_text()
    assert "How right the curves were" not in text
    assert "Share of the gain" not in text
