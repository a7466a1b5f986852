"""The small experiment on real guests: failure, interruption, resumption, and results that agree with the disks."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qmpalloc.experiment.analysis.results import load_results
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.record import ended

SMOKE = Path(__file__).parents[2] / "examples" / "smoke.toml"
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


class Command:
    """A ``qmpalloc`` command in the background, with its output in a file."""

    def __init__(self, log, *words):
        self.log = log
        with log.open("wb") as out:
            program = [sys.executable, "-m", "qmpalloc", *words]
            self.process = subprocess.Popen(program, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    @property
    def said(self):
        return self.log.read_text(errors="replace")

    def until(self, pattern, *, limit_s=300, after=0):
        """Wait until `pattern` is said, and return where that ends."""
        end_s = time.monotonic() + limit_s
        while not (match := re.compile(pattern).search(self.said, after)):
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end_s, self.said
            time.sleep(0.2)
        return match.end()

    def end(self, *, limit_s=600):
        try:
            code = self.process.wait(limit_s)
        finally:
            self.process.kill()
        print(self.said)
        return code


def guests_of(process):
    """Return the QEMU processes that a process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
            name = (status.parent / "comm").read_text().strip()
        except OSError:
            continue
        if int(fields[1]) == process.pid and name.startswith("qemu-system"):
            found.append(int(status.parent.name))
    return found


@pytest.fixture(scope="module")
def finished(image, tmp_path_factory):
    """The directory of the small experiment, after a guest was killed, an interruption, and a resumption."""
    base = tmp_path_factory.mktemp("smoke")
    directory = base / "out"
    command = Command(base / "run.log", "experiment", "run", str(SMOKE), "--out", str(directory))
    at = command.until(r"g2: QEMU runs")
    os.kill(guests_of(command.process)[0], signal.SIGKILL)
    at = command.until(r"repeat1-rule failed and does not count: guest g[12]: its QEMU was killed", after=at)
    command.until(r"g2: QEMU runs", after=at)
    assert len(guests_of(command.process)) == 2
    command.process.send_signal(signal.SIGINT)
    assert command.end() == 130
    assert f"go on with: qmpalloc experiment resume {directory}" in command.said
    assert "its QEMU was killed by signal 9" in (directory / "report.md").read_text()
    assert [run.name for run in ExperimentDirectory.open_existing(directory).outcomes()] == ["repeat1-rule"]

    resumed = Command(base / "resume.log", "experiment", "resume", str(directory))
    assert resumed.end() == 0
    return directory


def test_both_arms_ended_and_what_had_failed_is_kept(finished):
    outcomes = ExperimentDirectory.open_existing(finished).outcomes()
    assert {run.name: outcome.failed for run, outcome in outcomes.items()} == {
        "repeat1-rule": "",
        "repeat1-static": "",
    }
    aside = sorted(path.name for path in (finished / "runs").iterdir() if "set-aside" in path.name)
    assert aside == ["repeat1-rule.set-aside1", "repeat1-static.set-aside1"]


def test_every_arm_met_the_same_reads_and_the_collectors_agree_with_the_disks(finished):
    results = load_results(ExperimentDirectory.open_existing(finished))
    for run in results.runs:
        assert ended(finished / "runs" / run.run.name / "record.jsonl") is not None
        for guest, reads in (("g1", 80_000), ("g2", 40_000)):
            trials = run.guests[guest].trials.trials
            # The only other reader of files in a guest is its system, which hardly reads any.
            assert reads <= sum(trial.accesses for trial in trials) <= reads * 1.02 + 200
            misses_bytes = 4096 * sum(trial.misses for trial in trials)
            disk_bytes = sum(trial.disk_read_bytes for trial in trials)
            assert abs(disk_bytes - misses_bytes) <= 0.03 * misses_bytes + 2**20
            assert all(trial.actual_bytes <= 512 * 2**20 for trial in trials)


def test_the_disk_is_as_slow_as_the_model_says(finished):
    directory = ExperimentDirectory.open_existing(finished)
    disk = directory.disk()
    assert disk.iops == pytest.approx(1 / (50 * disk.hit_s), rel=0.01)
    for outcome in directory.outcomes().values():
        assert outcome.disk_iops == disk.iops
        # What a busy host adds to either time is no defect, but no disk is faster than its throttle.
        assert sorted(outcome.service) == ["g1", "g2"]
        assert all(service.miss_s > 0.8 / disk.iops for service in outcome.service.values())


def test_the_rule_moved_memory_and_the_static_arm_did_not(finished):
    with (finished / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:8] == [
        "arm", "repeat", "trial", "guest", "hits", "misses", "target_bytes", "actual_bytes",
    ]  # fmt: skip
    sizes = {arm: {int(row["target_bytes"]) for row in rows if row["arm"] == arm} for arm in ("static", "rule")}
    assert sizes["static"] == {384 * 2**20}
    assert len(sizes["rule"]) > 1


def test_the_report_has_everything(finished):
    summary = json.loads((finished / "summary.json").read_bytes())
    assert summary
    text = (finished / "report.md").read_text()
    assert re.search(r"rule finished in \d\.\d\d of the static time: one repeat", text)
    figures = {path.name for path in (finished / "figures").iterdir()}
    assert {"forest.svg", "hits.svg", "hits.png", "memory.svg", "phases.svg"} <= figures
    assert (finished / "report.html").read_text().count("data:image/") == 4


def test_the_report_is_made_again_from_the_records_alone(finished):
    made = ["trials.csv", "summary.json", "report.md", "report.html"]
    before = {name: (finished / name).read_bytes() for name in made}
    for name in made:
        (finished / name).unlink()
    assert Command(finished.parent / "report.log", "experiment", "report", str(finished)).end() == 0
    assert {name: (finished / name).read_bytes() for name in made} == before
