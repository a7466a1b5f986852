"""Sweeps without a cluster: their files, what a worker does with a task, and what is kept."""

import errno
import json
import os
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from msgspec import structs

from qmpalloc.cli import main
from qmpalloc.errors import ConfigError, HostError
from qmpalloc.experiment.analysis.results import load_results
from qmpalloc.experiment.store.directory import KEPT_BYTES
from qmpalloc.experiment.store.records import DiskCalibration, Manifest, Outcome
from qmpalloc.policy import load as load_policy
from qmpalloc.sweep import guests, store
from qmpalloc.sweep.engine import require_packages
from qmpalloc.sweep.report import write_report
from qmpalloc.sweep.spec import GuestsTask, key_of, load, parse
from qmpalloc.sweep.store import SweepDirectory
from qmpalloc.sweep.work import HostFacts, code_digest, work

EXAMPLES = Path(__file__).parents[2] / "examples"

QUICK = """
[sweep]
name = "quick"
seeds = [1, 2]
sizes = [0.75, 1.0]
interval = "2s"
warm_up = "2s"
duration = "4s"

[[policy]]
policy = "static"
[[policy]]
policy = "paper"
grid = { gate = ["literal", "dead-band"] }

[[load]]
name = "two"
budget = "700MiB"
[[load.guest]]
access = { distribution = "normal", deviation = 0.2 }
file = "128MiB"
rate = 4000
[[load.guest]]
access = { distribution = "zipf" }
file = "256MiB"
rate = 8000
"""
REAL = '[sweep]\nname = "real"\n[[experiment]]\nfile = "smoke.toml"\n'


@pytest.fixture
def quick(tmp_path):
    return parse(QUICK, file=tmp_path / "quick.toml")


def done(sweep, number=0):
    key = list(sweep.tasks)[number]
    return work(key, sweep.tasks[key], code_digest(), {})


def opened(tmp_path, sweep, **how):
    return SweepDirectory(tmp_path / "out", sweep, QUICK, **{"code": code_digest(), **how})


def test_the_example_is_a_sweep():
    assert len(load(EXAMPLES / "sweep.toml").tasks) == 200


def test_a_grid_is_every_policy_with_every_setting_size_and_seed(quick):
    tasks = list(quick.tasks.values())
    assert len(tasks) == 3 * 2 * 2
    assert [task.policy.name for task in tasks[:3]] == ["static", "paper gate=literal", "paper gate=dead-band"]
    assert {(task.size, task.seed) for task in tasks} == {(0.75, 1), (0.75, 2), (1.0, 1), (1.0, 2)}


def test_a_key_is_of_what_is_run_and_of_nothing_else(quick, tmp_path):
    more = parse(QUICK.replace("seeds = [1, 2]", "seeds = [3, 2, 1]"), file=tmp_path / "elsewhere.toml")
    assert set(quick.tasks) < set(more.tasks)
    longer = parse(QUICK.replace('"4s"', '"6s"'), file=tmp_path / "quick.toml")
    assert not set(quick.tasks) & set(longer.tasks)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("[sweep]", "[sweeps]"), "sweeps: unknown table"),
        (('policy = "static"', 'policy = "statik"'), "policy[0].policy: unknown policy 'statik'"),
        (('"dead-band"]', '"wide"]'), "policy[1].settings.gate: 'wide' is none of"),
        (("[[load.guest]]", "[[load.guests]]"), "load[0].guests: unknown key"),
        (('name = "two"', 'mix = "two"'), "no mix is called 'two'"),
        (('"normal"', '"normals"'), "load[0].guest[0].access.distribution: unknown distribution 'normals'"),
        (("sizes = [0.75, 1.0]", "sizes = [0.0, 1.0]"), "sweep.sizes: must be above 0"),
        (("sizes = [0.75, 1.0]", "sizes = [0.25, 1.0]"), "sweep.sizes: 0.25 times the budget of 'two' leaves nothing"),
        (("seeds = [1, 2]", "seeds = [1, 1]"), "sweep.seeds: is empty, or has a value twice"),
        (('"2s"', '"2ms"'), "sweep.interval: must be at least 1s"),
        (('name = "quick"', 'name = "a/b"'), "sweep.name: 'a/b' is not a name"),
        (('policy = "paper"', 'policy = "static"\n[[policy]]\npolicy = "paper"'), "'static' is there twice"),
        (("[[load]]", "[load]"), "load: no load is given"),
    ],
)
def test_a_mistake_is_told_with_file_and_key(tmp_path, change, told):
    with pytest.raises(ConfigError) as caught:
        parse(QUICK.replace(*change, 1), file=tmp_path / "quick.toml")
    assert told in str(caught.value)
    assert "quick.toml" in str(caught.value)
    assert any(part in str(caught.value) for part in ("hint: ", "is none of"))


def test_a_sweep_of_nothing_and_an_experiment_that_is_not_there_are_told(tmp_path):
    with pytest.raises(ConfigError, match="nothing is to be run"):
        parse('[sweep]\nname = "a"', file=tmp_path / "a.toml")
    with pytest.raises(ConfigError, match=r"experiment\[0\].file: .*smoke.toml: no such file"):
        parse(REAL, file=tmp_path / "a.toml")
    with pytest.raises(ConfigError, match=r"experiment\[0\].scales: not all are fractions"):
        parse(REAL + 'scales = ["quarter"]', file=EXAMPLES / "a.toml")


def test_the_same_task_has_the_same_outcome_to_the_digit(quick):
    first, second = done(quick, 1), done(quick, 1)
    assert first.row == second.row
    assert first.row.accesses == 48_000
    assert 0 < first.row.misses < first.row.accesses


OWN = """
def raises(snapshot):
    raise ValueError("no such luck")

def no_room(snapshot):
    import errno
    raise OSError(errno.ENOSPC, "No space left on device", "/scratch/a")

def ends(snapshot):
    raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("raises", "ValueError: no such luck (ours.py, line 3)"),
        ("no_room", "/scratch/a: No space left on device (make room there, or set TMPDIR for its worker)"),
        ("ends", "SystemExit: 3 (ours.py, line 10)"),
    ],
)
def test_a_task_that_raises_is_an_answer_that_names_the_place(tmp_path, monkeypatch, policy, told):
    monkeypatch.delitem(sys.modules, "ours", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ours.py").write_text(OWN)
    text = QUICK.replace('policy = "static"', f'policy = "ours:{policy}"', 1)
    sweep = parse(text, file=tmp_path / "quick.toml")
    assert sweep.own_modules == (tmp_path / "ours.py",)
    found = done(sweep)
    assert found.failed == told
    assert found.host
    assert "Traceback" in found.trace
    assert found.row is None


def test_a_worker_with_other_code_refuses(quick):
    key, task = next(iter(quick.tasks.items()))
    assert "another qmpalloc is installed there" in work(key, task, "0123", {}).failed


def test_what_is_done_is_not_done_again_and_what_failed_is(tmp_path, quick):
    directory = opened(tmp_path, quick)
    assert len(directory.left) == 12
    for number in (0, 1, 2):
        directory.add(done(quick, number))
    directory.add(structs.replace(done(quick, 3), failed="no luck", row=None))
    with (tmp_path / "out" / "done.jsonl").open("ab") as file:
        file.write(b'{"key": "cut o')
    again = opened(tmp_path, quick)
    assert again.left == list(quick.tasks)[3:]
    again.add(done(quick, 3))
    third = opened(tmp_path, quick)
    assert third.left == list(quick.tasks)[4:]
    assert third.done == again.done
    assert third.done[list(quick.tasks)[3]].row is not None


def test_more_of_a_grid_keeps_what_is_done(tmp_path, quick):
    directory = opened(tmp_path, quick)
    for number in range(12):
        directory.add(done(quick, number))
    more = parse(QUICK.replace("seeds = [1, 2]", "seeds = [1, 2, 3]"), file=tmp_path / "quick.toml")
    assert len(opened(tmp_path, more).left) == 6


def test_other_code_is_not_mixed_in_unless_asked(tmp_path, quick):
    opened(tmp_path, quick, code="0123")
    with pytest.raises(ConfigError, match="was begun with another qmpalloc"):
        opened(tmp_path, quick)
    assert opened(tmp_path, quick, anyway=True).left


def test_a_directory_with_something_else_and_one_of_another_version_are_refused(tmp_path, quick):
    place = tmp_path / "out"
    place.mkdir()
    (place / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="is not empty, and holds no sweep"):
        opened(tmp_path, quick)
    (place / "manifest.json").write_text('{"format": "qmpalloc-sweep", "version": 2, "code": "a"}')
    with pytest.raises(ConfigError, match=r"manifest.json: cannot be used: .*version"):
        opened(tmp_path, quick)


def test_a_full_disk_here_ends_the_sweep_with_what_to_do(tmp_path, quick, monkeypatch):
    directory = opened(tmp_path, quick)

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "append", full)
    with pytest.raises(HostError, match="out cannot be written: No space left on device") as caught:
        directory.add(done(quick))
    assert "give the same command again" in caught.value.hint


def test_results_are_the_same_as_csv_and_as_parquet(tmp_path, quick):
    parquet = pytest.importorskip("pyarrow.parquet")
    directory = opened(tmp_path, quick)
    for number in (4, 0, 2):
        directory.add(done(quick, number))
    write_report(directory)
    lines = (tmp_path / "out" / "results.csv").read_text().splitlines()
    rows = parquet.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert lines[0].split(",") == list(rows[0])
    assert [line.split(",") for line in lines[1:]] == [[str(value) for value in row.values()] for row in rows]
    assert [(row["seed"], row["policy"]) for row in rows] == [
        (1, "static"), (1, "paper gate=dead-band"), (2, "paper gate=literal"),
    ]  # fmt: skip
    assert "3 of 12 runs count, 0 failed." in (tmp_path / "out" / "report.md").read_text()


def test_policies_stand_beside_the_first_of_the_file_also_where_its_first_run_failed(tmp_path, quick):
    pytest.importorskip("pyarrow.parquet")
    directory = opened(tmp_path, quick)
    directory.add(done(quick, 1))
    write_report(directory)
    assert "misses, of static |" in (tmp_path / "out" / "report.md").read_text()


def test_a_missing_dask_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(HostError, match="distributed is not installed") as caught:
        require_packages()
    assert caught.value.hint == "pip install 'qmpalloc[sweep]'"
    (tmp_path / "quick.toml").write_text(QUICK)
    dry = CliRunner().invoke(main, ["sweep", str(tmp_path / "quick.toml"), "--dry-run"], standalone_mode=False)
    assert dry.output == "quick: 12 runs in the model, 0 on real guests\n"


HOSTS = {"a": {"machine": "x86_64", "cpus": 4}, "b": {"machine": "x86_64", "cpus": 16}}


@pytest.fixture
def fake_guests(monkeypatch):
    """Runs on guests that are none: each leaves a readings file, and measures its host's disk when asked to."""
    monkeypatch.setattr(guests, "prepare_experiment", lambda specification, report: None)
    host = {"name": "a"}

    def describe(specification, prepared, footprints, *, arms, command):
        return Manifest(
            name=specification.name, file=specification.file, scale=specification.scale,
            arms=tuple(arm.name for arm in specification.arms), repeats=specification.repeats, command=command,
            created_wall=0.0, accelerator={}, images={}, versions={}, host=HOSTS[host["name"]], footprints={},
        )  # fmt: skip

    async def run_arm(directory, run, prepared, traces, live):
        files = directory.run(run)
        files.begin()
        (files.path / "console-g1.log").write_text("hello\n")
        if directory.disk() is None:
            hit_s = {"a": 2e-6, "b": 1e-6}[host["name"]]
            directory.write_disk(DiskCalibration(model="ssd", hit_s=hit_s, iops=round(0.02 / hit_s)))
        outcome = Outcome(
            arm=run.arm, repeat=run.repeat, started_wall=0.0, total_s=1.0, load_s=None, disk_iops=directory.disk().iops,
            failed="it died" if (run.arm, host["name"]) == ("rule", "b") else "",
        )  # fmt: skip
        files.write_outcome(outcome)
        return outcome

    monkeypatch.setattr(guests, "describe", describe)
    monkeypatch.setattr(guests, "run_arm", run_arm)
    yield host
    guests.forget()


def test_runs_on_guests_come_back_from_several_hosts_as_one_experiment(tmp_path, fake_guests, monkeypatch):
    sweep = parse(REAL + "repeats = 2", file=EXAMPLES / "real.toml")
    (real,) = sweep.experiments
    assert [type(task) for task in sweep.tasks.values()] == [GuestsTask] * 4
    directory = SweepDirectory(tmp_path / "out", sweep, REAL, code=code_digest())
    directory.note_hosts({
        name: HostFacts(host=name, code="", python="3.11", cpus=cpus["cpus"], kernel="6", qemu="qemu")
        for name, cpus in HOSTS.items()
    })  # fmt: skip
    for key, task in sweep.tasks.items():
        name = fake_guests["name"] = "ab"[task.repeat - 1]
        guests.forget()  # another host is another process
        monkeypatch.setattr("qmpalloc.sweep.work.socket.gethostname", lambda name=name: name)
        directory.add(work(key, task, code_digest(), directory.disks(real.name)))
    found = directory.experiment(sweep.experiments[0])
    assert sorted(path.name for path in (found.path / "runs").iterdir()) == [
        "repeat1-rule", "repeat1-static", "repeat2-rule", "repeat2-static",
    ]  # fmt: skip
    assert (found.path / "runs" / "repeat2-static" / "console-g1.log").read_text() == "hello\n"
    assert found.manifest.file == str(EXAMPLES / "smoke.toml")
    assert found.manifest.changes == (
        "on host b: host's cpus is 16 (was 4)",
        "on host b: a hit takes 1 µs (elsewhere 2 µs), its disks are throttled at 20000/s (elsewhere 10000/s)",
    )
    assert {run: outcome.disk_iops for run, outcome in found.outcomes().items() if run.arm == "static"} == {
        run: [10000, 20000][run.repeat - 1] for run in found.outcomes() if run.arm == "static"
    }
    assert directory.left == [key_of(task) for task in sweep.tasks.values() if (task.arm, task.repeat) == ("rule", 2)]
    assert len(load_results(found).failed) >= 1
    write_report(directory)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "3 of 4 runs count, 1 failed." in report
    assert "host b: it died" in report
    assert f"{real.name}: a hit 1 µs, 20000 operations/s" in report
    reread = SweepDirectory(tmp_path / "out", sweep, REAL, code=code_digest())
    assert reread.left == directory.left
    assert reread.disks(real.name) == directory.disks(real.name)


def test_a_task_for_guests_brings_what_lies_beside_its_experiment(tmp_path):
    sweep = parse(REAL.replace("smoke.toml", "program-grows.toml"), file=EXAMPLES / "real.toml")
    task = next(iter(sweep.tasks.values()))
    guests.unpack(task.files, tmp_path)
    assert (tmp_path / "grows.py").read_bytes() == (EXAMPLES / "grows.py").read_bytes()
    assert msgspec.convert(json.loads(msgspec.json.encode(task)), GuestsTask) == task


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An experiment that brings a program, a directory and a policy, all its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "ours", raising=False)
    yield write_own(tmp_path / "own")
    sys.modules.pop("ours", None)


def write_own(place, version=1):
    """Write an experiment whose policy fails with its version."""
    (place / "data").mkdir(parents=True, exist_ok=True)
    (place / "data" / "a.txt").write_text("a")
    (place / "bench").write_text("#!/bin/sh\n")
    (place / "bench").chmod(0o755)
    (place / "ours.py").write_text(f"VERSION = {version}\ndef decide(snapshot): raise ValueError(VERSION)\n")
    text = (EXAMPLES / "smoke.toml").read_text().replace('policy = "static"', 'policy = "ours:decide"')
    image = '[image]\nfiles = { "/opt/data" = "data", "/opt/bench" = "bench" }\n'
    (place / "smoke.toml").write_text(image + text)
    return place


def test_what_an_experiment_brings_keeps_its_modes_and_directories(own, tmp_path):
    (real,) = parse(REAL, file=own / "real.toml").experiments
    guests.unpack(real.files, tmp_path / "there")
    assert os.access(tmp_path / "there" / "bench", os.X_OK)
    assert not os.access(tmp_path / "there" / "ours.py", os.X_OK)
    assert (tmp_path / "there" / "data" / "a.txt").read_text() == "a"
    assert parse(REAL, file=own / "real.toml").experiments[0].files == real.files


def test_what_is_too_large_to_be_sent_is_told_when_the_sweep_is_read(own):
    with (own / "data" / "large").open("wb") as file:
        file.truncate(KEPT_BYTES)
    with pytest.raises(ConfigError, match=r"brings more than 64 MiB with \S+, too much to send with each run"):
        parse(REAL, file=own / "real.toml")


def test_an_edited_policy_of_an_experiment_is_run_as_it_is_now(own, fake_guests, tmp_path, monkeypatch):
    seen = []

    async def run_arm(directory, run, prepared, traces, live):
        directory.run(run).begin()
        arm = next(arm for arm in directory.specification.arms if arm.name == run.arm)
        load_policy(arm.policy, arm.settings, file=directory.specification.file)
        seen.append(getattr(sys.modules.get("ours"), "VERSION", None))
        return Outcome(arm=run.arm, repeat=run.repeat, started_wall=0.0, total_s=1.0, load_s=None)

    monkeypatch.setattr(guests, "run_arm", run_arm)
    tasks = []
    for version in (1, 2):
        sweep = parse(REAL, file=write_own(own, version) / "real.toml")
        tasks += [pair for pair in sweep.tasks.items() if pair[1].arm == "static"]
        sys.modules.pop("ours", None)  # the worker is another process
        sys.path.remove(str(own))
    for key, task in tasks:
        assert work(key, task, code_digest(), {}).failed == ""
    assert seen == [1, 2]


def test_more_repeats_keep_what_is_done_and_are_reported_and_another_experiment_has_another_directory(
    own, fake_guests, tmp_path
):
    text = REAL + "repeats = {}"

    def run(repeats):
        sweep = parse(text.format(repeats), file=own / "real.toml")
        directory = SweepDirectory(tmp_path / "out", sweep, REAL, code=code_digest())
        left = directory.left
        for key in left:
            directory.add(work(key, sweep.tasks[key], code_digest(), {}))
        assert directory.left == []
        return len(left), directory.experiment(sweep.experiments[0])

    assert run(2)[0] == 4
    left, found = run(3)
    assert left == 2
    assert len(found.outcomes()) == found.manifest.repeats * 2 == 6
    assert not list(found.path.glob("runs/*set-aside*"))
    path = found.path
    toml = own / "smoke.toml"
    toml.write_text(toml.read_text().replace("repeats = 1", "repeats = 2"))
    assert run(2)[0] == 0
    toml.write_text(toml.read_text().replace("rounds = 40", "rounds = 50"))
    left, found = run(2)
    assert left == len(found.outcomes()) == 4
    assert {guest.phases[0].rounds for guest in found.specification.guests} == {50}
    assert found.path != path
    assert len(list(path.glob("runs/*"))) == 6


def test_a_policy_of_ones_own_that_was_edited_is_another(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "ours", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    text = QUICK.replace('policy = "static"', 'policy = "ours:raises"', 1)
    (tmp_path / "ours.py").write_text(OWN)
    before = parse(text, file=tmp_path / "quick.toml").tasks
    (tmp_path / "ours.py").write_text(OWN.replace("no such luck", "other luck"))
    after = parse(text, file=tmp_path / "quick.toml").tasks
    assert len(before.keys() & after.keys()) == 8, "those of the others"


def test_a_task_holds_the_curves_that_lie_in_a_file(tmp_path):
    text = QUICK.replace('policy = "static"', 'policy = "oracle"\nsettings = { file = "curves.json" }', 1)

    def parsed(ratio):
        curves = {"g1": [{"sizes": ["192MiB", "256MiB"], "miss_ratio": [0.4, ratio]}]}
        said = {"format": "qmpalloc-curves", "version": 1, "curves": curves}
        (tmp_path / "curves.json").write_text(json.dumps(said))
        return parse(text, file=tmp_path / "quick.toml")

    before, after = parsed(0.1), parsed(0.2)
    (tmp_path / "curves.json").unlink()
    assert done(after).failed == ""
    assert done(after).row.policy == "oracle file=curves.json"
    assert len(before.tasks.keys() & after.tasks.keys()) == 8
