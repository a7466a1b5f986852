"""What was gained of what there was to gain."""

from made_up_experiment import MadeUp
from msgspec import structs

from qmpalloc.config import Duration
from qmpalloc.experiment.analysis.gain import late_misses, oracle_arm, oracle_share
from qmpalloc.experiment.analysis.results import GuestRun, RunResult, load_results
from qmpalloc.experiment.analysis.trials import Counts, GuestTrials, Trial


def guest(*rows, whole=True):
    """A guest with these accesses and misses by trial."""
    trials = tuple(
        Trial(
            trial=number, guest="g", start_s=10.0 * (number - 1), end_s=10.0 * number, accesses=accesses, misses=misses,
            target_bytes=1, actual_bytes=1, refaults=None, evictions=None, events_lost=0, disk_read_bytes=0,
            disk_reads=0, disk_read_ns=0, reads=0, read_mean_s=None, read_p50_s=None, read_p99_s=None, phase="p",
        )
        for number, (accesses, misses) in enumerate(rows, start=1)
    )  # fmt: skip
    return GuestRun(trials=GuestTrials(guest="g", trials=trials, whole=whole), phases=(), counts=Counts())


def run(**guests):
    return RunResult(arm="x", repeat=1, hits=(), finished={}, seconds=None, outcome=None, guests=guests)


def test_the_second_half_is_one_of_accesses_not_of_time():
    assert late_misses(run(a=guest((100, 90), (100, 60), (400, 8), (400, 4)))) == 4 + 8 / 4
    assert late_misses(run(a=guest((10, 10), (30, 6)))) == 4


def test_every_guest_has_a_half_of_its_own():
    fast, slow = guest((1000, 20), (1000, 10)), guest((10, 8), (10, 2), (0, 0))
    assert late_misses(run(a=fast, b=slow)) == 10 + 2


def test_a_guest_that_reads_nothing_misses_nothing():
    assert late_misses(run(a=guest((0, 0), (0, 0)), b=guest())) == 0


def test_the_second_half_of_what_is_not_known_whole_is_not_known():
    assert late_misses(run(a=guest((10, 5), whole=False))) is None


def test_the_share_of_the_oracles_gain(tmp_path):
    made = MadeUp(tmp_path / "out", arms=("static", "rule", "curve", "oracle"), repeats=2).all_runs()
    results = load_results(made.directory)
    assert oracle_arm(results) == "oracle"
    shares = {arm.name: oracle_share(results, arm.name) for arm in results.arms}
    assert (shares["static"].time, shares["oracle"].time) == (0.0, 1.0)
    assert 0 < shares["rule"].time < shares["curve"].time
    assert shares["curve"].misses > 0
    assert shares["curve"].late_misses > 0
    assert shares["curve"].repeats == 2


def test_without_an_oracle_there_is_no_share(tmp_path):
    results = load_results(MadeUp(tmp_path / "out", repeats=1).all_runs().directory)
    assert oracle_share(results, "rule") is None


def test_where_arms_do_unequal_work_their_misses_are_no_share(tmp_path):
    made = MadeUp(tmp_path / "out", arms=("static", "rule", "oracle"), repeats=1).all_runs()
    results = load_results(made.directory)
    spec = results.specification
    timed = [structs.replace(phase, duration=Duration(60.0)) for phase in spec.guests[0].phases]
    guests = (structs.replace(spec.guests[0], phases=tuple(timed)), spec.guests[1])
    results = structs.replace(results, specification=structs.replace(spec, guests=guests))
    assert oracle_share(results, "rule") is None


def test_an_oracle_that_gains_nothing_has_nothing_to_share(tmp_path, monkeypatch):
    monkeypatch.setattr("made_up_experiment.STEPS", {"oracle": 0})
    results = load_results(MadeUp(tmp_path / "out", arms=("static", "rule", "oracle"), repeats=1).all_runs().directory)
    assert oracle_share(results, "rule").time is None
