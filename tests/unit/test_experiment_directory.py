"""The directory of an experiment: what is written is found again, and nothing is overwritten."""

import sys
from pathlib import Path

import pytest

from qmpalloc.errors import ConfigError
from qmpalloc.experiment.spec import parsing
from qmpalloc.experiment.spec.plan import ArmRun, planned
from qmpalloc.experiment.store.directory import ExperimentDirectory, chosen
from qmpalloc.experiment.store.records import DiskCalibration, Manifest, Outcome, Reading

SMOKE = Path(__file__).parents[2] / "examples" / "smoke.toml"


def manifest(**changes):
    fields = {
        "name": "smoke", "file": str(SMOKE), "scale": "1/2", "arms": ("static", "rule"), "repeats": 2, "command": "",
        "created_wall": 0.0, "accelerator": {}, "images": {}, "versions": {}, "host": {}, "footprints": {},
    }  # fmt: skip
    return Manifest(**fields | changes)


def reading(trial, guest="g1"):
    return Reading(
        trial=trial, t=3.0 * trial, guest=guest, monotonic_ns=trial, accesses=10 * trial, misses=trial, refaults=None,
        evictions=None, events_lost=0, target_bytes=1, actual_bytes=1, disk_read_bytes=0, disk_reads=0, disk_read_ns=0,
        load=None,
    )  # fmt: skip


@pytest.fixture
def directory(tmp_path):
    return ExperimentDirectory.create(tmp_path / "out", parsing.load(SMOKE), manifest(), SMOKE.read_text())


def outcome(arm, repeat, **fields):
    return Outcome(arm=arm, repeat=repeat, started_wall=0.0, total_s=60.0, load_s=None, **fields)


def test_an_experiment_is_found_again_scaled_and_with_its_repeats(directory):
    found = ExperimentDirectory.open_existing(directory.path)
    assert found.manifest == directory.manifest
    assert (found.specification.scale, found.specification.repeats) == ("1/2", 2)
    assert found.specification.budget == parsing.load(SMOKE).budget // 2


def test_a_directory_with_something_in_it_is_refused(directory):
    with pytest.raises(ConfigError, match="is not empty") as caught:
        ExperimentDirectory.check_new(directory.path)
    assert "experiment resume" in caught.value.hint


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="not a directory"):
        ExperimentDirectory.check_new(tmp_path / "out")


def test_a_directory_without_an_experiment_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no experiment"):
        ExperimentDirectory.open_existing(tmp_path)


def test_a_manifest_of_another_kind_is_refused(directory):
    (directory.path / "manifest.json").write_text('{"format": "else"}')
    with pytest.raises(ConfigError, match=r"manifest\.json: cannot be used"):
        ExperimentDirectory.open_existing(directory.path)


def test_only_runs_with_an_outcome_have_ended(directory):
    for arm in ("static", "rule"):
        directory.run(ArmRun(1, arm)).begin()
    directory.run(ArmRun(1, "rule")).write_outcome(outcome("rule", 1, failed="it died"))
    assert {run.name: found.failed for run, found in directory.outcomes().items()} == {"repeat1-rule": "it died"}


def test_what_an_interrupted_run_left_is_kept_beside_the_next_try(directory):
    run = directory.run(ArmRun(1, "static"))
    for attempt in range(3):
        run.begin()
        run.append_readings([reading(attempt)])
    assert [found.trial for found in run.readings()] == [2]
    names = sorted(path.name for path in run.path.parent.iterdir())
    assert names == ["repeat1-static", "repeat1-static.set-aside1", "repeat1-static.set-aside2"]


def test_a_failed_run_that_was_set_aside_is_no_outcome(directory):
    run = directory.run(ArmRun(1, "static"))
    run.begin()
    run.write_outcome(outcome("static", 1, failed="it died"))
    run.begin()
    assert directory.outcomes() == {}


def test_an_arm_may_be_called_as_what_is_set_aside(tmp_path):
    text = SMOKE.read_text().replace('name = "rule"', 'name = "static.set-aside1"')
    specification = parsing.parse(text, file=tmp_path / "x.toml")
    directory = ExperimentDirectory.create(tmp_path / "out", specification, manifest(arms=()), text)
    for name in ("static", "static.set-aside1"):
        run = directory.run(ArmRun(1, name))
        run.begin()
        run.write_outcome(outcome(name, 1))
    assert len(directory.outcomes()) == 2


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b'{"arm": 1}'])
def test_a_run_of_which_the_outcome_cannot_be_read_is_run_again(directory, data):
    run = directory.run(ArmRun(1, "static"))
    run.begin()
    (run.path / "outcome.json").write_bytes(data)
    assert directory.left() == planned(directory.specification)


@pytest.mark.parametrize("name", ["readings.jsonl", "load-g2.json"])
def test_a_run_that_was_spoilt_after_its_end_is_run_again(directory, name):
    run = directory.run(ArmRun(1, "static"))
    run.begin()
    run.write_outcome(outcome("static", 1))
    assert ArmRun(1, "static") not in directory.left()
    (run.path / name).write_bytes(b"\xff\n")
    assert directory.left() == planned(directory.specification)


@pytest.mark.parametrize("scale", ["1/0", "x", "1e9", "-1", "0"])
def test_a_scale_that_is_none_is_named(directory, scale):
    file = directory.path / "manifest.json"
    file.write_text(file.read_text().replace('"1/2"', f'"{scale}"'))
    with pytest.raises(ConfigError, match=r"manifest\.json: cannot be used"):
        ExperimentDirectory.open_existing(directory.path)


def test_readings_come_back_and_a_cut_off_last_line_is_left_out(directory):
    run = directory.run(ArmRun(1, "static"))
    run.begin()
    run.append_readings([reading(0), reading(0, "g2")])
    run.append_readings([reading(1), reading(1, "g2")])
    with run.readings_file.open("ab") as file:
        file.write(b'{"trial": 2, "t')
    assert [(found.trial, found.guest) for found in run.readings()] == [(0, "g1"), (0, "g2"), (1, "g1"), (1, "g2")]


def test_a_line_that_is_no_reading_is_named(directory):
    run = directory.run(ArmRun(1, "static"))
    run.begin()
    run.readings_file.write_text("{}\n")
    with pytest.raises(ConfigError, match=r"readings\.jsonl: cannot be used"):
        run.readings()


def test_the_throttle_is_measured_once(directory):
    assert directory.disk() is None
    calibration = DiskCalibration(model="ssd", hit_s=2e-5, iops=1000)
    directory.write_disk(calibration)
    assert ExperimentDirectory.open_existing(directory.path).disk() == calibration


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: is not a directory"):
        ExperimentDirectory.check_new(tmp_path / "file" / "out")


def test_a_place_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(ConfigError, match="cannot be written by you"):
        ExperimentDirectory.check_new(tmp_path / "new" / "out")


def test_runs_that_did_not_end_or_failed_are_left(directory):
    directory = ExperimentDirectory.open_existing(directory.path)
    names = [run.name for run in directory.left()]
    assert sorted(names) == ["repeat1-rule", "repeat1-static", "repeat2-rule", "repeat2-static"]
    for run, failed in ((ArmRun(1, "rule"), ""), (ArmRun(2, "static"), "it died")):
        directory.run(run).begin()
        directory.run(run).write_outcome(outcome(run.arm, run.repeat, failed=failed))
    assert [run.name for run in directory.left()] == [name for name in names if name != "repeat1-rule"]


def test_changes_are_added_to_the_manifest(directory):
    directory.note_changes(["trio is 2"])
    ExperimentDirectory.open_existing(directory.path).note_changes(["trio is 3"])
    assert ExperimentDirectory.open_existing(directory.path).manifest.changes == ("trio is 2", "trio is 3")


OWN = """
from own_helper import AMOUNT
class Own:
    def decide(self, snapshot): return AMOUNT
"""


@pytest.mark.parametrize("kind", ["module", "package"])
def test_a_policy_beside_the_file_is_kept_and_goes_with_the_directory(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("own_module", "own_package", "own_helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    (home / "own_helper.py").write_text("AMOUNT = 1")
    if kind == "module":
        (home / "own_module.py").write_text(OWN)
    else:
        (home / "own_package").mkdir()
        (home / "own_package" / "__init__.py").write_text(OWN)
    file = home / "x.toml"
    file.write_text(SMOKE.read_text().replace('"paper"', f'"own_{kind}:Own"').replace("settings =", "# settings ="))
    made = ExperimentDirectory.create(
        tmp_path / "out", parsing.load(file), manifest(file=str(file), scale="1"), file.read_text()
    )
    if kind == "module":
        (home / "own_module.py").write_text("it was changed meanwhile: no Python any more")
    else:
        (home / "own_package").rename(home / "gone")
    made.path.rename(tmp_path / "elsewhere")
    for name in ("own_module", "own_package", "own_helper"):
        sys.modules.pop(name, None)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(home)])
    found = ExperimentDirectory.open_existing(tmp_path / "elsewhere")
    assert found.manifest.policies == ({"module": "own_module.py", "package": "own_package"}[kind],)
    assert Path(sys.modules[f"own_{kind}"].__file__).is_relative_to(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("repeats", "arms", "message"),
    [
        (1, ("rule", "none"), "no arm is called 'none'"),
        (1, ("rule",), "the reference arm 'static' is left out"),
        (0, (), "must be from 1 to 1000"),
        (10**9, (), "must be from 1 to 1000"),
    ],
)
def test_a_choice_that_is_no_experiment_is_refused(repeats, arms, message):
    with pytest.raises(ConfigError, match=message):
        chosen(parsing.load(SMOKE), repeats=repeats, arms=arms)
