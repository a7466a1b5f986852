"""Programs in the specification of an experiment, and what is compared of what they say."""

import json
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from qmpalloc.errors import ConfigError, HostError
from qmpalloc.experiment.analysis.metrics import (
    compare_metrics,
    gain_of_all,
    metric_results,
    metric_verdicts,
    worst,
)  # fmt: skip
from qmpalloc.experiment.analysis.results import load_results
from qmpalloc.experiment.report import write_report
from qmpalloc.experiment.report.figures.course import course, course_panels
from qmpalloc.experiment.report.figures.forest import forest_rows
from qmpalloc.experiment.report.metrics import metric_lines
from qmpalloc.experiment.run.arm import done_text, share_done
from qmpalloc.experiment.run.configuration import arm_configuration
from qmpalloc.experiment.run.generator.tally import bucket
from qmpalloc.experiment.run.standstill import Standstill
from qmpalloc.experiment.spec import parsing, scaling
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.spec.program import Metric
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.experiment.store.records import (
    DiskCalibration,
    LoadProgress,
    Manifest,
    MetricProgress,
    Outcome,
    PhaseProgress,
    ProgramPace,
    ProgramService,
    Reading,
    SeriesPoint,
)
from qmpalloc.qemu.recipe import Variant
from qmpalloc.units import MIB

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = """
[experiment]
name = "try"
budget = "768MiB"
interval = "10s"
repeats = 2
seed = 7
[[guest]]
name = "A"
memory = "512MiB"
floor = "256MiB"
cap = "512MiB"
baseline = "384MiB"
[[guest.phase]]
name = "reads"
file = "64MiB"
access = { distribution = "uniform" }
reads = 1000
duration = "40s"
[[guest]]
name = "B"
memory = "512MiB"
floor = "256MiB"
cap = "512MiB"
baseline = "384MiB"
[[guest.phase]]
name = "idle"
command = ["sleep", "20"]
[[guest.phase]]
name = "work"
command = ["work", "--seed={seed}", "{guest} at {scale}", "{other}"]
environment = { WHO = "{guest}" }
duration = "20s"
files = { rows = "100MiB" }
[[guest.phase.metric]]
name = "rate"
unit = "1/s"
better = "higher"
pattern = 'rate ([0-9]+)'
series = true
[[guest.phase.metric]]
name = "latency"
unit = "ms"
better = "lower"
pattern = 'latency ([0-9]+)'
[[arm]]
name = "static"
policy = "static"
[[arm]]
name = "other"
policy = "paper"
"""


def parsed(text=TEXT, file=Path("/somewhere/try.toml")):
    return parsing.parse(text, file=file)


SPEC = parsed()
A, B = SPEC.guests
RATE, LATENCY = B.phases[1].metrics


# --- the specification ------------------------------------------------------------------------------------------------


def test_both_kinds_of_phases_mix():
    assert [phase.name for phase in B.programs] == ["idle", "work"]
    assert (A.reads, A.programs, B.reads) == (A.phases, (), ())
    assert B.files == {"rows": 100 * MIB}
    assert [phase.is_timed for phase in (*A.phases, *B.phases)] == [True, False, True]
    assert SPEC.has_unequal_work
    assert not parsing.load(EXAMPLES / "smoke.toml").has_unequal_work


def test_a_guest_whose_programs_name_no_file_has_one_to_measure_reads_with():
    text = TEXT.replace('files = { rows = "100MiB" }', "")
    assert parsed(text).guests[1].files == {"file-16M.dat": 16 * MIB}


def test_scaling_changes_files_and_not_commands():
    scaled = scaling.scale(SPEC, Fraction(1, 2))
    work = scaled.guests[1].phases[1]
    assert work.files == {"rows": 50 * MIB}
    assert (work.command, work.metrics, work.duration) == (B.phases[1].command, B.phases[1].metrics, 20.0)
    assert scaled.fill("{seed} {guest} {scale} {other} {", scaled.guests[1]) == "7 B 1/2 {other} {"


def test_a_disk_by_programs_wants_one():
    text = (EXAMPLES / "smoke.toml").read_text().replace('model = "ssd"', 'model = "ssd"\nby = "programs"')
    with pytest.raises(ConfigError, match=r"smoke.toml: disk.by: no guest runs a program"):
        parsed(text, EXAMPLES / "smoke.toml")


def test_the_example_compares_static_paper_and_curve():
    found = parsing.load(EXAMPLES / "program-grows.toml")
    assert [arm.policy for arm in found.arms] == ["static", "paper", "curve"]
    assert [(guest.floor, guest.cap, guest.baseline) for guest in found.guests] == [
        (256 * MIB, 512 * MIB, 384 * MIB)
    ] * 2
    assert found.guests[1].programs[1].copy


WORK = "guest[1].phase[1]"
RATE_OF_IDLE = """
[[guest.phase.metric]]
name = "rate"
unit = "1/s"
better = "lower"
pattern = "took (.*)"
"""


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        (('command = ["sleep", "20"]', "command = []"), "guest[1].phase[0].command", "is no command"),
        (('command = ["sleep", "20"]', 'command = "sleep 20"'), "guest[1].phase[0].command", "must be a list"),
        (('["sleep", "20"]', '["", "20"]'), "guest[1].phase[0].command", "is no command"),
        (('["sleep", "20"]', '["sl\\u0000eep"]'), "guest[1].phase[0].command", "NUL"),
        (('WHO = "{guest}"', '"A\\u0000" = "x"'), f"{WORK}.environment", "NUL"),
        (('duration = "20s"', 'duration = "20s"\ncopy = ["a\\u0000"]'), f"{WORK}.copy[0]", "NUL"),
        (('duration = "20s"', 'duration = "20s"\nuser = ""'), f"{WORK}.user", "is empty"),
        (("'latency ([0-9]+)'", "'(x{99999999999999999999})'"), f"{WORK}.metric[1].pattern", "too large"),
        (("'latency ([0-9]+)'", f"'{'(' * 3000}'"), f"{WORK}.metric[1].pattern", "not a regular expression"),
        (('["sleep", "20"]', '["sleep", "20"]\nreads = 5'), "guest[1].phase[0].reads", "beside a command"),
        (('["sleep", "20"]', '["sleep", "20"]\naccess = 5'), "guest[1].phase[0].access", "beside a command"),
        (('["sleep", "20"]', '["sleep", "20"]\nwarmup = []'), "guest[1].phase[0].warmup", "did you mean warm_up?"),
        (('duration = "20s"', 'duration = "20"'), f"{WORK}.duration", "no unit"),
        (('duration = "20s"', 'timeout = "0s"'), f"{WORK}.timeout", "above 0"),
        (('WHO = "{guest}"', '"A=B" = "x"'), f"{WORK}.environment", "is no name of a variable"),
        (('WHO = "{guest}"', "WHO = 5"), f"{WORK}.environment", "str"),
        (('rows = "100MiB"', '"../rows" = "100MiB"'), f"{WORK}.files", "not a file name"),
        (('rows = "100MiB"', 'rows = "1KiB"'), f"{WORK}.files", "at least a page"),
        (('duration = "20s"', 'duration = "20s"\ncopy = ["/etc/passwd"]'), f"{WORK}.copy", "not beside"),
        (('duration = "20s"', 'duration = "20s"\ncopy = ["a/../../b"]'), f"{WORK}.copy", "not beside"),
        (('duration = "20s"', 'duration = "20s"\ncopy = ["none.py"]'), f"{WORK}.copy", "No such file"),
        (('better = "lower"', 'better = "less"'), f"{WORK}.metric[1].better", "none of 'higher', 'lower'"),
        (('better = "lower"', ""), f"{WORK}.metric[1].better", "missing"),
        (('unit = "ms"', 'unit = ""'), f"{WORK}.metric[1].unit", "no unit"),
        (('name = "latency"', 'name = "rate"'), f"{WORK}.metric[1].name", "already"),
        (("'latency ([0-9]+)'", "'latency [0-9]+'"), f"{WORK}.metric[1].pattern", "no group"),
        (("'latency ([0-9]+)'", "'latency ([0-9]+'"), f"{WORK}.metric[1].pattern", "not a regular expression"),
        (("'latency ([0-9]+)'", "'(a|b) ([0-9]+)'"), f"{WORK}.metric[1].pattern", "several groups"),
        (("pattern = 'latency ([0-9]+)'", ""), f"{WORK}.metric[1].pattern", "either a pattern or json"),
        (
            ("pattern = 'latency ([0-9]+)'", 'json = { file = "a", path = "b" }\nseries = true'),
            f"{WORK}.metric[1].series", "one value",
        ),
        (("pattern = 'latency ([0-9]+)'", 'json = { file = "a" }'), f"{WORK}.metric[1].json.path", "missing"),
        (("[[guest.phase.metric]]", "[[guest.phase.metrics]]"), f"{WORK}.metrics", "did you mean metric?"),
        (('duration = "40s"', 'duration = "40s"\nrounds = 2'), "guest[0].phase[0].duration", "beside rounds"),
        (('name = "latency"\nunit = "ms"', 'name = "reads"\nunit = "ms"'), f"{WORK}.metric[1].unit",
         "reads is 'ms' here and '1/s' in guest[0].phase[0]"),
        (('["sleep", "20"]', '["sleep", "20"]\n' + RATE_OF_IDLE), f"{WORK}.metric[0].better",
         "rate is 'higher' here and 'lower' in guest[1].phase[0].metric[0]"),
        (("[[guest]]", '[disk]\nby = "work"\n[[guest]]'), "disk.by", "none of 'reads', 'programs'"),
        (('baseline = "384MiB"', 'baseline = "384MiB"\nweight = 0'), "guest[0].weight", "above 0"),
        (("[[guest]]", '[image]\npackages = ["a,b"]\n[[guest]]'), "image.packages", "not the name of a Debian package"),
        (("[[guest]]", '[image]\npackages = ["--x"]\n[[guest]]'), "image.packages", "not the name of a Debian package"),
        (('duration = "40s"', ""), "guest[0].phase[0].rounds", "at least 1"),
        (('policy = "paper"', 'policy = "oracle"'), "arm[1].policy", "what programs read is not known"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_key_and_hint(change, key, says):
    text = TEXT.replace(*change, -1 if "metric]]" in change[0] else 1)
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert f"/somewhere/try.toml: {key}" in str(caught.value)
    assert says in str(caught.value)


def test_no_two_outputs_are_kept_under_one_name():
    text = TEXT.replace('name = "reads"', 'name = "x-idle"').replace('name = "B"', 'name = "A-x"')
    with pytest.raises(
        ConfigError, match=r"guest\[1\]\.phase\[0\]\.name: its output .* guest\[0\]\.phase\[0\], A-x-idle"
    ):
        parsed(text)


def test_what_is_copied_has_to_go_through_an_agent(tmp_path):
    (tmp_path / "big").write_bytes(bytes(17 * MIB))
    text = TEXT.replace('duration = "20s"', 'duration = "20s"\ncopy = ["big"]')
    with pytest.raises(ConfigError, match="17M are to be copied, at most 16M"):
        parsed(text, tmp_path / "try.toml")


# --- what a phase came to ---------------------------------------------------------------------------------------------


def state(name, seconds, *, reads=0, done=False, **metrics):
    said = {key: MetricProgress(count=count, total=total, last=last) for key, (count, total, last) in metrics.items()}
    return PhaseProgress(name=name, reads=reads, seconds=seconds, started_s=100.0, done=done, metrics=said)


def load(*phases, sequence=0, finished=False):
    return LoadProgress(sequence=sequence, monotonic_s=100.0, phases=phases, finished=finished)


def test_a_series_is_the_mean_in_each_trial_and_others_are_the_last_value():
    reports = [
        (0, load()),
        (1, load(state("work", 5.0))),
        (2, load(state("work", 15.0, rate=(2, 30, 20), latency=(1, 9, 9)))),
        (3, load(state("work", 20.0, rate=(2, 30, 20), latency=(1, 9, 9)))),
        (4, load(state("work", 25.0, rate=(3, 90, 60), latency=(2, 16, 7), done=True))),
    ]
    rate, latency = metric_results(B.phases[1], reports, None)
    assert (rate.metric, rate.value, rate.series) == (RATE, 30, {2: 15, 4: 60})
    assert (latency.metric, latency.value, latency.series) == (LATENCY, 7, {2: 9, 4: 7})
    assert [each.value for each in metric_results(B.phases[1], [], None)] == [None, None]


def test_reads_come_to_how_many_a_second_were_done():
    reports = [(1, load(state("reads", 10.0, reads=500))), (2, load(state("reads", 20.0, reads=700)))]
    (found,) = metric_results(A.phases[0], reports, load(state("reads", 40.0, reads=4000, done=True)))
    assert (found.value, found.series) == (100, {1: 50, 2: 20})


def test_reads_at_a_rate_of_their_own_come_to_how_long_one_took():
    """How many were done is how many were asked for, however long each waited."""
    fast, slow = bucket(10**6), bucket(100 * 10**6)
    phase = structs.replace(A.phases[0], rate=100.0)
    reports = [
        (trial, load(structs.replace(state("reads", 10.0 * trial, reads=1000 * trial), latency=latency)))
        for trial, latency in ((1, {fast: 1000}), (2, {fast: 1000, slow: 1000}), (3, {fast: 1000, slow: 1000}))
    ]
    (found,) = metric_results(phase, reports, None)
    assert (found.metric.unit, found.metric.better) == ("ms", "lower")
    assert (found.value, found.series) == (
        pytest.approx(50.5, rel=0.05),
        {1: pytest.approx(1, rel=0.05), 2: pytest.approx(100, rel=0.05)},
    )


KEYS = [("B", "work", RATE), ("B", "work", LATENCY), ("A", "reads", A.phases[0].metrics[0])]


def values(rate, latency, reads):
    return {("B", "work", "rate"): rate, ("B", "work", "latency"): latency, ("A", "reads", "reads"): reads}


def test_arms_are_compared_by_each_metric_whichever_way_is_better():
    pairs = [
        (values(50.0, 20.0, 110.0), values(100.0, 10.0, 100.0)),
        (values(55.0, 20.0, 121.0), values(110.0, 10.0, 110.0)),
    ]
    rate, latency, reads = compare_metrics(KEYS, pairs)
    assert (rate.ratio.value, rate.gain.value) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (latency.ratio.value, latency.gain.value) == (pytest.approx(2.0), pytest.approx(0.5))
    assert reads.gain.value == pytest.approx(1.1)
    assert worst([reads, rate]) == rate
    # Two metrics of B count as much as the one of A.
    of_all = gain_of_all([rate, latency, reads], pairs, {"A": 1.0, "B": 1.0})
    assert (of_all.value, of_all.n) == (pytest.approx((0.5 * 1.1) ** 0.5), 2)
    by_weight = gain_of_all([rate, latency, reads], pairs, {"A": 3.0, "B": 1.0})
    assert by_weight.value == pytest.approx(0.5**0.25 * 1.1**0.75)
    said = list(metric_verdicts("other", "static", [rate, latency, reads], of_all))
    assert [sentence.rsplit(": ", 1)[1] for sentence in said[:3]] == ["worse.", "worse.", "better."]
    assert said[3].startswith("other over all guests by weight: 0.74 (0.74 to 0.74) times as good as static")
    assert said[3].endswith("(geometric mean): worse. Worst: 0.50 times, rate of B (work).")


def test_the_interval_of_all_guests_is_that_of_the_repeats_together():
    """What one guest wins where the other loses is certain for neither, and for both together it is."""
    pairs = [(values(factor, 10.0, 1.2 / factor), values(1.0, 10.0, 1.0)) for factor in (0.5, 1.0, 2.0)]
    found = compare_metrics([KEYS[0], KEYS[2]], pairs)
    assert all(each.gain.low < 1 < each.gain.high for each in found)
    of_all = gain_of_all(found, pairs, {"A": 1.0, "B": 1.0})
    assert (of_all.low, of_all.high) == (pytest.approx(1.2**0.5), pytest.approx(1.2**0.5))
    *_, last = metric_verdicts("other", "static", found, of_all)
    assert "(geometric mean): better. Worst: " in last


def test_a_repeat_that_lacks_a_metric_is_left_out_of_all_guests_together():
    lacking = {("B", "work", "rate"): 9.0}
    pairs = [(values(2.0, 10.0, 1.0), values(1.0, 10.0, 1.0)), (lacking, lacking)]
    found = compare_metrics([KEYS[0], KEYS[2]], pairs)
    of_all = gain_of_all(found, pairs, {"A": 1.0, "B": 1.0})
    assert (of_all.value, of_all.n) == (pytest.approx(2**0.5), 1)


def test_a_metric_that_fell_to_nothing_lets_no_arm_be_the_best():
    """Without the guest that did nothing, the rest would be twice as good in both repeats, and better for certain."""
    pairs = [(values(2.0, 5.0, 0.0), values(1.0, 10.0, 1.0)), (values(2.0, 5.0, 1.0), values(1.0, 10.0, 1.0))]
    found = compare_metrics(KEYS, pairs)
    of_all = gain_of_all(found, pairs, {"A": 1.0, "B": 1.0})
    assert (of_all, worst(found)) == (None, None)
    *_, last = metric_verdicts("other", "static", found, of_all)
    assert last == "other cannot be compared over all guests: not by every metric."
    assert next(metric_verdicts("other", "static", [], None)).endswith("no phase has a metric.")


def test_no_error_in_either_arm_is_the_same_in_both():
    pairs = [(values(2.0, 0.0, 1.0), values(1.0, 0.0, 1.0))] * 2
    found = compare_metrics(KEYS, pairs)
    assert (found[1].ratio.value, found[1].gain.decides) == (1.0, False)
    assert gain_of_all(found, pairs, {"A": 1.0, "B": 1.0}).value == pytest.approx(2**0.25)


def test_one_repeat_decides_nothing_and_none_compares_nothing():
    pairs = [(values(50.0, 20.0, 0.0), values(100.0, 10.0, 100.0))]
    one = compare_metrics(KEYS, pairs)
    said = list(metric_verdicts("other", "static", one, gain_of_all(one, pairs, {"A": 1.0, "B": 1.0})))
    assert said[0].startswith("other had 0.50 of the static rate of B (work), higher is better: one repeat")
    assert "decides nothing" in said[1]
    assert said[2].startswith("other cannot be compared by reads of A (reads)")
    assert [each.ratio for each in compare_metrics(KEYS, [])] == [None] * 3
    assert gain_of_all(compare_metrics(KEYS, []), [], {}) is None
    mixed = [({("B", "work", "rate"): rate}, {("B", "work", "rate"): 1.0}) for rate in (0.5, 2.0)]
    undecided = compare_metrics(KEYS[:1], mixed)
    assert "undecided" in next(metric_verdicts("other", "static", undecided, None))


# --- while it runs ----------------------------------------------------------------------------------------------------


def reading(guest, progress, trial=1):
    return Reading(
        trial=trial, t=10.0 * trial, guest=guest, monotonic_ns=trial * 10**10, accesses=trial * 1000, misses=trial * 10,
        refaults=0, evictions=0, events_lost=0, target_bytes=384 * MIB, actual_bytes=384 * MIB,
        disk_read_bytes=trial * 40960, disk_reads=trial, disk_read_ns=trial, load=progress, faults=trial * 5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("progress", "share", "text"),
    [
        (None, 0.0, "B 0%"),
        (load(), 0.0, "B 0%"),
        (load(state("idle", 30.0)), 0.0, "B idle for 30 s"),
        (load(state("idle", 20.0, done=True)), 0.5, "B 50%"),
        (load(state("idle", 20.0, done=True), state("work", 5.0)), 0.625, "B 62%"),
        (load(state("idle", 20.0, done=True), state("work", 90.0)), 1.0, "B 100%"),
    ],
)
def test_how_far_a_load_with_programs_is(progress, share, text):
    assert share_done(B, progress) == pytest.approx(share)
    assert done_text(B, progress) == text


def watch(progress, *, trials, watched=None):
    """Return what watches a guest whose load reports `progress` of a trial, after so many trials."""
    watched = watched or Standstill({"A": {"reads"}}, interval_s=10.0, now_s=0.0)
    for trial in trials:
        watched.note([reading("A", progress(trial), trial)], now_s=10.0 * trial)
    return watched


def test_a_program_that_reads_nothing_does_not_stand_still_while_its_generator_writes():
    alive = watch(lambda trial: load(state("idle", 10.0 * trial), sequence=trial), trials=range(1, 40))
    with pytest.raises(HostError, match="guest A"):
        watch(lambda trial: load(state("idle", 400.0), sequence=39), trials=range(40, 60), watched=alive)


def test_reads_that_hang_stand_still_though_their_generator_writes():
    with pytest.raises(HostError, match="guest A"):
        watch(lambda trial: load(state("reads", 1.0, reads=5), sequence=trial), trials=range(1, 40))


def test_a_warm_up_between_two_phases_may_take_its_time():
    watch(lambda trial: load(state("reads", 1.0, reads=5, done=True), sequence=trial), trials=range(1, 40))


# --- the report -------------------------------------------------------------------------------------------------------


POINTS_S = (1.0, 2.5, 19.125)


@pytest.fixture
def finished(tmp_path):
    """An experiment of which all runs ended; in the arm "other" the program did half as much."""
    manifest = Manifest(
        name="try", file="/somewhere/try.toml", scale="1", arms=("static", "other"), repeats=2, command="qmpalloc",
        created_wall=1e9, accelerator={}, images={}, versions={}, host={}, footprints={},
    )  # fmt: skip
    made = ExperimentDirectory.create(tmp_path / "out", SPEC, manifest, TEXT)
    for arm, rate in (("static", 100.0), ("other", 50.0)):
        for repeat in (1, 2):
            run = made.run(ArmRun(repeat, arm))
            run.begin()
            for trial in range(5):
                seconds, count = 10.0 * trial, max(0, trial - 2)
                reads = load(state("reads", seconds, reads=trial * 1000, done=trial == 4), finished=trial == 4)
                idle = state("idle", min(seconds, 20.0), done=trial >= 2)
                said = (
                    {"rate": (count, count * rate * repeat, rate * repeat), "latency": (count, 5, 5)} if count else {}
                )
                work = [state("work", seconds - 20.0, done=trial == 4, **said)] if trial > 2 else []
                run.append_readings([
                    reading("A", reads, trial), reading("B", load(idle, *work, finished=trial == 4), trial),
                ])  # fmt: skip
            run.write_output("B", "work", b"rate 100")
            run.write_series("B", "work", [SeriesPoint(metric="rate", seconds=each, value=rate) for each in POINTS_S])
            run.write_outcome(Outcome(arm=arm, repeat=repeat, started_wall=1e9, total_s=60.0, load_s=40.0))
    return made


def test_a_report_of_programs_is_by_metric(finished):
    write_report(finished, figures=False)
    text = (finished.path / "report.md").read_text()
    assert "- other had 0.50 (0.50 to 0.50) of the static rate of B (work), higher is better: worse.\n" in text
    assert (
        "**other over all guests by weight: 0.84 (0.84 to 0.84) times as good as static (geometric mean): worse."
        in text
    )
    assert "Worst: 0.50 times, rate of B (work).**" in text
    assert "of the static time" not in text
    line = next(line for line in text.splitlines() if line.startswith("| B: work, rate (1/s, higher is better) |"))
    assert "150 (100 to 200) | 75 (50 to 100); ratio 0.50" in line
    assert "| static, B | 40 | 20 | - | 60 | 160K | -33.3 % |" in text  # of a repeat, not of all that an arm has
    # 40 misses and 20 faults of 4 KiB in each repeat, and 40 pages read by the disk.
    witnesses = json.loads((finished.path / "summary.json").read_text())["arms"][0]["witness"]
    assert witnesses == {"A": pytest.approx(1.0), "B": pytest.approx(40 / 60)}
    summary = json.loads((finished.path / "summary.json").read_text())
    assert summary["arms"][1]["repeats"][0]["metrics"]["B"] == {"idle": {}, "work": {"rate": 50.0, "latency": 5.0}}
    comparison = summary["comparisons"][0]
    assert comparison["metrics"][1]["ratio"]["value"] == pytest.approx(0.5)
    # Of B the rate is half and the latency the same; of A nothing has changed.
    assert comparison["all_guests"]["value"] == pytest.approx(0.5**0.25)
    assert comparison["worst"]["metric"]["name"] == "rate"
    assert comparison["verdict"] in text.replace("**", "")


def test_the_ratio_that_a_program_reached_is_reported(finished):
    warm = ProgramPace(seconds=10.0, accesses=100_000, metrics={"rate": 1000.0, "latency": 2.0})
    cold = ProgramPace(seconds=10.0, accesses=20_000, misses=10_000, faults=800, disk_reads=1_800,
                       metrics={"rate": 100.0})  # fmt: skip
    programs = {
        "B": {"work": ProgramService(warm=warm, cold=cold), "idle": ProgramService(warm=ProgramPace(seconds=9))}
    }
    finished.write_disk(DiskCalibration(model="ssd", hit_s=1e-4, iops=200, by="programs", programs=programs))
    write_report(finished, figures=False)
    text = (finished.path / "report.md").read_text()
    assert "| B: work | 50 | 50 | 100 µs | 5,000 µs | 6.0 | rate 1,000, 100 1/s |" in text
    assert "| B: idle | 50 | - | - | - | - | - |" in text
    assert "A page from the cache, with all that the programs do, took 100 µs here" in text
    disk = json.loads((finished.path / "summary.json").read_text())["disk"]
    assert (disk["by"], disk["programs"]["B"]["work"]["ratio"]) == ("programs", pytest.approx(50))
    assert disk["programs"]["B"]["idle"]["cold"] is None


def test_every_value_of_a_series_is_in_the_runs_directory_and_in_a_figure(finished):
    place = finished.run(ArmRun(1, "static"))
    assert (place.path / "series-B-work.csv").read_text().splitlines()[:2] == [
        "metric,seconds,value,matches", "rate,1.000,100,1",
    ]  # fmt: skip
    results = load_results(finished)
    (run, *_) = results.counted("static")
    points = course(results, run, "B", "work", RATE)
    began_s = run.guests["B"].phases[1].start_s  # of the program, on the host's clock
    assert points == [(began_s + each, 100.0) for each in POINTS_S]
    assert course_panels(results)[1:] == [("B", "work", RATE), ("B", "work", LATENCY)]
    # What is no series, and reads, have a value for each trial.
    assert course(results, run, "B", "work", LATENCY) == [(30.0, 5.0), (40.0, 5.0)]
    assert len(course(results, run, "A", "reads", A.phases[0].metrics[0])) == 4


def test_a_series_that_was_changed_by_hand_fails_its_run_only(finished):
    (finished.run(ArmRun(1, "static")).path / "series-B-work.csv").write_text("metric,seconds\nrate,1\n")
    failed = {run.run.name: run.failed for run in load_results(finished).runs if not run.counted}
    assert list(failed) == ["repeat1-static"]
    assert "series-B-work.csv: cannot be used" in failed["repeat1-static"]


def test_the_figure_of_ratios_stands_beside_the_verdict(finished):
    write_report(finished)
    text = (finished.path / "report.md").read_text()
    assert text.index("figures/forest.svg") < text.index("other over all guests") < text.index("figures/metrics.svg")
    svg = (finished.path / "figures" / "forest.svg").read_text()
    for words in ("All guests by weight", "B: work, latency (inverted: lower is better)", "times as good as static"):
        assert words in svg
    assert "0.50" in svg


def test_a_metric_that_cannot_be_compared_has_no_place_among_the_ratios(finished):
    results = load_results(finished)
    run = next(run for run in results.runs if run.run.arm == "other")
    assert [label for label, _ in forest_rows(results)][1:] == [
        "A: reads, reads", "B: work, rate", "B: work, latency (inverted: lower is better)",
    ]  # fmt: skip
    nothing = msgspec.structs.replace(results, runs=(run,))
    assert forest_rows(nothing) == []


def test_the_closing_lines_are_the_metrics(finished):
    lines = list(metric_lines(load_results(finished)))
    assert "B: work, rate in 1/s: static 150 (100 to 200), other 75 (50 to 100)" in lines
    assert lines[-1].startswith("other over all guests by weight: ")


def test_what_programs_bring_is_kept_with_the_experiment(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "work.py").write_text("print('rate 1')")
    text = TEXT.replace('duration = "20s"', 'duration = "20s"\ncopy = ["own/work.py"]')
    spec = parsed(text, tmp_path / "try.toml")
    manifest = Manifest(
        name="try", file=spec.file, scale="1", arms=("static", "other"), repeats=2, command="", created_wall=1e9,
        accelerator={}, images={}, versions={}, host={}, footprints={},
    )  # fmt: skip
    made = ExperimentDirectory.create(tmp_path / "out", spec, manifest, text).specification
    (tmp_path / "own" / "work.py").unlink()  # changed meanwhile, it would go into some of the runs only
    kept = ExperimentDirectory.open_existing(tmp_path / "out").specification
    assert made.file == kept.file
    assert (Path(kept.file).parent / kept.guests[1].phases[1].copy[0]).read_text() == "print('rate 1')"


def test_sockets_and_commands_of_the_host_stay_where_they_were(tmp_path):
    (tmp_path / "work.py").write_text("")
    text = TEXT.replace('duration = "20s"', 'duration = "20s"\ncopy = ["work.py"]')
    text = text.replace('name = "B"', 'name = "B"\nattach = { monitor = "m", second_monitor = "n", agent = "a" }')
    spec = parsed(text, tmp_path / "try.toml")
    manifest = Manifest(
        name="try", file=spec.file, scale="1", arms=("static", "other"), repeats=2, command="", created_wall=1e9,
        accelerator={}, images={}, versions={}, host={}, footprints={},
    )  # fmt: skip
    ExperimentDirectory.create(tmp_path / "out", spec, manifest, text)
    kept = ExperimentDirectory.open_existing(tmp_path / "out").specification
    assert (kept.home, kept.guests[1].attach.monitor) == (str(tmp_path), str(tmp_path / "m"))


def test_a_metric_without_a_pattern_or_a_file_says_so():
    assert [key for key, _, _ in Metric(name="a", unit="1", better="higher").mistakes()] == ["pattern"]


def test_the_packages_of_the_image_are_those_of_every_guest():
    spec = parsed(TEXT.replace("[[guest]]", '[image]\npackages = ["sqlite3"]\n[[guest]]', 1))
    config = arm_configuration(spec, spec.arms[0], run_dir=Path("/run/x"))
    assert [Variant.of(guest.vm).packages for guest in config.guests] == [("sqlite3",)] * 2
